"""A lab that is up, seen by another process, which starts more on it for as long as it lives itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from lab import processes
from lab.cluster import ControlPlane
from lab.paths import Home
from lab.processes import Child
from lab.state import MARK


class Visitor(ControlPlane):
    """A control plane that goes on when this process ends; what was started here ends with it."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        config = yaml.safe_load(home.kubeconfig.read_text())
        self.url = config["clusters"][0]["cluster"]["server"]
        self._tokens = {"admin": config["users"][0]["user"]["token"]}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in tuple(self.children):
            await self.stop_child(name)
        await self.api.close()

    def start_child(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        url: str = "",  # noqa: ARG002 - whose health is nobody's business but ours
        log: Path | None = None,
    ) -> Child:
        """Start a process that `status` does not know; `down` ends it all the same, by its mark."""
        marked = {MARK: str(self.home.root), **(environment or {})}
        child = processes.start(name, command, log or self.home.log(name), environment=marked)
        self.children[name] = child
        return child

    async def stop_child(self, name: str) -> None:
        await self.children.pop(name).stop()
