"""Go back to the last revision that was really healthy, where nothing but the change can be why a release fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic import Field

from kreflex import (
    BACK_BY,
    BACK_FROM,
    BACK_TO,
    CUT_OFF,
    HELD_UP,
    Ailment,
    Defer,
    Elsewhere,
    EvictStuck,
    Failing,
    Findings,
    ForgetSuspension,
    Held,
    HoldUp,
    Ineffective,
    Limits,
    Manager,
    NoteSuspension,
    Pod,
    PodSignal,
    ProposeRevert,
    PushRevert,
    Recovered,
    Ref,
    Refuse,
    Release,
    Releases,
    Remember,
    RequestSync,
    RevertTemplate,
    Revision,
    RollBackHelm,
    Settings,
    Skip,
    SuspendSync,
    Taken,
    Treatment,
    Undecided,
    Undo,
    Unknown,
    Untold,
    WayInGit,
    Workload,
    WorkloadSignal,
    World,
    ailment,
    around,
    errors_since,
    failed_before,
    findings,
    helm_source,
    helm_way_back,
    helm_went,
    hold_up,
    is_released,
    judge,
    last_healthy,
    manager_of,
    noted_by,
    only_configured,
    release_of,
    same_but_notes,
    seems_well,
    serve,
    show_duration,
    source_of,
    step_in_git,
    step_to_suspend,
    still_suspended,
    to_remember,
    worth_a_look,
)

# creationTimestamp and the times of conditions have whole seconds, the fraction cut off.
SECOND = timedelta(seconds=1)
# What an event of a pod shows. That something takes too long, no event tells.
AT_ONCE = {"Config", "Image", "Loop", "Start"}
GLANCE, RECHECK = timedelta(seconds=2), timedelta(minutes=1)
# How long a controller may need to see a change; it takes seconds.
BLIND = timedelta(minutes=10)
# How many times the policy's patience a StatefulSet has to get its pods back, one by one, before the verdict is asked.
RETURN = 10


# What a release that Git owns may come to.
ByGit = PushRevert | ProposeRevert | RequestSync | SuspendSync | NoteSuspension | Defer | Refuse | Skip


class RollbackSettings(Settings):
    """What counts as a crash loop of a new version, and where Argo CD is."""

    new_pod_restarts_above: int = Field(
        2, ge=0, description="A new pod loops when a container of it has restarted more often than this."
    )
    argocd_namespace: str = Field(
        "argocd", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", description="Where the Applications of Argo CD are."
    )


@dataclass(frozen=True)
class Trouble:
    """A release that is looked at, with what the policies say of it and what has been done so far."""

    signal: PodSignal | WorkloadSignal
    release: Release
    rules: Releases
    world: World
    settings: RollbackSettings

    @property
    def limits(self) -> Limits:
        """From when on something counts."""
        return Limits(self.settings.new_pod_restarts_above, self.rules.patience)

    @property
    def workload(self) -> Workload:
        """The workload that is ill."""
        return self.release.workload

    @property
    def record(self) -> str:
        """The name of the record of what has begun, or ""."""
        course = self.signal.course if isinstance(self.signal, WorkloadSignal) else None
        return course.record if course else ""

    @property
    def episode(self) -> str:
        """Name the fault: this version, as this revision. The same version once more is another fault."""
        if self.signal.recorded and self.signal.episode:
            return self.signal.episode
        return self.present

    @property
    def present(self) -> str:
        """What a fault of the present version is called."""
        return f"{self.release.current.hash}/{self.release.current.number}"

    def refuse(self, because: str, cause: str, again: timedelta = timedelta(hours=1)) -> Refuse:
        """Leave it to people, or to another function."""
        return Refuse(because, cause, again, self.episode, self.workload)


async def find(world: World, settings: RollbackSettings) -> AsyncIterator[WorkloadSignal]:  # noqa: ARG001 - as all
    """List each kind of workload once: what is not complete, and what is well while nobody has noted that."""
    async for ref, why in worth_a_look(world):
        yield WorkloadSignal(ref.api_version, ref.kind, ref.namespace, ref.name, ref.uid, f"{ref}: {why}")


async def decide(
    signal: PodSignal | WorkloadSignal, world: World, settings: RollbackSettings
) -> (
    EvictStuck
    | ForgetSuspension
    | NoteSuspension
    | ProposeRevert
    | PushRevert
    | RequestSync
    | RevertTemplate
    | RollBackHelm
    | SuspendSync
    | Remember
    | Defer
    | Refuse
    | Skip
):
    """Take the next step back to the last healthy revision, unless something else than the change is to blame."""
    if shows_nothing(signal, world, settings):
        return Skip("the event shows nothing that a release could be to blame for")
    ref = await workload_of(signal, world)
    if ref is None:
        return Skip("it belongs to nothing that is released, or is gone")
    release = await release_of(ref, world.cluster)
    if release is None:
        return Skip("the workload is gone", final=isinstance(signal, WorkloadSignal) and bool(signal.uid))
    if isinstance(release, Untold):
        return untold(release, signal, world)
    rules = await world.releases(ref, release.labels)
    if isinstance(rules, str):
        return Refuse(rules, "Policy", episode="", about=release.workload)
    trouble = Trouble(signal, release, rules, world, settings)
    return await go_on(trouble) if trouble.record else await begin(trouble)


def shows_nothing(signal: PodSignal | WorkloadSignal, world: World, settings: RollbackSettings) -> bool:
    """Tell, from the object that an event carries, that there is nothing to do; it costs no call.

    What is only slow is found by the waker: the events of a roll-out that goes on well are many.
    """
    if isinstance(signal, WorkloadSignal):
        return signal.course is None and signal.seen is not None and seems_well(signal.seen)
    if signal.seen is None:
        return False
    told = ailment(signal.seen, {}, Limits(settings.new_pod_restarts_above, timedelta()), world.now())
    return not isinstance(told, Ailment) or told.kind not in AT_ONCE


async def workload_of(signal: PodSignal | WorkloadSignal, world: World) -> Ref | None:
    """Tell which workload is meant; None for a pod that nothing has released."""
    if isinstance(signal, WorkloadSignal):
        return Ref(signal.api_version, signal.kind, signal.namespace, signal.name, signal.uid)
    pod = await world.cluster.pod(signal.namespace, signal.name)
    if pod is None or (signal.uid and pod.ref.uid != signal.uid):
        return None
    top = await world.cluster.top_owner(pod)
    return top.ref if top is not None and is_released(top.ref) else None


def untold(release: Untold, signal: PodSignal | WorkloadSignal, world: World) -> Defer | Refuse | Skip:
    """Wait for a controller that has not seen the last change; what can't be told otherwise is nobody's fault."""
    begun, now = isinstance(signal, WorkloadSignal) and signal.course is not None, world.now()
    if begun and release.passing and release.since is not None and now - release.since >= BLIND:
        because = f"{release.because}, for {show_duration(now - release.since)}: does it run?"
        return Refuse(because, "NotSeen")
    if release.passing and (signal.recorded or begun):
        return Defer(release.because, until=now + GLANCE)
    return Skip(release.because)


async def begin(trouble: Trouble) -> ByGit | EvictStuck | ForgetSuspension | RevertTemplate | RollBackHelm | Remember:
    """Begin with a release that fails because of its change, or that can't even begin."""
    release = trouble.release
    found = findings(release, trouble.limits, trouble.world.now())
    freed = free(trouble, hold_up(release, found))
    if freed is not None:
        return freed
    if trouble.episode != trouble.present:
        return Skip(f"{release.current} has been released since")
    return await look_at(trouble, found)


async def look_at(
    trouble: Trouble, found: Findings
) -> ByGit | ForgetSuspension | RevertTemplate | RollBackHelm | Remember:
    """See whether what fails of a release is its change's fault, and choose the way back."""
    release, now = trouble.release, trouble.world.now()
    if found.none and not found.early:
        found = replace(found, errors=await errors(trouble))
    if found.none and not found.early and not release.stuck:
        return await well(trouble)
    held = hands_off(trouble)
    if held is not None:
        return held
    near = await around(release, trouble.limits, trouble.world.cluster)
    judged = judge(release, found, near, trouble.rules, trouble.limits, now)
    if isinstance(judged, Failing):
        return await into_an_outage(trouble, judged) or await way_back(trouble, judged)
    if isinstance(judged, Elsewhere):
        return trouble.refuse(judged.story, judged.cause, judged.again)
    if isinstance(judged, Undecided) and trouble.signal.recorded:
        return Defer(judged.because, judged.until, trouble.episode, trouble.workload)
    return Skip(judged.because)


def free(trouble: Trouble, older: HoldUp | None) -> EvictStuck | Refuse | Skip | None:
    """Take away the pod of an older version that a StatefulSet waits for, if that version was never well.

    It is a remediation of its own: what becomes of the present version after it, is looked at then.
    """
    begun, done = trouble.episode.startswith(HELD_UP), any(step.note != CUT_OFF for step in took(trouble, EvictStuck))
    if trouble.signal.recorded and not begun:
        return None
    if older is None or done or (begun and older.episode != trouble.episode):
        return Skip("it waits for no pod of an older version any more") if begun else None
    maker = trouble.workload.controller
    spared = f"{trouble.workload.ref} is made by {maker}" if maker is not None else older.spared
    if spared:
        told = f"{older.story}. It is not evicted, for {spared}; if it is not needed: {older.by_hand}"
        return Refuse(told, "HeldUp", timedelta(minutes=10), older.episode, trouble.workload)
    names = ", ".join(pod.ref.name for pod in older.pods)
    return EvictStuck(
        because=f"{older.story}; that version was never well",
        release=trouble.release,
        pods=older.pods,
        episode=older.episode,
        course=f"evict {names}, for which {named(trouble.release.current)} waits",
    )


async def into_an_outage(trouble: Trouble, failing: Failing) -> Refuse | None:
    """Refuse where what would be gone back to failed as well, just before; a pod that came Ready since disproves it."""
    to = failing.to
    record = await failed_before(trouble.release, to, trouble.world)
    because = f"{failing.story}; {to} was failing, too, when it was replaced ({record})"
    return trouble.refuse(because, "FailedBefore") if record else None


async def errors(trouble: Trouble) -> str:
    """Ask Prometheus whether more requests fail since the change, where somebody says that something is wrong."""
    release, now = trouble.release, trouble.world.now()
    before = last_healthy(release, trouble.rules, now)
    asked = trouble.signal.source != "waker" and now - release.changed_at <= trouble.rules.change_window
    if before is None or not asked:
        return ""
    return await errors_since(release, before, trouble.rules, trouble.world.metrics, now)


async def well(trouble: Trouble) -> ForgetSuspension | Remember | Refuse | Skip:
    """Remember a release that is well: this is what is gone back to one day."""
    release, source, manager = trouble.release, "", None
    if release.complete:
        manager = await manager_of(release.body, trouble.world.cluster, trouble.settings.argocd_namespace)
        source = source_of(manager) if manager is not None else await helm_of(trouble)
    told = to_remember(release, trouble.rules.healthy_for, trouble.world.now(), source)
    state = "is complete" if release.complete else "is on its way"
    if told is None and release.complete and noted_by(release.workload.annotations, trouble.world.function):
        return still_suspended(release, manager)
    return told or Skip(f"{release.current} {state}, and nothing of it fails")


async def helm_of(trouble: Trouble) -> str:
    """Name the revision of Helm that is well, if it is Helm's."""
    return await helm_source(trouble.release, trouble.rules.healthy_for, trouble.world.cluster)


def hands_off(trouble: Trouble) -> Refuse | Skip | None:
    """Say why a release that fails is left alone, whatever the cause is."""
    release = trouble.release
    current, notes = release.current, release.workload.annotations
    if tries(release):
        return Skip("its stable version serves while another is tried: that is for the canary-aborter")
    if release.paused:
        return trouble.refuse(f"{release.workload.ref} is paused: whoever paused it has to go on", "WorkloadPaused")
    blamed = blamed_before(trouble)
    if blamed:
        because = f"{current} was rolled back from before, by {blamed}, and is here again: people decide"
        return trouble.refuse(because, "SameVersionAgain")
    if notes.get(BACK_TO, "").rpartition("/")[2] == current.hash:
        because = f"{current} is what {notes.get(BACK_BY)} has gone back to, and it fails, too: people decide"
        return trouble.refuse(because, "RollbackOfRollback")
    return by_others(trouble)


def blamed_before(trouble: Trouble) -> str:
    """Name the record that rolled back from this version, also where only a note in its template is another now."""
    current, ref = trouble.release.current, trouble.workload.ref
    # Marked by this very fault before it could write: of that nobody has to be protected.
    own = {"", trouble.record, trouble.world.record_of(ref, trouble.episode)}
    same = (one for one in trouble.release.earlier if one.bad and same_but_notes(one.template, current.template))
    return next((one.bad for one in (current, *same) if one.bad not in own), "")


def by_others(trouble: Trouble) -> Refuse | None:
    """Say who else decides about a release: what makes it, who has gone back himself, or who changes its pods."""
    release = trouble.release
    maker = trouble.workload.controller
    if maker is not None:
        because = f"{release.workload.ref} is made by {maker}, which would write it again: change it there"
        return trouble.refuse(because, "Owned")
    left = next((one for one in release.earlier if one.created > release.current.created), None)
    if left is not None:
        because = f"somebody has gone back from {left} to {release.current} himself, and it fails: people decide"
        return trouble.refuse(because, "RollbackOfRollback")
    strategy = (release.body["spec"].get("updateStrategy") or {}).get("type")
    if strategy == "OnDelete":
        return trouble.refuse(f"{release.workload.ref} changes a pod when somebody deletes it (OnDelete)", "OnDelete")
    return None


def tries(release: Release) -> bool:
    """Tell whether a Rollout has a stable version that serves while another is tried."""
    status = release.body.get("status") or {}
    stable = status.get("stableRS")
    return release.workload.ref.kind == "Rollout" and bool(stable) and stable != status.get("currentPodHash")


async def way_back(trouble: Trouble, failing: Failing) -> ByGit | RevertTemplate | RollBackHelm:
    """Choose who undoes it: whoever wrote the release has to, or he would write it again."""
    release = trouble.release
    because = f"{failing.story}; {failing.because}"
    manager = await manager_of(release.body, trouble.world.cluster, trouble.settings.argocd_namespace)
    if manager is not None:
        return await by_git(trouble, failing.to, manager, because)
    helm = await helm_way_back(release, failing.to, trouble.rules, trouble.world.cluster)
    if isinstance(helm, Held):
        return held_by_helm(trouble, helm, f"{because}. ")
    if helm is not None:
        whole = course(named(release.current), named(failing.to), whole_chart=True)
        return by_helm(trouble, helm, failing.to, because, whole)
    return live(trouble, failing.to, because)


def live(trouble: Trouble, to: Revision, because: str) -> RevertTemplate | Refuse:
    """Write the earlier template into the cluster, unless what was changed is not in it."""
    if only_configured(trouble.release.current.template, to.template):
        lost = "only a checksum of its configuration was changed in the template: undo the change of what it is for"
        return trouble.refuse(f"{because}. {lost}", "Config")
    whole = course(named(trouble.release.current), named(to))
    return RevertTemplate(because=because, release=trouble.release, to=to, episode=trouble.episode, course=whole)


async def by_git(trouble: Trouble, to: Revision, manager: Manager, because: str) -> ByGit | RevertTemplate:
    """Undo it in Git, as the policy says; live only while the sync is suspended that would undo that."""
    rules, release = trouble.rules.git, trouble.release
    if rules.mode == "Refuse":
        return trouble.refuse(f"{because}. {manager} writes it from Git: revert it there", "Git")
    way = WayInGit(release=release, to=to, by=manager, rules=rules, because=because, episode=trouble.episode)
    begun = trouble.signal.course if isinstance(trouble.signal, WorkloadSignal) else None
    if rules.mode != "Suspend":
        return await step_in_git(way, begun, trouble.world)
    step = live(trouble, to, because)
    if isinstance(step, Refuse):
        return step
    return step_to_suspend(replace(way, course=step.course), begun, trouble.world.now()) or step


async def on_by_git(trouble: Trouble) -> ByGit | EvictStuck | RevertTemplate:
    """Go on with what was pushed or proposed, whatever the pods do meanwhile."""
    release, now, bad = trouble.release, trouble.world.now(), trouble.episode.partition("/")[0]
    manager = await manager_of(release.body, trouble.world.cluster, trouble.settings.argocd_namespace)
    if release.current.hash != bad:
        came = Skip(f"{release.current} has come instead of the bad version")
        return unstick(trouble, bad, approved_by_git(trouble, manager)) or waiting(trouble) or came
    to = last_healthy(release, trouble.rules, now)
    if manager is None or to is None:
        missing = "what wrote it from Git" if manager is None else "a healthy revision"
        return trouble.refuse(f"{missing} is not known any more, and {release.current} is still there", "Git")
    return await by_git(trouble, to, manager, f"{release.current} fails")


def approved_by_git(trouble: Trouble, manager: Manager | None) -> str:
    """Tell the whole in the words of the step that has brought what is there now."""
    release, rules = trouble.release, trouble.rules.git
    if manager is None:
        return course(trouble.episode, named(release.current))
    way = WayInGit(release=release, to=release.current, by=manager, rules=rules, because="", episode=trouble.episode)
    return way.plan


def held_by_helm(trouble: Trouble, held: Held, because: str = "") -> Defer | Refuse:
    """Wait for Helm, or leave it to people."""
    if held.until is not None:
        return Defer(held.because, held.until, trouble.episode, trouble.workload)
    return trouble.refuse(f"{because}{held.because}", held.cause, held.again)


def by_helm(trouble: Trouble, undo: Undo, to: Revision, because: str, whole: str) -> RollBackHelm:
    """Have Helm go back, with all that is in the chart."""
    return RollBackHelm(
        because=because,
        release=trouble.release,
        way=undo,
        to=to,
        rules=trouble.rules.helm,
        episode=trouble.episode,
        course=whole,
    )


def named(revision: Revision) -> str:
    """Name a revision as the annotations of a rollback do."""
    return f"{revision.number}/{revision.hash}"


def course(from_: str, to: str, *, whole_chart: bool = False) -> str:
    """Tell the whole remediation in words that stay the same in each of its steps."""
    return f"roll back from {from_} to {to}" + (", with all of its chart by Helm" if whole_chart else "")


async def go_on(trouble: Trouble) -> ByGit | EvictStuck | ForgetSuspension | RevertTemplate | RollBackHelm | Remember:
    """Go on with a rollback that has begun, in Git or in the cluster."""
    if took(trouble, PushRevert, ProposeRevert):
        return await on_by_git(trouble)
    if trouble.workload.annotations.get(BACK_BY) == trouble.record:
        return await on_live(trouble)
    return await begin(trouble) if may_be_undone(trouble) else Skip("somebody has changed it since")


async def on_live(trouble: Trouble) -> EvictStuck | RollBackHelm | Defer | Refuse | Skip:
    """See that the template is back, and free it from pods that are stuck."""
    release, notes = trouble.release, trouble.workload.annotations
    bad, good = (notes.get(name, "").rpartition("/")[2] for name in (BACK_FROM, BACK_TO))
    whole = course(notes.get(BACK_FROM, ""), notes.get(BACK_TO, ""), whole_chart=bool(took(trouble, RollBackHelm)))
    helm = await helm_went(release, trouble.record, trouble.rules, trouble.world.cluster)
    if isinstance(helm, Undo):
        return by_helm(trouble, helm, release.current, "its Job is not there", whole)
    if helm is not None and (helm.until is None or release.current.hash != good):
        return held_by_helm(trouble, helm)
    if release.current.hash == bad:
        return trouble.refuse(
            f"somebody has put {release.current} back: what writes {trouble.workload.ref}?", "PutBack"
        )
    if release.current.hash != good:
        return Skip(f"{release.current} has been released meanwhile")
    stuck = unstick(trouble, bad, whole)
    if stuck is not None:
        return stuck
    if helm is not None:
        return held_by_helm(trouble, helm)
    return waiting(trouble) or Skip(f"its template is that of {release.current} again")


def may_be_undone(trouble: Trouble) -> bool:
    """Tell whether the template may still be as it was: nobody has written it, or nobody knows."""
    return all(step.note == CUT_OFF for step in took(trouble, RevertTemplate, RollBackHelm))


def took(trouble: Trouble, *kinds: type[object]) -> list[Taken]:
    """Tell of the steps of some kinds that were taken."""
    begun = trouble.signal.course if isinstance(trouble.signal, WorkloadSignal) else None
    found = [begun.took(kind.__name__) for kind in kinds] if begun is not None else []
    return [step for step in found if step is not None]


def stuck_pods(release: Release, bad: str) -> tuple[Pod, ...]:
    """Find the pods of the bad version that a StatefulSet waits for, although its template is put right."""
    if release.workload.ref.kind != "StatefulSet":
        return ()
    return tuple(pod for pod in release.pods.get(bad, ()) if not pod.ready and not pod.terminating)


def unstick(trouble: Trouble, bad: str, whole: str) -> EvictStuck | None:
    """Evict the pods of the bad version that a StatefulSet waits for; `whole` is what was approved."""
    release = trouble.release
    stuck = stuck_pods(release, bad)
    if not stuck:
        return None
    names = ", ".join(pod.ref.name for pod in stuck[:3])
    return EvictStuck(
        because=f"{names} of the bad version is never Ready, and keeps {trouble.workload.ref} from going back",
        release=release,
        pods=stuck,
        episode=trouble.episode,
        course=whole,
    )


def waiting(trouble: Trouble) -> Defer | None:
    """Watch a StatefulSet until all its pods are back: the next of them may be stuck as well."""
    release, signal, now = trouble.release, trouble.signal, trouble.world.now()
    course_ = signal.course if isinstance(signal, WorkloadSignal) else None
    begun = max((step.last for step in course_.steps), default=course_.begun_at) if course_ else now
    left = any(not pod.ready for pod in release.new_pods) or not release.complete
    if release.workload.ref.kind != "StatefulSet" or not left or now >= begun + RETURN * trouble.rules.patience:
        return None
    return Defer("its pods come back one by one", until=now + GLANCE)


async def recovered(
    treatment: Treatment, world: World, settings: RollbackSettings
) -> Recovered | Ineffective | Unknown | Defer:
    """See the release complete at the version that was gone back to, with all its pods Ready for the proof."""
    now, release = world.now(), await release_of(treatment.target, world.cluster)
    if release is None:
        return Unknown("the workload is gone")
    if isinstance(release, Untold):
        return Defer(release.because, until=now + RECHECK)
    bad = treatment.episode.partition("/")[0]
    if release.current.hash == bad:
        return Ineffective(f"{release.current}, which is bad, is there again")
    notes = release.workload.annotations
    # The notes of an earlier rollback say nothing of one that Git has made.
    back_from, back_to = (notes.get(name, "").rpartition("/")[2] for name in (BACK_FROM, BACK_TO))
    if back_from == bad and back_to != release.current.hash:
        return Unknown(f"{release.current} has been released meanwhile")
    rules = await world.releases(treatment.target, release.labels)
    if isinstance(rules, str):
        return Defer(rules, until=now + RECHECK)
    found = findings(release, Limits(settings.new_pod_restarts_above, rules.patience), now)
    return proven(release, found, treatment, now)


def proven(release: Release, found: Findings, treatment: Treatment, now: datetime) -> Recovered | Ineffective | Defer:
    """Judge health by how long it has lasted."""
    if found.new:
        return Ineffective(f"{release.current} fails, too: {found.new[0].pod.ref.name}: {found.new[0].story}")
    since = release.ready_since(release.current)
    if not release.complete or since is None:
        return Defer(f"{release.current} is not complete yet", until=now + min(treatment.proof, RECHECK))
    # A pod may have become Ready at the end of the second that its condition names.
    proof = max(now - max(since + SECOND, treatment.acted_at), timedelta(0))
    text = f"{release.current} has been complete, and its pods Ready, for {show_duration(proof)}"
    return Recovered(text) if proof >= treatment.proof else Defer(text, until=now + treatment.proof - proof)


main = serve(find, decide, recovered)
