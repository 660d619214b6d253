"""Knative's Broker on loopback: its ingress, its channel and its filter, for Triggers whose status we write.

There is no controller of Knative here, and no DNS: the addresses that it would find stand in the objects' status. What
moves, filters, retries and answers events is Knative's own.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from lab import builds, manifests
from lab.cluster import ControlPlane
from lab.ports import Ports
from lab.toolchain import Toolchain

Json = dict[str, Any]
PROGRAMS = ("broker_ingress", "broker_filter", "broker_channel")
EVENTING = "/apis/eventing.knative.dev/v1"
_SYSTEM = "knative-eventing"
_MODULE = "knative.dev/eventing"
_DEFINITIONS = ("broker", "trigger", "subscription", "eventtype", "eventpolicy")
_CONFIGURATION: Mapping[str, Mapping[str, str]] = {
    "config-logging": {},
    "config-features": {},
    "config-observability": {"metrics-protocol": "none", "tracing-protocol": "none", "runtime-profiling": "disabled"},
}


@dataclass(frozen=True)
class Subscriber:
    """A Trigger, and what its controller would have found out about it."""

    trigger: Json
    url: str
    dead_letters: str = ""
    account: str = ""
    """The ServiceAccount that it calls with, if its `spec.subscriber` has an audience."""


@dataclass
class Broker:
    """A running Broker."""

    plane: ControlPlane
    namespace: str
    name: str
    url: str
    _uris: dict[str, str] = field(default_factory=dict)

    async def make(self, filter_url: str, channel_url: str) -> None:
        """Make the Broker with its address and its channel's."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        metadata = {"name": self.name, "annotations": {"eventing.knative.dev/broker.class": "MTChannelBasedBroker"}}
        broker = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": metadata}
        await manifests.apply(self.plane.api, [namespace, broker], self.namespace)
        status = {"address": {"url": self.url}, "annotations": {"knative.dev/channelAddress": channel_url}}
        path = f"{EVENTING}/namespaces/{self.namespace}/brokers/{self.name}"
        await self.plane.api.patch(f"{path}/status", {"status": status})
        self._uris["filter"] = filter_url

    async def subscribe(self, subscriber: Subscriber) -> Json:
        """Make a Trigger; the channel's entry for it, as its controller would write it."""
        trigger = subscriber.trigger
        metadata, spec = {"name": trigger["metadata"]["name"]}, {**trigger["spec"], "broker": self.name}
        await manifests.apply(self.plane.api, [{**trigger, "metadata": metadata, "spec": spec}], self.namespace)
        path = f"{EVENTING}/namespaces/{self.namespace}/triggers/{metadata['name']}"
        status: Json = {"subscriberUri": subscriber.url}
        if subscriber.account:
            account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": subscriber.account}}
            await manifests.apply(self.plane.api, [account], self.namespace)
            status["subscriberAudience"] = spec["subscriber"]["audience"]
            status["auth"] = {"serviceAccountName": subscriber.account}
        made = await self.plane.api.patch(f"{path}/status", {"status": status})
        uid = made["metadata"]["uid"]
        delivery = {key: value for key, value in spec.get("delivery", {}).items() if key != "deadLetterSink"}
        if subscriber.dead_letters:
            delivery["deadLetterSink"] = {"uri": subscriber.dead_letters}
        uri = f"{self._uris['filter']}/triggers/{self.namespace}/{metadata['name']}/{uid}"
        return {"uid": uid, "name": metadata["name"], "subscriberUri": uri, "replyUri": self.url, "delivery": delivery}

    async def remove(self, subscribers: Sequence[Subscriber]) -> None:
        """Remove the Broker and its Triggers."""
        root = f"{EVENTING}/namespaces/{self.namespace}"
        for one in subscribers:
            await self.plane.api.delete(f"{root}/triggers/{one.trigger['metadata']['name']}")
        await self.plane.api.delete(f"{root}/brokers/{self.name}")


async def install(plane: ControlPlane) -> None:
    """Apply Knative Eventing's definitions and its settings."""
    folder = builds.source(PROGRAMS[0], _MODULE) / "config" / "core" / "resources"
    definitions = manifests.read(*(folder / f"{name}.yaml" for name in _DEFINITIONS))
    for definition in definitions:
        # The webhook that converts old versions is not here, and nobody has objects of those.
        definition["spec"].pop("conversion", None)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _SYSTEM}}
    settings = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        for name, data in _CONFIGURATION.items()
    ]
    await manifests.apply(plane.api, [namespace, *definitions, *settings], _SYSTEM)


@asynccontextmanager
async def broker(
    plane: ControlPlane, namespace: str, subscribers: Sequence[Subscriber], name: str = "default"
) -> AsyncIterator[Broker]:
    """Run a Broker with these Triggers in a namespace; Knative is installed already."""
    programs = Toolchain().ensure(PROGRAMS)
    started: list[str] = []
    with Ports() as ports:
        ingress, filters, channel = (ports.take() for _ in range(3))
        made = Broker(plane, namespace, name, f"http://127.0.0.1:{ingress}/{namespace}/{name}")
        await made.make(f"http://127.0.0.1:{filters}", f"http://127.0.0.1:{channel}/{namespace}/{name}")
        entries = plane.home.config / "broker-subscribers.json"
        entries.write_text(json.dumps([await made.subscribe(one) for one in subscribers], indent=1))
        commands: dict[str, list[str | Path]] = {
            "broker_channel": [programs["broker_channel"], f"--listen=127.0.0.1:{channel}", f"--subscribers={entries}"],
            "broker_filter": [programs["broker_filter"]],
            "broker_ingress": [programs["broker_ingress"]],
        }
        try:
            for program, port in (("broker_channel", channel), ("broker_filter", filters), ("broker_ingress", ingress)):
                started.append(program)
                child = plane.start_child(program, commands[program], _environment(plane, program, port, ports.take()))
                await child.ready(partial(_serves, port))
            yield made
        finally:
            for program in started:
                await plane.stop_child(program)
            await made.remove(subscribers)


def _environment(plane: ControlPlane, program: str, port: int, unused: int) -> dict[str, str]:
    return {
        "KUBECONFIG": str(plane.kubeconfig),
        "SYSTEM_NAMESPACE": _SYSTEM,
        "NAMESPACE": _SYSTEM,
        "POD_NAME": program,
        "CONTAINER_NAME": program,
        "FILTER_PORT": str(port),
        "INGRESS_PORT": str(port),
        # They listen for TLS as well, though nobody has a certificate.
        "FILTER_PORT_HTTPS": str(unused),
        "INGRESS_PORT_HTTPS": str(unused),
    }


async def _serves(port: int) -> bool:
    limit = aiohttp.ClientTimeout(total=2)
    url = f"http://127.0.0.1:{port}/healthz"
    try:
        # As the kubelet asks: others would be asked for an event.
        headers = {"User-Agent": "kube-probe/1.36"}
        async with aiohttp.ClientSession(timeout=limit) as session, session.get(url, headers=headers) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
