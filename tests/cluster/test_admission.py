"""The admission policies on a real API server, for accounts that somebody has made cluster-admin by mistake."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from kreflex import EvictPod, PodSignal, Settings, Skip, World, admission, rights
from kreflex.reflex import Reflex
from lab import manifests
from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane
from tests import kit, made_up

KILLER, WAKER = "restart-loop-killer", "waker"
HOME, ELSEWHERE = "kreflex-system", "reflexes"
API = "/apis/kreflex.dev/v1alpha1"
RBAC = "rbac.authorization.k8s.io"
DRY = "?dryRun=All"


def bound(account: str, namespace: str, role: str) -> kit.Json:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"test:{namespace}:{account}:{role}"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }


async def clients(plane: ControlPlane, names: list[tuple[str, str]]) -> dict[tuple[str, str], Api]:
    return {(name, home): plane.api_with(await plane.token(name, home)) for name, home in names}


async def active(ask: Callable[[], Awaitable[Any]], what: str) -> None:
    """Wait until a policy denies: the API server takes a second or two to notice one."""

    async def denied() -> bool:
        try:
            await ask()
        except Refused as refusal:
            return "ValidatingAdmissionPolicy" in str(refusal)
        return False

    await eventually(denied, f"{what} denied")


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A control plane with Kreflex, where each of its accounts may do everything, as far as RBAC is concerned."""
    async with ControlPlane(tmp_path_factory.mktemp("admission")) as plane:
        await kit.install(plane)
        a_third = admission.policy_of(rights.rights_of(made_up.reflex(made_up.cordons_and_scales)))
        accounts = [(KILLER, HOME), (WAKER, HOME), (KILLER, ELSEWHERE), (made_up.NAME, HOME)]
        await manifests.apply(plane.api, [*a_third, *(bound(*one, "cluster-admin") for one in accounts)])
        yield plane


@pytest.fixture(scope="module")
async def them(own: ControlPlane) -> AsyncIterator[dict[tuple[str, str], Api]]:
    """Clients with the accounts' rights; their policies are active."""
    names = [(KILLER, HOME), (WAKER, HOME), (KILLER, ELSEWHERE), (made_up.NAME, HOME)]
    made = await clients(own, names)
    for (name, _), client in made.items():
        secret = {"metadata": {"name": f"probe-{name}"}}
        await active(lambda c=client, s=secret: c.post(f"/api/v1/namespaces/default/secrets{DRY}", s), name)  # type: ignore[misc]
    yield made
    for client in made.values():
        await client.close()


@pytest.fixture
def killer(them: dict[tuple[str, str], Api]) -> Api:
    return them[KILLER, HOME]


@pytest.fixture
async def shop(own: ControlPlane) -> kit.Place:
    return await kit.place(own)


async def a_pod(place: kit.Place) -> kit.Json:
    """A pod that nobody changes after this: it is for a scheduler that there is not."""
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    profile = {"seccompProfile": {"type": "RuntimeDefault"}}
    container = {"name": "app", "image": "shop:1", "securityContext": {**confined, **profile}}
    spec = {"containers": [container], "schedulerName": "none", "terminationGracePeriodSeconds": 0}
    path = f"/api/v1/namespaces/{place.name}/pods"
    return await place.plane.api.post(path, {"metadata": {"name": "cart"}, "spec": spec})


def eviction(pod: kit.Json, **options: Any) -> tuple[str, kit.Json]:
    meta = pod["metadata"]
    where = {"namespace": meta["namespace"], "name": meta["name"]}
    preconditions = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
    whole = {"preconditions": preconditions, **options}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": where, "deleteOptions": whole}
    return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/eviction", body


def record(function: str = KILLER, name: str = "r-1") -> kit.Json:
    target = {"apiVersion": "v1", "kind": "Pod", "name": "cart", "namespace": "shop", "uid": "1"}
    spec = {"function": function, "target": target, "fault": {"key": f"{function}/1"}}
    return {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Remediation", "metadata": {"name": name}, "spec": spec}


def event(place: kit.Place, controller: str = f"kreflex.dev/{KILLER}") -> kit.Json:
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": "e-", "namespace": place.name},
        "eventTime": "2026-05-01T12:00:00.000000Z",
        "reportingController": controller,
        "reportingInstance": "test",
        "action": "Remediate",
        "reason": "KreflexTest",
        "type": "Normal",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": place.name, "name": "cart"},
    }


def core_event(place: kit.Place) -> kit.Json:
    regarding = {"kind": "Pod", "namespace": place.name, "name": "cart"}
    return {"metadata": {"generateName": "e-"}, "involvedObject": regarding, "reason": "Test", "type": "Normal"}


async def test_what_a_function_does_passes(killer: Api, shop: kit.Place) -> None:
    pod = await a_pod(shop)
    path, body = eviction(pod)
    records, events = (
        f"{API}/namespaces/{shop.name}/remediations",
        f"/apis/events.k8s.io/v1/namespaces/{shop.name}/events",
    )

    made = await killer.post(records, record())
    status = {"phase": "Open", "decidedAt": "2026-05-01T12:00:00Z"}
    version = {"resourceVersion": made["metadata"]["resourceVersion"]}
    await killer.patch(f"{records}/r-1/status", {"metadata": version, "status": status})
    await killer.post(path, body)
    await killer.post(events, event(shop))
    review = {"spec": {"token": "none", "audiences": ["kreflex"]}}
    await killer.post("/apis/authentication.k8s.io/v1/tokenreviews", review)
    assert await shop.plane.api.find(f"/api/v1/namespaces/{shop.name}/pods/cart") is None


async def test_the_ledger_may_be_written_and_nothing_of_it_but_its_data(killer: Api, shop: kit.Place) -> None:
    path = f"/api/v1/namespaces/{HOME}/configmaps/kreflex-ledger"
    for entries in ("[]", "[ ]"):
        await killer.put(path, {**await killer.get(path), "data": {"entries": entries}})
    ledger = await killer.get(path)
    meta = ledger["metadata"]
    for change in (
        {"metadata": {**meta, "labels": {"mine": "yes"}}},
        {"metadata": {**meta, "annotations": {"mine": "yes"}}},
        {"metadata": {**meta, "finalizers": ["example.com/mine"]}},
        {"immutable": True},
        {"binaryData": {"mine": "eWVz"}},
    ):
        with pytest.raises(Refused, match=r"403: .*may not UPDATE configmaps in namespace .*: only data may change"):
            await killer.put(path, {**ledger, **change})


FORBIDDEN: list[tuple[str, str, kit.Json | None, str]] = [
    ("DELETE", "/api/v1/namespaces/{shop}/pods/cart", None, "DELETE pods"),
    ("DELETE", "/api/v1/namespaces/{shop}/pods", None, "DELETE pods"),
    ("PATCH", "/api/v1/namespaces/{shop}/pods/cart", {"metadata": {"labels": {"a": "b"}}}, "UPDATE pods"),
    ("PATCH", "/api/v1/namespaces/{shop}/pods/cart/status", {"status": {"message": "x"}}, "UPDATE pods/status"),
    ("POST", "/api/v1/namespaces/{shop}/pods/cart/exec?command=true&stdout=true", None, "CONNECT pods/exec"),
    ("POST", "/api/v1/namespaces/{shop}/secrets", {"metadata": {"name": "x"}}, "CREATE secrets"),
    ("POST", "/api/v1/namespaces/{shop}/serviceaccounts/default/token", {"spec": {}}, "CREATE serviceaccounts/token"),
    ("POST", "/api/v1/namespaces/{shop}/configmaps", {"metadata": {"name": "kreflex-ledger"}}, "CREATE configmaps"),
    ("PATCH", "/api/v1/namespaces/{shop}/configmaps/kube-root-ca.crt", {"data": {"a": "b"}}, "UPDATE configmaps"),
    ("DELETE", "/api/v1/namespaces/kreflex-system/configmaps/kreflex-ledger", None, "DELETE configmaps"),
    ("DELETE", "/api/v1/namespaces/{shop}", None, "DELETE namespaces"),
    ("PATCH", "/api/v1/namespaces/{shop}", {"metadata": {"labels": {"a": "b"}}}, "UPDATE namespaces"),
    ("POST", "/api/v1/nodes", {"metadata": {"name": "x"}}, "CREATE nodes"),
    (
        "PATCH",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/test:kreflex-system:waker:cluster-admin",
        {"metadata": {"labels": {"a": "b"}}},
        "UPDATE clusterrolebindings.rbac.authorization.k8s.io",
    ),
    (
        "PATCH",
        f"{API}/namespaces/{{shop}}/remediations/theirs",
        {"metadata": {"labels": {"a": "b"}}},
        "UPDATE remediations.kreflex.dev",
    ),
    ("DELETE", f"{API}/namespaces/{{shop}}/remediations/theirs", None, "DELETE remediations.kreflex.dev"),
    (
        "POST",
        f"{API}/clusterremediationpolicies",
        {
            "apiVersion": "kreflex.dev/v1alpha1",
            "kind": "ClusterRemediationPolicy",
            "metadata": {"name": "mine"},
            "spec": {"mode": "Auto"},
        },
        "CREATE clusterremediationpolicies.kreflex.dev",
    ),
]


@pytest.fixture(scope="module")
async def there(own: ControlPlane) -> kit.Place:
    """A namespace with a pod, and with a record of another function."""
    place = await kit.place(own)
    await a_pod(place)
    other = own.api_with(await own.token("other", HOME))
    await manifests.apply(own.api, [bound("other", HOME, "cluster-admin")])
    await other.post(f"{API}/namespaces/{place.name}/remediations", record("other", "theirs"))
    await other.close()

    async def ready() -> Any:
        return await own.api.find(f"/api/v1/namespaces/{place.name}/configmaps/kube-root-ca.crt")

    await eventually(ready, "the namespace's own ConfigMap")
    return place


@pytest.mark.parametrize(("method", "path", "body", "asked"), FORBIDDEN, ids=[one[3] for one in FORBIDDEN])
async def test_nothing_else_passes(
    killer: Api, there: kit.Place, method: str, path: str, body: kit.Json | None, asked: str
) -> None:
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    with pytest.raises(Refused) as caught:
        await killer._send(method, path.format(shop=there.name), body, content_type=kind)
    assert "403: " in str(caught.value)
    assert "ValidatingAdmissionPolicy 'restart-loop-killer.kreflex.dev' with binding" in str(caught.value)
    assert f"{KILLER} may not {asked}" in str(caught.value)


async def test_it_evicts_nothing_in_a_protected_namespace(killer: Api, own: ControlPlane) -> None:
    labelled = await kit.place(own)
    label = {"metadata": {"labels": {"kreflex.dev/protected": "true"}}}
    await own.api.patch(f"/api/v1/namespaces/{labelled.name}", label)
    protected = [kit.Place(own, name) for name in ("kube-system", "kube-public", "kube-node-lease", HOME)]
    for place in (*protected, labelled):
        path, body = eviction(await a_pod(place))

        async def ask(path: str = path, body: kit.Json = body) -> None:
            await killer.post(f"{path}{DRY}", body)

        await active(ask, f"an eviction in {place.name}")  # The label takes a moment to be seen.
        with pytest.raises(Refused, match=rf"403: .*may not CREATE pods/eviction in namespace {place.name}: "):
            await killer.post(path, body)
        assert await own.api.find(path.removesuffix("/eviction")) is not None
        await own.api.delete(path.removesuffix("/eviction"))


async def test_a_namespace_may_say_that_it_is_not_protected(killer: Api, own: ControlPlane) -> None:
    name = "t-unprotected"
    labels = {"kreflex.dev/protected": "false"}
    await own.api.post("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    pod = await a_pod(kit.Place(own, name))
    await killer.post(*eviction(pod))
    assert kit.evictions(own, name) == [pod["metadata"]["uid"]]


async def evicts(signal: PodSignal, world: World, settings: Settings) -> EvictPod | Skip:
    pod = await world.cluster.pod(signal.namespace, signal.name)
    return EvictPod("it is told to", pod, None) if pod else Skip("it is gone")


async def test_a_denial_is_a_refusal_with_the_words_of_the_policy(
    them: dict[tuple[str, str], Api], shop: kit.Place
) -> None:
    label = {"metadata": {"labels": {"kreflex.dev/protected": "yes"}}}
    await shop.plane.api.patch(f"/api/v1/namespaces/{shop.name}", label)
    await shop.policy(owners=["Pod"])
    pod = await a_pod(shop)
    path, body = eviction(pod)
    await active(lambda: them[KILLER, HOME].post(f"{path}{DRY}", body), "an eviction")  # The label is seen.

    reflex = Reflex(KILLER, made_up.find, evicts, made_up.recovered, Settings())
    async with kit.arc_of(shop.plane, reflex) as arc:
        result = await arc.handle(PodSignal(shop.name, "cart", pod["metadata"]["uid"]))
    status = (await shop.records())[0]["status"]
    assert (result.outcome, status["phase"], status["outcome"], status["guard"]) == (
        "refused",
        "Open",
        "refused",
        "Admission",
    )
    assert "the namespace has the label kreflex.dev/protected" in status["reason"]
    assert shop.evictions() == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"preconditions": None}, "names the pod's UID and resourceVersion"),
        ({"preconditions": {"uid": "x"}}, "names the pod's UID and resourceVersion"),
        ({"preconditions": {"resourceVersion": "1"}}, "names the pod's UID and resourceVersion"),
        ({"gracePeriodSeconds": 0}, "leaves the pod its own grace period"),
    ],
)
async def test_an_eviction_names_its_pod_and_does_not_hurry_it(
    killer: Api, there: kit.Place, options: kit.Json, why: str
) -> None:
    pod = await there.plane.api.get(f"/api/v1/namespaces/{there.name}/pods/cart")
    with pytest.raises(Refused, match=rf"403: .*may not CREATE pods/eviction .*: an eviction {why}"):
        await killer.post(*eviction(pod, **options))


async def test_it_writes_no_record_of_another_function(killer: Api, there: kit.Place) -> None:
    path = f"{API}/namespaces/{there.name}/remediations"
    with pytest.raises(Refused, match=r"403: .*(a function writes its own records only|only the account of other)"):
        await killer.post(path, record("other", "forged"))
    with pytest.raises(Refused, match=r"403: .*(a function writes its own records only|only the account of other)"):
        await killer.patch(f"{path}/theirs/status", {"status": {"phase": "Done"}})


async def test_it_signs_its_events_and_writes_no_others(killer: Api, there: kit.Place) -> None:
    with pytest.raises(Refused, match=r"403: .*an Event says which function wrote it"):
        await killer.post(
            f"/apis/events.k8s.io/v1/namespaces/{there.name}/events", event(there, "kreflex.dev/somebody-else")
        )
    with pytest.raises(Refused, match=rf"403: .*{KILLER} may not CREATE events in namespace"):
        await killer.post(f"/api/v1/namespaces/{there.name}/events", core_event(there))


async def test_the_waker_removes_records_that_are_done_and_does_nothing_else(
    them: dict[tuple[str, str], Api], shop: kit.Place
) -> None:
    killer, waker = them[KILLER, HOME], them[WAKER, HOME]
    path = f"{API}/namespaces/{shop.name}/remediations"
    await killer.post(path, record())
    with pytest.raises(Refused, match=r"403: .*waker may not DELETE remediations.*: only a record that is Done"):
        await waker.delete(f"{path}/r-1")
    with pytest.raises(Refused, match=r"403: .*(waker may not UPDATE remediations|only the account of)"):
        await waker.patch(f"{path}/r-1/status", {"status": {"phase": "Done"}})
    with pytest.raises(Refused, match=r"403: .*(waker may not CREATE remediations|only the account of)"):
        await waker.post(path, record(name="r-2"))
    with pytest.raises(Refused, match=r"403: .*waker may not CREATE pods/eviction"):
        await waker.post(*eviction(await a_pod(shop)))

    await killer.patch(f"{path}/r-1/status", {"status": {"phase": "Done", "outcome": "skipped"}})
    await waker.delete(f"{path}/r-1")


async def test_a_second_kreflex_in_a_namespace_of_another_name_is_held_just_as_well(
    them: dict[tuple[str, str], Api], shop: kit.Place
) -> None:
    second = them[KILLER, ELSEWHERE]
    pod = await a_pod(kit.Place(shop.plane, ELSEWHERE))
    with pytest.raises(Refused, match=r"403: .*may not DELETE pods"):
        await second.delete(f"/api/v1/namespaces/{ELSEWHERE}/pods/cart")
    with pytest.raises(Refused, match=r"403: .*nothing is done in .* Kreflex' own namespace"):
        await second.post(*eviction(pod))
    ledger = await second.get(f"/api/v1/namespaces/{HOME}/configmaps/kreflex-ledger")
    with pytest.raises(Refused, match=r"403: .*in its own namespace only"):
        await second.put(f"/api/v1/namespaces/{HOME}/configmaps/kreflex-ledger", ledger)


async def test_a_stranger_of_the_same_name_is_left_alone(own: ControlPlane, shop: kit.Place) -> None:
    await manifests.apply(own.api, [bound(WAKER, shop.name, "edit")])
    stranger = own.api_with(await own.token(WAKER, shop.name))
    async with stranger:
        await stranger.post(f"/api/v1/namespaces/{shop.name}/configmaps", {"metadata": {"name": "mine"}})
    assert await own.api.find(f"/api/v1/namespaces/{shop.name}/configmaps/mine") is not None


# Actions that change fields: of a function that is made up, on objects that are real


@pytest.fixture
def scaler(them: dict[tuple[str, str], Api]) -> Api:
    return them[made_up.NAME, HOME]


async def a_deployment(place: kit.Place, name: str, **meta: Any) -> str:
    body = kit.deployment(name, 0)
    body["metadata"] |= meta
    path = f"/apis/apps/v1/namespaces/{place.name}/deployments"
    await place.plane.api.post(path, body)
    return f"{path}/{name}"


async def test_an_action_changes_the_fields_that_it_declares_and_may_leave_a_note(scaler: Api, shop: kit.Place) -> None:
    path = await a_deployment(shop, "cart", annotations={"team": "cart"})
    note = {"annotations": {"kreflex.dev/remediation": "uid"}}
    await scaler.patch(path, {"metadata": note, "spec": {"replicas": 1}})
    for change in (
        {"spec": {"paused": True}},
        {"spec": {"replicas": 2, "template": {"metadata": {"labels": {"more": "yes"}}}}},
        {"spec": {"replicas": 2}, "metadata": {"labels": {"more": "yes"}}},
        {"spec": {"replicas": 2}, "metadata": {"annotations": {"team": "mine"}}},
        {"spec": {"replicas": 2}, "metadata": {"annotations": {"team": None}}},
        {"metadata": {"finalizers": ["example.com/mine"]}},
    ):
        with pytest.raises(
            Refused, match=r"403: .*may not UPDATE deployments\.apps .*: only spec\.replicas may change"
        ):
            await scaler.patch(path, change)


@pytest.mark.parametrize(
    "meta",
    [
        {"annotations": {"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:shop/cart"}},
        {"labels": {"app": "cart", "kustomize.toolkit.fluxcd.io/name": "shop"}},
        {"labels": {"app": "cart", "helm.toolkit.fluxcd.io/name": "shop"}},
    ],
    ids=["Argo CD", "Flux Kustomization", "Flux HelmRelease"],
)
async def test_an_action_changes_no_field_that_git_owns(scaler: Api, shop: kit.Place, meta: kit.Json) -> None:
    path = await a_deployment(shop, "cart", **meta)
    with pytest.raises(Refused, match=r"403: .*may not UPDATE deployments\.apps .*: Git owns spec\.replicas of it"):
        await scaler.patch(path, {"spec": {"replicas": 1}})
    await scaler.patch(path, {"metadata": {"annotations": {"kreflex.dev/remediation": "uid"}}})


async def test_an_action_on_what_has_no_namespace_is_held_to_its_field_too(scaler: Api, own: ControlPlane) -> None:
    await own.api.post("/api/v1/nodes", {"metadata": {"name": "node-of-admission"}})
    path = "/api/v1/nodes/node-of-admission"
    await scaler.patch(path, {"spec": {"unschedulable": True}})
    with pytest.raises(Refused, match=r"403: .*may not UPDATE nodes: only spec\.unschedulable may change"):
        await scaler.patch(path, {"spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]}})


async def test_the_api_server_finds_nothing_to_warn_of_in_the_expressions(own: ControlPlane) -> None:
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"

    async def checked() -> list[kit.Json] | None:
        items = (await own.api.get(path))["items"]
        return items if all("typeChecking" in one.get("status", {}) for one in items) else None

    found: list[kit.Json] = await eventually(checked, "the policies checked")
    names = {one["metadata"]["name"] for one in found}
    assert {"approvals.kreflex.dev", f"{KILLER}.kreflex.dev", f"{WAKER}.kreflex.dev"} <= names
    assert [one["status"]["typeChecking"] for one in found if one["status"]["typeChecking"]] == []
