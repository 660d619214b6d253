"""A reverse proxy between a function's process and the API server, where the process is met at its weakest.

It kills or stops the process at chosen writes: one that the API server has not seen yet, or one that it has answered
while the process does not know. What was in the network then is delivered all the same. And it spoils chosen calls, in
the ways of `lab.troubles`.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

from lab.processes import Child, trusting
from lab.troubles import Answer, Trouble, refusal

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_LIMIT = 32 * 1024 * 1024
# What belongs to one connection, or is made anew for the next one.
_HOP = frozenset({"host", "connection", "transfer-encoding", "content-length", "accept-encoding", "content-encoding"})
# Questions that are asked by POST.
_REVIEWS = frozenset({"tokenreviews", "subjectaccessreviews", "selfsubjectaccessreviews"})
_FETCH = "/git-upload-pack"
_STEPS = (
    ("record", re.compile(r"^POST /apis/kreflex\.dev/.*/remediations$")),
    ("ledger", re.compile(r"^PUT .*/configmaps/kreflex-ledger$")),
    ("eviction", re.compile(r"^POST .*/eviction$")),
    ("event", re.compile(r"^POST .*/events$")),
    ("lease", re.compile(r"^POST .*/leases$")),
    ("renewal", re.compile(r"^PUT .*/leases/[^/]+$")),
    ("release", re.compile(r"^DELETE .*/leases/[^/]+$")),
    ("bound", re.compile(r"^PATCH .*/(nodeclaims|machines)/[^/]+$")),
    ("replacement", re.compile(r"^DELETE .*/(nodeclaims|machines)/[^/]+$")),
    ("push", re.compile(r"^POST .*/git-receive-pack$")),
    ("fetch", re.compile(r"^POST .*/git-upload-pack$")),
    ("pull request", re.compile(r"^POST .*/(pulls|merge_requests)$")),
)
_NODE = re.compile(r"^PATCH /api/v1/nodes/[^/]+$")
_STATUS = re.compile(r"^PATCH .*/remediations/[^/]+/status$")
_PARTS = re.compile(
    r"^(?P<base>/api/v1|/apis/[^/]+/[^/]+)(/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<plural>[^/]+)(/(?P<name>[^/]+))?(/(?P<sub>[^/]+))?$"
)
_NARROWED = frozenset({"pods", "remediations"})


@dataclass(frozen=True)
class Call:
    """A request on its way to the API server; `turn` counts those of one replica that are the same step, from 1."""

    method: str
    path: str
    body: bytes = field(repr=False)
    turn: int = 1

    @property
    def writes(self) -> bool:
        """Whether it may change something."""
        asks = self._part("plural") in _REVIEWS or self.path.endswith(_FETCH)
        return self.method in WRITES and not asks

    @property
    def step(self) -> str:
        """Which step of a remediation it is.

        Writes: record, ledger, Open, Acting, eviction, Applied, Done, event; of a node also lease, renewal, cordon,
        taint, bound (of its drain), replacement, uncordon, untaint, release; in Git push and pull request. Others by
        what they do: `read pods`, `list remediations`, `delete remediations`, `create tokenreviews`; `note deployments`
        is a patch of nothing but metadata.
        """
        line = f"{self.method} {self.path}"
        if _STATUS.match(line):
            phase: str = json.loads(self.body)["status"]["phase"]
            return phase
        if _NODE.match(line) and isinstance(patch := json.loads(self.body), dict):
            return _node_step(patch.get("spec", {}))
        return next((name for name, pattern in _STEPS if pattern.match(line)), self._plain_step())

    def _plain_step(self) -> str:
        verbs = {"POST": "create", "PUT": "replace", "PATCH": "patch", "DELETE": "delete"}
        verb = verbs.get(self.method, "read" if self._part("name") else "list")
        return f"{'note' if verb == 'patch' and self._of_metadata() else verb} {self._part('plural')}"

    def _of_metadata(self) -> bool:
        patch = json.loads(self.body)
        return isinstance(patch, dict) and patch.keys() <= {"metadata"}

    def _part(self, name: str) -> str:
        found = _PARTS.match(self.path)
        return (found[name] or "") if found else self.path

    def concerns(self, name: str) -> bool:
        """Whether it names an object in its path or body."""
        return name in self.path or name.encode() in self.body

    def at(self, revision: int) -> str:
        """The path and query of a list that holds what this read would have found at a revision of the cluster."""
        found = _PARTS.match(self.path)
        assert found is not None, f"{self.path} can't be read from the past"
        where = f"/namespaces/{found['namespace']}" if found["namespace"] else ""
        chosen = f"&fieldSelector=metadata.name%3D{found['name']}" if found["name"] else ""
        past = f"resourceVersion={revision}&resourceVersionMatch=Exact"
        return f"{found['base']}{where}/{found['plural']}?{past}{chosen}"

    @property
    def name(self) -> str:
        """The object that it reads; "" for a list."""
        return self._part("name")

    def narrowed(self, namespace: str, path: str) -> str:
        """The same for one namespace only, where it asks for the pods or the records of all."""
        found = _PARTS.match(self.path)
        whole = found and not found["namespace"] and not found["name"] and found["plural"] in _NARROWED
        if not namespace or not found or not whole:
            return path
        return path.replace(self.path, f"{found['base']}/namespaces/{namespace}/{found['plural']}", 1)


def _node_step(spec: dict[str, object]) -> str:
    if "unschedulable" in spec:
        return "cordon" if spec["unschedulable"] else "uncordon"
    return "taint" if spec.get("taints") else "untaint"


Chosen = Callable[[Call], bool]


@dataclass
class Strike:
    """A blow at the process, at the first call that `chosen` picks.

    Before: the API server never sees the call of a killed process; that of a stopped one arrives when it goes on.
    After: the API server has answered, and the process does not know. Late: the process dies, and its call arrives
    `seconds` after its death. `seconds` is how long a stop lasts, too.
    """

    chosen: Chosen
    moment: Literal["before", "after", "late"]
    blow: Literal["kill", "stop"] = "kill"
    seconds: float = 0.0
    replica: str = ""
    """Who was struck; "" while nobody was."""
    write: Call | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is dead, or goes on after its stop."""


@dataclass
class Hit:
    """A trouble at the first call that `chosen` picks; the first such call of each replica if `each`.

    `first` is done before the call arrives, `then` when it has.
    """

    chosen: Chosen
    trouble: Trouble
    each: bool = False
    first: Callable[[], Awaitable[object]] | None = None
    then: Callable[[], Awaitable[object]] | None = None
    replicas: list[str] = field(default_factory=list)
    """Who has met it."""

    def meets(self, replica: str, call: Call) -> bool:
        """Whether this call of this replica is the one."""
        spared = replica in self.replicas if self.each else bool(self.replicas)
        return not spared and self.chosen(call)


def nth(step: str, turn: int = 1) -> Chosen:
    """Choose the k-th call of one step."""
    return lambda call: call.step == step and call.turn == turn


class FaultProxy:
    """Stands at `url` before an API server for one replica; `victim` tells its process.

    A process whose `http_proxy` it is meets it on its way to everybody else, too.
    `elder` is the token of somebody who may list everything: answers from the past are read with it. With `narrow`, the
    process sees the pods and records of one namespace only.
    """

    def __init__(
        self,
        name: str,
        upstream: str,
        authority: Path,
        victim: Callable[[], Child],
        plan: Sequence[Strike | Hit],
        elder: str = "",
        narrow: str = "",
    ) -> None:
        self.name = name
        self.url = ""
        self.calls: list[Call] = []
        self._turns: Counter[str] = Counter()
        self._upstream = upstream
        self._authority = authority
        self._victim = victim
        self._plan = plan
        self._elder = elder
        self._narrow = narrow
        self._shift = timedelta()
        # Revisions of the cluster: before the fault began, and before the last write of this process.
        self._past = {"fault": 0, "write": 0}
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._busy = 0

    @property
    def writes(self) -> list[Call]:
        """The calls that may have changed something."""
        return [call for call in self.calls if call.writes]

    @property
    def reads(self) -> int:
        """How many calls only asked."""
        return len(self.calls) - len(self.writes)

    def forget(self) -> None:
        """Count the calls from here on."""
        self.calls.clear()
        self._turns.clear()

    async def start(self) -> str:
        """Listen on a free port of loopback; the URL."""
        connector = aiohttp.TCPConnector(ssl=trusting(self._authority), limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)
        application = web.Application(client_max_size=_LIMIT)
        application.router.add_route("*", "/{path:.*}", self._serve)
        # Handlers are not cancelled when the client is gone: what it sent is on its way.
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=False, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.url

    async def stop(self) -> None:
        """Stop to listen, once what is on its way has arrived."""
        if self._runner is not None:
            await self._runner.cleanup()
        while self._busy:
            await asyncio.sleep(0.05)
        if self._session is not None:
            await self._session.close()

    async def remember(self) -> None:
        """Take the cluster as it is now for the past that stale answers come from."""
        answer = await self._ask("GET", "/api/v1/namespaces?limit=1", b"", {"Authorization": f"Bearer {self._elder}"})
        revision = int(json.loads(answer.body)["metadata"]["resourceVersion"])
        self._past = {"fault": revision, "write": revision}

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self._busy += 1
        try:
            return await self._hand_on(request, await request.read())
        finally:
            self._busy -= 1

    async def _hand_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        call = self._count(request, body)
        for one in self._plan:
            if isinstance(one, Hit) and one.meets(self.name, call):
                one.replicas.append(self.name)
                return await self._spoil(request, call, one)
            if isinstance(one, Strike) and not one.replica and one.chosen(call):
                one.replica, one.write = self.name, call
                return await self._strike(request, call, one)
        return _given(await self._forward(request, call))

    def _count(self, request: web.Request, body: bytes) -> Call:
        call = Call(request.method, request.path, body)
        self._turns[call.step] += 1
        call = replace(call, turn=self._turns[call.step])
        self.calls.append(call)
        return call

    async def _strike(self, request: web.Request, call: Call, strike: Strike) -> web.StreamResponse:
        if strike.moment == "after":
            answer = await self._forward(request, call)
            await self._deal(strike)
            return _given(answer)
        await self._deal(strike)
        if strike.moment == "late":
            await asyncio.sleep(strike.seconds)
        elif strike.blow == "kill":
            # It died before it could send. Nobody reads this answer.
            return web.Response(status=502)
        return _given(await self._forward(request, call))

    async def _deal(self, strike: Strike) -> None:
        process = self._victim()
        if strike.blow == "kill":
            process.kill()
            await process.ended()
        else:
            process.pause()
            await asyncio.sleep(strike.seconds)
            process.resume()
        strike.over.set()

    async def _spoil(self, request: web.Request, call: Call, hit: Hit) -> web.StreamResponse:
        trouble = hit.trouble
        if hit.first is not None:
            await hit.first()
        if trouble.lasting:
            self._shift = trouble.shift
        await asyncio.sleep(trouble.holds)
        answer = await self._truth(request, call, trouble) if trouble.arrives else None
        if hit.then is not None:
            await hit.then()
        await asyncio.sleep(trouble.keeps)
        said = trouble.says or answer
        if said is None or trouble.breaks:
            return await _broken(request, said if trouble.breaks == "within" else None)
        return _given(said if trouble.lasting else said.shifted(trouble.shift))

    async def _truth(self, request: web.Request, call: Call, trouble: Trouble) -> Answer:
        return await self._as_it_was(call, trouble.older) if trouble.older else await self._forward(request, call)

    async def _as_it_was(self, call: Call, moment: str) -> Answer:
        """Answer a read from etcd's history, as a cache would that has not heard of anything since."""
        path = Call("GET", call.narrowed(self._narrow, call.path), b"").at(self._past[moment])
        answer = await self._ask("GET", path, b"", {"Authorization": f"Bearer {self._elder}"})
        if not call.name or answer.status >= 300:
            return answer
        whole = json.loads(answer.body)
        if not whole["items"]:
            return refusal(404, "NotFound", f'"{call.name}" not found')
        one = {"apiVersion": whole["apiVersion"], "kind": whole["kind"].removesuffix("List"), **whole["items"][0]}
        return Answer(200, json.dumps(one).encode(), answer.headers)

    async def _forward(self, request: web.Request, call: Call) -> Answer:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP}
        origin = str(request.url.origin())
        if origin != self.url:
            return await self._ask(request.method, request.path_qs, call.body, headers, origin)
        path = call.narrowed(self._narrow, request.path_qs)
        answer = await self._ask(request.method, path, call.body, headers)
        if call.writes and self._elder and answer.status < 300:
            self._note(answer)
        return answer.shifted(self._shift)

    def _note(self, answer: Answer) -> None:
        version = json.loads(answer.body).get("metadata", {}).get("resourceVersion")
        if version:
            self._past["write"] = int(version) - 1

    async def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str], origin: str = "") -> Answer:
        assert self._session is not None, "the proxy has not been started"
        # As it is written: GitLab wants the slashes of a project quoted.
        url = URL(f"{origin or self._upstream}{path}", encoded=True)
        try:
            async with self._session.request(method, url, data=body or None, headers=headers) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Answer(503, f"{origin or 'the API server'} does not answer: {error!r}".encode())
        kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP}
        return Answer(answer.status, content, kept)


def _given(answer: Answer) -> web.Response:
    return web.Response(body=answer.body, status=answer.status, headers=answer.headers)


async def _broken(request: web.Request, answer: Answer | None) -> web.StreamResponse:
    """Reset the connection, after half of an answer if there is one."""
    response = web.StreamResponse(status=answer.status if answer else 200)
    if answer is not None:
        response.headers.update(answer.headers)
        response.content_length = len(answer.body)
        await response.prepare(request)
        await response.write(answer.body[: len(answer.body) // 2])
        # Out of our buffers, so that the caller sees the half.
        await asyncio.sleep(0.05)
    if request.transport is not None:
        request.transport.abort()
    return response
