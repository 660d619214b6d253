"""What the cluster itself refused is not asked each time, and yet again when somebody changes the policies."""

from kreflex.policy import Policies
from kreflex.reflex import Arc
from kreflex.settings import CoreSettings
from kreflex.signals import Due
from tests.cluster.reflexes import REFLEX
from tests.values import HOUR, MINUTE, NOW, CannedApi, a_pod, a_record_body, an_empty_ledger, objects, stamp

UNCHANGED = Policies(()).stamp(REFLEX.name, "shop")


def denied(policy: str) -> tuple[CannedApi, Due]:
    """A crash loop whose eviction an admission policy denied a minute ago, under policies of this stamp."""
    times = {"decidedAt": stamp(NOW - MINUTE), "dueAt": stamp(NOW + HOUR)}
    said = {"phase": "Open", "outcome": "refused", "reason": "no"}
    history = [{"at": stamp(NOW - MINUTE), **said}]
    body = a_record_body(status={**said, **times, "guard": "Admission", "policy": policy, "history": history})
    name = body["metadata"]["name"]
    path = f"/apis/kreflex.dev/v1alpha1/namespaces/shop/remediations/{name}"
    return CannedApi({**objects(a_pod()), **an_empty_ledger(), path: body, f"{path}/status": body}), Due("shop", name)


async def test_it_is_not_asked_again_before_its_time() -> None:
    api, due = denied(UNCHANGED)
    result = await Arc(REFLEX, CoreSettings(), api).handle(due)
    assert (result.outcome, result.because) == ("refused", "it is not due yet")
    assert api.writes == []


async def test_a_change_of_the_policies_has_it_decided_anew() -> None:
    api, due = denied("the stamp of others")
    result = await Arc(REFLEX, CoreSettings(), api).handle(due)
    assert result.because.startswith("dry run (no ClusterRemediationPolicy selects it)")
    assert any(call.endswith("/status") for call in api.writes)
