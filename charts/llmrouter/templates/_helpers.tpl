{{/* Name of everything of this release. */}}
{{- define "llmrouter.fullname" -}}
{{- if contains "llmrouter" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-llmrouter" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llmrouter.operator" -}}{{ include "llmrouter.fullname" . }}-operator{{- end -}}
{{- define "llmrouter.front" -}}{{ include "llmrouter.fullname" . }}-front{{- end -}}
{{- define "llmrouter.redis" -}}{{ include "llmrouter.fullname" . }}-redis{{- end -}}

{{/* Labels of one component; call with (dict "root" . "component" "operator"). */}}
{{- define "llmrouter.selector" -}}
app.kubernetes.io/name: llmrouter
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}
{{- define "llmrouter.labels" -}}
{{ include "llmrouter.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "llmrouter.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- define "llmrouter.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What the operator may do in the namespaces that it looks after. It must hold what it gives to routers. */}}
{{- define "llmrouter.rules" -}}
- apiGroups: [llmrouter.dev]
  resources: [llmrouters, routingpolicies]
  verbs: [get, list, watch]
- apiGroups: [llmrouter.dev]
  resources: [llmrouters/status]
  verbs: [patch]
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [configmaps, services, serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- if .Values.operator.models.credentials }}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch]
{{- if .Values.rebalance.enabled }}
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get]
- apiGroups: [apps]
  resources: [deployments/scale, statefulsets/scale]
  verbs: [update]
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [get]
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets/scale]
  verbs: [update]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list]
- apiGroups: [""]
  resources: [pods]
  verbs: [patch]
{{- end }}
{{- end -}}

{{/* The front's files: values in place of the words in capitals, and without the sections that are not wanted. */}}
{{- define "llmrouter.frontFiles" -}}
{{- $front := .Values.frontend.envoy -}}
{{- $namespace := $front.router.namespace | default .Release.Namespace -}}
{{- /* Each process of a router pod has a port behind the one that they share: Envoy's few connections stay where they are. */ -}}
{{- $first := int $front.router.port -}}
{{- $ports := list $first -}}
{{- if gt (int $front.router.processes) 1 }}
{{- $ports = untilStep (add1 $first | int) (add1 $first | add $front.router.processes | int) 1 }}
{{- end }}
{{- $pickers := list -}}
{{- range $ports }}
{{- $pickers = append $pickers (printf "{endpoint: {address: {socket_address: {address: %s-routers.%s.svc, port_value: %d}}}}" (include "llmrouter.front" $) $namespace .) }}
{{- end }}
{{- $wanted := dict
  "client TLS" (ne $front.tls.secretName "")
  "access log" $front.accessLog
  "instance header" $front.instanceHeader
  "probes" true
  "picker TLS" $front.router.tls
-}}
{{- $words := dict
  "ADDRESS" $front.address
  "PORT" "8080"
  "ADMIN_PORT" "9901"
  "PROBE_PORT" "9902"
  "PICKERS" (join ", " $pickers)
  "TLS_FILE" "/etc/llmrouter-front/tls.yaml"
  "TLS_FOLDER" "/etc/llmrouter-front-tls"
  "IDLE_S" (int $front.timeouts.idleSeconds | toString)
  "REQUEST_S" (int $front.timeouts.requestSeconds | toString)
  "CONNECTIONS" (int $front.limits.connections | toString)
  "REQUESTS" (int $front.limits.requests | toString)
  "STREAMS" (int $front.limits.streamsPerRouterConnection | toString)
  "HEAP_BYTES" (int64 $front.limits.heapBytes | toString)
  "BODY_BYTES" (int $front.limits.bodyBytes | toString)
  "TRUSTED_HOPS" (int $front.trustedHops | toString)
  "DRAIN_S" (int $front.drainSeconds | toString)
  "REQUEST_BODY" "BUFFERED"
  "ANSWER_BODY" "STREAMED"
  "GO_ON_ALONE" "true"
-}}
{{- range $file := list "envoy.yaml" "tls.yaml" "drain.sh" }}
{{- if or (ne $file "tls.yaml") $front.tls.secretName }}
{{- $text := $.Files.Get (printf "files/%s" $file) }}
{{- range $section, $is := $wanted }}
{{- if not $is }}
{{- $text = regexReplaceAll (printf "(?s)# only with %s\n.*?# end of %s\n" $section $section) $text "\n" }}
{{- end }}
{{- end }}
{{- range $word, $value := $words }}
{{- $text = replace (printf "${%s}" $word) $value $text }}
{{- end }}
{{ $file }}: |
{{ $text | indent 2 }}
{{- end }}
{{- end }}
{{- end -}}
