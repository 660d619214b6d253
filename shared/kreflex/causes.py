"""Is a release failing, and is the change the cause? Decided from values alone; docs/adr/0022 gives the reasons.

A change is held to be the cause only when nothing else is left that could be: what the cluster says of the pods, where
they run, how pods of an earlier template do at the same time, and whether something fails that was not changed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from kreflex.ailments import Ailment, Early, Limits, ailment, start_of, well
from kreflex.demands import (
    fitted,
    host,
    image_of,
    injected,
    named,
    names,
    only_restarted,
    placing,
    registry,
    requests_more,
    resources_differ,
    secured,
    starts_as_before,
)
from kreflex.durations import show_duration
from kreflex.nodes import Node
from kreflex.progress import at_once
from kreflex.releases import Releases
from kreflex.revisions import Release, Revision
from kreflex.templates import probed
from kreflex.upkeep import PRESSURES
from kreflex.views import JSON, Pod, moment

# What began within this time before the first failure of a new pod, or so soon after it, may have the same cause.
_BEFORE, _AFTER = timedelta(minutes=15), timedelta(minutes=1)
# What is about the room for a pod, not about the pod.
_PLACE = {"Unplaced", "Gate"}
# For what has begun to fail and does not yet count: a crash, a moment without being Ready.
AT_ONCE = Limits(restarts_above=0, patience=timedelta())
_HOUR, _SOON, _SOME = timedelta(hours=1), timedelta(minutes=1), timedelta(minutes=10)
# A kubelet tells that a pod is not Ready when it takes it in.
_AT_FIRST = timedelta(seconds=5)
# How many times the patience is given at most to pods that are known to start slowly.
_STARTS = 5
_ILL = {*PRESSURES, "NetworkUnavailable"}
# Where the kubelet's words come from: containerd, pkg/remotes/docker; distribution's error codes; Go's net package.
_UNREACHABLE = re.compile(
    r"i/o timeout|timeout|deadline exceeded|connection refused|connection reset|no route to host|network is unreachable"
    r"|TLS handshake|x509|EOF|server misbehaving|too ?many ?requests|\b429\b|\b50[0234]\b|service unavailable"
    r"|no space left|context canceled|registry is unavailable",
    re.IGNORECASE,
)
_NO_HOST = re.compile(r"no such host", re.IGNORECASE)
_DENIED = re.compile(
    r"unauthori[sz]ed|\b40[13]\b|denied|forbidden|insufficient_scope|authentication required|authorization failed",
    re.IGNORECASE,
)
_NO_IMAGE = re.compile(
    r"not found|manifest unknown|name unknown|invalid reference|couldn't parse|no match for platform"
    r"|no matching manifest|does not exist|\b404\b",
    re.IGNORECASE,
)
_RUNTIME = re.compile(r"deadline exceeded|failed to reserve|no space left|connection refused|transport", re.IGNORECASE)
# kubernetes, pkg/kubelet/kubelet_pods.go and kuberuntime: what a container is made from is missing.
_OBJECT = re.compile(r'(?P<kind>configmap|secret)s? "(?P<name>[^"]+)" not found', re.IGNORECASE)
_KEY = re.compile(
    r"couldn't find key (?P<key>\S+) in (?P<kind>ConfigMap|Secret) [^/\s]+/(?P<name>[^\s,]+)", re.IGNORECASE
)
_KINDS = {"configmap": "ConfigMap", "secret": "Secret"}
_INSUFFICIENT = re.compile(r"Insufficient |Too many pods|had untolerated taint|exceed max volume count", re.IGNORECASE)
_SHORT = re.compile(r"Insufficient (\w[\w./-]*\w)")
# Nodes that are ill, or that somebody has cordoned (kubernetes, pkg/scheduler/framework/plugins/nodeunschedulable).
_AWAY = re.compile(r"were unschedulable|\{node\.kubernetes\.io/|ToBeDeletedByClusterAutoscaler|karpenter\.sh/disrupted")
_WEBHOOK_DOWN = re.compile(r"failed calling webhook|failed to call webhook", re.IGNORECASE)
_ACCOUNT = re.compile(r'serviceaccount "(?P<name>[^"]+)" not found', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sound:
    """Nothing of it fails; or it is on its way, and all goes well."""

    because: str


@dataclass(frozen=True, slots=True)
class Failing:
    """It fails because of the change: `story` tells what fails, `because` why it is the change, `to` what was well."""

    story: str
    because: str
    to: Revision


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """It fails, and the change is not the cause, or nobody can say so; `cause` is one word."""

    cause: str
    story: str
    again: timedelta = _HOUR


@dataclass(frozen=True, slots=True)
class Undecided:
    """It may be failing; who looks again at `until` will know."""

    because: str
    until: datetime


Judgement = Sound | Failing | Elsewhere | Undecided


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A workload nearby that fails too: since when, and since when it has the template that it has.

    It is not `sure` of one whose pods have only just crashed, or ceased to be Ready.
    """

    name: str
    since: datetime
    unchanged_since: datetime
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Around:
    """What a judge has to know beside the release: the nodes of its pods, by name, and what else fails near it."""

    nodes: Mapping[str, Node] = field(default_factory=dict)
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True, slots=True)
class Unmade:
    """Pods that a controller can't make: why, in the API server's words, and since when."""

    said: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Findings:
    """What was seen of the pods of a release; `shaky` are old ones that have begun to fail, or may be about to."""

    new: tuple[Ailment, ...] = ()
    old: tuple[Ailment, ...] = ()
    early: tuple[Early, ...] = ()
    shaky: tuple[Ailment, ...] = ()
    unmade: Unmade | None = None
    errors: str = ""
    """What Prometheus says, if more requests fail since the change."""

    @property
    def none(self) -> bool:
        """True if nothing speaks against the new template."""
        return not (self.new or self.unmade or self.errors)


def findings(release: Release, limits: Limits, now: datetime, errors: str = "") -> Findings:
    """Look at every pod of a release, the new ones and the old ones."""
    current, slow = release.current.hash, replace(limits, start=_usual_start(release, limits))
    known = {one.hash: one.template for one in release.revisions}
    seen: dict[bool, list[Ailment | Early]] = {True: [], False: []}
    for name, pods in release.pods.items():
        given = slow if name == current else limits
        found = (ailment(pod, known.get(name, {}), given, now) for pod in pods)
        seen[name == current] += [one for one in found if one is not None]
    return Findings(
        new=tuple(one for one in seen[True] if isinstance(one, Ailment)),
        old=tuple(one for one in seen[False] if isinstance(one, Ailment)),
        early=tuple(one for one in seen[True] if isinstance(one, Early)),
        shaky=_shaky(release, known, now),
        unmade=_unmade(release),
        errors=errors,
    )


def _usual_start(release: Release, limits: Limits) -> timedelta:
    """Tell how long a new pod may take, if those of the versions before took their time: twice as long as they."""
    seen = (start_of(_pods(release, one)) for one in release.earlier if not one.bad)
    told = (known.start_seconds for known in release.history.revisions if not known.bad)
    times = [*(one for one in seen if one is not None), *(timedelta(seconds=one) for one in told if one is not None)]
    return min(2 * max(times, default=timedelta()), _STARTS * limits.patience)


def _shaky(release: Release, known: Mapping[str, JSON], now: datetime) -> tuple[Ailment, ...]:
    told = (ailment(pod, known.get(pod.template_hash, {}), AT_ONCE, now) for pod in release.old_pods)
    return tuple(one for one in told if isinstance(one, Ailment))


def _unmade(release: Release) -> Unmade | None:
    """Read why a Deployment's pods can't be created; other kinds tell it in Events only."""
    for said in (release.body.get("status") or {}).get("conditions") or ():
        if said.get("type") == "ReplicaFailure" and said.get("status") == "True" and not _of_old_ones(release, said):
            since = moment(said.get("lastTransitionTime")) or release.changed_at
            return Unmade(str(said.get("message", "")) or "no reason is told", since)
    return None


def _of_old_ones(release: Release, said: JSON) -> bool:
    """Tell whether it is pods of another revision that can't be made, as when the old ones are scaled up."""
    words = str(said.get("message", ""))
    return any(f"-{one.hash}-" in words for one in release.revisions if one.hash != release.current.hash)


def judge(
    release: Release, found: Findings, around: Around, rules: Releases, limits: Limits, now: datetime
) -> Judgement:
    """Judge a release by what was found of its pods, and by what is around it."""
    if found.none:
        return _without_fault(release, found)
    target = last_healthy(release, rules, now)
    base = target or next(iter(release.earlier), None)
    if base is None:
        return _alone(release, found)
    elsewhere = (
        _too_late(release, found, rules)
        or _restarted(release, found, target)
        or _told(release, found, base, fits=any(well(pod, limits, now) for pod in release.new_pods))
        or _on_nodes(release, found, around, limits, now)
        or _old_pods_fail(release, found, around, limits, now)
        or _neighbours_fail(release, found, around, rules)
        or _none_was_ready(release, found, target)
        or _came_later(release, found, limits, now)
        or _others_are_well(release, found, limits, now)
    )
    if elsewhere is not None:
        return elsewhere
    doubt = _doubt(release, found, around, rules, limits, now)
    if doubt:
        return Undecided(doubt, now + limits.patience)
    if target is None:
        return _nothing_healthy(release, found, rules)
    return Failing(_story(release, found), _evidence(release, limits, now), target)


def _without_fault(release: Release, found: Findings) -> Judgement:
    if found.early:
        until = min(one.until for one in found.early)
        return Undecided("a pod runs again at this moment, and may crash again", until)
    if release.stuck:
        story = f"{release.current} is not complete in its time (progressDeadlineSeconds), and none of its pods fails"
        return Elsewhere("Stuck", story, timedelta(minutes=10))
    return Sound(f"{release.current} is complete" if release.complete else f"{release.current} is on its way")


def last_healthy(release: Release, rules: Releases, now: datetime) -> Revision | None:
    """Find the newest revision before the present one that was really healthy; never just the one before."""
    healthy = (one for one in release.earlier if release.healthy(one, rules.healthy_for, now))
    return next(healthy, None)


def onset(release: Release, found: Findings) -> datetime:
    """Tell when it began to fail; of requests that fail that is not known, so it is when it was changed."""
    times = [one.since for one in found.new] + ([found.unmade.since] if found.unmade else [])
    return max(min(times, default=release.changed_at), release.changed_at)


def _too_late(release: Release, found: Findings, rules: Releases) -> Elsewhere | None:
    """See whether it was well for longer than the window: then it has not failed by the change."""
    after = onset(release, found) - release.changed_at
    if after <= rules.change_window:
        return None
    window = show_duration(rules.change_window)
    late = f"it began {show_duration(after)} after the change, which is later than {window}"
    return Elsewhere("TooLate", f"{_story(release, found)}; {late}")


def _restarted(release: Release, found: Findings, target: Revision | None) -> Elsewhere | None:
    """See whether somebody has but restarted what was well: to go back would be to do that again."""
    if target is None or not only_restarted(release.current.template, target.template):
        return None
    return Elsewhere("Restarted", f"{_story(release, found)}; it is {target}, restarted: nothing else was changed")


def _told(release: Release, found: Findings, base: Revision, *, fits: bool) -> Elsewhere | None:
    """Hear what the cluster itself says: of a fault that the old template would have met as well.

    `fits` says that there was room for pods of the new template.
    """
    new, old = release.current.template, base.template
    if found.unmade:
        cause = "Quota" if fits and "quota" in found.unmade.said else _creation(found.unmade.said, new, old)
        if cause is not None:
            return Elsewhere(cause, _story(release, found))
    causes = ["Unschedulable" if fits and one.kind == "Unplaced" else blame(one, new, old) for one in found.new]
    clear = next((cause for cause in causes if cause not in {None, UNKNOWN}), None)
    if clear is None and None in causes:
        # One that is told speaks for those of which nothing is told yet.
        return None
    cause = clear or next(iter(causes), None)
    again = _SOON if cause == UNKNOWN else _HOUR
    return Elsewhere(cause, f"{_story(release, found)}; {_WHY[cause]}", again) if cause else None


UNKNOWN = "ImageUnknown"
_WHY = {
    "Config": "the earlier revision names the same, so going back would not help",
    "Dependency": "this container runs before all that was changed",
    "ImageUnknown": "why the image can't be pulled is not told yet",
    "Injected": "no template names this container: what puts it in has to be looked at",
    "NotStarted": "the kubelet does not say why: look at the pod's events",
    "ReadinessGate": "it is not its containers that are not ready",
    "Registry": "the registry does not give it, whatever the tag",
    "Runtime": "it is the node's container runtime that fails",
    "Unschedulable": "pods of the earlier revision ask for no less",
}


def blame(one: Ailment, new: JSON, old: JSON) -> str | None:
    """Name the cause of an ailment that is not the change from the old template to the new; None if it may be."""
    others = _of_others(one, new, old)
    if others is not None:
        return others
    if one.kind == "Image":
        return _image(one, new, old)
    if one.kind == "Config":
        return _config(one.said, new, old)
    if one.kind == "Start":
        return "Runtime" if _RUNTIME.search(one.said) else None
    if one.kind == "Unplaced":
        return _unplaced(one.said, new, old)
    if one.kind == "Waiting":
        # Without a word of the kubelet's only something that the old template does not name can be missing.
        return None if named(new) - named(old) else "NotStarted"
    return "ReadinessGate" if one.kind == "Gate" else None


def _of_others(one: Ailment, new: JSON, old: JSON) -> str | None:
    """Name the cause where it is a container that the change has nothing to do with."""
    if not one.container or one.kind not in {"Loop", "Unready", "Start"}:
        return None
    if injected(new, one.container):
        return "Injected"
    return "Dependency" if starts_as_before(new, old, one.container) else None


def _image(one: Ailment, new: JSON, old: JSON) -> str | None:
    image, before = image_of(new, one.container), image_of(old, one.container)
    # A name may have any word in it.
    said = one.said.replace(image, "").replace(registry(image), "")
    if image == before:
        return "Registry"
    if _NO_HOST.search(said):
        return "Registry" if host(image) == host(before) else None
    # First what may be the registry's fault: its page for a failure may say "not found", too.
    if _UNREACHABLE.search(said):
        return "Registry"
    if _DENIED.search(said):
        # Docker's registry denies what does not exist: only of the same repository is that a matter of credentials.
        return "Registry" if registry(image) == registry(before) else None
    if _NO_IMAGE.search(said) or "InvalidImageName" in one.story or "ErrImageNeverPull" in one.story:
        return None
    return UNKNOWN


def _config(said: str, new: JSON, old: JSON) -> str | None:
    key, whole = _KEY.search(said), _OBJECT.search(said)
    if key is not None:
        same = names(old, _KINDS[key["kind"].lower()], key["name"], key["key"])
        return "Config" if same else None
    if whole is not None:
        return "Config" if names(old, _KINDS[whole["kind"].lower()], whole["name"]) else None
    return None if new != old else "Config"


def _unplaced(said: str, new: JSON, old: JSON) -> str | None:
    placed_as_before = placing(new) == placing(old)
    if "didn't" in said and not placed_as_before:
        return None
    # With less room than before no node would take a pod of the old template, either.
    away, short = _AWAY.search(said), _SHORT.findall(said)
    if _INSUFFICIENT.search(said):
        return None if not away and requests_more(new, old, short) else "Unschedulable"
    return "Unschedulable" if away or placed_as_before else None


def _creation(said: str, new: JSON, old: JSON) -> str | None:
    """Name the cause why pods can't be created, if it is not the change; as for `blame`."""
    if "exceeded quota" in said:
        return None if fitted(said, new, old) else "Quota"
    if "must specify" in said or "LimitRange" in said or "usage per" in said:
        return None if resources_differ(new, old) else "Quota"
    if _WEBHOOK_DOWN.search(said):
        return "PodsDenied"
    account = _ACCOUNT.search(said)
    if account is not None:
        same = (old.get("spec") or {}).get("serviceAccountName") == account["name"]
        return "PodsDenied" if same else None
    if "PodSecurity" in said:
        return None if secured(new) != secured(old) else "PodsDenied"
    # A webhook that looks at images, or labels: what it refuses may be what was changed, and nobody can tell.
    return "PodsDenied"


def _on_nodes(release: Release, found: Findings, around: Around, limits: Limits, now: datetime) -> Elsewhere | None:
    """See whether the pods fail where they run, and only there."""
    placed = {one.pod.node for one in found.new if one.pod.node}
    if not placed or found.errors:
        return None
    ill = {name for name in placed if ill_node(around.nodes.get(name))}
    if ill == placed:
        return Elsewhere("Node", f"{_story(release, found)}; all on ill nodes: {_listed(ill)}")
    elsewhere = {pod.node for pod in release.new_pods if well(pod, limits, now)} - placed
    if len(placed) == 1 and len(elsewhere) > 1:
        story = (
            f"{_story(release, found)}; all on {_listed(placed)}, while others of it are well on {_listed(elsewhere)}"
        )
        return Elsewhere("Node", story)
    return None


def ill_node(node: Node | None) -> bool:
    """Tell whether what runs on a node may fail because of it; one that is gone takes its pods with it."""
    if node is None or not node.ready or node.terminating:
        return True
    return any(said.type in _ILL and said.status == "True" for said in node.conditions)


def _old_pods_fail(
    release: Release, found: Findings, around: Around, limits: Limits, now: datetime
) -> Elsewhere | None:
    """See pods of a template that was well fail, too; of one that never was, that says nothing.

    Also where others of it are well still: what a pod needs to start may be missing, while those that have started
    run on (https://github.com/argoproj/argo-rollouts/issues/841).
    """
    failing = _of_good_ones(found.old, release, around, limits, now)
    if not failing:
        return None
    also = f"{failing[0].pod.ref.name} of an earlier revision fails as well: {failing[0].story}"
    return Elsewhere("Dependency", f"{_story(release, found)}; {also}")


def _of_good_ones(
    told: Iterable[Ailment], release: Release, around: Around, limits: Limits, now: datetime
) -> list[Ailment]:
    """Give what pods suffer from whose revision was well, and whose node is."""
    good = {
        pod.ref.uid for one in release.earlier if _was_well(release, one, limits, now) for pod in _pods(release, one)
    }
    return [
        one
        for one in told
        if one.pod.ref.uid in good and one.kind not in _PLACE and not ill_node(around.nodes.get(one.pod.node))
    ]


def _doubt(release: Release, found: Findings, around: Around, rules: Releases, limits: Limits, now: datetime) -> str:
    """Tell what may turn out to fail as well: all that hangs on one dependency does not crash in the same second."""
    shaky = _of_good_ones(found.shaky, release, around, limits, now)
    if shaky:
        return f"{shaky[0].pod.ref.name} of an earlier revision may fail as well: {shaky[0].story}"
    names_ = _at_the_same_time(release, found, around, rules, sure=False)
    return f"{names_}, not changed, may fail as well" if names_ else ""


def _pods(release: Release, revision: Revision) -> tuple[Pod, ...]:
    return release.pods.get(revision.hash, ())


def _was_well(release: Release, revision: Revision, limits: Limits, now: datetime) -> bool:
    if revision.bad or revision.experiment:
        return False
    return revision.healthy_at is not None or any(well(pod, limits, now) for pod in _pods(release, revision))


def _neighbours_fail(release: Release, found: Findings, around: Around, rules: Releases) -> Elsewhere | None:
    """See whether what nobody changed began to fail at the same time."""
    names_ = _at_the_same_time(release, found, around, rules, sure=True)
    if not names_:
        return None
    return Elsewhere("Dependency", f"{_story(release, found)}; {names_}, not changed, began to fail at the same time")


def _at_the_same_time(release: Release, found: Findings, around: Around, rules: Releases, *, sure: bool) -> str:
    began = onset(release, found)
    # Since when requests fail is not known: whatever has happened since the change may have the same cause.
    until = began + (_AFTER if found.new or found.unmade else rules.change_window)
    return _listed(
        one.name
        for one in around.neighbours
        if one.sure is sure
        and began - _BEFORE <= one.since <= until
        and one.since - one.unchanged_since >= rules.healthy_for
    )


def _none_was_ready(release: Release, found: Findings, target: Revision | None) -> Elsewhere | None:
    """See that a DaemonSet has replaced more pods than it may while the new ones are not ready.

    It does so only where the old ones are not available: those it takes first, whatever maxUnavailable is
    (kubernetes, pkg/controller/daemon/update.go). They are gone, and nothing else tells of them.
    """
    if release.workload.ref.kind != "DaemonSet" or target is None or target != release.earlier[0]:
        return None
    never = [pod for pod in release.new_pods if _never_ready(pod, release.current.template)]
    most = at_once(release.body)
    if not found.new or len(never) <= most:
        return None
    story = f"{len(never)} pods were replaced although none was ready, of which {most} may be away at a time"
    return Elsewhere("Dependency", f"{_story(release, found)}; {story}: those before them were not available either")


def _never_ready(pod: Pod, template: JSON) -> bool:
    if pod.terminating or pod.unready_since is None or pod.unready_since - pod.created > _AT_FIRST:
        return False
    # Without a probe a container that crashes is ready while it runs.
    return all(probed(template, one.name) or not (one.restarts or one.ended) for one in pod.containers)


def _came_later(release: Release, found: Findings, limits: Limits, now: datetime) -> Elsewhere | None:
    """See whether all that fail have come after it was healthy, as when it was scaled up, and the first are well."""
    healthy_at = release.current.healthy_at
    if healthy_at is None or not found.new or found.errors:
        return None
    fine = [pod for pod in release.new_pods if pod.created <= healthy_at and well(pod, limits, now)]
    if not fine or any(one.pod.created <= healthy_at for one in found.new):
        return None
    since = f"{len(fine)} others of it have been Ready since before"
    return Elsewhere("SomePods", f"{_story(release, found)}; all came after it was healthy, and {since}", _SOME)


def _others_are_well(release: Release, found: Findings, limits: Limits, now: datetime) -> Elsewhere | None:
    """See whether most pods of the new template are well: then it is not the template that decides."""
    failing = {one.pod.ref.uid for one in found.new}
    fine = [pod for pod in release.new_pods if pod.ref.uid not in failing and well(pod, limits, now)]
    if not found.new or found.errors or len(fine) <= len(failing):
        return None
    story = f"{_story(release, found)}; {len(fine)} others of it have been Ready for long enough"
    return Elsewhere("SomePods", story, _SOME)


def _alone(release: Release, found: Findings) -> Elsewhere:
    if release.current.number > 1:
        why = "none of its earlier revisions is kept (spec.revisionHistoryLimit): release a mended one"
        return Elsewhere("NoHealthyRevision", f"{_story(release, found)}; {why}")
    return Elsewhere("FirstRelease", f"{_story(release, found)}; it has no earlier revision: nothing to go back to")


def _nothing_healthy(release: Release, found: Findings, rules: Releases) -> Elsewhere:
    least = show_duration(rules.healthy_for)
    known = f"none of its {len(release.earlier)} earlier revisions is known to have been healthy for {least}"
    todo = "choose one by hand (kubectl rollout undo --to-revision), or release a mended one"
    return Elsewhere("NoHealthyRevision", f"{_story(release, found)}; {known}: {todo}")


def _story(release: Release, found: Findings) -> str:
    """Tell what fails, in words: how many, of which revision, and the worst of them."""
    if found.new:
        what = found.new[0].story
        pods = f"{len(found.new)} of {len(release.new_pods)} pods of {release.current} fail"
        return f"{pods}: {found.new[0].pod.ref.name}: {what}"
    if found.unmade:
        return f"{release.current}: its pods can't be made: {found.unmade.said}"
    return f"{release.current}: {found.errors}"


def _evidence(release: Release, limits: Limits, now: datetime) -> str:
    """Tell why it is the change, once nothing else is left."""
    for one in release.earlier:
        fine = [pod for pod in _pods(release, one) if well(pod, limits, now)]
        if fine:
            return f"{len(fine)} pods of {one} are well at the same time"
    if release.current.healthy_at is None:
        return "it has never been healthy, and nothing else fails"
    since = show_duration(now - release.changed_at)
    return f"it was changed {since} ago, and nothing else fails"


def _listed(names_: Iterable[str]) -> str:
    some = sorted(names_)
    return ", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "")


def neighbours(
    pods: Sequence[Pod], made: Mapping[str, datetime], limits: Limits, now: datetime
) -> tuple[Neighbour, ...]:
    """Find the workloads of which half the pods or more fail; `made` tells when a ReplicaSet was, by its UID.

    What has no ReplicaSet has its template at least as long as the oldest of its pods.
    """
    groups = defaultdict[str, list[Pod]](list)
    for pod in pods:
        if pod.controller is not None and pod.controller.kind != "Job" and not pod.terminating:
            groups[pod.controller.uid].append(pod)
    told = (_neighbour(uid, those, made, limits, now) for uid, those in groups.items())
    return tuple(one for one in told if one is not None)


def _neighbour(
    uid: str, pods: list[Pod], made: Mapping[str, datetime], limits: Limits, now: datetime
) -> Neighbour | None:
    ill, shaky = _looping(pods, limits, now), _looping(pods, AT_ONCE, now)
    sure, controller = 2 * len(ill) >= len(pods), pods[0].controller
    if 2 * len(shaky) < len(pods) or controller is None:
        return None
    unchanged = made.get(uid, min(pod.created for pod in pods))
    since = min(one.since for one in (ill if sure else shaky))
    return Neighbour(f"{controller.kind} {controller.name}", since, unchanged, sure)


def _looping(pods: Iterable[Pod], limits: Limits, now: datetime) -> list[Ailment]:
    told = (ailment(pod, {}, limits, now) for pod in pods)
    return [one for one in told if isinstance(one, Ailment) and one.kind in {"Loop", "Unready"}]
