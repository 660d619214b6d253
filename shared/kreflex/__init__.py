"""What a function of Kreflex may use: signals in, decisions out, and a world to look at."""

import kreflex.startup  # noqa: F401 - before all others
from kreflex.actions import EvictPod
from kreflex.decisions import Defer, Ineffective, Recovered, Refuse, Skip, Unknown, Verdict
from kreflex.durations import Duration, parse_duration, show_duration
from kreflex.errors import UnavailableError
from kreflex.serve import serve, wake
from kreflex.settings import Settings
from kreflex.signals import PodSignal
from kreflex.views import Container, Pod, Ref, Workload
from kreflex.world import Treatment, World

__all__ = [
    "Container",
    "Defer",
    "Duration",
    "EvictPod",
    "Ineffective",
    "Pod",
    "PodSignal",
    "Recovered",
    "Ref",
    "Refuse",
    "Settings",
    "Skip",
    "Treatment",
    "UnavailableError",
    "Unknown",
    "Verdict",
    "Workload",
    "World",
    "parse_duration",
    "serve",
    "show_duration",
    "wake",
]
