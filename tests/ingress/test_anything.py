"""Whatever arrives is answered 2xx, 400 or 413, with the field that is wrong: a 5xx would be sent again for nothing.

    KREFLEX_FUZZ=100000 .venv/bin/pytest tests/ingress/test_anything.py

sends so many requests and not the same ones twice; without it a few thousands are sent, the same ones each time.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from kreflex.ingress.cloudevents import ANSWERED, DUE, FOUND
from tests.ingress.conftest import Answer, Caller
from tests.ingress.recorded import ALL, Recorded
from tests.ingress.surroundings import API
from tests.ingress.test_alertmanager import a_webhook, an_alert
from tests.ingress.test_nodes import a_node_alert, a_warning
from tests.values import MINUTE, RUNNING, a_node, a_pod, a_status, objects

ASKED = int(os.environ.get("KREFLEX_FUZZ", "0"))
NAMED = re.compile(r"(the )?[\w.\-\[\]]+(: | is larger than | holds more than )")


def synthetic() -> list[Recorded]:
    """What no sender of the lab sends by itself: the other two modes, the waker's calls, and what is about nodes."""
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "dev.knative.apiserver.resource.update"}
    items = {"items": [{"namespace": "shop", "name": "cart-1", "uid": "uid-cart-1", "summary": "s"}]}
    node = {"kind": "Node", "name": "blue-1", "uid": "uid-blue-1", "summary": "s", "episode": "Ready/2026-05-01"}
    answer = {"namespace": "shop", "record": "r-1", "outcome": "Done", "poweredOff": True, "message": "m"}
    bodies: dict[str, Any] = {
        "node": {**event, "data": a_node()},
        "node-deleted": {**event, "type": "dev.knative.apiserver.resource.delete", "kind": "Node", "data": a_node()},
        "node-found": {**event, "type": FOUND, "data": {"items": [node]}},
        "node-warned": {**event, "data": a_warning()},
        "node-answered": {**event, "type": ANSWERED, "data": answer},
        "node-alerts": a_webhook(a_node_alert(node="blue-1"), a_node_alert(instance="[::1]:9100", job="kubelet")),
        "structured": {**event, "datacontenttype": "application/json", "data": a_pod()},
        "base64": {**event, "data_base64": "eyJraW5kIjoiUG9kIn0="},
        "due": {**event, "type": DUE, "data": items},
        "found": {**event, "type": FOUND, "data": items},
        "batch": [{**event, "data": a_pod()}, {**event, "type": DUE, "data": items}],
        "webhook": a_webhook(an_alert(), an_alert("resolved"), notification_reason="new alerts added"),
    }
    kinds = {"batch": "application/cloudevents-batch+json"}
    kinds |= dict.fromkeys(["webhook", "node-alerts"], "application/json")
    return [
        Recorded(name, {"content-type": kinds.get(name, "application/cloudevents+json")}, json.dumps(body).encode())
        for name, body in bodies.items()
    ]


BASES = [*ALL, *synthetic()]
# Half of them begin with what is true of no body, so that the reader of values is reached as well as the parser.
TOKENS = [
    *("null", "true", "0", "-1", '""', "[]", "{}", '"x"', '"shop"', "[null]", '{"a":{}}', '["firing"]', "1.5", "1e308"),
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "9" * 5000,
        "9" * 4000,
        "01",
        "0x1",
        "tru",
        "'x'",
        "undefined",
    ),
    *(
        '"\\ud800"',
        '"\\udfff\\ud800"',
        '"\\u0000"',
        '"a\nb"',
        '"\x01"',
        '"\\r\\nSet-Cookie: a=b"',
        '"\\x41"',
        '"\ud83d\ude00"',
    ),
    *(
        '{"a":1,"a":2}',
        '{"kind":"Pod","kind":"Node"}',
        '{"":{"":[]}}',
        '{"__proto__":1}',
        '{"\\ud800":1}',
        "{,}",
        "[1,]",
    ),
    *("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[" * 50_000, '{"a":' * 50_000, '"' + "x" * 70_000 + '"'),
    *('"Node"', '"Event"', '"[::1]:9100"', '"fe80::1%x"'),
    *('"../../secrets"', '"cart-1?watch=1"', '"' + "a" * 300 + '"', '"2026-05-01T12:00:00"', '"0001-01-01T00:00:00Z"'),
    *(
        '"9999-12-31T23:59:59Z"',
        '"9999-12-31T23:59:59-23:59"',
        '"0001-01-01T00:00:00+23:59"',
        '"dev.knative.sources.ping"',
    ),
]
TYPES = [
    *(
        "",
        "application/json",
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ),
    *("application/cloudevents", "application/cloudevents+json", "application/cloudevents-batch+json", "\xff"),
    *(
        "application/cloudevents+json; charset=utf-16",
        "APPLICATION/CLOUDEVENTS+JSON;;;",
        "application/cloudevents+avro",
    ),
]
HEADERS = [
    *("content-type", "ce-specversion", "ce-id", "ce-type", "ce-source", "ce-traceparent", "ce-tracestate", "ce-data"),
    *(
        "ce-data_base64",
        "traceparent",
        "tracestate",
        "content-length",
        "transfer-encoding",
        "x-request-id",
        "ce-",
        "ce-\xe9",
    ),
]
VALUES = [
    *(
        "",
        "0",
        "1.0",
        "0.3",
        "a\r\nSet-Cookie: b",
        "a\x00b",
        "\xff\xfe",
        "%",
        "%zz",
        "%00",
        "%0d%0aX: y",
        "%ED%A0%80",
        "x" * 70_000,
    ),
    *(
        "00-" + "0" * 32 + "-" + "0" * 16 + "-00",
        "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "a=1,b=\xff",
        DUE,
        FOUND,
        ANSWERED,
    ),
    *(
        "io.argoproj.events.resource",
        "io.argoproj.events.webhook",
        "dev.knative.apiserver.ref.add",
        "dev.knative.sources.ping",
    ),
]
HOLE = "\x00hole\x00"


class Picks(Protocol):
    """Who chooses what is broken: hypothesis, which then looks for the smallest case, or a Random, which is quicker."""

    def choice(self, among: Sequence[Any]) -> Any: ...
    def randint(self, least: int, most: int) -> int: ...
    def randbytes(self, count: int) -> bytes: ...


@dataclass(frozen=True)
class Drawn:
    """Hypothesis chooses."""

    draw: Callable[[st.SearchStrategy[Any]], Any]

    def choice(self, among: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(among))

    def randint(self, least: int, most: int) -> int:
        number: int = self.draw(st.integers(least, most))
        return number

    def randbytes(self, count: int) -> bytes:
        drawn: bytes = self.draw(st.binary(min_size=count, max_size=count))
        return drawn


def broken(picks: Picks, base: Recorded) -> Recorded:
    """A request with one to three things in it that are wrong, or at least strange."""
    for _ in range(picks.randint(1, 3)):
        base = picks.choice(BREAKERS)(picks, base)
    return base


def swapped(picks: Picks, base: Recorded) -> Recorded:
    """One value anywhere replaced, by text that need not be JSON."""
    try:
        body = json.loads(base.body)
    except (ValueError, RecursionError):
        return cut(picks, base)
    if not isinstance(body, dict | list) or not body:
        return replace(base, body=token(picks))
    below, key = body, picks.choice(keys(body))
    while isinstance(below[key], dict | list) and below[key] and picks.randint(0, 4):
        below = below[key]
        key = picks.choice(keys(below))
    below[key] = HOLE
    return replace(base, body=json.dumps(body).encode().replace(json.dumps(HOLE).encode(), token(picks), 1))


def keys(below: Any) -> list[Any]:
    return list(below) if isinstance(below, dict) else list(range(len(below)))


def token(picks: Picks) -> bytes:
    text: str = picks.choice(TOKENS)
    return text.encode(errors="surrogatepass")


def dropped(picks: Picks, base: Recorded) -> Recorded:
    """One member gone."""
    try:
        body = json.loads(base.body)
    except (ValueError, RecursionError):
        return cut(picks, base)
    if not isinstance(body, dict | list) or not body:
        return base
    below, key = body, picks.choice(keys(body))
    while isinstance(below[key], dict | list) and below[key] and picks.randint(0, 3):
        below = below[key]
        key = picks.choice(keys(below))
    del below[key]
    return replace(base, body=json.dumps(body).encode())


def cut(picks: Picks, base: Recorded) -> Recorded:
    """The end missing."""
    return replace(base, body=base.body[: picks.randint(0, len(base.body))])


def dirtied(picks: Picks, base: Recorded) -> Recorded:
    """Bytes put in somewhere."""
    at, dirt = picks.randint(0, len(base.body)), picks.randbytes(picks.randint(1, 6))
    return replace(base, body=base.body[:at] + dirt + base.body[at + picks.randint(0, 6) :])


def doubled(picks: Picks, base: Recorded) -> Recorded:
    """A name that stands there twice, with two values."""
    at = [found.start() for found in re.finditer(rb'"[A-Za-z]+":', base.body)]
    if not at:
        return base
    start = picks.choice(at)
    name = base.body[start : base.body.index(b":", start) + 1]
    return replace(base, body=base.body[:start] + name + token(picks) + b"," + base.body[start:])


def wrapped(picks: Picks, base: Recorded) -> Recorded:
    """The same, within something else."""
    before, after = picks.choice([(b"[", b"]"), (b'{"body":', b"}"), (b'{"data":', b"}"), (b"\xef\xbb\xbf", b"")])
    return replace(base, body=before + base.body + after)


def unheaded(picks: Picks, base: Recorded) -> Recorded:
    """A header gone."""
    name = picks.choice(sorted(base.headers) or ["x"])
    return replace(base, headers={key: value for key, value in base.headers.items() if key != name})


def headed(picks: Picks, base: Recorded) -> Recorded:
    """A header changed or added."""
    name = picks.choice(HEADERS)
    value = picks.choice(TYPES if name == "content-type" else VALUES)
    return replace(base, headers=base.headers | {name: value})


def typed(picks: Picks, base: Recorded) -> Recorded:
    """Another content type."""
    return replace(base, headers=base.headers | {"content-type": picks.choice(TYPES)})


BREAKERS = [swapped, swapped, swapped, dropped, cut, dirtied, doubled, wrapped, unheaded, headed, typed]

# Each example is one request that hypothesis breaks, and nine that chance breaks: drawing takes longer than answering.
AT_ONCE = 10
# The application keeps nothing from one request to the next, so one will do for all examples.
many = settings(
    max_examples=ASKED // len(BASES) // AT_ONCE + 1 if ASKED else 20,
    derandomize=not ASKED,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def healthy(caller: Caller) -> Caller:
    """The pods that the requests are about are there and well: whatever is done about them would be wrong."""
    pods = [
        {**body, "metadata": {**body["metadata"], "namespace": namespace, "name": name}}
        for body in [a_pod(app=[a_status(restarts=9, state=RUNNING)], ready_for=MINUTE)]
        for namespace, name in [("shop", "cart-1"), ("shop", "cart-2"), ("default", "cart-resource")]
    ]
    API.objects = {path: pod for pod in pods for path in objects(pod)}
    return caller


def check(answer: Answer, sent: Recorded) -> None:
    assert API.writes == [], sent
    assert answer.status in {200, 204, 400, 413}, (answer.status, answer.body[:500], sent)
    if answer.status >= 400:
        assert NAMED.match(answer.json["error"]), answer.json
        assert len(answer.body) < 5000


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
@many
@given(data=st.data(), seed=st.integers(0, 2**64 - 1))
async def test_a_broken_request_is_refused_and_never_acted_on(
    healthy: Caller, base: Recorded, data: st.DataObject, seed: int
) -> None:
    everybody: list[Picks] = [Drawn(data.draw), *[Random(seed)] * (AT_ONCE - 1)]
    with capture_logs():
        for picks in everybody:
            sent = broken(picks, base)
            check(await healthy.post(sent.body, sent.headers, "/nodes" if "node" in base.name else "/"), sent)
