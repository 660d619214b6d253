"""CloudEvents 1.0 over HTTP: binary, structured and batched mode, in JSON. The SDK is used here and nowhere else.

It writes our events. It does not read them: version 1 of it knows no batches, encodes the data of a structured event
twice, and names no field when something is wrong (docs/adr/0011). The rules are those of
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md and
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from kreflex.errors import BadEventError, TooLargeError
from kreflex.ingress import argo_events
from kreflex.ingress.bodies import LONG, plain, read_base64, read_json, shown
from kreflex.ingress.names import name_in, names
from kreflex.ingress.objects import DELETED, OPEN_ENDED, read_deleted, read_object, read_reference
from kreflex.kinds import TOLD
from kreflex.signals import Answered, Delivery, Due, Feedback, NodeSignal, PodSignal, Signal, WorkloadSignal, is_name
from kreflex.trace import Trace, read
from kreflex.views import JSON

MOST_BYTES = 2**20
# Of a batch as a whole; each of its events may have MOST_BYTES.
MOST_BATCH_BYTES = 32 * 2**20
# ApiServerSource in mode Resource sends the object, in mode Reference its name:
# https://knative.dev/docs/eventing/sources/apiserversource/reference/
RESOURCE = "dev.knative.apiserver.resource."
REFERENCE = "dev.knative.apiserver.ref."
PING = "dev.knative.sources.ping"
DUE = "dev.kreflex.remediation.due.v1"
FOUND = "dev.kreflex.fault.found.v1"
# What the automation of a provider answers to a request for another machine.
ANSWERED = "dev.kreflex.node.replacement.answered.v1"
# What somebody makes of an anomaly.
FEEDBACK = "dev.kreflex.anomaly.feedback.v1"
# What another function made of its fault, an anomaly, or the end of an experiment: each names what it is about.
_TOLD_OF = re.compile(
    r"dev\.kreflex\.(remediation\.(ineffective|unknown|refused|changed)|anomaly\.detected|experiment\.finished)\.v1"
)
_EVENTS = "application/cloudevents"
_STRUCTURED, _BATCH = f"{_EVENTS}+json", f"{_EVENTS}-batch+json"
_REQUIRED = ("specversion", "id", "source", "type")
_FEEDBACK = ("namespace", "anomaly", "verdict", "by")
_ANSWER = ("namespace", "record", "outcome", "poweredOff", "message")
# It becomes part of a record's key.
_EPISODE = re.compile(r"[!-~]{0,400}")
# What a header value may hold as it is, by section 3.1.3.2 of the HTTP binding.
_UNSAFE = re.compile(r"[^\x21\x23\x24\x26-\x7e]")


@dataclass(frozen=True)
class Event:
    """One event as it came. Its data is read when somebody asks for it, since most events are for others.

    `where` stands before the names of its fields in messages: "ce-", "" or "[3].".
    """

    where: str
    attributes: Mapping[str, str]
    body: bytes | None = None
    value: Any = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """Its type."""
        return self.attributes["type"]

    @property
    def id(self) -> str:
        """The id of this delivery; the next one of the same fault may have another."""
        return plain(self.attributes["id"])

    @property
    def trace(self) -> Trace | None:
        """The trace that it was sent in, by the extension for distributed tracing."""
        return read(self.attributes.get("traceparent"), self.attributes.get("tracestate"))

    @property
    def at(self) -> str:
        """Where its data stands, for messages."""
        return "data" if self.where == "ce-" else f"{self.where}data"

    def data(self) -> Any:
        """Read the data as JSON; raises BadEventError for what is none."""
        if self.body is not None:
            return read_json(self.body, self.at)
        if isinstance(self.value, str):
            # Some senders put the JSON of a structured event in a string.
            return read_json(self.value.encode(errors="replace"), self.at)
        return self.value


def is_cloudevent(headers: Mapping[str, str]) -> bool:
    """Tell whether a request is meant as a CloudEvent, in any mode."""
    return "ce-specversion" in headers or _media_type(headers).startswith(_EVENTS)


def most_bytes(headers: Mapping[str, str]) -> int:
    """Tell how large the body of a CloudEvent may be in its mode."""
    return MOST_BATCH_BYTES if _media_type(headers) == _BATCH else MOST_BYTES


def parse(headers: Mapping[str, str], body: bytes | bytearray) -> Delivery:
    """Read one event or a batch; raises BadEventError that names the field, TooLargeError for one event too large.

    One bad event in a batch is ignored with its reason and does not lose the rest, unless all are bad.
    """
    media = _media_type(headers)
    if media == _BATCH:
        return _batch(read_json(body, "body"), len(body))
    if media == _STRUCTURED:
        return _alone(_structured(read_json(body, "body"), ""))
    if media.startswith(_EVENTS):
        raise BadEventError("content-type", f"must be {_STRUCTURED} or {_BATCH}, not {shown(media)}")
    return _alone(_binary(headers, body))


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _binary(headers: Mapping[str, str], body: bytes | bytearray) -> Event:
    given = {name[3:]: _decoded(value) for name, value in headers.items() if name.startswith("ce-")}
    return Event("ce-", _checked(given, "ce-"), body=bytes(body))


def _decoded(value: str) -> str:
    return unquote(value, errors="replace") if "%" in value else value


def _structured(event: Any, where: str) -> Event:
    if not isinstance(event, dict):
        raise BadEventError(where.rstrip(".") or "body", "must be an object, as a CloudEvent in JSON is")
    attributes = _checked(event, where)
    encoded = event.get("data_base64")
    if encoded is None:
        return Event(where, attributes, value=event.get("data"))
    if event.get("data") is not None:
        raise BadEventError(f"{where}data_base64", "must not stand beside data")
    return Event(where, attributes, body=read_base64(encoded, f"{where}data_base64"))


def _checked(given: Mapping[str, Any], where: str) -> dict[str, str]:
    for name in _REQUIRED:
        if name not in given or given[name] in ("", None):
            raise BadEventError(f"{where}{name}", "is missing")
        if not isinstance(given[name], str):
            raise BadEventError(f"{where}{name}", f"must be a string, not {shown(given[name])}")
    if given["specversion"] != "1.0":
        raise BadEventError(f"{where}specversion", f"must be '1.0', not {shown(given['specversion'])}")
    return {name: value for name, value in given.items() if isinstance(value, str)}


def _batch(events: Any, size: int) -> Delivery:
    if not isinstance(events, list):
        raise BadEventError("body", f"must be a list of CloudEvents, not {shown(events)}")
    parts, bad = [], []
    for index, one in enumerate(events):
        try:
            parts.append(_one(_member(one, index, size)))
        except (BadEventError, TooLargeError) as error:
            bad.append(error)
    if bad and not parts:
        raise bad[0]
    return _together(parts, [str(error) for error in bad])


def _member(event: Any, index: int, size: int) -> Event:
    if size > MOST_BYTES and _size(event, index) > MOST_BYTES:
        raise TooLargeError(f"[{index}] is larger than {MOST_BYTES} bytes")
    return _structured(event, f"[{index}].")


def _size(event: Any, index: int) -> int:
    try:
        return len(json.dumps(event, ensure_ascii=False).encode(errors="replace"))
    except RecursionError as error:
        # To write it takes a little more depth than to read it took.
        raise BadEventError(f"[{index}]", "is nested too deeply") from error


def _together(parts: Sequence[Delivery], bad: Sequence[str]) -> Delivery:
    # Nobody who sends batches takes up a reply: Knative's Brokers and sources send single events. So no `wants_event`.
    return Delivery(
        signals=tuple(signal for part in parts for signal in part.signals),
        due=tuple(due for part in parts for due in part.due),
        resolved=tuple(one for part in parts for one in part.resolved),
        answered=tuple(one for part in parts for one in part.answered),
        experiments=tuple(one for part in parts for one in part.experiments),
        feedback=tuple(one for part in parts for one in part.feedback),
        ignored=(*bad, *(text for part in parts for text in part.ignored)),
        tick=any(part.tick for part in parts),
        about={"sender": "cloudevents", "events": str(len(parts) + len(bad))},
    )


def _alone(event: Event) -> Delivery:
    about = {
        "sender": "cloudevents",
        "source": plain(event.attributes["source"]),
        "id": event.id,
        "type": plain(event.kind),
    }
    reply = event.kind not in argo_events.TYPES
    return replace(_one(event), trace=event.trace, wants_event=reply, about=about)


def _one(event: Event) -> Delivery:
    """Read one event; what it says belongs to its own trace, whatever else stands in the same batch."""
    delivery, trace = _said(event), event.trace
    if trace is None:
        return delivery
    signals = tuple(replace(signal, trace=trace) for signal in delivery.signals)
    due = tuple(one if one.trace else replace(one, trace=trace) for one in delivery.due)
    resolved = tuple(replace(one, trace=trace) for one in delivery.resolved)
    answered = tuple(replace(one, trace=trace) for one in delivery.answered)
    return replace(delivery, signals=signals, due=due, resolved=resolved, answered=answered)


def _said(event: Event) -> Delivery:
    kind = event.kind
    if kind == DUE:
        return Delivery(due=tuple(_due(item, where) for where, item in _items(event)))
    if kind == FOUND:
        return Delivery(tuple(_found(item, where) for where, item in _items(event)))
    if kind in (ANSWERED, FEEDBACK):
        return _said_back(event)
    if kind == PING:
        return Delivery(tick=True)
    if _TOLD_OF.fullmatch(kind):
        return _told_of(event)
    if kind in argo_events.TYPES:
        return argo_events.parse_event(kind, event.data, event.at, event.id)
    if kind.startswith((RESOURCE, REFERENCE)):
        return _changed(event)
    # Replies of functions among them, our own too: what they tell of is over, or due when its record says so.
    return Delivery(ignored=(f"{plain(kind)} is for no function here",))


def _due(item: Any, where: str) -> Due:
    namespace, name = names(item, where)
    return Due(namespace, name, read(item.get("traceparent")))


def _changed(event: Event) -> Delivery:
    if event.kind.endswith(".delete"):
        # Most of what is deleted are pods, and the source says so beside the data.
        skip = event.attributes.get("kind", "Node") != "Node"
        return Delivery(ignored=(DELETED,)) if skip else read_deleted(event.data(), event.at, "apiserver", event.id)
    read_ = read_object if event.kind.startswith(RESOURCE) else read_reference
    return read_(event.data(), event.at, "apiserver", event.id)


def _found(item: Any, where: str) -> Signal:
    kind = item.get("kind", "Pod") if isinstance(item, dict) else "Pod"
    namespace, name = ("", name_in(item, "name", where)) if kind == "Node" else names(item, where)
    uid, summary, episode = item.get("uid"), item.get("summary", ""), item.get("episode", "")
    if not is_name(uid):
        raise BadEventError(f"{where}.uid", "must be the UID of the object")
    summary = summary[:LONG] if isinstance(summary, str) else ""
    if kind == "Pod":
        return PodSignal(namespace, name, uid, summary, source="waker")
    if not isinstance(episode, str) or not _EPISODE.fullmatch(episode):
        raise BadEventError(f"{where}.episode", "must be a short text without blanks")
    if kind == "Node":
        return NodeSignal(name, uid, summary, source="waker", episode=episode)
    return WorkloadSignal(_version(kind, where), kind, namespace, name, uid, summary, source="waker", episode=episode)


def _version(kind: Any, where: str) -> str:
    if not isinstance(kind, str) or kind not in TOLD:
        raise BadEventError(f"{where}.kind", f"must be one of Pod, Node, {', '.join(TOLD)}, not {shown(kind)}")
    return TOLD[kind]


def _told_of(event: Event) -> Delivery:
    """Read what somebody else has seen of a workload: one of a kind that nobody here heeds is none of ours."""
    data = event.data()
    items = _items(event) if isinstance(data, dict) and "items" in data else [(event.at, data)]
    found = [_about(item, where, event) for where, item in items]
    ignored = [text for text in found if isinstance(text, str)]
    return Delivery(tuple(one for one in found if not isinstance(one, str)), ignored=tuple(ignored))


def _about(item: Any, where: str, event: Event) -> Signal | str:
    about = (item.get("owner") or item.get("target")) if isinstance(item, dict) else None
    if not isinstance(about, dict):
        raise BadEventError(f"{where}.target", "must be the object that it is about")
    kind, target = about.get("kind"), f"{where}.target"
    became = plain(item.get("verdict") or item.get("outcome") or "").lower()
    if "outcome" in item and became not in OPEN_ENDED:
        return f"a remediation that is {became} is for no function here"
    if kind not in ("Pod", *TOLD):
        return f"{plain(event.kind)} is about a {shown(kind)}, which is for no function here"
    namespace, name = names(about, target)
    words = ("summary", "because", "reason", "verdictReason")
    summary = plain(next((item[word] for word in words if item.get(word)), event.kind))
    told: dict[str, Any] = {"summary": summary, "source": plain(event.attributes["source"]), "delivery": event.id}
    if kind == "Pod":
        uid = about.get("uid", "")
        return PodSignal(namespace, name, uid if is_name(uid) else "", **told)
    return WorkloadSignal(TOLD[kind], kind, namespace, name, **told)


def _answered(data: Any, where: str) -> Answered:
    """Read an answer. Nothing in it is guessed: by it disks may be taken from a machine that is said to be off."""
    if not isinstance(data, dict):
        raise BadEventError(where, f"must be an object, not {shown(data)}")
    strange = next((key for key in data if key not in _ANSWER), None)
    if strange is not None:
        raise BadEventError(where, f"has {shown(strange)}, which is none of {', '.join(_ANSWER)}")
    outcome, off, message = data.get("outcome"), data.get("poweredOff", False), data.get("message", "")
    if outcome not in ("Accepted", "Done", "Failed"):
        raise BadEventError(f"{where}.outcome", f"must be Accepted, Done or Failed, not {shown(outcome)}")
    if not isinstance(off, bool):
        raise BadEventError(f"{where}.poweredOff", f"must be true or false, not {shown(off)}")
    if not isinstance(message, str):
        raise BadEventError(f"{where}.message", f"must be a string, not {shown(message)}")
    namespace, record = name_in(data, "namespace", where), name_in(data, "record", where)
    return Answered(namespace, record, outcome, off, plain(message))


def _said_back(event: Event) -> Delivery:
    if event.kind == FEEDBACK:
        return Delivery(feedback=(_feedback(event.data(), event.at),))
    return Delivery(answered=(_answered(event.data(), event.at),))


def _feedback(data: Any, where: str) -> Feedback:
    if not isinstance(data, dict):
        raise BadEventError(where, f"must be an object, not {shown(data)}")
    strange = next((key for key in data if key not in _FEEDBACK), None)
    if strange is not None:
        raise BadEventError(where, f"has {shown(strange)}, which is none of {', '.join(_FEEDBACK)}")
    verdict, by = data.get("verdict"), data.get("by", "")
    if verdict not in ("Confirmed", "Dismissed"):
        raise BadEventError(f"{where}.verdict", f"must be Confirmed or Dismissed, not {shown(verdict)}")
    if not isinstance(by, str):
        raise BadEventError(f"{where}.by", f"must be a string, not {shown(by)}")
    return Feedback(name_in(data, "namespace", where), name_in(data, "anomaly", where), verdict, plain(by)[:200])


def _items(event: Event) -> list[tuple[str, Any]]:
    data = event.data()
    items = data.get("items") if isinstance(data, dict) else None
    if not isinstance(items, list):
        raise BadEventError(f"{event.at}.items", "must be a list")
    return [(f"{event.at}.items[{index}]", item) for index, item in enumerate(items)]


def write(
    source: str, kind: str, subject: str, data: JSON, extensions: Mapping[str, str]
) -> tuple[Mapping[str, str], bytes]:
    """Write an event in binary mode; returns the headers and the body."""
    # Most events are answered with nothing, and a function starts for one event.
    from cloudevents.conversion import to_binary  # noqa: PLC0415
    from cloudevents.http import CloudEvent  # noqa: PLC0415

    attributes = {"source": source, "type": kind, "subject": subject, **extensions}
    headers, body = to_binary(CloudEvent(attributes, data))
    encoded = {name: _UNSAFE.sub(_percent, value) for name, value in headers.items()}
    return {**encoded, "content-type": "application/json"}, body or b""


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode())
