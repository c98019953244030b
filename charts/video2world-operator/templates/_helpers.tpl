{{- define "v2w.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "v2w.account" -}}
{{- default (include "v2w.name" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "v2w.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "v2w.labels" -}}
{{ include "v2w.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "v2w.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/*
apiVersion of an optional kind: of the versions that the cluster serves, a known one, else any.
The argument is a list: the root context, group, kind, the known versions (best first), the value.
*/}}
{{- define "v2w.servedVersion" -}}
{{- $root := index . 0 -}}
{{- $prefix := printf "%s/" (index . 1) -}}
{{- $suffix := printf "/%s" (index . 2) -}}
{{- $found := list -}}
{{- range index . 3 -}}
{{- if $root.Capabilities.APIVersions.Has (printf "%s%s%s" $prefix . $suffix) -}}
{{- $found = append $found (printf "%s%s" $prefix .) -}}
{{- end -}}
{{- end -}}
{{- range $root.Capabilities.APIVersions -}}
{{- if and (hasPrefix $prefix .) (hasSuffix $suffix .) -}}
{{- $found = append $found (trimSuffix $suffix .) -}}
{{- end -}}
{{- end -}}
{{- if not $found -}}
{{- fail (printf "%s: the cluster does not serve the kind %s of %s: install the Prometheus operator, or set the value to false (rendering without a cluster: add --api-versions %s%s%s)" (index . 4) (index . 2) (index . 1) $prefix (first (index . 3)) $suffix) -}}
{{- end -}}
{{- first $found -}}
{{- end -}}
