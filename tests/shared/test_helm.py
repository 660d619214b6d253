"""Releases of Helm as values: which revision is gone back to, when nothing is done, and the Job that does it."""

from datetime import timedelta
from typing import Any

import pytest

from kreflex.errors import OutageError
from kreflex.helm import Held, Installation, Undo, helm_source, helm_way_back, installation_of
from kreflex.helmactions import HELM_BACK, helm_went
from kreflex.helmjobs import job_name, job_of
from kreflex.releases import Helm, Releases
from kreflex.reverts import BACK_BY
from kreflex.revisions import Release
from kreflex.views import JSON, Ref
from tests.shared.releases import a_deployment, a_history, a_set, the_release
from tests.values import MINUTE, NOW, CannedApi, stamp

CART = Installation("cart", "shop")
LABELS = {"app.kubernetes.io/managed-by": "Helm"}
NOTES = {"meta.helm.sh/release-name": "cart", "meta.helm.sh/release-namespace": "shop"}
RULES = Releases(helm=Helm(service_account="helm-rollback", image="helm:4"))
SECRETS = "/api/v1/namespaces/shop/secrets"
JOB = "/apis/batch/v1/namespaces/shop/jobs/cart-undo-2"
BY_HAND = "helm history cart --namespace shop; helm rollback cart REVISION --namespace shop --wait"
# Helm notes a revision before it writes anything.
FIRST, BAD = 601 * MINUTE, 5 * MINUTE + timedelta(seconds=2)
SECOND_SET = Ref("apps/v1", "ReplicaSet", "shop", "cart-abc", "uid-cart-abc")


def a_secret(version: int, status: str, ago: timedelta) -> JSON:
    labels = {"owner": "helm", "name": "cart", "version": str(version), "status": status}
    name = f"sh.helm.release.v1.cart.v{version}"
    return {"metadata": {"name": name, "labels": labels, "creationTimestamp": stamp(NOW - ago)}}


def secrets(*bodies: JSON) -> dict[str, JSON]:
    return {f"{SECRETS}/{one['metadata']['name']}": one for one in bodies}


TWO = secrets(a_secret(1, "superseded", FIRST), a_secret(2, "deployed", BAD))


class Forbidding(CannedApi):
    """Lets nobody list Secrets."""

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        if path == SECRETS:
            raise OutageError("secrets is forbidden", 403)
        return await super().send(method, path, body, **options)


async def ours(*more: JSON, notes: dict[str, str] = NOTES, meta: JSON | None = None, **about: Any) -> Release:
    """The bad release, as Helm marks it."""
    marked = a_deployment(meta={"labels": LABELS, "annotations": notes, **(meta or {})})
    return await the_release(*more, deployment=marked, **about)


async def way_back(
    release: Release, kept: dict[str, JSON] = TWO, rules: Releases = RULES, api: CannedApi | None = None
) -> Undo | Held | None:
    reader = (api or CannedApi(kept)).pair()[0]
    return await helm_way_back(release, release.earlier[-1], rules, reader)


async def test_only_what_helm_itself_has_marked_is_its_own() -> None:
    assert installation_of((await ours()).body) == CART
    assert installation_of(a_deployment(meta={"annotations": NOTES})) is None
    assert installation_of(a_deployment(meta={"labels": LABELS})) is None
    assert await way_back(await the_release()) is None


async def test_goes_back_to_the_revision_with_which_the_pods_that_are_left_were_well() -> None:
    assert await way_back(await ours()) == Undo(CART, bad=2, good=1)


async def test_a_revision_that_changed_nothing_of_the_workload_is_as_healthy_if_it_was_there_for_long() -> None:
    def kept(ago: timedelta) -> dict[str, JSON]:
        return secrets(
            a_secret(1, "superseded", FIRST), a_secret(2, "superseded", ago + BAD), a_secret(3, "deployed", BAD)
        )

    assert await way_back(await ours(), kept(6 * MINUTE)) == Undo(CART, bad=3, good=2)
    assert isinstance(await way_back(await ours(), kept(4 * MINUTE)), Held)


async def test_what_was_noted_counts_even_if_no_pod_of_it_is_left() -> None:
    noted = {
        "hash": "7d4",
        "number": 1,
        "healthyAt": stamp(NOW - 300 * MINUTE),
        "healthyUntil": stamp(NOW - 290 * MINUTE),
        "source": "helm/cart/1",
    }
    kept = secrets(
        a_secret(1, "superseded", FIRST), a_secret(2, "superseded", 4 * MINUTE + BAD), a_secret(3, "deployed", BAD)
    )
    assert await way_back(await ours(history=a_history(noted)), kept) == Undo(CART, bad=3, good=1)


async def test_a_revision_that_never_worked_is_not_gone_back_to_though_helm_calls_it_superseded() -> None:
    between = a_set(SECOND_SET, 2, "cart:bad", 30 * MINUTE)
    release = await ours(between)
    kept = secrets(
        a_secret(1, "superseded", FIRST), a_secret(2, "superseded", 31 * MINUTE), a_secret(3, "deployed", BAD)
    )
    because = (
        "none of the 2 earlier revisions of Helm's release shop/cart that have worked is known to have brought"
        f" revision 1 (cart:1), which was healthy: choose one by hand: {BY_HAND}"
    )
    assert await way_back(release, kept) == Held("HelmUnproven", because)


async def test_failed_revisions_are_passed_over() -> None:
    kept = secrets(a_secret(1, "deployed", FIRST), a_secret(2, "failed", BAD), a_secret(3, "failed", 3 * MINUTE))
    assert await way_back(await ours(), kept) == Undo(CART, bad=3, good=1)


@pytest.mark.parametrize("status", ["pending-install", "pending-upgrade", "pending-rollback"])
async def test_whoever_is_at_work_is_waited_for_and_then_told_to_people(status: str) -> None:
    young = secrets(a_secret(1, "deployed", FIRST), a_secret(2, status, 9 * MINUTE))
    begun = NOW - 9 * MINUTE
    told = f"revision 2 of Helm's release shop/cart is {status}"
    busy = Held("HelmPending", f"{told} since {begun:%H:%M:%S}: somebody is at work", begun + 10 * MINUTE)
    assert await way_back(await ours(), young) == busy
    old = secrets(a_secret(1, "deployed", FIRST), a_secret(2, status, 11 * MINUTE))
    because = f"{told} for 11m: whoever did it has died, or still waits. See that nobody is at it, and then: {BY_HAND}"
    assert await way_back(await ours(), old) == Held("HelmPending", because)


async def test_what_is_uninstalled_is_left_alone() -> None:
    kept = secrets(a_secret(1, "uninstalling", MINUTE))
    because = "revision 1 of Helm's release shop/cart is uninstalling: nothing is gone back to"
    assert await way_back(await ours(), kept) == Held("HelmPending", because)


async def test_each_thing_that_is_missing_is_named() -> None:
    belongs = "it is part of Helm's release shop/cart: name"
    by_hand = f"or go back by hand: {BY_HAND}"
    account = f"{belongs} a ServiceAccount of the namespace in the policy (releases.helm.serviceAccount), {by_hand}"
    assert await way_back(await ours(), rules=Releases()) == Held("HelmAccount", account)
    image = f"{belongs} an image with helm in the policy (releases.helm.image), {by_hand}"
    without = Releases(helm=Helm(service_account="helm-rollback"))
    assert await way_back(await ours(), rules=without) == Held("HelmImage", image)
    rights = (
        "the revisions of Helm's release shop/cart can't be seen: its Secrets may not be listed; apply"
        f" knative/variants/helm to namespace shop, {by_hand}"
    )
    forbidden = Held("HelmRights", rights, again=10 * MINUTE)
    assert await way_back(await ours(), api=Forbidding()) == forbidden
    history = (
        "Helm's release shop/cart has no Secret: Helm keeps it elsewhere (HELM_DRIVER), or it was taken over;"
        " go back by hand"
    )
    assert await way_back(await ours(), {}) == Held("HelmHistory", history)


@pytest.mark.parametrize("name", ["--kube-token=x", "Cart", "", "a" * 54, "a/b"])
async def test_a_name_that_is_none_is_not_believed(name: str) -> None:
    held = await way_back(await ours(notes={**NOTES, "meta.helm.sh/release-name": name}))
    assert held == Held("HelmElsewhere", f"{name!r} is no name of a release of Helm: go back by hand")


async def test_nobody_can_point_at_a_release_of_another_namespace() -> None:
    api = CannedApi(TWO)
    held = await way_back(await ours(notes={**NOTES, "meta.helm.sh/release-namespace": "bank"}), api=api)
    because = "Helm's release bank/cart is kept in another namespace than Deployment shop/cart: go back by hand"
    assert held == Held("HelmElsewhere", because)
    assert api.calls == []


async def test_what_was_changed_beside_helm_helm_can_not_undo() -> None:
    def wrote(manager: str, ago: timedelta) -> JSON:
        fields: JSON = {"f:spec": {"f:template": {}}}
        return {"manager": manager, "operation": "Update", "time": stamp(NOW - ago), "fieldsV1": fields}

    entries = [wrote("helm", FIRST), wrote("kubectl-edit", 5 * MINUTE)]
    held = await way_back(await ours(meta={"managedFields": entries}))
    because = (
        "kubectl-edit has changed Deployment shop/cart beside Helm, which Helm can't undo; to write again what revision"
        f" 2 of Helm's release shop/cart says: {BY_HAND.replace('REVISION', '2')}"
    )
    assert held == Held("HelmDrift", because)
    entries.append(wrote("terraform-provider-helm_v3", 4 * MINUTE))
    assert await way_back(await ours(meta={"managedFields": entries})) == Undo(CART, bad=2, good=1)


async def test_a_healthy_release_is_noted_with_the_revision_that_was_there_all_the_while() -> None:
    async def source(*bodies: JSON, release: Release) -> str:
        return await helm_source(release, 5 * MINUTE, CannedApi(secrets(*bodies)).pair()[0])

    release, first = await ours(), a_secret(1, "superseded", FIRST)
    assert await source(first, a_secret(2, "deployed", 6 * MINUTE), release=release) == "helm/cart/2"
    assert await source(first, a_secret(2, "deployed", 4 * MINUTE), release=release) == ""
    assert await source(first, a_secret(2, "pending-upgrade", 6 * MINUTE), release=release) == ""
    assert await source(first, release=await the_release()) == ""
    assert await source(release=release) == ""
    assert await helm_source(release, 5 * MINUTE, Forbidding().pair()[0]) == ""


def test_the_job_runs_helm_and_nothing_else() -> None:
    meta = {
        "labels": {"app.kubernetes.io/managed-by": "kreflex", "sidecar.istio.io/inject": "false"},
        "annotations": {"kreflex.dev/remediation": "rollback-cart-1", "linkerd.io/inject": "disabled"},
    }
    command = ["helm", "rollback", "cart", "1", "--namespace=shop", "--wait", "--timeout=300s"]
    made = job_of(Undo(CART, 2, 1), RULES.helm, "rollback-cart-1")
    assert made["metadata"] == {"name": "cart-undo-2", "namespace": "shop", **meta}
    assert made["spec"].pop("template") == {
        "metadata": meta,
        "spec": {
            "serviceAccountName": "helm-rollback",
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532},
            "containers": [
                {
                    "name": "helm",
                    "image": "helm:4",
                    "command": command,
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "128Mi"},
                        "limits": {"cpu": "1", "memory": "512Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                        "runAsNonRoot": True,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                }
            ],
        },
    }
    # Helm's own limit ends well before the Job's, whose end would take its words with it.
    assert (made["spec"].pop("activeDeadlineSeconds"), made["spec"].pop("ttlSecondsAfterFinished")) == (720, 86400)
    assert made["spec"].pop("backoffLimit") == 2
    assert [rule["action"] for rule in made["spec"].pop("podFailurePolicy")["rules"]] == ["Ignore", "FailJob"]
    assert made["spec"] == {}


def test_conflicts_are_forced_only_if_the_policy_says_so() -> None:
    rules = RULES.helm.model_copy(update={"force_conflicts": True})
    (container,) = job_of(Undo(CART, 2, 1), rules, "r-1")["spec"]["template"]["spec"]["containers"]
    assert container["command"][-1] == "--force-conflicts"


def test_a_job_is_called_after_what_it_undoes_and_never_too_long() -> None:
    assert job_name(Undo(CART, 12, 1)) == "cart-undo-12"
    long = [job_name(Undo(Installation("a" * 53, "shop"), number, 1)) for number in (12345, 12346)]
    assert [len(name) for name in long] == [63, 63]
    assert long[0] != long[1]


BEGUN = {**NOTES, BACK_BY: "r-1", HELM_BACK: "2/1"}


def a_job(*conditions: JSON) -> JSON:
    meta = {"name": "cart-undo-2", "namespace": "shop", "uid": "uid-job", "creationTimestamp": stamp(NOW - MINUTE)}
    return {JOB: {"metadata": meta, "status": {"conditions": list(conditions)}}}


def a_job_pod(state: JSON) -> JSON:
    meta = {"name": "p", "namespace": "shop", "uid": "uid-p", "creationTimestamp": stamp(NOW - MINUTE)}
    return {"/api/v1/namespaces/shop/pods/p": {"metadata": meta, "status": {"containerStatuses": [{"state": state}]}}}


async def went(kept: dict[str, JSON], rules: Releases = RULES) -> Undo | Held | None:
    return await helm_went(await ours(notes=BEGUN), "r-1", rules, CannedApi(kept).pair()[0])


async def test_a_job_that_runs_is_waited_for_and_what_it_waits_for_is_told() -> None:
    at_work = Held("HelmPending", "Job cart-undo-2: helm is at work", NOW + timedelta(seconds=10))
    assert await went(a_job() | a_job_pod({"running": {}})) == at_work
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    pulling = Held("HelmPending", "Job cart-undo-2: ImagePullBackOff: no such image", NOW + timedelta(seconds=10))
    assert await went(a_job() | a_job_pod(waiting)) == pulling


async def test_a_job_that_has_worked_is_over() -> None:
    assert await went(a_job({"type": "Complete", "status": "True"})) is None


async def test_of_a_job_that_has_failed_helms_own_words_are_told() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "it took too long"}
    could_not = "helm could not roll Helm's release shop/cart back to revision 1"
    assert await went(a_job(failed)) == Held("HelmFailed", f"{could_not}: it took too long")
    said = {"terminated": {"message": "WARNING: odd\nError: services is forbidden:\n  no\n"}}
    advice = ". Give the account that right (knative/variants/helm)"
    because = f"{could_not}: Error: services is forbidden: no{advice}"
    assert await went(a_job(failed) | a_job_pod(said)) == Held("HelmFailed", because)


@pytest.mark.parametrize("status", ["deployed", "pending-upgrade", "failed"])
async def test_without_a_job_the_revision_that_came_since_tells_how_it_went(status: str) -> None:
    kept = TWO | secrets(a_secret(3, status, MINUTE))
    told = f"revision 3 of Helm's release shop/cart is {status}"
    gone = f"{told}, and its Job is gone: {BY_HAND.replace('REVISION', '1')}"
    expected = {
        "deployed": None,
        "pending-upgrade": Held("HelmPending", f"{told}: somebody is at work", NOW + 9 * MINUTE),
        "failed": Held("HelmFailed", gone),
    }
    assert await went(kept) == expected[status]


async def test_what_was_cut_off_is_begun_again_to_the_same_revision() -> None:
    assert await went(TWO) == Undo(CART, bad=2, good=1)
    assert await went(TWO | secrets(a_secret(3, "pending-rollback", MINUTE))) == Undo(CART, bad=2, good=1)


async def test_another_record_has_begun_nothing() -> None:
    assert await helm_went(await ours(notes=BEGUN), "r-2", RULES, CannedApi(TWO).pair()[0]) is None
