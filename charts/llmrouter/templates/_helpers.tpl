{{/* Name of everything of this release. */}}
{{- define "llmrouter.fullname" -}}
{{- if contains "llmrouter" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-llmrouter" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llmrouter.operator" -}}{{ include "llmrouter.fullname" . }}-operator{{- end -}}
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
- apiGroups: [""]
  resources: [configmaps, services, serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch]
{{- end -}}
