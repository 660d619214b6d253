"""Whatever arrives is answered 2xx, 400, 413 or 503: senders repeat others for nothing, and a 500 is a bug."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kreflex.ingress.cloudevents import DUE, FOUND
from tests.ingress.conftest import Caller
from tests.ingress.test_alertmanager import a_webhook, an_alert
from tests.values import a_pod

texts = st.text(st.characters(codec=None), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(texts, below, max_size=4),
    max_leaves=12,
)
printable = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=12)
KINDS = ["dev.knative.apiserver.resource.add", "dev.knative.apiserver.resource.update", DUE, FOUND]
ALLOWED = {200, 204, 400, 413, 503}

# The application keeps nothing from one request to the next, so one will do for all examples.
many = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def changed(draw: st.DrawFn, body: Any) -> Any:
    """A good body with one thing in it replaced, removed or added."""
    body = json.loads(json.dumps(body))
    below = body
    while True:
        keys = list(below) if isinstance(below, dict) else list(range(len(below)))
        key = draw(st.sampled_from(keys)) if keys else None
        if key is not None and isinstance(below[key], dict | list) and draw(st.booleans()):
            below = below[key]
            continue
        if key is not None and draw(st.booleans()):
            del below[key]
        elif isinstance(below, dict):
            below[key if key is not None else draw(texts)] = draw(values)
        elif key is not None:
            below[key] = draw(values)
        return body


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


pods = changed(a_pod()).map(encoded)
items = {"items": [{"namespace": "shop", "name": "cart-1", "uid": "u", "summary": "s"}]}
data = pods | changed(items).map(encoded) | values.map(encoded) | st.binary(max_size=40)
event = {"specversion": "1.0", "id": "1", "source": "s", "type": KINDS[0], "datacontenttype": "application/json"}


@many
@given(
    kind=st.sampled_from(KINDS) | printable,
    body=data,
    id_=printable,
    trace=printable,
    path=st.sampled_from(["/", "/echo"]),
)
async def test_any_binary_event(caller: Caller, kind: str, body: bytes, id_: str, trace: str, path: str) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": id_, "ce-source": "s", "ce-type": kind, "ce-traceparent": trace}
    answer = await caller.post(body, {**headers, "content-type": "application/json"}, path)
    assert answer.status in ALLOWED, answer.body


@many
@given(
    body=changed({**event, "data": a_pod()}).map(encoded)
    | st.sampled_from(KINDS).flatmap(lambda kind: changed({**event, "type": kind, "data": items})).map(encoded)
    | values.map(encoded)
    | st.binary(max_size=40),
    path=st.sampled_from(["/", "/echo"]),
)
async def test_any_structured_event(caller: Caller, body: bytes, path: str) -> None:
    answer = await caller.post(body, {"content-type": "application/cloudevents+json"}, path)
    assert answer.status in ALLOWED, answer.body


@many
@given(
    body=changed(a_webhook(an_alert(), an_alert("resolved"))).map(encoded)
    | values.map(encoded)
    | st.binary(max_size=40),
    headers=st.dictionaries(
        st.sampled_from(["content-type", "x-request-id", "ce-id", "ce-type"]), printable, max_size=3
    ),
    path=st.sampled_from(["/", "/echo"]),
)
async def test_any_webhook(caller: Caller, body: bytes, headers: dict[str, str], path: str) -> None:
    answer = await caller.post(body, headers, path)
    assert answer.status in ALLOWED, answer.body
