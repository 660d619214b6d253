"""Empty a node that is ill, have what owns it replace it, and see that its pool is whole again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import Field

from kreflex import (
    CUT_OFF,
    MARK,
    OUT_OF_SERVICE,
    PRESSURES,
    TAINTED,
    AskProvider,
    Backing,
    Complaint,
    CordonNode,
    Course,
    Defer,
    DeleteMachine,
    DeleteNodeClaim,
    Duration,
    EndRemediation,
    EvictPods,
    Ineffective,
    Load,
    Machine,
    MakeRemediation,
    Nobody,
    Node,
    NodeClaim,
    NodeSignal,
    Pod,
    Recovered,
    Refuse,
    RestartNetworkPod,
    Rung,
    Settings,
    Skip,
    TaintOutOfService,
    Taken,
    Treatment,
    UncordonNode,
    Unknown,
    UntaintNode,
    Upkeep,
    World,
    complaints,
    episode,
    evictable,
    machine_of,
    network_pods,
    owner_of,
    parse_duration,
    remediation_of,
    serve,
    show_duration,
)

Step = (
    AskProvider
    | CordonNode
    | DeleteMachine
    | DeleteNodeClaim
    | EndRemediation
    | EvictPods
    | MakeRemediation
    | RestartNetworkPod
    | TaintOutOfService
    | UncordonNode
    | UntaintNode
)
# creationTimestamp and the times of conditions have whole seconds, the fraction cut off.
SECOND = timedelta(seconds=1)
# How soon a drain is looked at again, and how soon a PodDisruptionBudget is asked again.
GLANCE, RETRY = timedelta(seconds=1), timedelta(seconds=2)
RECHECK = timedelta(minutes=1)
# No event tells that a Cluster is no longer paused, or that a pod that blocked has gone.
AGAIN = timedelta(minutes=5)
# How long a remediator may take to end what it began.
LEAVING = timedelta(minutes=5)
RELIEF = "relief"
# Everybody means the same by these. An event about others that looks well is left to the waker's next round.
USUAL = frozenset({"Ready", "NetworkUnavailable", *PRESSURES})


class NodeReplacerSettings(Settings):
    """How a node is found silent, and whom to ask for a new machine where no object in the cluster makes one."""

    silent_after: Duration = Field(
        parse_duration("40s"), description="A kubelet whose Lease was not renewed for this long is silent."
    )
    replacement_sink: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Where requests for a new machine are sent as CloudEvents; empty means that nobody is asked.",
    )


@dataclass(frozen=True)
class Patient:
    """An ill node, what is known of it, and what has been done so far."""

    node: Node
    upkeep: Upkeep
    complaints: tuple[Complaint, ...]
    course: Course | None
    world: World
    settings: NodeReplacerSettings
    episode: str

    @property
    def story(self) -> str:
        """What is wrong, in words."""
        now = self.world.now()
        told = [f"{c} for {show_duration(now - c.since)}" for c in self.complaints]
        return f"{self.node.name}: {', '.join(told) or 'nothing is wrong with it any more'}"

    @property
    def kinds(self) -> frozenset[str]:
        """What it suffers from for long enough; all of it, while that changes in the middle of the treatment."""
        now = self.world.now()
        due = frozenset(c.type for c in self.complaints if c.deadline <= now)
        return due or frozenset(c.type for c in self.complaints)

    @property
    def record(self) -> str:
        """The name of its record, by which what is ours is known; "" before it has begun."""
        return self.course.record if self.course else ""

    @property
    def mark(self) -> str:
        """The record by which we have cordoned it: this one, or an earlier one that somebody has deleted; or ""."""
        return ours(self.node, MARK, self.world.function)

    @property
    def taint_mark(self) -> str:
        """The record by which we have said that its machine is off: this one, or one that somebody has deleted."""
        return ours(self.node, TAINTED, self.world.function)

    @property
    def cordoned(self) -> bool:
        """True if we have cordoned it."""
        return self.mark != ""

    def took(self, step: str) -> Taken | None:
        """Tell of one kind of step, if it was taken."""
        return self.course.took(step) if self.course else None

    def step(self, because: str) -> dict[str, Any]:
        """Give what all steps of this remediation have in common."""
        pool = owner_of(self.node.pool(self.upkeep.pool_label))
        course = f"{', '.join(rung.action for rung in self.rungs)}; drain {self.upkeep.drain.on_timeout} after"
        course = f"{course} {show_duration(self.upkeep.drain.timeout)}"
        return {"node": self.node, "pool": pool, "because": because, "episode": self.episode, "course": course}

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """What may be tried for what it suffers from, in turn."""
        return tuple(rung for rung in self.upkeep.ladder if rung.fits(self.kinds))

    def spent(self, rung: Rung) -> bool:
        """Tell whether a rung's time is over, from the beginning on, whatever has kept it from being tried."""
        tried = self.rungs[: self.rungs.index(rung) + 1]
        time = sum((self._time(one) for one in tried), timedelta())
        return self.course is not None and self.world.now() >= self.course.begun_at + time

    def _time(self, rung: Rung) -> timedelta:
        more = {"Repair": LEAVING, "Replace": self.upkeep.drain.timeout}
        return rung.within + more.get(rung.action, timedelta())


async def find(world: World, settings: NodeReplacerSettings) -> AsyncIterator[NodeSignal]:  # noqa: ARG001 - as all
    """Look at every node once: those that are ill for long enough, and those that a remediation has left behind."""
    async for node in world.cluster.nodes():
        if calm(node) and usual(node):
            continue
        upkeep = await world.upkeep(node)
        found = () if isinstance(upkeep, str) else complaints(node, upkeep)
        if found and found[0].deadline <= world.now():
            yield NodeSignal(node.name, node.ref.uid, f"{node.name}: {found[0]}", episode=episode(found[0]))
        elif not found and (ours(node, MARK, world.function) or ours(node, TAINTED, world.function)):
            yield NodeSignal(node.name, node.ref.uid, "a remediation has left its mark", episode=left_behind(node))


async def decide(signal: NodeSignal, world: World, settings: NodeReplacerSettings) -> Step | Defer | Refuse | Skip:
    """Take the next step towards a node that is well, or that another has taken the place of."""
    if signal.seen is not None and signal.course is None and calm(signal.seen):
        return Skip("the event shows a node that nothing is said against")
    node = await world.cluster.node(signal.name)
    if node is None or (signal.uid and node.ref.uid != signal.uid):
        return Skip("the node is gone", final=bool(signal.uid))
    upkeep = await world.upkeep(node)
    # Only a record's word counts: whoever may send events could else name one illness in many ways.
    known = signal.episode if signal.recorded else ""
    if isinstance(upkeep, str):
        # What has begun is neither gone on with nor forgotten: the node may have our cordon.
        held = Defer(upkeep, until=world.now() + RECHECK)
        return held if signal.course is not None else Refuse(upkeep, "Policy", episode=known)
    found = complaints(node, upkeep)
    name = known or (episode(found[0]) if found else left_behind(node))
    patient = Patient(node, upkeep, found, signal.course, world, settings, name)
    return await begin(patient) if signal.course is None else await go_on(patient)


async def begin(patient: Patient) -> Step | Defer | Refuse | Skip:
    """Begin with a node that has been ill for long enough."""
    node, found, now = patient.node, patient.complaints, patient.world.now()
    if not found:
        # Its record is over: the core goes on with one that has begun before this is asked for.
        because = f"the remediation {patient.mark or patient.taint_mark} has left its mark on {node.name}"
        undo = await take_back(patient, because)
        return undo or Skip("nothing that the policy names is wrong with the node")
    if now < found[0].deadline:
        return Skip(f"{found[0]} only since {found[0].since:%H:%M:%S}; it counts from {found[0].deadline:%H:%M:%S} on")
    return await climb(patient)


async def go_on(patient: Patient) -> Step | Defer | Refuse | Skip:
    """Go on with what has begun: take it back if the node is well, else try the next thing."""
    if not patient.complaints:
        return await take_back(patient, "the node has recovered") or Skip("the node has recovered")
    uncordoned = patient.took("UncordonNode")
    if uncordoned is not None and not patient.cordoned:
        return await give_up(patient, "GaveUp", f"{uncordoned.note or 'it was uncordoned'}; {patient.story}")
    return await climb(patient)


async def climb(patient: Patient) -> Step | Defer | Refuse:
    """Try what the ladder says, in turn; each rung has its time."""
    for rung in patient.rungs:
        step = await RUNGS[rung.action](patient, rung)
        if step is not None:
            return step
    why = "nothing of the policy's ladder is left" if patient.course else "nothing of the policy's ladder is for that"
    return await give_up(patient, "Ladder", f"{why}: {patient.story}")


async def restart_network(patient: Patient, rung: Rung) -> Step | Defer | None:
    """Restart the pods by which the node has its network, once."""
    taken = patient.took("RestartNetworkPod")
    if taken is not None:
        return wait(patient, taken, rung, "its network pods were restarted")
    if patient.spent(rung):
        return None
    pods = network_pods([pod async for pod in patient.world.cluster.pods_on(patient.node.name)])
    return RestartNetworkPod(**patient.step(patient.story), pods=pods) if pods else None


async def relieve(patient: Patient, rung: Rung) -> Step | Defer | None:
    """Evict some pods, and leave the node where it is."""
    taken = patient.took(f"EvictPods {RELIEF}")
    if taken is not None:
        return wait(patient, taken, rung, "some of its pods were evicted")
    if patient.spent(rung):
        return None
    load = await load_of(patient)
    most = patient.upkeep.drain.batch
    return evict(patient, load.evictable, most, RELIEF) if load.evictable else None


async def repair(patient: Patient, rung: Rung) -> Step | Defer | None:
    """Have a remediator of medik8s mend the node, and take its object away when its time is over."""
    template = rung.template
    assert template is not None, "the policy's model lets no Repair pass without one"
    made = patient.took(f"MakeRemediation {template.makes}")
    if made is None and patient.spent(rung):
        return None
    if made is None:
        because = f"{template.kind} {template.namespace}/{template.name} is to mend {patient.story}"
        behind = await machine_of(patient.node, patient.world.cluster)
        machine = behind.ref if isinstance(behind, Machine) else None
        return MakeRemediation(**patient.step(because), template=template, machine=machine)
    state = await remediation_of(patient.node, template, patient.world.cluster)
    if state is None or state.by != patient.record:
        return None
    if not state.failed and (waiting := wait(patient, made, rung, f"{template.makes} is mending it")):
        return waiting
    if state.leaving:
        return wait(patient, made, rung, f"{state.ref} is ending", more=LEAVING)
    because = f"{state.ref} has not mended it within {show_duration(rung.within)}"
    return EndRemediation(**patient.step(state.message if state.failed else because), template=template)


async def replace(patient: Patient, rung: Rung) -> Step | Defer | Refuse | None:
    """Cordon the node, empty it, and hand it to what replaces it."""
    behind = await machine_of(patient.node, patient.world.cluster)
    cannot = unreplaceable(behind, patient.settings)
    if cannot is not None:
        return await give_up(patient, "Replacement", f"{cannot}; {patient.story}")
    if patient.took("AskProvider") is None and patient.spent(rung):
        # Frozen, denied, or nobody there to be asked: its cordon and its place among those in flight are given back.
        return await give_up(patient, "HeldUp", f"the time for its replacement is over; {patient.story}")
    silent = await is_silent(patient)
    load = await load_of(patient)
    if load.blocking:
        names = ", ".join(f"{pod.ref.namespace}/{pod.ref.name}" for pod in load.blocking[:3])
        why = f"the policy does not allow to evict {len(load.blocking)} of its pods ({names}): move them by hand"
        return await give_up(patient, "PodsBlock", f"{why}; {patient.story}")
    if patient.cordoned and not patient.node.unschedulable:
        return await give_up(patient, "Uncordoned", f"somebody has uncordoned {patient.node.name} in the middle of it")
    if not patient.node.unschedulable:
        return CordonNode(**patient.step(patient.story))
    asked = patient.took("EvictPods")
    if silent and load.evictable and (asked is None or asked.note == CUT_OFF):
        # They can't end there, but whoever owns them makes others at once, where it may. Once; but who was cut off may
        # have asked none of them, and those that he has asked are on their way out.
        return evict(patient, load.evictable, most=0)
    drain = None if silent else await empty(patient, load)
    return drain or await hand_over(patient, behind, rung, forced=silent or not load.empty)


async def empty(patient: Patient, load: Load) -> Step | Defer | Refuse | None:
    """Evict what is left on the node; None when it is empty, or when the policy says to go on all the same."""
    if load.empty or patient.took("AskProvider"):
        return None
    rules, now, asked = patient.upkeep.drain, patient.world.now(), patient.took("EvictPods")
    first = patient.took("CordonNode") or asked
    begun = first.first if first else now
    left = f"{len(load.evictable) + len(load.leaving)} pods are left on {patient.node.name}"
    if now >= begun + rules.timeout:
        if rules.on_timeout == "Force":
            return None
        return await give_up(patient, "DrainTimeout", f"{left} after {show_duration(rules.timeout)}: {patient.story}")
    # Even with nothing to evict: the time of what somebody else has cordoned counts from the first step on.
    if first is None or (load.evictable and (asked is None or again(asked, now))):
        return evict(patient, load.evictable, rules.batch)
    return Defer(left, until=now + GLANCE)


def again(asked: Taken, now: datetime) -> bool:
    """Tell whether pods are to be evicted at once: of those that were asked, somebody keeps some or all."""
    stuck = asked.note.startswith("evicted 0")
    kept = stuck or "blocked" in asked.note
    # Where one has gone, its successor will soon be Ready; where none has, nothing says that one will.
    return not kept or now >= asked.last + (RETRY if stuck else GLANCE)


async def hand_over(patient: Patient, behind: Backing, rung: Rung, *, forced: bool) -> Step | Defer | Refuse:
    """Have the node replaced by what stands behind it."""
    about = patient.step(patient.story)
    if isinstance(behind, NodeClaim):
        # Karpenter drains it once more: without an end, a budget of a pod that came since would hold it for ever.
        until = patient.world.now() + (timedelta() if forced else patient.upkeep.drain.timeout)
        return DeleteNodeClaim(**about, claim=behind, deadline=until)
    if isinstance(behind, Machine):
        return DeleteMachine(**about, machine=behind, undrained=forced)
    return await ask(patient, rung)


async def ask(patient: Patient, rung: Rung) -> Step | Defer | Refuse:
    """Ask the provider's automation for another machine, and wait for its answer and for what it does."""
    asked, answer = patient.took("AskProvider"), patient.course.answer if patient.course else None
    if asked is None or (answer is None and asked.note == CUT_OFF):
        sink = patient.settings.replacement_sink
        return AskProvider(**patient.step(patient.story), sink=sink, home=patient.world.home)
    if answer is not None and answer.outcome == "Failed":
        return await give_up(patient, "ProviderFailed", f"the provider could not replace it: {answer.message}")
    tainted = any(taint.key == OUT_OF_SERVICE for taint in patient.node.taints)
    off = answer is not None and answer.powered_off and not tainted
    if answer is not None and off and await is_silent(patient):
        return TaintOutOfService(**patient.step(f"the provider has turned its machine off: {answer.message}"))
    said = f"the provider was asked, and has answered {answer.outcome if answer else 'nothing yet'}"
    waiting = wait(patient, asked, rung, said)
    return waiting or await give_up(patient, "NoReplacement", f"{said}; {patient.story}")


def wait(patient: Patient, taken: Taken, rung: Rung, said: str, more: timedelta = timedelta()) -> Defer | None:
    """Wait for a rung to help, until its time is over."""
    now, end = patient.world.now(), taken.first + rung.within + more
    return Defer(f"{said}; {patient.story}", until=min(end, now + RECHECK)) if now < end else None


def evict(patient: Patient, pods: tuple[Pod, ...], most: int, label: str = "") -> EvictPods:
    """Evict pods of the node, at most so many now."""
    grace = patient.upkeep.drain.max_grace
    return EvictPods(**patient.step(patient.story), pods=pods, most=most, max_grace=grace, label=label)


async def give_up(patient: Patient, cause: str, because: str) -> Step | Refuse:
    """Undo what can be undone, then leave the node to people."""
    undo = await take_back(patient, because)
    return undo or Refuse(because, cause, AGAIN, patient.episode)


async def take_back(patient: Patient, because: str) -> Step | None:
    """Take back one thing of what we did to the node; None if nothing is left."""
    for rung in patient.upkeep.ladder:
        template = rung.template
        if template is None or patient.took(f"MakeRemediation {template.makes}") is None:
            continue
        state = await remediation_of(patient.node, template, patient.world.cluster)
        if state is not None and state.by == patient.record and not state.leaving:
            return EndRemediation(**patient.step(because), template=template)
    if patient.taint_mark:
        return UntaintNode(**patient.step(because), of=patient.taint_mark)
    return UncordonNode(**patient.step(because), of=patient.mark) if patient.cordoned else None


def unreplaceable(behind: Backing, settings: NodeReplacerSettings) -> str | None:
    """Say why nothing would take the node's place; a node is neither emptied nor deleted then."""
    if isinstance(behind, Nobody):
        return behind.because
    if isinstance(behind, NodeClaim | Machine):
        return behind.held or None
    if not settings.replacement_sink:
        return f"{behind.because}; set REPLACEMENT_SINK to have its provider's automation asked"
    return None


async def is_silent(patient: Patient) -> bool:
    """Tell whether the kubelet is heard no more: then nothing on the node can be told to end."""
    ready = patient.node.condition("Ready")
    if ready is None or ready.status != "Unknown":
        return False
    heard = await patient.world.cluster.heard(patient.node.name)
    return heard is None or patient.world.now() - heard > patient.settings.silent_after


async def load_of(patient: Patient) -> Load:
    """Read the node's pods, and sort them by what a drain does with each."""
    pods = [pod async for pod in patient.world.cluster.pods_on(patient.node.name)]
    return evictable(pods, patient.upkeep.drain)


def calm(node: Node) -> bool:
    """Tell whether nothing at all is said against a node, and nothing of ours is on it."""
    fine = all(c.status == ("True" if c.type.endswith("Ready") else "False") for c in node.conditions)
    return fine and bool(node.conditions) and MARK not in node.annotations and TAINTED not in node.annotations


def usual(node: Node) -> bool:
    """Tell whether a node has the usual conditions only; of others, a policy may call False an illness, too."""
    return all(said.type in USUAL for said in node.conditions)


def ours(node: Node, note: str, function: str) -> str:
    """Tell the record of ours that a node's annotation names, or ""."""
    mark = node.annotations.get(note, "")
    return mark if mark.startswith(f"{function}-") else ""


def left_behind(node: Node) -> str:
    """Name the fault of a cordon, or a taint, that nobody has taken back."""
    return f"cordon/{node.annotations.get(MARK) or node.annotations.get(TAINTED, '')}"


async def recovered(
    treatment: Treatment,
    world: World,
    settings: NodeReplacerSettings,  # noqa: ARG001 - as all
) -> Recovered | Ineffective | Unknown | Defer:
    """See the node well for the proof; or, when it is gone, another node of its pool."""
    now, node = world.now(), await world.cluster.node(treatment.target.name)
    if node is None and (left := [pod async for pod in world.cluster.pods_on(treatment.target.name)]):
        # The pod garbage collector waits for most of a minute; until then nothing asks for a place elsewhere.
        because = f"{treatment.target.name} is gone, and {len(left)} pods are still bound to it"
        return Defer(because, until=now + treatment.proof)
    if node is None or node.ref.uid != treatment.target.uid:
        return await succeeded(treatment, world)
    if node.terminating or treatment.action in {"DeleteNodeClaim", "DeleteMachine"}:
        return Defer(f"{node.name} is still there", until=now + RECHECK)
    upkeep = await world.upkeep(node)
    if isinstance(upkeep, str):
        return Defer(upkeep, until=now + RECHECK)
    found = complaints(node, upkeep)
    if found:
        return Ineffective(f"{node.name}: {found[0]}")
    since = max((c.since for c in node.conditions if c.since is not None), default=node.created)
    return proven(f"{node.name} has been well", max(since, treatment.acted_at), treatment, now)


async def succeeded(treatment: Treatment, world: World) -> Recovered | Defer:
    """See another node of the pool Ready for the proof, or no pod waiting for one."""
    now, mates = world.now(), [node async for node in world.cluster.nodes() if mate(node, treatment)]
    since = min((c.since for node in mates if (c := node.condition("Ready")) and c.since and node.ready), default=None)
    if since is not None:
        return proven(f"{treatment.target.name} is gone, and {mates[0].name} was Ready", since, treatment, now)
    if mates:
        return Defer(f"{mates[0].name} is to take its place and is not Ready yet", until=now + treatment.proof)
    if treatment.owner is not None and treatment.owner.uid.startswith("karpenter.sh/"):
        # Karpenter makes a node for pods that wait, not for a node that went.
        begun = min((step.first for step in treatment.steps), default=treatment.acted_at) - SECOND
        pending = world.cluster.pods(fieldSelector="status.phase=Pending")
        # Those that have waited for longer don't wait for this node.
        if not [pod async for pod in pending if not pod.node and pod.created >= begun]:
            return proven(
                f"{treatment.target.name} is gone, and no pod has waited for a node", treatment.acted_at, treatment, now
            )
    return Defer("no node has taken its place yet", until=now + treatment.proof)


def mate(node: Node, treatment: Treatment) -> bool:
    """Tell whether a node came to the pool after the treatment."""
    owner = treatment.owner
    if owner is None or node.created < handed_over(treatment) - SECOND or node.ref.uid == treatment.target.uid:
        return False
    source = owner.uid.partition("=")[0]
    return owner_of(node.pool(source)).ref.uid == owner.uid


def handed_over(treatment: Treatment) -> datetime:
    """Tell since when a new node may be the successor: others may make it before the old one goes."""
    steps = {step.action: step.first for step in treatment.steps}
    if not steps.keys().isdisjoint({"DeleteNodeClaim", "DeleteMachine"}):
        return treatment.acted_at
    return steps.get("AskProvider") or min(steps.values(), default=treatment.acted_at)


def proven(said: str, since: datetime, treatment: Treatment, now: datetime) -> Recovered | Defer:
    """Judge health by how long it has lasted."""
    proof = max(now - since - SECOND, timedelta(0))
    text = f"{said} for {show_duration(proof)}"
    return Recovered(text) if proof >= treatment.proof else Defer(text, until=now + treatment.proof - proof)


RUNGS = {"RestartNetworkPods": restart_network, "EvictPods": relieve, "Repair": repair, "Replace": replace}
main = serve(find, decide, recovered)
