"""What actions on nodes say of themselves, which pods they mean, and what they make of answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from kreflex.actions import ACTIONS, BlockedError
from kreflex.cluster import acting_until
from kreflex.cordons import CordonNode, TaintOutOfService, UncordonNode, UntaintNode
from kreflex.drains import EvictPods, RestartNetworkPod, evictable, network_pods
from kreflex.errors import ApiError, DeniedError, GoneError, ThrottledError, UnavailableError
from kreflex.machines import DeleteMachine, DeleteNodeClaim, Machine, NodeClaim
from kreflex.mends import EndRemediation, MakeRemediation
from kreflex.nodeactions import NodeAction
from kreflex.nodes import owner_of
from kreflex.providers import REQUESTED, AskProvider
from kreflex.upkeep import Drain, Template
from kreflex.views import JSON, Pod, Ref, pod_view
from tests.values import CART_SET, NOW, CannedApi, a_pod, says, the_node

DAEMON = Ref("apps/v1", "DaemonSet", "kube-system", "kube-proxy", "uid-proxy")
STATEFUL = Ref("apps/v1", "StatefulSet", "shop", "db", "uid-db")
NODE = the_node("blue-1", says("Ready", "False"), annotations={"karpenter.sh/nodepool-hash": "42"})
SNR = Template(api_version="snr.medik8s.io/v1alpha1", kind="SnrTemplate", namespace="m", name="t")
CLAIM = NodeClaim(Ref("karpenter.sh/v1", "NodeClaim", "", "blue-x", "uid-x"), "7", terminating=False)
MACHINE = Machine(Ref("cluster.x-k8s.io/v1beta2", "Machine", "m", "blue-x", "uid-x"), "7", terminating=False)


def on(kind: type[NodeAction], **fields: Any) -> NodeAction:
    about = {"because": "it is ill", "node": NODE, "pool": owner_of(NODE.pool()), "episode": "Ready-1"}
    return kind(**{**about, "course": "drain and replace", **fields})


EVERY = [
    on(CordonNode),
    on(UncordonNode),
    on(TaintOutOfService),
    on(UntaintNode),
    on(EvictPods, pods=()),
    on(RestartNetworkPod, pods=()),
    on(MakeRemediation, template=SNR),
    on(EndRemediation, template=SNR),
    on(AskProvider, sink="http://sink", home="kreflex-system"),
    on(DeleteNodeClaim, claim=CLAIM),
    on(DeleteMachine, machine=MACHINE),
]
UNDO = {"UncordonNode", "UntaintNode", "EndRemediation"}
LAST = {"DeleteNodeClaim", "DeleteMachine"}


def test_all_actions_on_nodes_are_known_by_their_names() -> None:
    assert {type(one).__name__: type(one) for one in EVERY}.items() <= ACTIONS.items()
    names = {kind.__name__ for kind in ACTIONS.values() if issubclass(kind, NodeAction)}
    assert names == {type(one).__name__ for one in EVERY}


def test_one_approval_is_for_the_whole_remediation_and_for_no_other() -> None:
    hashes = {one.plan_hash() for one in EVERY}
    assert len(hashes) == 1
    assert on(CordonNode, course="drain, force, and replace").plan_hash() not in hashes
    assert on(CordonNode, node=the_node(uid="another")).plan_hash() not in hashes


def test_an_action_is_about_its_node_and_counted_by_its_pool() -> None:
    for one in EVERY:
        assert (one.target, one.kind, one.owner) == (NODE.ref, "Node", owner_of(NODE.pool()))
        assert (one.template_hash, one.episode, one.risky, one.controller) == ("42", "Ready-1", False, "")
        assert one.annotations() == (("Node blue-1", NODE.annotations),)
    assert on(CordonNode, node=the_node()).risky


def test_only_what_ends_a_machine_is_no_step_and_only_what_takes_back_is_undo() -> None:
    assert {type(one).__name__ for one in EVERY if not one.step} == LAST
    assert {type(one).__name__ for one in EVERY if one.undo} == UNDO
    assert all(one.leased for one in EVERY)


def test_steps_of_the_same_kind_for_different_ends_have_different_names() -> None:
    assert on(EvictPods, pods=()).step_name == "EvictPods"
    assert on(EvictPods, pods=(), label="relief").step_name == "EvictPods relief"
    assert on(MakeRemediation, template=SNR).step_name == "MakeRemediation Snr"


async def test_a_process_that_was_stopped_in_the_middle_does_not_go_on_after_its_time() -> None:
    path = "/apis/karpenter.sh/v1/nodeclaims/blue-x"
    api = Stopped({path: {"metadata": {"uid": "uid-x", "resourceVersion": "8"}}})
    reader, writer = api.pair()
    late = on(DeleteNodeClaim, claim=CLAIM, deadline=NOW)
    with acting_until(NOW + timedelta(seconds=30)), pytest.raises(UnavailableError, match="others may be at it now"):
        await late.apply(writer, reader)
    assert api.writes == [f"DELETE {path}"]
    await late.apply(writer, reader)
    assert api.writes[-1] == f"PATCH {path}"


class Stopped(CannedApi):
    """Whoever calls it is stopped for a minute while it answers."""

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        answer = await super().send(method, path, body, **options)
        self.watch.moment = NOW + timedelta(minutes=1)
        return answer


# Which pods


def a(name: str = "cart-1", owner: Ref | None = CART_SET, empty_dir: bool = False, **about: Any) -> Pod:
    namespace = about.pop("namespace", "shop")
    body = a_pod(Ref("v1", "Pod", namespace, name, f"uid-{name}"), owner=owner, **about)
    return pod_view({**body, "spec": {**body["spec"], "volumes": [{"emptyDir": {}}] if empty_dir else []}})


BLOCKS, EVICTS = Drain(empty_dir="Block", bare="Block"), Drain(empty_dir="Evict", bare="Evict")


@pytest.mark.parametrize(
    ("pod", "blocks", "evicts"),
    [
        (a(), "evictable", "evictable"),
        (a(terminating=True), "leaving", "leaving"),
        (a(owner=None), "blocking", "evictable"),
        (a(empty_dir=True), "blocking", "evictable"),
        (a(owner=None, empty_dir=True), "blocking", "evictable"),
        (a(annotations={"kreflex.dev/opt-out": "true"}), "blocking", "blocking"),
        (a(annotations={"kreflex.dev/opt-out": "false"}), "evictable", "evictable"),
        (a(annotations={"kreflex.dev/opt-out": ""}, phase="Succeeded"), "evictable", "evictable"),
        (a(owner=None, phase="Succeeded"), "evictable", "evictable"),
        (a(empty_dir=True, phase="Failed"), "evictable", "evictable"),
        (a(phase="Failed", terminating=True), "leaving", "leaving"),
        (a(owner=None, terminating=True), "leaving", "leaving"),
        (a(owner=DAEMON), "staying", "staying"),
        (a(owner=DAEMON, terminating=True, empty_dir=True), "staying", "staying"),
        (a(owner=DAEMON, phase="Failed"), "evictable", "evictable"),
        (a(owner=None, annotations={"kubernetes.io/config.mirror": "x"}), "staying", "staying"),
        (a(owner=Ref("v1", "Node", "", "blue-1", "u"), phase="Failed"), "staying", "staying"),
    ],
)
def test_pods_go_and_stay_as_with_kubectl_drain(pod: Pod, blocks: str, evicts: str) -> None:
    for drain, expected in ((BLOCKS, blocks), (EVICTS, evicts)):
        load = evictable([pod], drain)
        found = {name: getattr(load, name) for name in ("evictable", "blocking", "leaving", "staying")}
        assert found == {name: (pod,) if name == expected else () for name in found}
        assert load.empty == (expected == "staying")


@pytest.mark.parametrize(
    "labels",
    [{"k8s-app": "kube-proxy"}, {"k8s-app": "calico-node"}, {"app": "flannel"}, {"component": "kube-proxy", "a": "b"}],
)
def test_network_pods_are_known_by_their_labels(labels: dict[str, str]) -> None:
    pod = a(owner=DAEMON, namespace="kube-system", labels=labels)
    assert network_pods([pod, a()]) == (pod,)


@pytest.mark.parametrize(
    "about",
    [
        {"owner": CART_SET},
        {"owner": None},
        {"namespace": "shop"},
        {"labels": {"k8s-app": "kube-dns"}},
        {"terminating": True},
        {"annotations": {"kubernetes.io/config.mirror": "x"}},
        {"annotations": {"kreflex.dev/opt-out": "yes"}},
    ],
)
def test_what_no_daemonset_of_the_network_starts_anew_is_no_network_pod(about: dict[str, Any]) -> None:
    usual = {"owner": DAEMON, "namespace": "kube-system", "labels": {"k8s-app": "kube-proxy"}}
    assert network_pods([a(**{**usual, **about})]) == ()


# What evictions make of answers


class Evictions(CannedApi):
    """Answers the evictions of pods by what each pod's name says; the number under way is kept."""

    def __init__(self, pods: tuple[Pod, ...], answers: dict[str, Exception]) -> None:
        super().__init__({f"/api/v1/namespaces/shop/pods/{p.ref.name}": a_pod(p.ref) for p in pods})
        self.answers = answers
        self.asked: list[str] = []

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        if method != "POST":
            return await super().send(method, path, body, **options)
        name = path.split("/")[-2]
        self.asked.append(name)
        if name in self.answers:
            raise self.answers[name]
        return {}


def of(app: str, count: int) -> tuple[Pod, ...]:
    owner = Ref("apps/v1", "ReplicaSet", "shop", f"{app}-7d4", f"uid-{app}")
    return tuple(a(f"{app}-{number}", owner) for number in range(count))


async def evict(pods: tuple[Pod, ...], answers: dict[str, Exception], **fields: Any) -> tuple[str, list[str]]:
    api = Evictions(pods, answers)
    reader, writer = api.pair()
    told = await on(EvictPods, pods=pods, **fields).apply(writer, reader)
    return told, sorted(api.asked)


NO = ThrottledError("429 no", 429, causes=("DisruptionBudget",))
SEVERAL = ApiError("500 This pod has more than one PodDisruptionBudget", 500)


async def test_a_group_stops_at_the_first_no_and_the_others_go_on() -> None:
    told, asked = await evict((*of("cart", 3), *of("web", 2)), {"cart-1": NO})
    assert told == "evicted 3, 2 blocked by PodDisruptionBudgets (shop/cart)"
    assert asked == ["cart-0", "cart-1", "web-0", "web-1"]


async def test_pods_that_stand_alone_are_no_group() -> None:
    told, _ = await evict((a("one", None), a("two", None)), {"one": NO})
    assert told == "evicted 1, 1 blocked by PodDisruptionBudgets (shop/one)"


async def test_a_webhooks_no_is_about_one_pod() -> None:
    denied = DeniedError("403 admission webhook denied the request: it is moved", 403)
    told, asked = await evict(of("cart", 3), {"cart-0": denied})
    assert (told, asked) == ("evicted 2, 1 denied (shop/cart)", ["cart-0", "cart-1", "cart-2"])


async def test_no_more_go_than_are_allowed_at_a_time() -> None:
    told, asked = await evict((*of("cart", 4), *of("web", 4)), {}, most=3)
    assert (told, len(asked)) == ("evicted 3", 3)


class Slow(Evictions):
    """Is slow to say no."""

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        if method == "POST" and path.split("/")[-2] in self.answers:
            await asyncio.sleep(0.05)
        return await super().send(method, path, body, **options)


async def test_a_slow_no_takes_nobodys_place() -> None:
    pods = (*of("cart", 2), *of("web", 3))
    reader, writer = Slow(pods, {"cart-0": NO}).pair()
    told = await on(EvictPods, pods=pods, most=2).apply(writer, reader)
    assert told == "evicted 2, 2 blocked by PodDisruptionBudgets (shop/cart)"


async def test_many_names_are_cut_short() -> None:
    pods = tuple(pod for number in range(12) for pod in of(f"app{number:02}", 1))
    told, _ = await evict(pods, {pod.ref.name: NO for pod in pods})
    why = "12 blocked by PodDisruptionBudgets (shop/app00, shop/app01, shop/app02 and 9 more)"
    assert told == f"evicted 0, {why}"


async def test_all_that_can_be_said_fits_into_a_record() -> None:
    pods = tuple(a("p" * 200 + str(number), None) for number in range(40))
    errors = [NO, SEVERAL, DeniedError("403 denied the request: no", 403), GoneError("404", 404)]
    told, _ = await evict(pods, {pod.ref.name: errors[number % 4] for number, pod in enumerate(pods)})
    for count in ("evicted 0", "10 blocked by PodDisruptionBudgets", "10 with several", "10 denied", "10 gone"):
        assert count in told
    assert len(told) <= 300


@pytest.mark.parametrize("error", [UnavailableError("503"), ApiError("422 unheard of", 422)])
async def test_what_is_wrong_with_more_than_a_pod_is_raised_when_the_others_are_done(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        await evict((*of("cart", 3), *of("web", 1)), {"cart-1": error})
    assert raised.value is error


async def test_a_cap_of_less_than_a_second_is_a_second() -> None:
    api = Sent(of("cart", 1))
    reader, writer = api.pair()
    await on(EvictPods, pods=of("cart", 1), max_grace=timedelta(milliseconds=1)).apply(writer, reader)
    assert api.bodies[0]["deleteOptions"]["gracePeriodSeconds"] == 1


class Sent(Evictions):
    """Keeps what it was sent."""

    def __init__(self, pods: tuple[Pod, ...]) -> None:
        super().__init__(pods, {})
        self.bodies: list[JSON] = []

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        if body is not None:
            self.bodies.append(body)
        return await super().send(method, path, body, **options)


# Asking a provider


@dataclass
class Sink:
    """Takes events, and answers with a status."""

    url: str = ""
    status: int = 202
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[JSON] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.heads.append({name.lower(): value for name, value in request.headers.items()})
        self.bodies.append(json.loads(await request.read()))
        return web.Response(status=self.status, text="as told")


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    made = Sink()
    app = web.Application()
    app.router.add_post("/", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    yield made
    await runner.cleanup()


async def ask(url: str, **fields: Any) -> str:
    reader, writer = CannedApi().pair()
    node = the_node("blue-1", says("Ready", "False"), provider_id="aws:///zone-a/i-1")
    return await on(AskProvider, node=node, sink=url, home="kreflex-system", **fields).apply(writer, reader, "r-1")


async def test_a_provider_is_asked_with_all_that_it_needs_to_answer(sink: Sink) -> None:
    assert await ask(sink.url) == f"{sink.url} was asked"
    (head,), (body,) = sink.heads, sink.bodies
    assert {name: head[name] for name in ("ce-id", "ce-type", "ce-source", "ce-subject", "ce-specversion")} == {
        "ce-id": "r-1/Ready-1",
        "ce-type": REQUESTED,
        "ce-source": "kreflex.dev/replacements",
        "ce-subject": "blue-1",
        "ce-specversion": "1.0",
    }
    assert body == {
        "node": "blue-1",
        "uid": "uid-blue-1",
        "providerID": "aws:///zone-a/i-1",
        "zone": "zone-a",
        "pool": "blue",
        "because": "it is ill",
        "record": {"namespace": "kreflex-system", "name": "r-1"},
        "answer": {
            "type": "dev.kreflex.node.replacement.answered.v1",
            "data": {"namespace": "kreflex-system", "record": "r-1", "outcome": "Accepted, Done or Failed"},
        },
    }


async def test_a_second_request_is_the_same_event(sink: Sink) -> None:
    for _ in range(2):
        await ask(sink.url)
    assert len({(head["ce-source"], head["ce-id"]) for head in sink.heads}) == 1
    assert sink.bodies[0] == sink.bodies[1]
    await ask(sink.url, episode="Ready-2")
    assert sink.heads[2]["ce-id"] == "r-1/Ready-2"


@pytest.mark.parametrize("status", [400, 404, 500, 503])
async def test_a_sink_that_does_not_take_it_holds_the_step_up(sink: Sink, status: int) -> None:
    sink.status = status
    with pytest.raises(BlockedError, match=f"answered {status}: as told") as blocked:
        await ask(sink.url)
    assert blocked.value.cause == "ReplacementSink"


async def test_a_sink_that_is_not_there_holds_the_step_up() -> None:
    with pytest.raises(BlockedError, match=r"nobody could be asked for a new machine: http://127\.0\.0\.1:9/ did not"):
        await ask("http://127.0.0.1:9/")
