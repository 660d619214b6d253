// Command broker_channel is the channel behind a Broker: it hands each event to its subscribers, tries again, brings
// replies to the Broker's ingress, and what nobody takes to the dead-letter sink.
//
// All of that is Knative's own in-memory channel (knative.dev/eventing/pkg/channel/fanout). What differs from
// knative.dev/eventing/cmd/in_memory/channel_dispatcher: the subscribers come from a file and not from the
// InMemoryChannel's spec, and the port can be chosen. There it is fixed (8080, on all addresses).
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net/http"
	"os"

	"go.uber.org/zap"
	"knative.dev/pkg/signals"

	duckv1 "knative.dev/eventing/pkg/apis/duck/v1"
	"knative.dev/eventing/pkg/channel"
	"knative.dev/eventing/pkg/channel/fanout"
	"knative.dev/eventing/pkg/eventingtls"
	"knative.dev/eventing/pkg/kncloudevents"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "address to serve on; events are POSTed to /NAMESPACE/NAME")
	file := flag.String("subscribers", "", "file with a JSON list, as in an InMemoryChannel's spec.subscribers")
	flag.Parse()

	subscriptions, err := read(*file)
	if err != nil {
		log.Fatalf("%s: %v", *file, err)
	}
	handler, err := fanout.NewFanoutEventHandler(
		zap.NewExample(),
		// As a Broker's channel is: its ingress answers 202 before anybody has the event.
		fanout.Config{Subscriptions: subscriptions, AsyncHandler: true},
		nil, nil, nil,
		kncloudevents.NewDispatcher(eventingtls.ClientConfig{}, nil),
		nil, nil,
		channel.ResolveChannelFromPath(channel.ParseChannelFromPath),
	)
	if err != nil {
		log.Fatal(err)
	}
	if err := serve(*listen, handler); err != nil {
		log.Fatal(err)
	}
}

func read(file string) ([]fanout.Subscription, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var specs []duckv1.SubscriberSpec
	if err := json.Unmarshal(content, &specs); err != nil {
		return nil, err
	}
	subscriptions := make([]fanout.Subscription, 0, len(specs))
	for _, spec := range specs {
		subscription, err := fanout.SubscriberSpecToFanoutConfig(spec)
		if err != nil {
			return nil, err
		}
		subscriptions = append(subscriptions, *subscription)
	}
	return subscriptions, nil
}

func serve(address string, handler http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("POST /", handler)
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	server := &http.Server{Addr: address, Handler: mux}
	stop := signals.SetupSignalHandler()
	go func() {
		<-stop
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
