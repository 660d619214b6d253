{{- /* Put before each template of the stages: names for what they use. */ -}}
{{- $pod := . -}}
{{- $now := Now -}}
{{- $notes := or .metadata.annotations dict -}}
{{- $bad := dict "fault" "none" "name" "" "late" false -}}
{{- range $container := .spec.containers -}}
{{- $words := splitList ":" .image | rest | last | default "" | splitList "-" -}}
{{- range $words -}}
{{- if and (hasKey $tags .) (not $bad.name) -}}
{{- $bad = dict "fault" (index $tags .) "name" $container.name "late" (regexMatch "-[0-9]+s(-|$)" $container.image) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $fault := or (index $notes "lab.kreflex.dev/fault") $bad.fault -}}
{{- $late := or (index $notes "lab.kreflex.dev/after-seconds") $bad.late -}}
{{- $victim := or (index $notes "lab.kreflex.dev/container") "" -}}
{{- if and (not $victim) (eq $fault "init-crash") .spec.initContainers -}}{{- $victim = (index .spec.initContainers 0).name -}}{{- end -}}
{{- if not (or $victim (index $notes "lab.kreflex.dev/fault")) -}}{{- $victim = $bad.name -}}{{- end -}}
{{- if and (not $victim) .spec.containers -}}{{- $victim = (index .spec.containers 0).name -}}{{- end -}}
{{- $sidecars := list -}}
{{- range .spec.initContainers -}}{{- if eq (or .restartPolicy "") "Always" -}}{{- $sidecars = append $sidecars .name -}}{{- end -}}{{- end -}}
{{- $main := list -}}
{{- range .spec.containers -}}{{- $main = append $main .name -}}{{- end -}}
{{- $probed := list -}}
{{- range concat (or .spec.initContainers list) (or .spec.containers list) -}}{{- if .readinessProbe -}}{{- $probed = append $probed .name -}}{{- end -}}{{- end -}}
{{- $lists := list "initContainerStatuses" "containerStatuses" -}}

{{- define "condition" -}}
{{- /* A condition; the time of its last transition stays when its status does. */ -}}
{{- $since := .now -}}
{{- $type := .type -}}
{{- $status := .status -}}
{{- range .pod.status.conditions -}}
{{- if and (eq .type $type) (eq .status $status) -}}{{- $since = .lastTransitionTime -}}{{- end -}}
{{- end -}}
{{- $condition := dict "type" .type "status" .status "lastProbeTime" nil "lastTransitionTime" $since "reason" nil "message" nil -}}
{{- if .reason -}}{{- $_ := set $condition "reason" .reason -}}{{- end -}}
{{- if .message -}}{{- $_ := set $condition "message" .message -}}{{- end -}}
- {{ $condition | toJson }}
{{ end -}}

{{- define "readiness" -}}
{{- /* Ready and ContainersReady, from the names of the containers that are not. */ -}}
{{- $status := "True" -}}
{{- $reason := "" -}}
{{- $message := "" -}}
{{- if .unready -}}
{{- $status = "False" -}}
{{- $reason = "ContainersNotReady" -}}
{{- $message = printf "containers with unready status: [%s]" (join " " .unready) -}}
{{- end -}}
{{- template "condition" (dict "pod" .pod "now" .now "type" "Ready" "status" $status "reason" $reason "message" $message) -}}
{{- template "condition" (dict "pod" .pod "now" .now "type" "ContainersReady" "status" $status "reason" $reason "message" $message) -}}
{{- end -}}
