"""What is left of an error budget, and whether it burns: the one answer that chaos and risky remediation wait for.

`budget_of(namespace, about, world)` gives it, of an SLO by its name or of a workload by its annotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Burning = Literal["page", "ticket", "none"]
State = Literal["Healthy", "Burning", "Spent", "Unknown"]
LEAST = 0.2


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of an error budget, from 1 to 0 and below; None if nobody can tell.

    `burning` is the worst burn-rate alert that its windows would raise now. `why` is for people: SLO, number, threshold.
    """

    left: float | None
    burning: Burning
    why: str
    least: float = LEAST

    @property
    def state(self) -> State:
        """Tell it in one word; below `least` it counts as spent."""
        if self.left is None:
            return "Unknown"
        if self.left < self.least:
            return "Spent"
        return "Healthy" if self.burning == "none" else "Burning"

    @property
    def healthy(self) -> bool:
        """Tell whether chaos may begin, and risky remediation needs no person."""
        return self.state == "Healthy"

    @property
    def must_stop(self) -> bool:
        """Tell whether a running experiment has to end now: a slow burn, which makes a ticket, lets it run out."""
        return self.state in {"Spent", "Unknown"} or self.burning == "page"
