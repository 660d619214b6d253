"""Knative's own Broker lets through the shipped Triggers what the lab's relay and the tests say that it does."""

import asyncio
from itertools import product

import aiohttp

from lab import callers, filters, knative
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.knative import Subscriber
from tests import kit
from tests.manifests.rendered import FUNCTIONS
from tests.senders.recorder import recorder

TRIGGERS = {
    name: trigger
    for name in FUNCTIONS
    if name != "waker"
    for trigger in kit.manifests(f"triggers/knative-eventing/{name}.yaml")
    if trigger["kind"] == "Trigger"
}
CHANGES = [f"dev.knative.apiserver.resource.{verb}" for verb in ("add", "update", "delete")]
KINDS = (
    *("Pod", "Node", "Deployment", "StatefulSet", "Rollout", "Ingress", "HTTPRoute"),
    *("Remediation", "Experiment", "Anomaly", "ConfigMap"),
)
NAMES = ("cart", "cart-canary", *(f"{name}-cart" for name in TRIGGERS))
WORDS = ("ineffective", "unknown", "refused", "changed", "recovered", "applied")
REPLIES = [f"dev.kreflex.remediation.{word}.v1" for word in WORDS]
OTHERS = [
    *(f"dev.kreflex.anomaly.{word}.v1" for word in ("detected", "resolved", "feedback")),
    *("dev.kreflex.experiment.finished.v1", "dev.knative.sources.ping"),
]
SENT = [
    *({"type": type_, "kind": kind, "name": name} for type_, kind, name in product(CHANGES, KINDS, NAMES)),
    *({"type": type_, "source": f"kreflex.dev/functions/{name}"} for type_, name in product(REPLIES, TRIGGERS)),
    *({"type": type_} for type_ in OTHERS),
]
EVENTS = {str(number): {"source": "/tests/peers", **sent} for number, sent in enumerate(SENT)}


async def test_the_broker_decides_as_the_relay_does(installed: ControlPlane) -> None:
    wanted = {
        name: {number for number, sent in EVENTS.items() if all(filters.passes(one, sent) for one in told(name))}
        for name in TRIGGERS
    }
    assert all(wanted.values())
    await knative.install(installed)
    async with recorder() as far:
        subscribers = [Subscriber(trigger, far.script(f"/{name}", 202)) for name, trigger in TRIGGERS.items()]
        async with (
            knative.broker(installed, callers.NAMESPACE, subscribers) as broker,
            aiohttp.ClientSession() as session,
        ):
            for number, sent in EVENTS.items():
                headers = {f"ce-{name}": value for name, value in sent.items()}
                given = {"ce-specversion": "1.0", "ce-id": number, **headers}
                async with session.post(broker.url, json={}, headers=given) as answer:
                    assert answer.status == 202, await answer.text()

            def arrived() -> dict[str, set[str]]:
                return {name: {one.header("ce-id") for one in far.at(f"/{name}")} for name in TRIGGERS}

            async def all_of_them() -> bool:
                return all(wanted[name] <= found for name, found in arrived().items())

            await eventually(all_of_them, "what passes", 60)
            # What should not have passed would have come with the others.
            await asyncio.sleep(2)
            assert arrived() == wanted


def told(name: str) -> tuple[filters.Expression, ...]:
    return tuple(TRIGGERS[name]["spec"]["filters"])
