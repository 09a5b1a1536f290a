// The pause program of the one-machine cluster: a static binary that holds a pod's namespaces.
module llmrouter.dev/tools/cluster/pause

go 1.24.0
