"""Guards: each asks one question, and its answer is the reason. One that can't find out, refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Protocol

from kreflex.actions import Action
from kreflex.budgets import budget_of
from kreflex.cluster import Reader
from kreflex.durations import show_duration
from kreflex.errors import KreflexError
from kreflex.fleet import AT_WORK, hands_off
from kreflex.leases import HOLDER, lease_of, taken
from kreflex.ledger import Ledger, Request
from kreflex.others import at_work
from kreflex.policy import GROUP, PROTECTED, VERSION, Effective, ErrorBudget, Storm, healthy_floor
from kreflex.prom import Metrics
from kreflex.records import Outcome, Record
from kreflex.rule import Rule
from kreflex.views import JSON
from kreflex.world import World

OPT_OUT = f"{GROUP}/opt-out"
RECHECK = timedelta(hours=1)
# The shell puts the name in: admission takes nobody else's (see admission.approvals).
_WHOEVER_ASKS = "'\"$(kubectl auth whoami -o jsonpath={.status.userInfo.username})\"'"
# So that the command behind it is never cut off, even with the longest names.
_BEFORE_HOW = 300
# The function itself puts it off: the fault may be over.
EARLY = "TooEarly"
# What is missing of an approval: all of it, the right plan, or time.
APPROVAL, MISMATCH, EXPIRED = "Approval", "ApprovalMismatch", "ApprovalExpired"
# A storm is counted over all namespaces of a policy. The other guards read what an action carries, the ledger, SLOs, or
# Prometheus.
RBAC = (Rule(GROUP, "remediations", "list", "cluster"),)


@dataclass(frozen=True)
class Case:
    """What a guard looks at: the action, what the policies say of it, and the record of the fault."""

    action: Action
    policy: Effective
    record: Record
    home: str
    now: datetime

    def request(self) -> Request:
        """Make the request to the ledger."""
        return request_of(self.record, self.policy)


def request_of(record: Record, policy: Effective) -> Request:
    """Make a record's request to the ledger; what nothing owns is its own owner."""
    owner = record.spec.owner
    return Request(
        uid=record.uid,
        namespace=record.namespace,
        record=record.name,
        version=record.resource_version,
        owner=record.owner_key,
        template_hash=owner.template_hash if owner else "",
        limits=tuple((policy.key, spec.limits) for policy, spec in policy.specs),
        cooldown=policy.cooldown,
        useless=policy.useless,
        acting=record.status.phase == "Acting",
        one=record.one_key,
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an action is not taken now, and when to ask again."""

    guard: str
    because: str
    until: datetime
    outcome: Outcome = "refused"
    plan_hash: str | None = None


class Guard(Protocol):
    """One question about one case. `name` is the word for it in records and logs."""

    name: ClassVar[str]

    async def refuses(self, case: Case) -> Refusal | None:
        """Tell why not, or None."""


class Usable:
    """Refuses what a broken policy selects."""

    name: ClassVar[str] = "Policy"

    async def refuses(self, case: Case) -> Refusal | None:
        """An invalid policy might have been a freeze."""
        if case.policy.broken is None:
            return None
        return Refusal("Policy", case.policy.broken, case.now + RECHECK)


class Frozen:
    """Refuses all new work while a policy is frozen."""

    name: ClassVar[str] = "Frozen"

    async def refuses(self, case: Case) -> Refusal | None:
        """One frozen policy suffices."""
        if case.policy.frozen is None:
            return None
        return Refusal("Frozen", f"policy {case.policy.frozen} is frozen", case.now + RECHECK)


class Paused:
    """Refuses new work while somebody asks for a pause in a policy; what has begun goes on."""

    name: ClassVar[str] = "Paused"

    async def refuses(self, case: Case) -> Refusal | None:
        """One request suffices; its words are the reason."""
        asked = [f"{words} ({policy.key})" for policy, spec in case.policy.specs for words in spec.pause_requests]
        if not asked or case.record.begun:
            return None
        return Refusal(self.name, f"a pause is asked for: {', '.join(asked)}", case.now + AT_WORK)


class InScope:
    """Refuses protected namespaces, kinds of owners that no policy names, and what opted out."""

    name: ClassVar[str] = "Scope"

    async def refuses(self, case: Case) -> Refusal | None:
        """Objects that no policy selects are not refused here: for them the mode is DryRun."""
        because = _protected(case) or _foreign_owner(case) or _opted_out(case)
        return Refusal("Scope", because, case.now + RECHECK) if because else None


def _protected(case: Case) -> str | None:
    namespace = case.action.target.namespace
    return f"namespace {namespace} is protected" if namespace in {*PROTECTED, case.home} else None


def _foreign_owner(case: Case) -> str | None:
    kind = case.action.kind
    if case.policy.allows_owner(kind):
        return None
    what = f"it belongs to a {kind}" if case.action.owner else "nothing owns it, so nothing would bring it back"
    return f"{what}: name {kind} in the policy's owners to allow that"


def _opted_out(case: Case) -> str | None:
    for name, noted in case.action.annotations():
        if noted.get(OPT_OUT, "false").lower() != "false":
            return f"{name} has the annotation {OPT_OUT}"
    return None


class OwnedByGit:
    """Refuses to write live what Git owns: its controller would put it back, and people would look for it in Git."""

    name: ClassVar[str] = "Git"

    async def refuses(self, case: Case) -> Refusal | None:
        """The action says who owns what it writes; admission looks at the object once more."""
        manager = case.action.manager
        if not manager:
            return None
        because = f"{manager} owns it in Git: undo it there, or let a policy say how (releases.git)"
        return Refusal(self.name, because, case.now + RECHECK)


@dataclass(frozen=True)
class NotUseless:
    """Refuses when the owner's last remediations did not help: a person has to look."""

    ledger: Ledger
    name: ClassVar[str] = "Useless"

    async def refuses(self, case: Case) -> Refusal | None:
        """Count verdicts in a row; Unknown counts as not helped."""
        denial = await self.ledger.useless(case.request())
        return Refusal(denial.guard, denial.because, denial.until) if denial else None


class BlastRadius:
    """Refuses to take a healthy replica when too few would stay."""

    name: ClassVar[str] = "BlastRadius"

    async def refuses(self, case: Case) -> Refusal | None:
        """A target that is not healthy takes nothing away; unknown numbers refuse."""
        owner, action = case.action.owner, case.action
        if owner is None or not action.risky or action.target.kind == "Node":
            return None
        for policy, spec in case.policy.specs:
            if owner.replicas is None or owner.ready is None:
                if spec.limits.min_healthy in {0, "0%"}:
                    continue
                return Refusal("BlastRadius", f"how many replicas {owner.ref} has is not known", case.now + RECHECK)
            floor = healthy_floor(spec.limits.min_healthy, owner.replicas)
            if owner.ready - 1 < floor:
                because = f"{owner.ready} of {owner.replicas} replicas are healthy, {floor} must stay ({policy.key})"
                return Refusal("BlastRadius", because, case.now + timedelta(minutes=10))
        return None


@dataclass(frozen=True)
class Fleet:
    """Leaves a node alone while others are at work on it, the control plane needs it, or too many nodes are ill."""

    reader: Reader
    name: ClassVar[str] = "Fleet"

    async def refuses(self, case: Case) -> Refusal | None:
        """The node is looked for among all nodes, as they are now, by its UID."""
        target, upkeep = case.action.target, case.policy.upkeep
        if target.kind != "Node" or case.action.undo:
            return None
        if isinstance(upkeep, str):
            return Refusal(Usable.name, upkeep, case.now + RECHECK)
        fleet = await self.reader.fleet()
        node = next((one for one in fleet if one.ref.uid == target.uid), None)
        if node is None:
            return Refusal(self.name, f"{target} is not among the {len(fleet)} nodes", case.now + AT_WORK)
        stop = hands_off(node, fleet, upkeep, case.now, begun=case.record.begun)
        if stop is None and not case.record.begun:
            stop = await at_work(node, self.reader, case.now)
        return Refusal(stop.guard, stop.because, stop.until) if stop else None


@dataclass(frozen=True)
class Unleased:
    """Leaves a node alone that another holds the Lease of; asked before the ledger, for who waits spends nothing."""

    reader: Reader
    name: ClassVar[str] = "Lease"

    async def refuses(self, case: Case) -> Refusal | None:
        """Ours may be held by this very remediation. It is taken when that begins."""
        if not case.action.leased:
            return None
        because = await taken(self.reader, lease_of(case.action.target.name), HOLDER + case.record.name)
        return Refusal(self.name, because, case.now + AT_WORK, "deferred") if because else None


@dataclass(frozen=True)
class CalmEnough:
    """Refuses during a storm: so many faults at once have one cause, and it is not in the pods."""

    reader: Reader
    name: ClassVar[str] = "Storm"

    async def refuses(self, case: Case) -> Refusal | None:
        """Count the faults that have records in the policy's namespaces, of its functions; labels are not looked at."""
        storms = [(policy, spec.limits.storm) for policy, spec in case.policy.specs if spec.limits.storm]
        for policy, storm in storms:
            faults = await self._faults(policy.namespace)
            calm_at = storm_until([f.at for f in faults if policy.covers(f.function, f.namespace)], storm)
            if calm_at is not None and case.now < calm_at:
                crest = f"more than {storm.faults} faults in {show_duration(storm.window)}"
                because = f"{crest} ({policy.key}): one cause is likely, and it is not in the pods"
                return Refusal(self.name, because, calm_at)
        return None

    async def _faults(self, namespace: str) -> tuple[_Fault, ...]:
        where = f"namespaces/{namespace}/remediations" if namespace else "remediations"
        path = f"/apis/{GROUP}/{VERSION}/{where}"

        async def read() -> tuple[_Fault, ...]:
            return tuple([_fault(body) async for body in self.reader.list(path)])

        return await self.reader.share(path, read)


@dataclass(frozen=True, slots=True)
class _Fault:
    at: datetime
    namespace: str
    function: str


def _fault(body: JSON) -> _Fault:
    meta = body["metadata"]
    spec = body["spec"]
    # A node's record is kept in Kreflex' own namespace, which no policy names: what counts is where its target is.
    namespace = spec["target"].get("namespace", "")
    return _Fault(datetime.fromisoformat(meta["creationTimestamp"]), namespace, spec["function"])


def storm_until(times: Sequence[datetime], storm: Storm) -> datetime | None:
    """Tell when the last storm is over, from the times of the faults alone; None if there was none."""
    ordered = sorted(times)
    crests = [
        late for early, late in zip(ordered, ordered[storm.faults :], strict=False) if late - early <= storm.window
    ]
    return crests[-1] + storm.cooldown if crests else None


@dataclass(frozen=True)
class BudgetLeft:
    """Asks a person before something risky while the error budget is spent or burns; safe healing is never refused."""

    metrics: Metrics
    reader: Reader
    name: ClassVar[str] = "ErrorBudget"

    async def refuses(self, case: Case) -> Refusal | None:
        """Prometheus that does not answer counts as a spent budget."""
        missing = _unapproved(case) if case.action.risky else None
        if missing is None:
            return None
        for policy, spec in case.policy.specs:
            asked = spec.limits.error_budget
            lacks = await self._lacks(asked, case) if asked is not None else None
            if lacks is None:
                continue
            if case.policy.mode == "DryRun":
                # Nobody's yes would let it happen.
                because = f"dry run ({case.policy.reason}): {lacks} ({policy.key}): a person would be asked"
                return Refusal(self.name, because, case.now + RECHECK)
            because = f"{lacks} ({policy.key}): a person decides"
            return _awaiting(case, self.name if missing[0] == APPROVAL else missing[0], because)
        return None

    async def _lacks(self, asked: ErrorBudget, case: Case) -> str | None:
        if asked.query is not None:
            return await self._lacks_by_query(asked.query, asked.least)
        notes = {key: value for _, noted in reversed(case.action.annotations()) for key, value in noted.items()}
        about = asked.slo or {**case.action.labels, **notes}
        world = World(self.reader, self.metrics, home=case.home)
        budget = await budget_of(case.action.target.namespace, about, world, asked.least)
        return None if budget.healthy else budget.why

    async def _lacks_by_query(self, query: str, least: float) -> str | None:
        try:
            left = await self.metrics.scalar(query)
            known = "unknown" if left is None else f"{left:.0%}"
        except KreflexError as error:
            left, known = None, f"unknown ({error})"
        return f"the error budget left is {known}, below {least:.0%}" if left is None or left < least else None


class Approved:
    """Lets pass in mode Auto; in mode Approve it waits for a person's yes to exactly this plan."""

    name: ClassVar[str] = "Approval"

    async def refuses(self, case: Case) -> Refusal | None:
        """An approval counts for one plan, until its time; another plan needs another."""
        if case.policy.mode == "Auto":
            return None
        if case.policy.mode == "DryRun":
            because = f"dry run ({case.policy.reason}): would {case.action.verb} {case.action.target}"
            return Refusal("DryRun", f"{because}, because {case.action.because}", case.now + RECHECK)
        missing = _unapproved(case)
        return _awaiting(case, *missing) if missing else None


def _unapproved(case: Case) -> tuple[str, str] | None:
    """Tell which guard misses what, unless a person's yes counts for this plan now, or did when it was begun.

    Each lack has a name of its own: a record that changes its guard is written, and so the person is told.
    """
    approval = case.record.spec.approval
    if approval is None:
        return APPROVAL, f"would {case.action.verb} {case.action.target}: {case.action.because}"
    if approval.plan_hash != case.action.plan_hash():
        return MISMATCH, f"what {approval.by} approved is not the plan {case.action.plan_hash()}"
    begun_at = case.record.status.begun_at if case.record.begun else None
    if approval.until <= (begun_at or case.now):
        return EXPIRED, f"what {approval.by} approved has expired at {approval.until:%Y-%m-%d %H:%M:%S} UTC"
    return None


def _awaiting(case: Case, guard: str, because: str) -> Refusal:
    until = f"{case.now + RECHECK:%Y-%m-%dT%H:%M:%SZ}"
    approval = {"planHash": case.action.plan_hash(), "by": "YOU", "until": until}
    patch = json.dumps({"spec": {"approval": approval}}).replace("YOU", _WHOEVER_ASKS)
    how = f"kubectl -n {case.record.namespace} patch remediation {case.record.name} --type merge -p '{patch}'"
    return Refusal(
        guard,
        f"{because[:_BEFORE_HOW]}. To approve: {how}",
        case.now + RECHECK,
        "awaiting-approval",
        case.action.plan_hash(),
    )


def guards(reader: Reader, metrics: Metrics, ledger: Ledger) -> tuple[Guard, ...]:
    """Give the guards in the design's order; the ledger itself is asked last, by the core, in its one write."""
    return (
        Usable(),
        Frozen(),
        Paused(),
        InScope(),
        OwnedByGit(),
        NotUseless(ledger),
        BlastRadius(),
        Fleet(reader),
        Unleased(reader),
        CalmEnough(reader),
        BudgetLeft(metrics, reader),
        Approved(),
    )


def guards_of_steps(reader: Reader) -> tuple[Guard, ...]:
    """Give the guards that are asked before each step of what has begun: a pause, a storm or a limit stops new work.

    What people allowed at the beginning they may have taken back, or for another plan than that of now.
    """
    return (Usable(), Frozen(), InScope(), OwnedByGit(), Fleet(reader), Approved())
