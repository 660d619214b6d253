"""New faults are kept out while an error budget is not healthy: the shipped admission policy on a real API server."""

import uuid
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kreflex import budgetstatus, rights
from kreflex.budgets import Budget
from kreflex.budgetstatus import FRESH
from kreflex.sloformats import Slo
from lab import manifests
from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane
from tests import kit

HOME = "kreflex-system"
STATUSES = f"/apis/kreflex.dev/v1alpha1/namespaces/{HOME}/errorbudgetstatuses"
# Kinds whose definitions are those of others, or of another module: here anything may be in them.
LAX = (
    ("kreflex.dev/v1alpha1", "Experiment", "experiments"),
    ("litmuschaos.io/v1alpha1", "ChaosEngine", "chaosengines"),
    ("litmuschaos.io/v1alpha1", "ChaosSchedule", "chaosschedules"),
    ("chaos-mesh.org/v1alpha1", "PodChaos", "podchaos"),
    ("chaos-mesh.org/v1alpha1", "PodNetworkChaos", "podnetworkchaos"),
    ("chaos-mesh.org/v1alpha1", "Workflow", "workflows"),
)
PROBE = "probe"
HEALTHY = Budget(0.85, "none", "SLO cart: 85% of the error budget of 30d is left")
SPENT = Budget(0.12, "none", "SLO cart: 12% of the error budget of 30d is left, below 20%")
BURNS = Budget(0.6, "page", "SLO cart: it burns 20 times too fast over 1h and 5m")
UNKNOWN = Budget(None, "none", "SLO cart: the error budget is unknown: Prometheus did not answer")


def definition(api_version: str, kind: str, plural: str) -> kit.Json:
    body = manifests.definition(api_version, kind)
    body["metadata"]["name"] = f"{plural}.{api_version.partition('/')[0]}"
    body["spec"]["names"]["plural"] = plural
    return body


def file(name: str) -> list[kit.Json]:
    return manifests.read(kit.ROOT / "knative" / name)


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A control plane with kinds of chaos and the shipped gate, which is active when this returns."""
    async with ControlPlane(tmp_path_factory.mktemp("error-budget")) as plane:
        gate = [*file("error-budget/rbac.yaml"), *file("error-budget/serviceaccount.yaml")]
        await manifests.apply(
            plane.api,
            [
                *(definition(*one) for one in LAX),
                *file("crds/errorbudgetstatuses.yaml"),
                *file("base/namespace.yaml"),
                *gate,
                *file("error-budget/admission.yaml"),
            ],
        )
        await eventually(lambda: denied(plane.api), "a policy that denies")
        await both_at_work(plane)
        yield plane


async def both_at_work(plane: ControlPlane) -> None:
    """Wait until changes are asked, too."""
    await plane.api.post("/api/v1/namespaces", {"metadata": {"name": "changes"}})
    shop = Shop(plane, "changes")
    await shop.budgets(HEALTHY)
    assert await shop.create(shop.pod_chaos()) == ""
    await shop.budgets(SPENT)
    await eventually(lambda: refused(shop), "a policy that denies a change")


async def refused(shop: "Shop") -> bool:
    # Another change each time: one that is let in is none when it is made again.
    return await shop.change("podchaos", "kill", {"spec": {"mode": uuid.uuid4().hex}}) != ""


async def denied(api: Api) -> bool:
    probe = {"apiVersion": "chaos-mesh.org/v1alpha1", "kind": "PodChaos", "metadata": {"name": "probe"}, "spec": {}}
    try:
        await api.post("/apis/chaos-mesh.org/v1alpha1/namespaces/default/podchaos?dryRun=All", probe)
    except Refused as refusal:
        # Before that, it is the API server itself that does not know yet what the policy's parameters are.
        return "no params found" in str(refusal)
    return False


@dataclass
class Shop:
    """A namespace of a test's own, and what is written of the error budgets."""

    plane: ControlPlane
    name: str

    @property
    def api(self) -> Api:
        return self.plane.api

    async def budgets(self, *own: Budget, age: timedelta = timedelta(), **others: Budget) -> None:
        """Write down what is known of this namespace's SLOs and of others', so long ago."""
        lines = [(self.name, f"slo-{n}", budget) for n, budget in enumerate(own)]
        lines += [(namespace, "slo", budget) for namespace, budget in others.items()]
        token = uuid.uuid4().hex
        lines += [(PROBE, "probe", Budget(None, "none", token))]
        found = [(Slo(namespace, name, name, "SLO"), budget) for namespace, name, budget in lines]
        body = budgetstatus.status(found, datetime.now(UTC) - age, HOME)
        await self.api.apply(f"{STATUSES}/{budgetstatus.NAME}", body)
        # The policy sees its parameters through a watch. What is too old it says instead.
        signs = (token, f"last looked at {body['spec']['observedAt']}")
        await eventually(lambda: self._seen(signs), "the new status")

    async def _seen(self, signs: tuple[str, ...]) -> bool:
        probe = self.pod_chaos("probe", selector={"namespaces": [PROBE]})
        try:
            await self.api.post(f"{self.path('podchaos')}?dryRun=All", probe)
        except Refused as refusal:
            return any(sign in str(refusal) for sign in signs)
        return False

    def path(self, plural: str, name: str = "") -> str:
        api = next(api for api, _, known in LAX if known == plural)
        return f"/apis/{api}/namespaces/{self.name}/{plural}" + (f"/{name}" if name else "")

    def pod_chaos(self, name: str = "kill", **spec: Any) -> kit.Json:
        meta = {"name": name, "namespace": self.name}
        body = {"action": "pod-kill", "mode": "one", **spec}
        return {"apiVersion": "chaos-mesh.org/v1alpha1", "kind": "PodChaos", "metadata": meta, "spec": body}

    def engine(self, name: str = "drain", **spec: Any) -> kit.Json:
        meta = {"name": name, "namespace": self.name}
        return {
            "apiVersion": "litmuschaos.io/v1alpha1",
            "kind": "ChaosEngine",
            "metadata": meta,
            "spec": spec or {"a": 1},
        }

    def experiment(self, name: str = "game", **spec: Any) -> kit.Json:
        meta = {"name": name, "namespace": self.name}
        body = {"fault": {"kind": "PodKill"}, **spec}
        return {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Experiment", "metadata": meta, "spec": body}

    def any(self, api: str, kind: str, name: str, **spec: Any) -> kit.Json:
        return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": self.name}, "spec": spec}

    async def unknown(self) -> None:
        """Take away what is written of all budgets."""
        await self.api.delete(f"{STATUSES}/{budgetstatus.NAME}")
        await eventually(lambda: denied(self.api), "a policy without its parameters")

    async def create(self, body: kit.Json) -> str:
        """Create something; what the policy says to it, "" if it lets it in."""
        plural = next(plural for _, kind, plural in LAX if kind == body["kind"])
        return await said(self.api.post(self.path(plural), body))

    async def change(self, plural: str, name: str, patch: kit.Json) -> str:
        """Change something; what the policy says to it, "" if it lets it."""
        return await said(self.api.patch(self.path(plural, name), patch))


async def said(asked: Awaitable[Any]) -> str:
    try:
        await asked
    except Refused as refusal:
        _, ours, because = str(refusal).partition("denied request: ")
        if not ours:
            raise
        return because
    return ""


@pytest.fixture
async def shop(own: ControlPlane) -> Shop:
    """A namespace of this test's own."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    await own.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    return Shop(own, name)


async def all_three(shop: Shop) -> list[str]:
    return [await shop.create(one) for one in (shop.pod_chaos(), shop.engine(), shop.experiment())]


async def test_new_faults_are_let_in_while_the_budget_is_healthy(shop: Shop) -> None:
    await shop.budgets(HEALTHY, HEALTHY)
    assert await all_three(shop) == ["", "", ""]


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (SPENT, "no new faults while the error budget is spent: SLO cart: 12% of the error budget of 30d is left"),
        (BURNS, "no new faults while the error budget is burning: SLO cart: it burns 20 times too fast"),
        (UNKNOWN, "no new faults while the error budget is unknown: SLO cart: the error budget is unknown"),
    ],
    ids=lambda one: one.state if isinstance(one, Budget) else "",
)
async def test_they_are_kept_out_while_it_is_not_and_are_told_why(shop: Shop, budget: Budget, told: str) -> None:
    await shop.budgets(HEALTHY, budget)
    assert [answer.startswith(told) for answer in await all_three(shop)] == [True, True, True]


async def test_they_are_let_in_again_once_it_is_healthy(shop: Shop) -> None:
    await shop.budgets(SPENT)
    assert await shop.create(shop.pod_chaos()) != ""
    await shop.budgets(HEALTHY)
    assert await shop.create(shop.pod_chaos()) == ""


async def test_a_spent_budget_of_another_namespace_is_not_asked(shop: Shop) -> None:
    await shop.budgets(HEALTHY, bank=SPENT)
    assert await shop.create(shop.pod_chaos()) == ""


async def test_nothing_is_let_in_when_nobody_has_looked_for_long(shop: Shop) -> None:
    await shop.budgets(HEALTHY, age=FRESH + timedelta(seconds=2))
    answer = await shop.create(shop.pod_chaos())
    assert answer.startswith("no new faults: the error budgets were last looked at ")
    assert answer.endswith("see why CronJob error-budget in namespace kreflex-system does not run")


async def test_nothing_is_let_in_when_nothing_is_written(shop: Shop) -> None:
    await shop.budgets(HEALTHY)
    await shop.unknown()
    assert "no params found" in await shop.create(shop.pod_chaos())


async def test_a_namespace_without_an_slo_is_told_so_and_may_say_that_it_needs_none(shop: Shop) -> None:
    await shop.budgets()
    assert await shop.create(shop.pod_chaos()) == (
        f"no new faults: there is no SLO of namespace {shop.name}, so nobody knows its error budget:"
        " write one, or give the namespace the label kreflex.dev/error-budget=ignored"
    )
    label = {"metadata": {"labels": {"kreflex.dev/error-budget": "ignored"}}}
    await shop.api.patch(f"/api/v1/namespaces/{shop.name}", label)
    await eventually(lambda: lets(shop, shop.pod_chaos()), "the label seen")
    # But it is no way round for what hits others.
    answer = await shop.create(shop.pod_chaos("others", selector={"namespaces": [PROBE]}))
    assert answer.startswith("no new faults while the error budget is unknown")


async def lets(shop: Shop, body: kit.Json) -> bool:
    return await shop.create(body) == ""


@pytest.mark.parametrize(
    "spec",
    [
        {"selector": {"namespaces": ["bank"]}},
        {"selector": {"pods": {"bank": ["teller-1"]}}},
        {"selector": {}, "target": {"selector": {"namespaces": ["bank"]}}},
    ],
    ids=["namespaces", "pods", "the other side"],
)
async def test_the_namespaces_that_chaos_mesh_hits_are_asked(shop: Shop, spec: kit.Json) -> None:
    await shop.budgets(HEALTHY, bank=SPENT)
    assert "is spent" in await shop.create(shop.pod_chaos(**spec))
    await shop.budgets(bank=HEALTHY)
    assert await shop.create(shop.pod_chaos(**spec)) == ""


@pytest.mark.parametrize(
    "spec",
    [
        {"appinfo": {"appns": "bank"}},
        {"selectors": {"workloads": [{"kind": "deployment", "namespace": "bank", "names": "teller"}]}},
        {"selectors": {"pods": [{"namespace": "bank", "names": "teller-1"}]}},
    ],
    ids=["appinfo", "workloads", "pods"],
)
async def test_the_namespaces_that_litmus_hits_are_asked(shop: Shop, spec: kit.Json) -> None:
    await shop.budgets(HEALTHY, bank=SPENT)
    assert "is spent" in await shop.create(shop.engine(**spec))
    await shop.budgets(bank=HEALTHY)
    assert await shop.create(shop.engine(**spec)) == ""


async def test_an_experiment_may_ask_for_more_budgets_but_not_for_another_instead(shop: Shop) -> None:
    slo = {"slo": "bank/slo"}
    await shop.budgets(HEALTHY, bank=SPENT)
    assert "is spent" in await shop.create(shop.experiment(budget=slo))
    await shop.budgets(SPENT, bank=HEALTHY)
    assert "is spent" in await shop.create(shop.experiment(budget=slo))
    await shop.budgets(HEALTHY, bank=HEALTHY)
    assert await shop.create(shop.experiment(budget=slo)) == ""


async def test_an_experiment_on_nodes_names_the_slo_that_is_asked(own: ControlPlane, shop: Shop) -> None:
    await shop.budgets(bank=HEALTHY)
    nodes = Shop(own, HOME)
    assert "there is no SLO of namespace kreflex-system" in await nodes.create(nodes.experiment("drain"))
    assert await nodes.create(nodes.experiment("drain", budget={"slo": "bank/slo"})) == ""


async def test_only_who_may_can_say_that_no_budget_is_asked(own: ControlPlane, shop: Shop) -> None:
    await shop.budgets(SPENT)
    edits = {"apiGroups": ["kreflex.dev"], "resources": ["experiments"], "verbs": ["create"]}
    ignores = {"apiGroups": ["kreflex.dev"], "resources": ["errorbudgetstatuses"], "verbs": ["ignore"]}
    wanted = shop.experiment(withoutBudget="a rehearsal in the night of the move")
    await manifests.grant(own.api, shop.name, "ada", [edits], role=f"{shop.name}:ada")
    async with own.api_with(await own.token("ada", shop.name)) as ada:
        assert "is spent" in await said(ada.post(shop.path("experiments"), wanted))
        await manifests.grant(own.api, shop.name, "ada", [edits, ignores], role=f"{shop.name}:ada")
        await eventually(lambda: waived(ada, shop, wanted), "the verb known")


async def waived(api: Api, shop: Shop, body: kit.Json) -> bool:
    return await said(api.post(shop.path("experiments"), body)) == ""


async def test_what_was_begun_can_be_ended_whatever_the_budget(shop: Shop) -> None:
    await shop.budgets(HEALTHY)
    assert await all_three(shop) == ["", "", ""]
    await shop.budgets(SPENT)
    paused = {"metadata": {"annotations": {"experiment.chaos-mesh.org/pause": "true"}}}
    assert await shop.change("podchaos", "kill", paused) == ""
    assert await shop.change("chaosengines", "drain", {"spec": {"engineState": "stop"}}) == ""
    assert await shop.change("experiments", "game", {"spec": {"stop": True}}) == ""
    for plural, name in (("podchaos", "kill"), ("chaosengines", "drain"), ("experiments", "game")):
        await shop.api.delete(shop.path(plural, name))


async def test_what_was_begun_can_be_ended_when_nothing_is_written(shop: Shop) -> None:
    await shop.budgets(HEALTHY)
    assert await all_three(shop) == ["", "", ""]
    held = {"metadata": {"finalizers": ["chaos-mesh.org/records"]}}
    assert await shop.change("podchaos", "kill", held) == ""
    await shop.unknown()
    assert await shop.change("chaosengines", "drain", {"spec": {"engineState": "stop"}}) == ""
    assert await shop.change("experiments", "game", {"spec": {"stop": True}}) == ""
    await shop.api.delete(shop.path("podchaos", "kill"))
    assert await shop.change("podchaos", "kill", {"metadata": {"finalizers": None}}) == ""
    assert await shop.api.find(shop.path("podchaos", "kill")) is None


async def test_a_schedule_of_litmus_can_be_halted_and_is_asked_before_it_goes_on(shop: Shop) -> None:
    appinfo = {"appinfo": {"appns": "bank"}}
    schedule = shop.any(
        "litmuschaos.io/v1alpha1", "ChaosSchedule", "nightly", schedule={"now": True}, engineTemplateSpec=appinfo
    )
    await shop.budgets(HEALTHY, bank=SPENT)
    assert "is spent" in await shop.create(schedule)
    await shop.budgets(bank=HEALTHY)
    assert await shop.create(schedule) == ""
    await shop.budgets(bank=SPENT)
    assert await shop.change("chaosschedules", "nightly", {"spec": {"scheduleState": "halt"}}) == ""
    assert "is spent" in await shop.change("chaosschedules", "nightly", {"spec": {"scheduleState": "active"}})


async def test_a_workflow_of_chaos_mesh_knows_no_pause(shop: Shop) -> None:
    await shop.budgets(SPENT)
    workflow = shop.any("chaos-mesh.org/v1alpha1", "Workflow", "day", entry="all")
    workflow["metadata"]["annotations"] = {"experiment.chaos-mesh.org/pause": "true"}
    assert "is spent" in await shop.create(workflow)


async def test_what_chaos_runner_makes_for_an_experiment_is_not_asked_again(own: ControlPlane, shop: Shop) -> None:
    await shop.budgets(SPENT)
    edits = {"apiGroups": ["litmuschaos.io"], "resources": ["chaosengines"], "verbs": ["create"]}
    engine = shop.engine()
    engine["metadata"]["annotations"] = {"kreflex.dev/chaos-experiment": "storm"}
    told = []
    for namespace, account in ((shop.name, "chaos-runner"), (HOME, "chaos-runner")):
        await manifests.grant(own.api, namespace, account, [edits], role=f"{shop.name}:{namespace}")
        async with own.api_with(await own.token(account, namespace)) as api:
            told += [await said(api.post(shop.path("chaosengines"), one)) for one in (shop.engine("own"), engine)]
    assert ["is spent" in one for one in told] == [True, True, True, False]


async def test_its_controllers_may_note_what_they_do_and_take_back(shop: Shop) -> None:
    await shop.budgets(HEALTHY)
    assert await shop.create(shop.experiment()) == ""
    await shop.budgets(SPENT)
    await shop.api.patch(f"{shop.path('experiments', 'game')}/status", {"status": {"phase": "Reverting"}})
    assert await shop.change("experiments", "game", {"metadata": {"finalizers": ["kreflex.dev/chaos"]}}) == ""
    await shop.api.delete(shop.path("experiments", "game"))
    assert await shop.change("experiments", "game", {"metadata": {"finalizers": None}}) == ""
    meta = {"name": "net", "namespace": shop.name}
    inner = {"apiVersion": "chaos-mesh.org/v1alpha1", "kind": "PodNetworkChaos", "metadata": meta, "spec": {}}
    assert await shop.create(inner) == ""


@pytest.mark.parametrize(("age", "told"), [(timedelta(), "is spent"), (FRESH + timedelta(seconds=5), "last looked at")])
async def test_what_was_stopped_is_not_begun_again(shop: Shop, age: timedelta, told: str) -> None:
    await shop.budgets(SPENT)
    pause = "experiment.chaos-mesh.org/pause"
    quiet = shop.pod_chaos()
    quiet["metadata"]["annotations"] = {pause: "true"}
    assert await shop.create(quiet) == ""
    assert await shop.create(shop.engine(engineState="stop")) == ""
    await shop.budgets(SPENT if not age else HEALTHY, age=age)
    assert told in await shop.change("podchaos", "kill", {"metadata": {"annotations": {pause: None}}})
    assert told in await shop.change("chaosengines", "drain", {"spec": {"engineState": "active"}})
    await shop.budgets(HEALTHY)
    assert await shop.change("podchaos", "kill", {"metadata": {"annotations": {pause: None}}}) == ""
    assert await shop.change("chaosengines", "drain", {"spec": {"engineState": "active"}}) == ""


async def test_who_makes_the_api_server_forget_when_it_was_written_gains_nothing(shop: Shop) -> None:
    await shop.budgets(HEALTHY)
    assert await shop.create(shop.pod_chaos()) == ""
    await shop.budgets(HEALTHY, age=FRESH + timedelta(seconds=5))
    forgotten = {"metadata": {"managedFields": [{}]}, "spec": {"mode": "all"}}
    assert "last looked at" in await shop.change("podchaos", "kill", forgotten)


def test_what_is_changed_is_asked_as_what_is_new() -> None:
    new, _, changed, _ = [one["spec"] for one in file("error-budget/admission.yaml")]
    for part in ("paramKind", "matchConditions", "variables", "validations"):
        assert new[part] == changed[part]
    rules = [one["matchConstraints"]["resourceRules"] for one in (new, changed)]
    operations = [[rule.pop("operations") for rule in one] for one in rules]
    assert operations == [[["CREATE"]] * 3, [["UPDATE"]] * 3]
    assert rules[0] == rules[1]


async def test_a_running_fault_is_not_made_larger(shop: Shop) -> None:
    await shop.budgets(HEALTHY)
    assert await shop.create(shop.experiment()) == ""
    await shop.budgets(SPENT)
    assert "is spent" in await shop.change("experiments", "game", {"spec": {"amount": "100%"}})


def test_the_writer_has_the_rights_that_it_needs() -> None:
    needed = rights.manifests(rights.Rights("error-budget", (), budgetstatus.RBAC))
    assert file("error-budget/rbac.yaml") == needed


def test_what_is_shipped_is_accepted(own: ControlPlane) -> None:
    folder = kit.ROOT / "knative" / "error-budget"
    applied = kit.kubectl(own, "apply", "--dry-run=server", "--server-side", "--force-conflicts", "-k", str(folder))
    assert "cronjob.batch/error-budget serverside-applied" in applied
    kit.kubectl(own, "create", "namespace", "shop")
    for name in ("rbac", "argocd", "flux-job"):
        kit.kubectl(own, "create", "--dry-run=server", "-f", str(folder / "gates" / f"{name}.yaml"))
