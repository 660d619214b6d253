"""What a function of Kreflex may use: signals in, decisions out, and a world to look at."""

import kreflex.startup  # noqa: F401 - before all others
from kreflex.actions import EvictAnomalous, EvictPod
from kreflex.ailments import Ailment, Limits, ailment
from kreflex.anomaly.anomalies import Anomaly
from kreflex.anomalynotes import agreed_anomalies, doubt, first_certain, open_anomalies, story
from kreflex.canaries import Canary, NoCanary, canary_of, marked, may_try, this_try, tried
from kreflex.canarygit import (
    ForgetSuspendedShares,
    NoteSuspendedShare,
    Owned,
    ProposeEdit,
    PushEdit,
    WayByGit,
    numbers_of,
    owned,
    replicas_of,
    step_by_git,
    suspension,
    told_until_resumed,
)
from kreflex.causes import Elsewhere, Failing, Findings, Undecided, findings, judge, last_healthy
from kreflex.comparisons import Difference, Inconclusive, Same, Worse, by_pods, compare, failing
from kreflex.cordons import OUT_OF_SERVICE, TAINTED, CordonNode, TaintOutOfService, UncordonNode, UntaintNode
from kreflex.courses import CUT_OFF
from kreflex.decisions import Defer, Ineffective, Recovered, Refuse, Remember, Skip, Unknown, Verdict
from kreflex.demands import only_configured, same_but_notes
from kreflex.drains import EvictPods, Load, RestartNetworkPod, evictable, network_pods
from kreflex.durations import Duration, parse_duration, show_duration
from kreflex.errors import UnavailableError
from kreflex.fleet import Complaint, complaints, episode
from kreflex.gates import UNDER_WAY, OpenGate
from kreflex.gitactions import ProposeRevert, PushRevert, RequestSync, WayInGit, step_in_git
from kreflex.gitops import SYNC_SUSPENDED, Manager, manager_of, source_of
from kreflex.helm import Held, Undo, helm_source, helm_way_back
from kreflex.helmactions import RollBackHelm, helm_went
from kreflex.holdups import HELD_UP, HoldUp, hold_up
from kreflex.kinds import is_released
from kreflex.machines import Backing, DeleteMachine, DeleteNodeClaim, Machine, Nobody, NodeClaim, machine_of
from kreflex.mends import EndRemediation, MakeRemediation, remediation_of
from kreflex.nodes import MARK, Node, owner_of
from kreflex.providers import AskProvider
from kreflex.records import Taken
from kreflex.releases import Releases
from kreflex.remedies import Remedy, noted_by
from kreflex.reverts import BACK_BY, BACK_FROM, BACK_TO, EvictStuck, RevertTemplate
from kreflex.revisions import Release, Revision, Untold, release_of, to_remember
from kreflex.rollouts import AbortRollout, PauseRollout, Progress, ResumeAborted, progress_of
from kreflex.serve import experiment, score_watches, serve, wake
from kreflex.settings import Settings
from kreflex.signals import Course, NodeSignal, PodSignal, WorkloadSignal
from kreflex.surroundings import around, failed_before, seems_well, worth_a_look
from kreflex.suspensions import ForgetSuspension, NoteSuspension, SuspendSync, step_to_suspend, still_suspended, suspend
from kreflex.trends import errors_since
from kreflex.upkeep import PRESSURES, Rung, Upkeep
from kreflex.views import Container, Pod, Ref, Workload
from kreflex.weights import ScaleCanary, TakeTraffic, with_traffic
from kreflex.world import Treatment, World

__all__ = [
    "BACK_BY",
    "BACK_FROM",
    "BACK_TO",
    "CUT_OFF",
    "HELD_UP",
    "MARK",
    "OUT_OF_SERVICE",
    "PRESSURES",
    "SYNC_SUSPENDED",
    "TAINTED",
    "UNDER_WAY",
    "AbortRollout",
    "Ailment",
    "Anomaly",
    "AskProvider",
    "Backing",
    "Canary",
    "Complaint",
    "Container",
    "CordonNode",
    "Course",
    "Defer",
    "DeleteMachine",
    "DeleteNodeClaim",
    "Difference",
    "Duration",
    "Elsewhere",
    "EndRemediation",
    "EvictAnomalous",
    "EvictPod",
    "EvictPods",
    "EvictStuck",
    "Failing",
    "Findings",
    "ForgetSuspendedShares",
    "ForgetSuspension",
    "Held",
    "HoldUp",
    "Inconclusive",
    "Ineffective",
    "Limits",
    "Load",
    "Machine",
    "MakeRemediation",
    "Manager",
    "NoCanary",
    "Nobody",
    "Node",
    "NodeClaim",
    "NodeSignal",
    "NoteSuspendedShare",
    "NoteSuspension",
    "OpenGate",
    "Owned",
    "PauseRollout",
    "Pod",
    "PodSignal",
    "Progress",
    "ProposeEdit",
    "ProposeRevert",
    "PushEdit",
    "PushRevert",
    "Recovered",
    "Ref",
    "Refuse",
    "Release",
    "Releases",
    "Remedy",
    "Remember",
    "RequestSync",
    "RestartNetworkPod",
    "ResumeAborted",
    "RevertTemplate",
    "Revision",
    "RollBackHelm",
    "Rung",
    "Same",
    "ScaleCanary",
    "Settings",
    "Skip",
    "SuspendSync",
    "TaintOutOfService",
    "TakeTraffic",
    "Taken",
    "Treatment",
    "UnavailableError",
    "UncordonNode",
    "Undecided",
    "Undo",
    "Unknown",
    "UntaintNode",
    "Untold",
    "Upkeep",
    "Verdict",
    "WayByGit",
    "WayInGit",
    "Workload",
    "WorkloadSignal",
    "World",
    "Worse",
    "agreed_anomalies",
    "ailment",
    "around",
    "by_pods",
    "canary_of",
    "compare",
    "complaints",
    "doubt",
    "episode",
    "errors_since",
    "evictable",
    "experiment",
    "failed_before",
    "failing",
    "findings",
    "first_certain",
    "helm_source",
    "helm_way_back",
    "helm_went",
    "hold_up",
    "is_released",
    "judge",
    "last_healthy",
    "machine_of",
    "manager_of",
    "marked",
    "may_try",
    "network_pods",
    "noted_by",
    "numbers_of",
    "only_configured",
    "open_anomalies",
    "owned",
    "owner_of",
    "parse_duration",
    "progress_of",
    "release_of",
    "remediation_of",
    "replicas_of",
    "same_but_notes",
    "score_watches",
    "seems_well",
    "serve",
    "show_duration",
    "source_of",
    "step_by_git",
    "step_in_git",
    "step_to_suspend",
    "still_suspended",
    "story",
    "suspend",
    "suspension",
    "this_try",
    "to_remember",
    "told_until_resumed",
    "tried",
    "wake",
    "with_traffic",
    "worth_a_look",
]
