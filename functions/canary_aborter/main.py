"""Take the traffic from a canary that is worse than what is stable, and leave every promotion to people."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import Field

from kreflex import (
    CUT_OFF,
    UNDER_WAY,
    AbortRollout,
    Canary,
    Course,
    Defer,
    Difference,
    Duration,
    ForgetSuspendedShares,
    Inconclusive,
    Ineffective,
    NoCanary,
    NoteSuspendedShare,
    OpenGate,
    Owned,
    PauseRollout,
    Pod,
    PodSignal,
    Progress,
    ProposeEdit,
    PushEdit,
    Recovered,
    Refuse,
    Releases,
    Remedy,
    RequestSync,
    ResumeAborted,
    ScaleCanary,
    Settings,
    Skip,
    SuspendSync,
    Taken,
    TakeTraffic,
    Treatment,
    Unknown,
    WayByGit,
    WorkloadSignal,
    World,
    Worse,
    by_pods,
    canary_of,
    compare,
    failing,
    manager_of,
    marked,
    may_try,
    noted_by,
    numbers_of,
    owned,
    parse_duration,
    progress_of,
    replicas_of,
    serve,
    show_duration,
    step_by_git,
    suspend,
    suspension,
    this_try,
    told_until_resumed,
    tried,
    with_traffic,
)

Signal = PodSignal | WorkloadSignal
Step = AbortRollout | OpenGate | PauseRollout | ResumeAborted | ScaleCanary | TakeTraffic
# What a canary may come to whose weight, or whose replicas, Git owns.
ByGit = ForgetSuspendedShares | NoteSuspendedShare | ProposeEdit | PushEdit | RequestSync | SuspendSync
# creationTimestamp and the times of conditions have whole seconds, the fraction cut off.
SECOND = timedelta(seconds=1)
# How soon it is looked at again what a controller makes of an abort, and what Prometheus says by now.
GLANCE, ASK = timedelta(seconds=1), timedelta(seconds=10)
# The controller sees an abort within milliseconds, or not at all.
NOTICE = timedelta(seconds=2)
RECHECK, AGAIN = timedelta(minutes=1), timedelta(minutes=10)
# What it takes is tried so often; then somebody works against it.
MOST = 2
PAUSED, SUSPENDED = "inconclusive", "suspended"


class CanaryAborterSettings(Settings):
    """How long is waited for others: for the controller, for the proxies, for enough requests."""

    abort_within: Duration = Field(
        parse_duration("1m"),
        description="How long Argo Rollouts may take until an abort is seen; then it is asked again.",
    )
    settle: Duration = Field(
        parse_duration("10s"), description="How long proxies may take to hear of a weight before the replicas go."
    )
    wait_for_data: Duration = Field(
        parse_duration("5m"),
        description="How long a paused canary is watched for enough requests; then people are told.",
    )
    argocd_namespace: str = Field(
        "argocd", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", description="Where the Applications of Argo CD are."
    )


@dataclass(frozen=True)
class Case:
    """A canary, what is said of it, and what has been done so far."""

    canary: Canary
    signal: Signal
    course: Course | None
    world: World
    settings: CanaryAborterSettings
    episode: str
    # How all of it is done, where that is not the usual.
    way: str = ""

    @property
    def template(self) -> str:
        """The template that it is about, whatever is tried by now."""
        return self.episode.partition("/")[0] or self.canary.hash

    @property
    def complained(self) -> bool:
        """True if somebody says that something is wrong; a change, or the waker, only says that there is a canary."""
        return bool(self.signal.summary)

    @property
    def name(self) -> str:
        """What people call it."""
        return f"the canary of {self.canary.workload.ref}"

    def took(self, step: str) -> Taken | None:
        """Tell of one kind of step, if it was taken."""
        return self.course.took(step) if self.course else None

    @property
    def plan(self) -> str:
        """Tell the whole remediation, as people approve it."""
        rollout = "abort it; while nobody can tell whether it is worse, pause it"
        usual = rollout if self.canary.progress else "take its traffic, then scale it to 0"
        return f"{self.way or usual} (template {self.template})"

    @property
    def remedy(self) -> Remedy:
        """Give what all steps of this remediation have in common."""
        return Remedy(self.canary.workload, self.canary.labels, self.template, self.episode, self.plan)

    def step(self, because: str) -> dict[str, Any]:
        """Give it to a step that changes the canary itself."""
        remedy = self.remedy
        return {
            "because": because,
            "workload": remedy.workload,
            "marks": remedy.labels,
            "template": remedy.template,
            "episode": remedy.episode,
            "course": remedy.course,
        }


async def find(world: World, settings: CanaryAborterSettings) -> AsyncIterator[WorkloadSignal]:  # noqa: ARG001 - as all
    """Look for what tries a new version now; whether it is worse, is asked for each of them."""
    async for ref in tried(world.cluster, world.function):
        # Without an episode: the same version may be tried again.
        yield WorkloadSignal(ref.api_version, ref.kind, ref.namespace, ref.name, ref.uid)


async def decide(
    signal: Signal, world: World, settings: CanaryAborterSettings
) -> (
    AbortRollout
    | ForgetSuspendedShares
    | NoteSuspendedShare
    | OpenGate
    | PauseRollout
    | ProposeEdit
    | PushEdit
    | RequestSync
    | ResumeAborted
    | ScaleCanary
    | SuspendSync
    | TakeTraffic
    | Defer
    | Refuse
    | Skip
):
    """Take the next step towards all traffic being at what is stable, if the canary is worse than that."""
    if calm(signal):
        return Skip("the event shows nothing that tries a new version and is ill")
    canary = await canary_of(signal, world.cluster)
    if isinstance(canary, NoCanary):
        return Skip(canary.because, final=canary.final)
    course = signal.course if isinstance(signal, WorkloadSignal) else None
    # Only a record's word counts: whoever may send events could else name one fault in many ways.
    episode = signal.episode if signal.recorded else ""
    case = Case(canary, signal, course, world, settings, episode)
    if canary.progress is not None:
        return await rollout(case, canary.progress)
    return await flagger(case) if canary.analysis is not None else await deployment(case)


def calm(signal: Signal) -> bool:
    """Tell whether an event shows an object that is no canary, or a pod that is well; it costs no call then."""
    if signal.seen is None or signal.recorded or signal.summary:
        return False
    if isinstance(signal.seen, Pod):
        return signal.seen.ready or not may_try(signal.seen)
    if signal.kind == "Rollout":
        progress = progress_of(signal.seen)
        return not progress.trying or progress.aborted
    return signal.kind != "Deployment" or not marked(signal.seen)


async def rollout(case: Case, progress: Progress) -> Step | Defer | Refuse | Skip:
    """Abort a Rollout whose canary is worse; pause it while nobody can tell."""
    ref = case.canary.workload.ref
    if case.episode and progress.stable == case.template:
        return promoted(case)
    if case.episode and progress.trial not in {"", case.template}:
        return Skip(f"{ref} tries another template by now, or has its stable one again")
    if case.course is not None:
        return await follow(case, progress)
    if not progress.trying:
        return Skip(f"{ref} tries no other template than the stable one")
    if progress.aborted:
        return Skip(f"{case.name} is aborted already")
    judgement = await judge(case)
    if isinstance(judgement, Worse):
        return await abort(case, judgement.because)
    if isinstance(judgement, Inconclusive) and case.complained:
        return await pause(case, progress, judgement.because)
    return judgement if isinstance(judgement, Refuse) else Skip(judgement.because)


async def abort(case: Case, because: str) -> AbortRollout:
    """Abort the Rollout as it was read."""
    named = await as_tried(case)
    return AbortRollout(**named.step(because), version=case.canary.version)


async def pause(case: Case, progress: Progress, because: str) -> PauseRollout | Refuse:
    """Keep the canary where it is, once, and tell people; where Git says whether it is paused, only tell them."""
    named = Case(**{**vars(case), "episode": case.episode or f"{case.canary.hash}/{PAUSED}"})
    if progress.stands:
        return Refuse(f"{because}. It waits for a person as it is", "Inconclusive", AGAIN, named.episode, about(case))
    manager = await manager_of(case.canary.body, case.world.cluster, case.settings.argocd_namespace)
    if manager is not None:
        told = f"{because}. {manager} owns spec.paused of it in Git, so it is not paused"
        return Refuse(told, "Inconclusive", AGAIN, named.episode, about(case))
    return PauseRollout(**named.step(because), version=case.canary.version)


async def follow(case: Case, progress: Progress) -> Step | Defer | Refuse | Skip:
    """See what became of an abort; or, of a pause, whether anybody can tell by now."""
    asked, now = case.took("AbortRollout"), case.world.now()
    if progress.noticed and progress.at_stable:
        return Skip(f"{case.name} is aborted, and gets no traffic")
    if asked is None and not progress.aborted:
        return await watch(case)
    if progress.aborted and case.course is not None and progress.paused_by == case.course.record:
        because = f"{case.name} is aborted, and our pause would keep its pods"
        return ResumeAborted(**case.step(because), version=case.canary.version)
    if progress.noticed and progress.paused:
        told = f"{case.name} is aborted, and somebody's pause keeps its pods: take spec.paused back"
        return Refuse(told, "WorkloadPaused")
    if asked is not None and asked.note != CUT_OFF and not progress.aborted:
        return await retried(case, asked)
    last = asked.last if asked else now
    wait = case.settings.abort_within if progress.noticed else NOTICE
    if progress.aborted and now < last + wait:
        return Defer(f"{case.name} is aborted, and its traffic goes back to what is stable", until=now + GLANCE)
    if asked is not None and asked.count > MOST:
        # https://github.com/argoproj/argo-rollouts/issues/4461
        because = f"{case.name} was aborted {asked.count} times and gets traffic still"
        return Refuse(f"{because}: a promotion in full may hold it up", "NotAborted")
    return await abort(case, f"{case.name} gets traffic still")


async def retried(case: Case, asked: Taken) -> Step | Defer | Refuse | Skip:
    """Judge anew what somebody has given its traffic back after our abort: he may know better."""
    judgement = await judge(case)
    if isinstance(judgement, Refuse):
        return Defer(judgement.because, until=case.world.now() + RECHECK)
    if not isinstance(judgement, Worse):
        return Skip(f"somebody retries {case.name}: {judgement.because}")
    if asked.count > MOST:
        because = f"{case.name} was aborted {asked.count} times, and somebody retries it"
        return Refuse(f"{because}: {judgement.because}", "NotAborted")
    return await abort(case, judgement.because)


async def watch(case: Case) -> Step | Defer | Refuse | Skip:
    """Wait beside a paused canary until there are enough requests to tell."""
    paused, judgement = case.took("PauseRollout"), await judge(case)
    if isinstance(judgement, Worse):
        return await abort(case, judgement.because)
    if isinstance(judgement, Refuse):
        return Defer(judgement.because, until=case.world.now() + RECHECK)
    now, begun = case.world.now(), case.course.begun_at if case.course else case.world.now()
    end = (paused.first if paused else begun) + case.settings.wait_for_data
    if isinstance(judgement, Inconclusive) and now < end:
        return Defer(judgement.because, until=min(now + ASK, end))
    return Refuse(f"{judgement.because}. {case.name} is paused: promote or abort it", "Inconclusive")


def promoted(case: Case) -> Refuse | Skip:
    """Hand on what is no canary any more: an abort would do nothing, and to go back is a rollback."""
    canary, now = case.canary, case.world.now()
    if case.course is not None and case.took("AbortRollout") is None:
        return Skip(f"{case.name} was promoted while it was paused")
    ill = any(failing(pod, RECHECK, now) for pod in canary.stable.pods)
    if case.course is None and not ill:
        return Skip(f"{case.name} was promoted, and its pods are well")
    return Refuse(f"{case.name} was promoted before it was aborted: to go back is for rollback", "Promoted")


async def deployment(case: Case) -> Step | ByGit | Defer | Refuse | Skip:
    """Take the traffic of a canary Deployment that is worse, then its replicas."""
    canary = case.canary
    told = await still_suspended(case)
    if told is not None:
        return told
    if case.course is not None:
        return await take(case)
    if not canary.workload.replicas:
        return Skip(f"{case.name} has no replicas")
    judgement = await judge(case)
    if isinstance(judgement, Worse):
        return await begin(case, judgement.because)
    if isinstance(judgement, Inconclusive) and case.complained:
        name = case.episode or f"{canary.hash}/{PAUSED}"
        because = f"{judgement.because}. Nothing gives it more traffic by itself: a person decides"
        return Refuse(because, "Inconclusive", AGAIN, name, about(case))
    return judgement if isinstance(judgement, Refuse) else Skip(judgement.because)


async def still_suspended(case: Case) -> ForgetSuspendedShares | Refuse | Skip | None:
    """Tell people of a sync that we have suspended, until they resume it; None where nothing is to be told."""
    canary, about_it = case.canary, case.template == SUSPENDED
    record = noted_by(canary.workload.annotations, case.world.function)
    if not record:
        return Skip(f"what syncs {canary.workload.ref} is not suspended by us") if about_it else None
    if case.course is not None and not about_it:
        return None
    gits = await owned(canary, case.world.cluster, case.settings.argocd_namespace)
    named = replace(case, episode=case.episode if about_it else f"{SUSPENDED}/{record}")
    told = told_until_resumed(named.remedy, gits)
    # Whoever gives it traffic again while the sync is suspended tries it again.
    again = bool(canary.workload.replicas) and isinstance(told, Refuse) and not about_it
    return None if again else told


async def begin(case: Case, because: str) -> Step | ByGit | Defer | Refuse | Skip:
    """Begin only what can be brought to its end: somebody is there to serve."""
    canary, named = case.canary, await as_tried(case)
    alone = next((share for share in canary.shares if share.alone), None)
    if alone is not None:
        told = f"{because}. {alone.ref} sends everything to it, so nothing would take over: to go back is for rollback"
        return Refuse(told, "Promoted", AGAIN, named.episode, about(case))
    if not any(pod.ready for pod in canary.stable.pods):
        told = f"{because}. No pod of Deployment {canary.stable.workload} is Ready to take over"
        return Refuse(told, "StableIll", RECHECK, named.episode, about(case))
    return await take(named, because)


async def take(case: Case, because: str = "") -> Step | ByGit | Defer | Refuse | Skip:
    """Take all traffic and then the replicas: live, or where Git owns them as the policy says."""
    story = because or f"{case.name} is worse than what is stable"
    gits = await owned(case.canary, case.world.cluster, case.settings.argocd_namespace)
    rules = await case.world.releases(case.canary.workload.ref, case.canary.labels)
    if isinstance(rules, str):
        return Refuse(rules, "Policy", AGAIN, case.episode, about(case))
    if not gits:
        return take_live(case, story)
    if rules.git.mode == "Refuse":
        return Refuse(f"{story}. {gits.told}: take the traffic away there", "Git", AGAIN, case.episode, about(case))
    if rules.git.mode != "Suspend":
        return await take_by_git(case, gits, rules, story)
    named = replace(case, way=f"suspend the sync of {gits}, take its traffic, then scale it to 0")
    return suspend(suspension(named.remedy, story, gits), case.course, case.world.now()) or take_live(named, story)


async def take_by_git(case: Case, gits: Owned, rules: Releases, story: str) -> Step | ByGit | Defer | Refuse | Skip:
    """Set to 0 in Git what Git owns: the weights, or the replicas of a canary that has none."""
    canary, how = case.canary, "push" if rules.git.mode == "Commit" else "propose"
    if canary.hash not in {"", case.template}:
        return Skip(f"{canary.workload.ref} tries another template by now")
    named = replace(case, way=f"{how} a commit that takes its traffic ({gits})")
    left = [share for share in with_traffic(canary.shares) if share.ref in gits]
    numbers = [number for share in left for number in numbers_of(share, gits.managers[share.ref.uid])]
    mine = canary.workload.ref in gits
    if mine and canary.workload.replicas and not canary.shares:
        numbers = [replicas_of(canary, gits.managers[canary.workload.ref.uid])]
    live = take_live(named, story, gits)
    if not numbers or isinstance(live, TakeTraffic):
        # What Git does not own is taken first: it takes a moment, and a commit may take people.
        kept = mine and isinstance(live, ScaleCanary)
        return Skip(f"{case.name} gets no traffic, and keeps its replicas: {gits.told}") if kept else live
    way = WayByGit(remedy=named.remedy, numbers=tuple(numbers), rules=rules.git, because=story)
    return await step_by_git(way, case.course, case.world)


def take_live(case: Case, story: str, gits: Owned | None = None) -> Step | Defer | Refuse | Skip:
    """Take one share of the traffic after the other, then the replicas, each as it is now; not those that Git owns."""
    canary, now, scaled = case.canary, case.world.now(), case.took("ScaleCanary")
    for share in with_traffic(canary.shares):
        if gits is not None and share.ref in gits:
            continue
        step = TakeTraffic(**case.step(story), share=share)
        taken = case.took(step.step_name)
        if taken is not None and taken.count > MOST:
            return Refuse(
                f"somebody gives the canary's traffic back: {share.ref} has {share.weight} again", "Rewritten"
            )
        return step
    last = max((one.last for one in steps(case) if one.action.startswith("TakeTraffic")), default=None)
    if last is not None and now < last + case.settings.settle:
        return Defer(f"the proxies hear that {case.name} gets no traffic", until=last + case.settings.settle)
    if canary.workload.replicas:
        if scaled is not None and scaled.count > MOST:
            return Refuse(f"somebody scales {canary.workload.ref} up again", "Rewritten")
        replicas = canary.workload.replicas
        return ScaleCanary(**case.step(story), version=canary.version, replicas=replicas)
    left = [pod for pod in canary.trial.pods if not pod.terminating]
    if left and scaled is not None and now < scaled.last + RECHECK:
        return Defer(f"{len(left)} pods of {case.name} are still there", until=now + GLANCE)
    return Skip(f"{case.name} gets no traffic, and has no replicas")


def steps(case: Case) -> tuple[Taken, ...]:
    """Tell all that was done."""
    return case.course.steps if case.course else ()


async def flagger(case: Case) -> OpenGate | Refuse | Skip:
    """Tell Flagger that its canary is worse: it shifts the traffic back itself, when it asks the next time."""
    canary, analysis = case.canary, case.canary.analysis
    assert analysis is not None, "it is here for its analysis"
    if analysis.phase not in UNDER_WAY or (case.episode and analysis.version != case.template):
        return Skip(f"{analysis.ref} is {analysis.phase or 'new'}: no analysis of this version is under way")
    judgement = await judge(case)
    if isinstance(judgement, Refuse):
        return judgement
    if not isinstance(judgement, Worse):
        return Skip(judgement.because)
    named = await as_tried(case)
    if not analysis.gated:
        told = f"{judgement.because}. {analysis.ref} has no webhook of type rollback by which Flagger would ask"
        return Refuse(told, "NoGate", AGAIN, named.episode)
    return OpenGate(judgement.because, analysis=analysis, workload=canary.workload, episode=named.episode)


async def as_tried(case: Case) -> Case:
    """Name the fault, if no record has done so."""
    canary = case.canary
    if case.episode:
        return case
    ref, version = canary.workload.ref, canary.hash
    if canary.analysis is not None:
        ref, version = canary.analysis.ref, canary.analysis.version
    episode = await this_try(case.world.function, ref, version, case.world.cluster)
    return Case(**{**vars(case), "episode": episode})


def about(case: Case) -> Any:
    """Tell what is ill, for a signal that names one of its pods or routes."""
    return case.canary.workload


async def judge(case: Case) -> Difference | Refuse:
    """Compare the canary with what is stable: by their requests if the policy says how, else by what their pods do."""
    canary, world = case.canary, case.world
    rules = await world.releases(canary.workload.ref, canary.labels)
    if isinstance(rules, str):
        return Refuse(rules, "Policy", AGAIN, case.episode or canary.hash, about(case))
    if rules.canary is not None:
        return await compare(canary.trial, canary.stable, rules.canary, world.metrics)
    return by_pods(canary.trial.pods, canary.stable.pods, rules.patience, world.now())


async def recovered(
    treatment: Treatment,
    world: World,
    settings: CanaryAborterSettings,  # noqa: ARG001 - as all
) -> Recovered | Ineffective | Unknown | Defer:
    """See all traffic at what is stable, and that well for the proof."""
    target = treatment.target
    signal = WorkloadSignal(target.api_version, target.kind, target.namespace, target.name, target.uid)
    canary = await canary_of(signal, world.cluster)
    if isinstance(canary, NoCanary):
        return Unknown(canary.because)
    aborted = treatment.action not in {"PauseRollout", "ForgetSuspendedShares"}
    back = still(canary, treatment) if aborted else None
    if back is not None:
        # Flagger asks at its next interval.
        waits = canary.analysis is not None and canary.analysis.phase in UNDER_WAY
        return Defer(back, until=world.now() + RECHECK) if waits else Ineffective(back)
    return proven(canary.stable.pods, f"all traffic is at what is stable of {target}", treatment, world.now())


def still(canary: Canary, treatment: Treatment) -> str | None:
    """Say what traffic the version gets that it was taken from; None if it gets none."""
    ref, template = canary.workload.ref, treatment.episode.partition("/")[0]
    if canary.progress is not None:
        if canary.progress.stable == template:
            return f"{ref} was promoted all the same"
        return f"the canary of {ref} has traffic again" if tries(canary.progress, template) else None
    if canary.analysis is not None:
        if canary.analysis.version != template or (canary.analysis.phase == "Failed" and not canary.analysis.weight):
            return None
        return f"{canary.analysis.ref} is {canary.analysis.phase}, with {canary.analysis.weight} % of the traffic"
    # Where Git owns the replicas, and the weight was taken, they stay.
    scaled = not canary.shares or any(step.action == "ScaleCanary" for step in treatment.steps)
    if scaled and canary.workload.replicas and canary.hash in {"", template}:
        return f"{ref} has {canary.workload.replicas} replicas again"
    sharing = with_traffic(canary.shares) if canary.hash in {"", template} else []
    return f"{sharing[0].ref} gives {ref} traffic again" if sharing else None


def tries(progress: Progress, template: str) -> bool:
    """Tell whether a Rollout gives a template traffic."""
    return progress.trial == template and not (progress.aborted and progress.at_stable)


def proven(pods: tuple[Pod, ...], said: str, treatment: Treatment, now: datetime) -> Recovered | Defer:
    """Judge what is stable by how long all of it has been Ready."""
    live = [pod for pod in pods if not pod.terminating]
    times = [pod.ready_since for pod in live if pod.ready_since is not None]
    if not live or len(times) < len(live):
        because = f"{said}, of which {len(times)} of {len(live)} pods are Ready"
        return Defer(because, until=now + min(treatment.proof, RECHECK))
    proof = max(now - max(*times, treatment.acted_at) - SECOND, timedelta())
    text = f"{said}, which was Ready for {show_duration(proof)}"
    return Recovered(text) if proof >= treatment.proof else Defer(text, until=now + treatment.proof - proof)


main = serve(find, decide, recovered)
