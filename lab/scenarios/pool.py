"""A pool of Karpenter's in a scenario: its nodes, their pods, and what node-replacer does about them."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lab import karpenter, nodes, workloads
from lab.cluster import ControlPlane
from lab.paths import Home
from lab.scenarios.place import Json, Place, is_ready, lines_of
from lab.scenarios.timeline import say
from lab.scenarios.writes import Write, written
from lab.toolchain import Toolchain
from lab.visitor import Visitor

APP = "shop"
PODS, PER_NODE = 10, 2
NODES = PODS // PER_NODE
FUNCTION = "node-replacer"
RECORDS = "/apis/kreflex.dev/v1alpha1/namespaces/kreflex-system/remediations"
_BUDGETS = "/apis/policy/v1"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/medik8s-leases/leases"
_ACCOUNT = f"system:serviceaccount:kreflex-system:{FUNCTION}"
_KARPENTER = "system:serviceaccount:kube-system:karpenter"
_SIZE = {"requests": {"cpu": "1500m"}}
_PATIENCE = 180.0
_LOOK_SECONDS = 0.2


@dataclass
class Pool:
    """The pool, with an eye on it; what changes is noted with its time."""

    place: Place
    plane: ControlPlane
    nodes: dict[str, Json] = field(default_factory=dict)
    claims: dict[str, Json] = field(default_factory=dict)
    records: dict[str, Json] = field(default_factory=dict)
    ready_pods: int = -1
    _shown: dict[str, str] = field(default_factory=dict)
    _hosts: dict[str, str] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place, home: Home) -> AsyncIterator["Pool"]:
        """Run Karpenter on the lab, have it make nodes for the shop's pods, and remove all that afterwards."""
        if Toolchain().find(karpenter.PROGRAM) is None:
            say("Karpenter is built from its source now, once; with two cores that takes two minutes and more")
        place.tells_pods = False
        async with Visitor(home) as plane:
            say("installing Karpenter with its KWOK provider: its machines are the lab's simulated nodes")
            await karpenter.install(plane)
            async with karpenter.running(plane):
                pool = cls(place, plane)
                watching = asyncio.create_task(pool._watch())
                try:
                    await pool._fill()
                    yield pool
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
                say("removing the pool and its nodes")
                await place.writer.delete(place.path(f"deployments/{APP}", "/apis/apps/v1"), {})

    @property
    def name(self) -> str:
        return f"{APP}-{self.place.namespace.rpartition('-')[2]}"

    def add(self, word: str, text: str, at: datetime | None = None) -> None:
        """Note something in the timeline, with the nodes' names cut short."""
        self.place.timeline.add(word, self.short(text), at)

    def short(self, text: str) -> str:
        """The text with each node called after its machine: its own name is twice as long."""
        for name, host in self._hosts.items():
            text = text.replace(name, host)
        return text

    async def _fill(self) -> None:
        say(f"waiting for {NODES} nodes, which Karpenter makes because {PODS} pods of {APP} have no place")
        await self.plane.api.post(karpenter.NODE_POOLS, karpenter.node_pool(self.name))
        container = {"name": "app", "image": f"lab.local/{APP}:1", "resources": _SIZE}
        spec = {"containers": [container], **karpenter.placement(self.name)}
        body = workloads.deployment(APP, PODS, spec=spec)
        await self.place.writer.create(self.place.path("deployments", "/apis/apps/v1"), body)
        budget = workloads.budget(APP, maxUnavailable=PER_NODE)
        await self.place.writer.create(self.place.path("poddisruptionbudgets", _BUDGETS), budget)
        await self.until_whole()

    async def until_whole(self) -> None:
        """Wait until all nodes of the pool are Ready, and all pods on them."""
        await self.place.until(self.is_whole, f"{PODS} Ready pods on {NODES} Ready nodes", _PATIENCE)

    def is_whole(self) -> bool:
        """Whether all pods are Ready, each on a node that is Ready, too."""
        well = {name for name, body in self.nodes.items() if nodes.is_ready(body)}
        pods = self.place.ready(APP)
        return (
            len(pods) == self.ready_pods == PODS
            and len(well) == len(self.nodes) == NODES
            and {pod["spec"].get("nodeName") for pod in pods} <= well
        )

    def pods_on(self, node: str) -> list[str]:
        """The UIDs of the pods of a node."""
        return sorted(pod["metadata"]["uid"] for pod in self.place.of(APP) if pod["spec"].get("nodeName") == node)

    async def lease(self, node: str) -> Json | None:
        """The Lease by which those who remediate nodes keep out of each other's way, while somebody has it."""
        return await self.plane.api.find(f"{_LEASES}/node-{node}")

    async def silence(self, names: Iterable[str]) -> None:
        """Let the kubelets of these nodes fall silent: no Lease is renewed, no status written, no pod touched."""
        for name in names:
            self.add("fault", f"the kubelet of {name} falls silent")
        await nodes.break_nodes(self.plane.api, names, nodes.SILENT)

    async def heal(self, names: Iterable[str]) -> None:
        """Let these kubelets be heard again."""
        for name in names:
            self.add("healed", f"the kubelet of {name} is heard again")
        await nodes.heal_nodes(self.plane.api, names)

    def record(self, node: str, since: datetime) -> Json | None:
        """The newest record of a node since then."""
        found = [r for r in self.records.values() if r["spec"]["target"]["name"] == node and _created(r) >= since]
        return max(found, key=_created, default=None)

    def status(self, node: str, since: datetime) -> Json:
        """What the newest record of a node says; nothing without one."""
        record = self.record(node, since)
        return record.get("status", {}) if record else {}

    def writes(self, since: datetime, *names: str) -> list[Write]:
        """What node-replacer has written to nodes, what stands behind them and their Leases, and which pods it evicted.

        Of these nodes alone, if some are named.
        """
        wanted = {one for name in names for one in (name, f"node-{name}", self.claim_of(name))}
        every = self._written(since, _ACCOUNT, "nodes", "nodeclaims", "leases", "pods")
        return [one for one in every if not names or one.name in wanted]

    def claims_made(self, since: datetime) -> list[Write]:
        """The NodeClaims that Karpenter has made."""
        return [one for one in self._written(since, _KARPENTER, "nodeclaims") if one.verb == "create"]

    def _written(self, since: datetime, user: str, *resources: str) -> list[Write]:
        return written(self.plane.audit_log, since, user, *resources)

    def claim_of(self, node: str) -> str:
        """The NodeClaim of a node, also of one that is gone: with this provider it is the machine's host name."""
        return self._hosts[node]

    def tell_what_was_logged(self, since: datetime) -> None:
        """Add to the timeline what the function's log says, and what the API server's audit log has of it."""
        assert self.place.home is not None, "this plays in the lab alone"
        told = set()
        for line in lines_of(self.place.home.log(FUNCTION)):
            at = datetime.fromisoformat(line["timestamp"]) if "timestamp" in line else since
            if at <= since or "record" not in line:
                continue
            for word, text in self._lines(line):
                if text not in told:
                    told.add(text)
                    self.add(word, text, at=at)
        for write in self.writes(since):
            if write.resource != "leases" or write.verb != "update":
                self.add("audit", str(write), at=write.at)

    def _lines(self, line: Json) -> Iterable[tuple[str, str]]:
        event, because = line["event"], line.get("because", "")
        record = self.records.get(str(line["record"]).rpartition("/")[2])
        if record is None or record["spec"]["target"]["name"] not in self._shown:
            return
        target = record["spec"]["target"]["name"]
        if event == "remediation.opened":
            yield self.place.sender(line)
            yield "decision", f"{line['decision']}: {because}"
        elif event == "guards.passed":
            yield "guards", f"all pass: {', '.join(line['guards'])}"
        elif event == "course.step":
            note = f" ({line['note']})" if line.get("note") else ""
            yield "step", f"{line['step']} {target}{note}"
        elif event == "remediation.settled":
            yield "verdict", f"{line['verdict']}: {because}"
        elif event in {"remediation.refused", "remediation.deferred", "remediation.failed", "course.held_up"}:
            word = "deferred" if event.startswith("course") else event.rpartition(".")[2]
            yield word, f"{target}, by {line.get('guard', 'itself')}: {because}"

    async def _watch(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        selector = {"labelSelector": f"{karpenter.POOL}={self.name}"}
        api = self.plane.api
        found, claims, records = await asyncio.gather(
            api.get("/api/v1/nodes", **selector), api.get(karpenter.NODE_CLAIMS, **selector), api.get(RECORDS)
        )
        for body in claims["items"]:
            name = body["metadata"]["name"]
            if name not in self.claims:
                self.add("karpenter", f"NodeClaim {name} is made")
            self.claims[name] = body
        # Those that are gone stay known: the log speaks of them.
        self.records |= {body["metadata"]["name"]: body for body in records["items"]}
        self._tell_nodes({body["metadata"]["name"]: body for body in found["items"]})
        self._tell_pods()

    def _tell_nodes(self, found: dict[str, Json]) -> None:
        for name, body in found.items():
            self._hosts[name] = body["metadata"]["labels"]["kubernetes.io/hostname"]
            status = nodes.condition(body, "Ready") or ""
            before = self._shown.get(name, "")
            if status != before:
                self._shown[name] = status
                self._tell_node(name, before, body)
        for name in self.nodes.keys() - found.keys():
            self.add("node", f"{name} is gone")
        self.nodes = found

    def _tell_node(self, name: str, before: str, body: Json) -> None:
        said: Json = nodes.whole_condition(body, "Ready") or {}
        if said.get("status") == "True":
            self.add("node", f"{name} is Ready{' again' if before else ''}")
        elif said.get("status") == "Unknown":
            self.add("lifecycle", f"Ready of {name} is Unknown ({said['reason']}), by the node lifecycle controller")

    def _tell_pods(self) -> None:
        ready = sum(is_ready(pod) for pod in self.place.of(APP))
        if ready != self.ready_pods:
            self.ready_pods = ready
            self.add("pods", f"{ready} of {PODS} are Ready")


def _created(record: Json) -> datetime:
    return datetime.fromisoformat(record["metadata"]["creationTimestamp"]).astimezone(UTC)
