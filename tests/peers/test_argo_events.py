"""What Argo Events' own sensor does with each answer to its HTTP trigger."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from lab import argo
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.ports import Ports
from tests.senders.recorder import Recorder, recorder

Json = dict[str, Any]
ALLOWED = (200, 202, 204)
OTHERS = (400, 401, 404, 409, 413, 429, 500, 503)
STEPS = 3
POLICY = {"status": {"allow": list(ALLOWED)}}


def source(port: int) -> Json:
    """An EventSource with a webhook."""
    hook = {"port": str(port), "endpoint": "/alerts", "method": "POST"}
    return {"metadata": {"name": "hooks", "namespace": argo.NAMESPACE}, "spec": {"webhook": {"alerts": hook}}}


def trigger(name: str, url: str, **more: Any) -> Json:
    """A trigger that POSTs what came, with a strategy for retries."""
    payload = [{"src": {"dependencyName": "alerts", "dataKey": "body", "useRawData": True}, "dest": "body"}]
    http = {"url": url, "method": "POST", "payload": payload, "headers": {"Content-Type": "application/json"}}
    strategy = {"steps": STEPS, "duration": "100ms", "factor": 1, "jitter": 0}
    return {"template": {"name": name, "http": http}, "retryStrategy": strategy, "atLeastOnce": True, **more}


def sensor(triggers: list[Json]) -> Json:
    """A Sensor whose triggers all wait for the same webhook."""
    dependency = {"name": "alerts", "eventSourceName": "hooks", "eventName": "alerts"}
    spec = {"dependencies": [dependency], "triggers": triggers}
    return {"metadata": {"name": "answers", "namespace": argo.NAMESPACE}, "spec": spec}


@dataclass
class Sent:
    """One event that went to all triggers."""

    far: Recorder
    absent: Recorder

    def tries(self, *paths: str) -> dict[str, int]:
        return {path: self.far.count(f"/{path}") for path in paths}


@pytest.fixture(scope="module")
async def sent(plane: ControlPlane) -> AsyncIterator[Sent]:
    """A sensor with a trigger for each answer, after one event."""
    async with recorder() as far, recorder(listening=False) as absent:
        codes = (*ALLOWED, *OTHERS)
        triggers = [trigger(f"plain-{code}", far.script(f"/plain-{code}", code)) for code in codes]
        triggers += [trigger(f"with-{code}", far.script(f"/with-{code}", code), policy=POLICY) for code in codes]
        letter = {"template": trigger("dead", far.script("/dead", 200))["template"], "atLeastOnce": True}
        triggers += [
            trigger("healed", far.script("/healed", 503, 200), policy=POLICY),
            trigger("once", far.script("/once", 503), policy=POLICY, atLeastOnce=False),
            trigger("given-up", far.script("/given-up", 503), policy=POLICY, dlqTrigger=letter),
            trigger("unreadable", far.script("/unreadable", 200), retryStrategy={"steps": STEPS, "factor": "2"}),
            trigger("refused", f"{absent.url}/refused", retryStrategy={"steps": 60, "duration": "1s"}),
        ]
        with Ports() as ports:
            port = ports.take()
            async with (
                argo.bus(plane) as bus,
                bus.source(source(port)),
                bus.sensor(sensor(triggers)),
                aiohttp.ClientSession() as session,
            ):
                url = f"http://127.0.0.1:{port}/alerts"
                async with session.post(url, json={"receiver": "test"}) as answer:
                    assert answer.status == 200, await answer.text()
                yield Sent(far, absent)


async def everything(sent: Sent) -> None:
    """Wait until all have tried as often as they do."""
    wanted = {f"with-{code}": STEPS for code in OTHERS} | {f"plain-{code}": 1 for code in (*ALLOWED, *OTHERS)}
    wanted |= {"dead": 1, "healed": 2, "once": 1}

    async def over() -> bool:
        return all(tries >= wanted[path] for path, tries in sent.tries(*wanted).items())

    await eventually(over, "all tries", 60)


async def test_without_a_policy_every_answer_is_a_success(sent: Sent) -> None:
    await everything(sent)
    paths = [f"plain-{code}" for code in (*ALLOWED, *OTHERS)]
    assert sent.tries(*paths) == dict.fromkeys(paths, 1)


async def test_with_a_policy_whatever_it_does_not_allow_is_tried_again(sent: Sent) -> None:
    await everything(sent)
    paths = [f"with-{code}" for code in OTHERS]
    assert sent.tries(*paths) == dict.fromkeys(paths, STEPS)
    assert sent.tries(*(f"with-{code}" for code in ALLOWED)) == {f"with-{code}": 1 for code in ALLOWED}


async def test_a_retry_that_is_taken_is_the_last(sent: Sent) -> None:
    await everything(sent)
    assert sent.tries("healed") == {"healed": 2}


async def test_without_at_least_once_nothing_is_tried_again(sent: Sent) -> None:
    await everything(sent)
    assert sent.tries("once") == {"once": 1}


async def test_a_strategy_that_it_can_t_read_makes_it_send_nothing(sent: Sent) -> None:
    await everything(sent)
    assert sent.tries("unreadable") == {"unreadable": 0}


async def test_what_is_given_up_goes_to_the_dlq_trigger(sent: Sent) -> None:
    await everything(sent)
    assert sent.tries("given-up", "dead") == {"given-up": STEPS, "dead": 1}


async def test_a_refused_connection_is_tried_again_even_without_a_policy(sent: Sent) -> None:
    await everything(sent)
    await sent.absent.listen()

    async def told() -> bool:
        return sent.absent.count("/refused") == 1

    await eventually(told, "the event after somebody listens", 90)
