"""What senders send, turned into signals. Nothing here decides or reads the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kreflex.errors import TooLargeError
from kreflex.ingress import alertmanager, argo_events, cloudevents, flagger
from kreflex.ingress.bodies import read_json
from kreflex.signals import Delivery
from kreflex.trace import from_headers


def most_bytes(headers: Mapping[str, str]) -> int:
    """Tell how large a body may be; names of headers are in lower case here and below."""
    return cloudevents.most_bytes(headers) if cloudevents.is_cloudevent(headers) else alertmanager.MOST_BYTES


def parse(headers: Mapping[str, str], body: bytes | bytearray) -> Delivery:
    """Read a request of any sender; raises BadEventError or TooLargeError that names what is wrong."""
    delivery = cloudevents.parse(headers, body) if cloudevents.is_cloudevent(headers) else _plain(body)
    return delivery if delivery.trace is not None else replace(delivery, trace=from_headers(headers))


def _plain(body: bytes | bytearray) -> Delivery:
    content = read_json(body, "body")
    if alertmanager.is_alertmanager(content):
        return alertmanager.parse(content)
    if len(body) > cloudevents.MOST_BYTES:
        raise TooLargeError(f"the body is larger than {cloudevents.MOST_BYTES} bytes, and no Alertmanager webhook")
    return flagger.parse(content) if flagger.is_flagger(content) else argo_events.parse(content)
