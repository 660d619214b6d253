"""Flagger's webhooks: a canary's name, and how far it is; the answer's code decides what Flagger does.

Written by `CallWebhook` in pkg/controller/webhook.go of github.com/fluxcd/flagger. No header but Content-Type is set.
"""

from __future__ import annotations

from typing import Any

from kreflex.errors import BadEventError
from kreflex.gates import API, KIND, UNDER_WAY
from kreflex.ingress.bodies import shown
from kreflex.ingress.names import names
from kreflex.signals import Delivery, WorkloadSignal
from kreflex.views import JSON

SENDER = "flagger"


def is_flagger(body: object) -> bool:
    """Tell whether a JSON body is meant as one of Flagger's webhooks."""
    return isinstance(body, dict) and {"name", "namespace", "phase", "checksum"} <= body.keys()


def parse(body: JSON) -> Delivery:
    """Read one webhook, raising BadEventError; only an analysis that is under way is asked about."""
    namespace, name = names(body, "body")
    phase: Any = body["phase"]
    if not isinstance(phase, str):
        raise BadEventError("body.phase", f"must be a phase of a Canary, not {shown(phase)}")
    about = {"sender": SENDER, "canary": f"{namespace}/{name}"}
    if phase not in UNDER_WAY:
        told = f"a Canary that is {shown(phase)} has no analysis under way"
        return Delivery(ignored=(told,), gate=True, about=about)
    return Delivery((WorkloadSignal(API, KIND, namespace, name, source=SENDER),), gate=True, about=about)
