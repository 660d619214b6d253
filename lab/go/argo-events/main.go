// Command argo_events runs what Argo Events' controller runs as a pod: `argo_events sensor` or `argo_events eventsource`,
// with the controller's environment (SENSOR_OBJECT or EVENTSOURCE_OBJECT, EVENTBUS_CONFIG, EVENTBUS_SUBJECT, POD_NAME).
//
// It differs from github.com/argoproj/argo-events/cmd in one thing: it serves no metrics. The port of those is fixed
// (7777, on all addresses), and who can't have it ends: a sensor and an event source could not run on one machine.
package main

import (
	"encoding/base64"
	"encoding/json"
	"log"
	"os"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"

	"github.com/argoproj/argo-events/pkg/apis/events/v1alpha1"
	"github.com/argoproj/argo-events/pkg/eventsources"
	"github.com/argoproj/argo-events/pkg/metrics"
	"github.com/argoproj/argo-events/pkg/sensors"
	"github.com/argoproj/argo-events/pkg/shared/logging"
	sharedutil "github.com/argoproj/argo-events/pkg/shared/util"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: argo_events sensor|eventsource")
	}
	run := map[string]func(*v1alpha1.BusConfig) error{"sensor": sensor, "eventsource": eventSource}[os.Args[1]]
	if run == nil {
		log.Fatalf("there is no %q: sensor or eventsource", os.Args[1])
	}
	bus := &v1alpha1.BusConfig{}
	if err := object(v1alpha1.EnvVarEventBusConfig, bus); err != nil {
		log.Fatal(err)
	}
	if err := run(bus); err != nil {
		log.Fatal(err)
	}
}

// object reads an object as the controller hands it on: JSON, in base64, in an environment variable.
func object(variable string, into any) error {
	text, err := base64.StdEncoding.DecodeString(os.Getenv(variable))
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

func sensor(bus *v1alpha1.BusConfig) error {
	one := &v1alpha1.Sensor{}
	if err := object(v1alpha1.EnvVarSensorObject, one); err != nil {
		return err
	}
	config, err := sharedutil.GetClientConfig(os.Getenv(v1alpha1.EnvVarKubeConfig))
	if err != nil {
		return err
	}
	logger := logging.NewArgoEventsLogger().Named("sensor").With("sensorName", one.Name)
	return sensors.NewSensorContext(
		kubernetes.NewForConfigOrDie(config),
		dynamic.NewForConfigOrDie(config),
		one,
		bus,
		os.Getenv(v1alpha1.EnvVarEventBusSubject),
		os.Getenv(v1alpha1.EnvVarPodName),
		metrics.NewMetrics(one.Namespace),
	).Start(logging.WithLogger(signals.SetupSignalHandler(), logger))
}

func eventSource(bus *v1alpha1.BusConfig) error {
	one := &v1alpha1.EventSource{}
	if err := object(v1alpha1.EnvVarEventSourceObject, one); err != nil {
		return err
	}
	logger := logging.NewArgoEventsLogger().Named("eventsource").With(logging.LabelEventSourceName, one.Name)
	return eventsources.NewEventSourceAdaptor(
		one,
		bus,
		os.Getenv(v1alpha1.EnvVarEventBusSubject),
		os.Getenv(v1alpha1.EnvVarPodName),
		metrics.NewMetrics(one.Namespace),
	).Start(logging.WithLogger(signals.SetupSignalHandler(), logger))
}
