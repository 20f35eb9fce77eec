{{/* The name that everything of a release begins with. */}}
{{- define "karman.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-karman" .Release.Name) (contains "karman" .Release.Name) -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Values that each are right, but not together, or not with what the chart does by itself. An environment variable of a pod would
win over such a key without a word. */}}
{{- define "karman.refuse" -}}
{{- $chart := dict
  "clusterSecret" "clusterSecret.existingSecret"
  "tlsServerCertPath" "tls.existingSecret"
  "tlsServerKeyPath" "tls.existingSecret"
  "internalTlsCaPath" "internalTls.existingSecret"
  "internalTlsCertPath" "internalTls.existingSecret"
  "internalTlsKeyPath" "internalTls.existingSecret"
  "grpcListenAddress" "its services and probes rely on the port"
  "metricsListenAddress" "its services and probes rely on the port"
  "storePathRootDir" "persistence" }}
{{- $broker := dict
  "brokerClusterName" "clusterName"
  "brokerName" "broker.sets"
  "brokerId" "the number of the pod"
  "namesrvAddr" "namesrv.replicas"
  "enableControllerMode" "always true"
  "controllerAddr" "namesrv.replicas"
  "advertisedAddress" "the name of the pod"
  "internalAdvertisedAddress" "the name of the pod"
  "internalListenAddress" "its services rely on the port" }}
{{- $namesrv := dict
  "enableControllerInNamesrv" "always true"
  "controllerPeers" "namesrv.replicas"
  "controllerSelfId" "the number of the pod"
  "controllerStorePath" "persistence" }}
{{- range $role, $own := dict "broker" $broker "namesrv" $namesrv }}
{{- range $key, $instead := merge $own $chart }}
{{- if hasKey (index $.Values $role "config") $key }}
{{- fail (printf "%s.config.%s: the chart sets this key itself (%s)" $role $key $instead) }}
{{- end }}
{{- end }}
{{- end }}
{{- if has "namesrv" .Values.broker.sets }}
{{- fail "broker.sets: no set can have the name namesrv, which the namesrvs' StatefulSet has" }}
{{- end }}
{{- $replicas := int .Values.broker.replicas }}
{{- range $key := list "inSyncReplicas" "minInSyncReplicas" }}
{{- if gt (int (dig $key 0 $.Values.broker.config)) $replicas }}
{{- fail (printf "broker.config.%s: a set of broker.replicas=%d can never have so many" $key $replicas) }}
{{- end }}
{{- end }}
{{- if and (eq $replicas 1) (hasPrefix "replicated" (dig "defaultDurability" "" .Values.broker.config)) }}
{{- fail "broker.config.defaultDurability: with broker.replicas=1 there is nobody else to have a message; memory or disk is allowed" }}
{{- end }}
{{- end }}

{{- define "karman.selector" -}}
app.kubernetes.io/name: karman
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "karman.labels" -}}
{{ include "karman.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "karman.secret" -}}
{{ .Values.clusterSecret.existingSecret | default (printf "%s-cluster-secret" (include "karman.fullname" .)) }}
{{- end }}

{{/* What comes behind a pod's name and its service's in DNS. */}}
{{- define "karman.domain" -}}
{{ printf "%s.svc.%s" .Release.Namespace .Values.clusterDomain }}
{{- end }}

{{/* host:9876 of each namesrv, as a JSON list. */}}
{{- define "karman.namesrvs" -}}
{{- $name := printf "%s-namesrv" (include "karman.fullname" .) -}}
{{- $hosts := list -}}
{{- range $id := untilStep 1 (int (add1 .Values.namesrv.replicas)) 1 -}}
{{- $hosts = append $hosts (printf "%s-%d.%s-headless.%s:9876" $name $id $name (include "karman.domain" $)) -}}
{{- end -}}
{{ toJson $hosts }}
{{- end }}

{{/* Keys and values as TOML: scalars are written as in JSON. */}}
{{- define "karman.toml" -}}
{{- range $key, $value := . }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}

{{/* Of a pod: who runs it. The number is the image's USER. */}}
{{- define "karman.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* Of a container: how it is watched and stopped. A log may take minutes to be read after a crash; the probes' port is there
when that is done. The pause before SIGTERM is for those who still are sent here. A master hands over by itself. */}}
{{- define "karman.life" -}}
securityContext:
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: { drop: [ALL] }
startupProbe:
  httpGet: { path: /startupz, port: metrics }
  periodSeconds: 2
  failureThreshold: {{ div (add1 .Values.startupTimeoutSeconds) 2 }}
livenessProbe:
  httpGet: { path: /livez, port: metrics }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: metrics }
  periodSeconds: 5
  timeoutSeconds: 5
lifecycle:
  preStop:
    sleep: { seconds: 5 }
{{- end }}

{{/* Where pods of one kind may be. The argument: values, and the labels of the kind. */}}
{{- define "karman.antiAffinity" -}}
podAntiAffinity:
{{- if eq .mode "required" }}
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- .labels | nindent 10 }}
{{- else }}
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- .labels | nindent 12 }}
{{- end }}
{{- end }}
