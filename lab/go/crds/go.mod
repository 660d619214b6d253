// Modules whose archives hold custom resource definitions; nothing is built from them, so `go mod tidy` would empty this
// file. After a change: go mod download -json MODULE@VERSION, and its Sum and GoModSum into go.sum.
module kreflex.dev/lab/crds

go 1.26.0

require (
	github.com/argoproj/argo-cd/v3 v3.5.7
	github.com/argoproj/argo-events v1.9.7
	github.com/fluxcd/flagger v1.36.1
	github.com/fluxcd/source-controller v1.9.5
	github.com/prometheus-operator/prometheus-operator v0.85.0
	istio.io/api v1.28.0
	knative.dev/eventing v0.47.0
	knative.dev/serving v0.47.0
	sigs.k8s.io/gateway-api v1.4.1
)
