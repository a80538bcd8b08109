{{/* The pools that are enabled, each merged over poolDefaults, as {name: pool} in JSON. */}}
{{- define "expertd.pools" -}}
{{- $pools := dict -}}
{{- range $name, $pool := .Values.pools -}}
{{- if ne (toString $pool.enabled) "false" -}}
{{- $_ := set $pools $name (mustMergeOverwrite (deepCopy $.Values.poolDefaults) (deepCopy $pool)) -}}
{{- end -}}
{{- end -}}
{{- toJson $pools -}}
{{- end -}}

{{- define "expertd.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 42 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 42 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{- define "expertd.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}{{ include "expertd.fullname" . }}{{- else -}}default{{- end -}}
{{- end -}}

{{- define "expertd.selector" -}}
app.kubernetes.io/name: expertd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "expertd.labels" -}}
{{ include "expertd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* The two above for one pool: call with (dict "root" $ "pool" $name). */}}
{{- define "expertd.poolSelector" -}}
{{ include "expertd.selector" .root }}
expertd/pool: {{ .pool }}
{{- end -}}

{{- define "expertd.poolLabels" -}}
{{ include "expertd.labels" .root }}
expertd/pool: {{ .pool }}
{{- end -}}
