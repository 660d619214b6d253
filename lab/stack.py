"""Brings a whole lab up, part by part, and takes it down again."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lab import events, filters, functions, monitoring, nodes, processes, state
from lab.cluster import ControlPlane, Options
from lab.errors import LabError
from lab.filters import Expression
from lab.paths import Home
from lab.ports import Ports
from lab.relay import Subscriber
from lab.toolchain import Toolchain

T = TypeVar("T")
PARTS = ("control-plane", "kwok", "metrics", "alertmanager", "prometheus", "relay", "adapter", "functions", "ticker")
_PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "control-plane": ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"),
    "kwok": ("kwok",),
    "prometheus": ("prometheus",),
    "alertmanager": ("alertmanager",),
    "adapter": ("apiserver_receive_adapter",),
}
# What the adapter watches, as in triggers/knative-eventing/sources.yaml. What is no part of Kubernetes is watched by an
# adapter of its own, once it is there: lab.events.
_WATCHED = (
    "pods",
    "nodes",
    "deployments.v1.apps",
    "statefulsets.v1.apps",
    "daemonsets.v1.apps",
    "ingresses.v1.networking.k8s.io",
)
_RECORDS = ("experiments.v1alpha1.kreflex.dev", "remediations.v1alpha1.kreflex.dev")
_SCORED_EACH = 1.0
_CLOCK: tuple[Expression, ...] = ({"exact": {"type": "dev.knative.sources.ping"}},)
# Production's patience would make a demonstration of minutes. The waker asks the same question, so it hears the same.
_PATIENCE = {"SILENT_AFTER": "15s", "WAIT_FOR_DATA": "30s", "PROBE_HOSTS": "127.0.0.1"}


@dataclass(frozen=True)
class Plan:
    """Which parts a lab has."""

    parts: tuple[str, ...] = PARTS
    nodes: int = 3
    audit_reads: bool = False
    detached: bool = True
    tick_seconds: float = 2.0
    node_grace_seconds: int = 0
    """After how long a silent node is Unknown; 0: as befits the number of nodes."""
    function_settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of all functions."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown:
            raise LabError(f"the lab has no part {', '.join(unknown)}: choose of {', '.join(PARTS)}")

    def has(self, part: str) -> bool:
        """Whether the lab has this part; all stand on the control plane."""
        return part == "control-plane" or part in self.parts


class Lab:
    """A lab that is being brought up by this process."""

    def __init__(self, home: Home, plan: Plan, tell: Callable[[str], None]) -> None:
        self.home = home
        self.plan = plan
        grace = plan.node_grace_seconds or nodes.grace_seconds(plan.nodes)
        options = Options(audit_reads=plan.audit_reads, detached=plan.detached, node_grace_seconds=grace)
        self.plane = ControlPlane(home, options)
        self.endpoints: dict[str, str] = {}
        self._sink = ""
        self._tell = tell
        self._folders = functions.present() if plan.has("functions") else []

    async def up(self) -> dict[str, str]:
        """Start everything, or nothing if something fails; the end points."""
        programs = [name for part in PARTS if self.plan.has(part) for name in _PROGRAMS.get(part, ())]
        paths = await asyncio.to_thread(Toolchain().ensure, programs)
        try:
            await self._start(paths)
        except BaseException:
            await self.plane.stop()
            raise
        self._write_env(paths)
        self.plane.state.complete(self.endpoints)
        return self.endpoints

    async def _start(self, paths: Mapping[str, Path]) -> None:
        self._tell("control plane")
        await self.plane.start()
        self.endpoints |= {
            "home": str(self.home.root),
            "kubeconfig": str(self.home.kubeconfig),
            "api": self.plane.url,
            "audit_log": str(self.home.audit_log),
            "env": str(self.home.env),
        }
        with Ports() as ports:
            await self._start_parts(paths, ports)

    async def _start_parts(self, paths: Mapping[str, Path], ports: Ports) -> None:
        # Who calls is started before who is called; so the functions' ports are chosen first.
        served = {folder: ports.take() for folder in self._folders}
        relay = ports.take()
        if self.plan.has("relay"):
            self._sink = f"http://127.0.0.1:{relay}"
        urls = {folder: f"http://127.0.0.1:{port}" for folder, port in served.items()}
        if self.plan.has("kwok"):
            await self._part(f"{self.plan.nodes} nodes", nodes.start(self.plane, self.plan.nodes, paths["kwok"]))
        if self._folders:
            await self._part("CRDs, rights and policy", functions.install(self.plane, self._folders))
        await self._start_monitoring(paths, ports, urls)
        for folder, port in served.items():
            name = functions.kebab(folder)
            starting = functions.start(self.plane, folder, port, self._settings(folder, urls))
            self.endpoints[name] = await self._part(name, starting)
        await self._start_senders(paths, relay, urls)

    async def _start_monitoring(self, paths: Mapping[str, Path], ports: Ports, urls: Mapping[str, str]) -> None:
        targets = {functions.kebab(folder): url for folder, url in urls.items()}
        if self.plan.has("metrics"):
            starting = monitoring.start_metrics(self.plane, ports.take())
            self.endpoints["metrics"] = await self._part("metrics", starting)
            targets = {"kube-state-metrics": self.endpoints["metrics"], **targets}
        if self.plan.has("alertmanager"):
            receivers = {functions.kebab(folder): url for folder, url in urls.items() if folder != functions.WAKER}
            starting = monitoring.start_alertmanager(self.plane, ports.take(), receivers, program=paths["alertmanager"])
            self.endpoints["alertmanager"] = await self._part("Alertmanager", starting)
        if self.plan.has("prometheus"):
            starting = monitoring.start_prometheus(
                self.plane,
                ports.take(),
                targets,
                alertmanager=self.endpoints.get("alertmanager", ""),
                program=paths["prometheus"],
            )
            self.endpoints["prometheus"] = await self._part("Prometheus", starting)

    async def _start_senders(self, paths: Mapping[str, Path], relay: int, urls: Mapping[str, str]) -> None:
        if self.plan.has("relay"):
            told = {name: url for name, url in _kebab(urls).items() if filters.is_told(name)}
            subscribers = [Subscriber(name, url, filters=_told(name)) for name, url in told.items()]
            starting = events.start_relay(self.plane, relay, subscribers)
            self.endpoints["relay"] = await self._part("relay", starting)
            self.endpoints["events"] = str(self.home.events)
        if self.plan.has("adapter") and "relay" in self.endpoints:
            sink = self.endpoints["relay"]
            program = paths["apiserver_receive_adapter"]
            # Nobody but the functions brings what records are.
            kinds = (*_WATCHED, *_RECORDS) if self._folders else _WATCHED
            starting_adapter = events.start_adapter(self.plane, sink, program=program, kinds=kinds)
            await self._part("ApiServerSource", starting_adapter)
        if self.plan.has("ticker") and functions.WAKER in urls:
            await self._part("ticker", events.start_ticker(self.plane, urls[functions.WAKER], self.plan.tick_seconds))
        if self.plan.has("ticker") and functions.SCORER in urls:
            # Watches for anomalies may have an interval of a second here.
            starting_clock = events.start_ticker(self.plane, urls[functions.SCORER], _SCORED_EACH, "scorer-ticker")
            await self._part("ticker of anomaly-scorer", starting_clock)

    def _settings(self, folder: str, urls: Mapping[str, str]) -> dict[str, str]:
        settings = {**_PATIENCE, **self.plan.function_settings}
        if "prometheus" in self.endpoints:
            settings["PROMETHEUS_URL"] = self.endpoints["prometheus"]
        if folder == functions.WAKER:
            settings["FUNCTIONS"] = ",".join(f"{functions.kebab(one)}={urls[one]}" for one in functions.asked(urls))
        if folder == functions.SCORER:
            settings |= {"K_SINK": self._sink, "ALERTMANAGER_URL": self.endpoints.get("alertmanager", "")}
            # A sink that does not answer must not keep ticks for long that are a second apart.
            settings["TIME_BUDGET"] = "8s"
        return settings

    async def _part(self, name: str, starting: Awaitable[T]) -> T:
        self._tell(name)
        return await starting

    def _write_env(self, paths: Mapping[str, Path]) -> None:
        lines = [
            f"export KUBECONFIG={shlex.quote(str(self.home.kubeconfig))}",
            # The lab's kubectl fits the server.
            f"export PATH={shlex.quote(str(paths['kubectl'].parent))}:$PATH",
        ]
        for name, value in self.endpoints.items():
            key = name.upper().replace("-", "_")
            lines.append(f"export KREFLEX_LAB_{key}={shlex.quote(value)}")
        state.write(self.home.env, "\n".join(lines) + "\n")


def _kebab(urls: Mapping[str, str]) -> dict[str, str]:
    return {functions.kebab(folder): url for folder, url in urls.items()}


def _told(function: str) -> tuple[Expression, ...]:
    # A clock calls the waker itself, without a Broker and its Triggers.
    return _CLOCK if function == functions.WAKER else filters.shipped(function)


async def down(home: Home) -> bool:
    """End all processes of a home; whether there were any."""
    held = state.lock(home)
    try:
        running = bool(state.living(home)) or bool(state.strays(home))
        await state.stop_leftovers(home)
        home.state.unlink(missing_ok=True)
        home.env.unlink(missing_ok=True)
        return running
    finally:
        held.close()


@dataclass(frozen=True)
class Health:
    """How a process of a lab is."""

    name: str
    pid: int
    verdict: str
    log: str


async def health(home: Home) -> list[Health]:
    """How each process of the lab is: healthy, ill (it runs, but does not answer), or dead."""
    entries = state.read(home)["processes"]
    identities = state.identities(home)
    authority = home.secrets / "ca.crt"

    async def look(name: str) -> Health:
        entry, identity = entries[name], identities[name]
        verdict = "dead"
        if identity.alive:
            trust = processes.trusting(authority) if entry["url"].startswith("https") else None
            answers = not entry["url"] or await processes.answers(entry["url"], trust)()
            verdict = "healthy" if answers else "ill"
        return Health(name, identity.pid, verdict, entry["log"])

    return list(await asyncio.gather(*(look(name) for name in entries)))
