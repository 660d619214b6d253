"""Builds of the lab's programs from pinned Go modules, into a cache that is keyed by the pins."""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from lab.errors import LabError
from lab.golang import Version, asked_for, environment, find_go
from lab.paths import PACKAGE, cache_directory
from lab.processes import dies_with

_QUIET_SECONDS = 15.0


@dataclass(frozen=True)
class Module:
    """A folder of lab/go with a go.mod that pins one project, and the programs that are built from it."""

    name: str
    programs: dict[str, str]
    peers: dict[str, str] = field(default_factory=dict)
    """Programs of others that only `make test-peers` needs."""
    tags: str = ""
    version_of: str = ""
    """The module whose version is linked into Kubernetes programs; they call themselves v0.0.0 otherwise."""
    stub: tuple[str, str] | None = None
    """A module that embeds a file which its archive lacks, and that file."""

    @property
    def directory(self) -> Path:
        return PACKAGE / "go" / self.name

    @property
    def packages(self) -> dict[str, str]:
        """All its programs, and what each is built from."""
        return self.programs | self.peers

    @property
    def go(self) -> Version:
        """The least Go that builds it."""
        return asked_for(self.directory / "go.mod")

    @property
    def flags(self) -> list[str]:
        """The arguments of `go build`."""
        link = "-s -w"
        if self.version_of:
            link += f" -X k8s.io/component-base/version.gitVersion={self.pinned(self.version_of)}"
        tags = ["-tags", self.tags] if self.tags else []
        return ["-trimpath", "-buildvcs=false", *tags, "-ldflags", link]

    @property
    def key(self) -> str:
        """Changes when a pin, a flag or the machine does."""
        sources = sorted(self.directory.rglob("*.go"))
        parts = [file.read_bytes() for file in (self.directory / "go.mod", self.directory / "go.sum", *sources)]
        parts.append(repr((self.flags, self.stub, platform.system(), platform.machine())).encode())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]

    def built(self, program: str) -> Path:
        """Where the cache keeps this program."""
        return cache_directory() / "bin" / f"{self.name}-{self.key}" / program

    def pinned(self, module: str) -> str:
        """The version of a module in go.mod."""
        text = (self.directory / "go.mod").read_text()
        match = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", text, re.MULTILINE)
        if match is None:
            raise LabError(f"{self.directory / 'go.mod'} does not pin {module}")
        return match[1]


_KUBERNETES = "k8s.io/kubernetes/cmd"
_ALERTMANAGER = "github.com/prometheus/alertmanager"
MODULES = (
    Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Module(
        "kubernetes",
        {
            name: f"{_KUBERNETES}/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
        },
        version_of="k8s.io/kubernetes",
    ),
    Module("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
    # Without the tags Prometheus links every cloud's SDK: three times the build.
    Module(
        "prometheus",
        {name: f"github.com/prometheus/prometheus/cmd/{name}" for name in ("prometheus", "promtool")},
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
    # Its archive lacks the web page that it embeds; the API is all that the lab needs.
    Module(
        "alertmanager",
        {name: f"{_ALERTMANAGER}/cmd/{name}" for name in ("alertmanager", "amtool")},
        stub=(_ALERTMANAGER, "ui/app/dist/index.html"),
    ),
    # Knative's adapter and channel have mains of ours: see there.
    Module(
        "eventing",
        {"apiserver_receive_adapter": "."},
        peers={
            "broker_channel": "./channel",
            "broker_filter": "knative.dev/eventing/cmd/broker/filter",
            "broker_ingress": "knative.dev/eventing/cmd/broker/ingress",
        },
    ),
    # One program for sensors and event sources, for each links the SDKs of all clouds.
    Module("argo-events", {}, peers={"argo_events": "."}),
    Module(
        "argo-rollouts", {}, peers={"rollouts-controller": "github.com/argoproj/argo-rollouts/cmd/rollouts-controller"}
    ),
    Module("helm", {}, peers={"helm": "helm.sh/helm/v4/cmd/helm"}),
    Module("nats", {}, peers={"nats-server": "github.com/nats-io/nats-server/v2"}),
    Module("karpenter", {}, peers={"karpenter": "sigs.k8s.io/karpenter/kwok"}),
    Module("cluster-api", {}, peers={"capi_manager": "sigs.k8s.io/cluster-api/core"}),
    Module("medik8s", {}, peers={"node_healthcheck": "github.com/medik8s/node-healthcheck-operator/cmd"}),
    Module("flux", {}, peers={"kustomize_controller": "github.com/fluxcd/kustomize-controller"}),
)


def module_of(program: str) -> Module:
    """The module that a program is built from."""
    for module in MODULES:
        if program in module.packages:
            return module
    raise LabError(f"the lab knows no program {program}")


class Progress:
    """Tells what is being built: a line that is rewritten on a terminal, now and then a line in a log."""

    def __init__(self, total: int, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._total = total
        self._done = 0
        self._begin = time.monotonic()
        self._last = 0.0

    def say(self, text: str) -> None:
        """A line of its own."""
        self._wipe()
        print(f"lab: {text}", file=self._out, flush=True)

    def next(self, program: str) -> None:
        """Another program's turn has come."""
        self._done += 1
        self._program, self._since, self._last = program, time.monotonic(), 0.0
        self.tick(0)

    def tick(self, packages: int) -> None:
        """Time has passed, and this many packages are compiled."""
        now = time.monotonic()
        terminal = self._out.isatty()
        if now - self._last < (1.0 if terminal else _QUIET_SECONDS):
            return
        self._last = now
        compiled = f", {packages} packages compiled" if packages else ""
        text = (
            f"lab: building {self._program} ({self._done} of {self._total}), "
            f"{now - self._since:.0f} s{compiled}, {now - self._begin:.0f} s in all"
        )
        print(f"\r\033[K{text}" if terminal else text, end="" if terminal else "\n", file=self._out, flush=True)

    def finished(self) -> None:
        """The present program is built."""
        self.say(f"built {self._program} ({self._done} of {self._total}) in {time.monotonic() - self._since:.0f} s")

    def _wipe(self) -> None:
        if self._out.isatty():
            print("\r\033[K", end="", file=self._out)


def build(programs: Sequence[str]) -> None:
    """Build what the cache lacks of these programs; a second lab that starts meanwhile waits for the first."""
    with _alone(Progress(0)):
        missing = [name for name in programs if not module_of(name).built(name).exists()]
        if not missing:
            return
        progress = Progress(len(missing))
        progress.say(f"{len(missing)} programs have to be built once, into {cache_directory()}")
        for name in missing:
            module = module_of(name)
            _build(module, name, find_go(progress.say, module.go), progress)


@contextmanager
def _alone(progress: Progress) -> Iterator[None]:
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("waiting for another lab's build")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(module: Module, program: str, go: Path, progress: Progress) -> None:
    progress.next(program)
    target = module.built(program)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A build that is killed leaves a draft, never half a program; nobody else builds now, so older ones are that.
    for old in target.parent.glob(f".{program}.*"):
        old.unlink()
    draft = target.with_name(f".{program}.{os.getpid()}")
    log = cache_directory() / "logs" / f"build-{program}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(b"")
    mod_file = _with_stub(module, go, log) if module.stub else []
    command: list[str | Path] = [go, "build", "-v", *mod_file, *module.flags, "-o", draft, module.packages[program]]
    try:
        _run(program, command, module.directory, go, log, progress)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    progress.finished()


def _run(program: str, command: Sequence[str | Path], directory: Path, go: Path, log: Path, progress: Progress) -> None:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment(go),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            # A build that outlives a killed lab would run beside the next lab's.
            preexec_fn=dies_with(os.getpid()),  # noqa: PLW1509
        )
        try:
            code = _wait(process, log, progress)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code != 0:
        raise LabError(_failure(program, log))


def _wait(process: subprocess.Popen[bytes], log: Path, progress: Progress) -> int:
    while True:
        try:
            return process.wait(0.5)
        except subprocess.TimeoutExpired:
            progress.tick(_compiled(log))


def _compiled(log: Path) -> int:
    lines = log.read_text(errors="replace").splitlines()
    return sum(1 for line in lines if not line.startswith(("go: ", "#")))


def _failure(program: str, log: Path) -> str:
    end = "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-10:])
    return (
        f"{program} could not be built; the end of {log}:\n{end}\n"
        f"If it is the network, start again: what is done is kept. If the disk is full, remove {cache_directory()}.\n"
        f"A program of your own is used if KUBEBUILDER_ASSETS names its directory."
    )


def _with_stub(module: Module, go: Path, log: Path) -> list[str]:
    """Copy the module beside the cache, add the file that it lacks, and build against the copy."""
    assert module.stub is not None
    path, file = module.stub
    work = cache_directory() / "src" / f"{module.name}-{module.key}"
    mod_file = work / "go.mod"
    if not mod_file.exists():
        _copy_module(module, path, file, go, log, work)
    return [f"-modfile={mod_file}"]


def source(program: str, path: str) -> Path:
    """The folder of a Go module that a program is built from, downloaded if need be."""
    module = module_of(program)
    go = find_go(Progress(0).say, module.go)
    log = cache_directory() / "logs" / f"source-{module.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return _source(module, path, go, log)


def _source(module: Module, path: str, go: Path, log: Path) -> Path:
    answer = _go_output(go, module, log, "mod", "download", "-json", path)
    directory = re.search(r'"Dir": "([^"]+)"', answer)
    if directory is None:
        raise LabError(f"go did not say where {path} is:\n{answer}")
    return Path(directory[1])


def _copy_module(module: Module, path: str, file: str, go: Path, log: Path, work: Path) -> None:
    directory = _source(module, path, go, log)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(directory, work / "module", copy_function=shutil.copyfile)
    stub = work / "module" / file
    stub.parent.mkdir(parents=True, exist_ok=True)
    stub.write_text("The page is not part of the module.\n")
    shutil.copyfile(module.directory / "go.sum", work / "go.sum")
    # Last, and in one step: its presence says that the copy is whole.
    draft = work / "draft.mod"
    text = (module.directory / "go.mod").read_text()
    draft.write_text(f"{text}\nreplace {path} => {work / 'module'}\n")
    draft.replace(work / "go.mod")


def _go_output(go: Path, module: Module, log: Path, *arguments: str) -> str:
    with log.open("ab") as errors:
        answer = subprocess.run(
            [go, *arguments],
            check=False,
            cwd=module.directory,
            env=environment(go),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    if answer.returncode != 0:
        raise LabError(_failure(module.name, log) + f"\n{answer.stdout}")
    return answer.stdout
