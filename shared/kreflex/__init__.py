"""What a function of Kreflex may use: signals in, decisions out, and a world to look at."""

import kreflex.startup  # noqa: F401 - before all others
from kreflex.actions import EvictPod
from kreflex.cordons import OUT_OF_SERVICE, TAINTED, CordonNode, TaintOutOfService, UncordonNode, UntaintNode
from kreflex.courses import CUT_OFF
from kreflex.decisions import Defer, Ineffective, Recovered, Refuse, Skip, Unknown, Verdict
from kreflex.drains import EvictPods, Load, RestartNetworkPod, evictable, network_pods
from kreflex.durations import Duration, parse_duration, show_duration
from kreflex.errors import UnavailableError
from kreflex.fleet import Complaint, complaints, episode
from kreflex.machines import Backing, DeleteMachine, DeleteNodeClaim, Machine, Nobody, NodeClaim, machine_of
from kreflex.mends import EndRemediation, MakeRemediation, remediation_of
from kreflex.nodes import MARK, Node, owner_of
from kreflex.providers import AskProvider
from kreflex.records import Taken
from kreflex.serve import serve, wake
from kreflex.settings import Settings
from kreflex.signals import Course, NodeSignal, PodSignal
from kreflex.upkeep import PRESSURES, Rung, Upkeep
from kreflex.views import Container, Pod, Ref, Workload
from kreflex.world import Treatment, World

__all__ = [
    "CUT_OFF",
    "MARK",
    "OUT_OF_SERVICE",
    "PRESSURES",
    "TAINTED",
    "AskProvider",
    "Backing",
    "Complaint",
    "Container",
    "CordonNode",
    "Course",
    "Defer",
    "DeleteMachine",
    "DeleteNodeClaim",
    "Duration",
    "EndRemediation",
    "EvictPod",
    "EvictPods",
    "Ineffective",
    "Load",
    "Machine",
    "MakeRemediation",
    "Nobody",
    "Node",
    "NodeClaim",
    "NodeSignal",
    "Pod",
    "PodSignal",
    "Recovered",
    "Ref",
    "Refuse",
    "RestartNetworkPod",
    "Rung",
    "Settings",
    "Skip",
    "TaintOutOfService",
    "Taken",
    "Treatment",
    "UnavailableError",
    "UncordonNode",
    "Unknown",
    "UntaintNode",
    "Upkeep",
    "Verdict",
    "Workload",
    "World",
    "complaints",
    "episode",
    "evictable",
    "machine_of",
    "network_pods",
    "owner_of",
    "parse_duration",
    "remediation_of",
    "serve",
    "show_duration",
    "wake",
]
