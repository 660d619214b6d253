// Command apiserver_receive_adapter is the program that Knative Eventing runs for an ApiServerSource.
//
// It differs from knative.dev/eventing/cmd/apiserver_receive_adapter in one thing: it serves no health probes. The
// port of those is fixed (8080, on all addresses), so a lab would take it from its user, and a second lab's would fail.
package main

import (
	filteredfactory "knative.dev/pkg/client/injection/kube/informers/factory/filtered"
	"knative.dev/pkg/signals"

	"knative.dev/eventing/pkg/adapter/apiserver"
	"knative.dev/eventing/pkg/adapter/v2"
	"knative.dev/eventing/pkg/auth"
	"knative.dev/eventing/pkg/eventingtls"
)

func main() {
	ctx := adapter.WithInjectorEnabled(signals.NewContext())
	ctx = adapter.WithHealthProbesDisabled(ctx)
	ctx = filteredfactory.WithSelectors(ctx, auth.OIDCLabelSelector, eventingtls.TrustBundleLabelSelector)
	adapter.MainWithContext(ctx, "apiserversource", apiserver.NewEnvConfig, apiserver.NewAdapter)
}
