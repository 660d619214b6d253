"""The way back by Git on a real API server, with a real repository, and a stand-in for Argo CD's controller."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
import yaml

from kreflex import Defer, Settings, Skip, Treatment, Unknown, World, admission, rights
from kreflex.actions import BlockedError, HopelessError
from kreflex.cluster import Reader, Transport, Writer
from kreflex.courses import CUT_OFF
from kreflex.credentials import load_credentials
from kreflex.decisions import Refuse
from kreflex.errors import ApiError, ConflictError, DeniedError
from kreflex.gitactions import PROPOSED, ProposeRevert, PushRevert, RequestSync, WayInGit, step_in_git
from kreflex.gitops import SUSPENDED_BY, SYNC_SUSPENDED, Manager, manager_of
from kreflex.histories import history_of
from kreflex.prom import Metrics
from kreflex.records import Taken
from kreflex.reflex import Reflex
from kreflex.releaseactions import ReleaseAction, remedy_of
from kreflex.releases import Git
from kreflex.reverts import RevertTemplate
from kreflex.revisions import Release, release_of
from kreflex.signals import Course, WorkloadSignal
from kreflex.suspensions import ForgetSuspension, NoteSuspension, SuspendSync, step_to_suspend, still_suspended
from kreflex.views import Ref
from lab import argo_cd, forges, git, manifests
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit

NAME, HOME, OURS = "git-mender", "kreflex-system", "git-mender-shop-1"
ME = git.Account("kreflex", "secret")
BAD = "shop:2-crash"
HISTORIES = "/apis/kreflex.dev/v1alpha1/namespaces/default/releasehistories"
ORPHAN = {
    "apiVersion": "kreflex.dev/v1alpha1",
    "kind": "ReleaseHistory",
    "metadata": {"name": "probe", "namespace": "default"},
    "spec": {"workload": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "none", "uid": "none"}},
}


async def find(world: World, settings: Settings) -> AsyncIterator[WorkloadSignal]:
    async for body in world.cluster.list("/apis/apps/v1/deployments"):
        yield WorkloadSignal("apps/v1", "Deployment", body["metadata"]["namespace"], body["metadata"]["name"])


async def decide(
    signal: WorkloadSignal, world: World, settings: Settings
) -> (
    ForgetSuspension
    | NoteSuspension
    | ProposeRevert
    | PushRevert
    | RequestSync
    | RevertTemplate
    | SuspendSync
    | Defer
    | Refuse
    | Skip
):
    return Skip("it only names what may be done")


async def recovered(treatment: Treatment, world: World, settings: Settings) -> Unknown | Defer:
    return Unknown("it only names what may be done")


REFLEX = Reflex(NAME, find, decide, recovered, Settings())


@dataclass
class Lab:
    """The control plane, forges, and an account with the rights of a function that goes back by Git."""

    plane: ControlPlane
    forge: forges.Forge
    reader: Reader
    writer: Writer

    @property
    def world(self) -> World:
        return World(self.reader, Metrics(""), NAME, HOME)


@pytest.fixture(scope="module")
async def lab(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    await argo_cd.install(installed)
    allowed = rights.rights_of(REFLEX)
    await manifests.apply(installed.api, [*rights.manifests(allowed), *admission.policy_of(allowed)])
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "git-mender", "namespace": HOME}}
    login = {"stringData": {"username": ME.name, "password": ME.password}}
    await manifests.apply(installed.api, [{**secret, **login}])
    transport = Transport(load_credentials(str(await installed.kubeconfig_for(HOME, NAME))))
    async with argo_cd.running(installed, 1), forges.serving(tmp_path_factory.mktemp("git"), ME) as forge:
        made = Lab(installed, forge, Reader(transport), Writer(transport))
        await eventually(lambda: denied(made.writer.create(f"{HISTORIES}?dryRun=All", ORPHAN)), "the admission policy")
        yield made
    await transport.close()


async def denied(asking: Awaitable[Any]) -> bool:
    try:
        await asking
    except DeniedError:
        return True
    except ApiError:
        return False
    return False


@dataclass
class Shop:
    """A Deployment that Argo CD brings from a repository."""

    lab: Lab
    here: kit.Place
    repository: git.Repository
    body: Callable[[str], kit.Json]

    @property
    def name(self) -> str:
        return self.here.name

    @property
    def application(self) -> str:
        return f"{argo_cd.APPLICATIONS}/{self.name}"

    async def release(self, image: str) -> str:
        """Commit a release, and wait until it is in the cluster."""
        commit = await self.repository.commit(f"Release {image}", {"shop/shop.yaml": yaml.safe_dump(self.body(image))})
        await self.runs(image)
        return commit

    async def image(self) -> str:
        deployment = await self.lab.plane.api.find(f"/apis/apps/v1/namespaces/{self.name}/deployments/shop")
        return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"]) if deployment else ""

    async def runs(self, image: str) -> None:
        async def found() -> bool:
            return await self.image() == image

        await eventually(found, f"{image} in {self.name}", 90)

    async def told(self) -> Release:
        """Read the release, once its controller has seen what was changed last."""
        path = f"/apis/apps/v1/namespaces/{self.name}/deployments/shop"
        uid = (await self.lab.plane.api.get(path))["metadata"]["uid"]

        async def found() -> Release | None:
            release = await release_of(Ref("apps/v1", "Deployment", self.name, "shop", uid), self.lab.reader)
            return release if isinstance(release, Release) and release.new_pods else None

        release: Release = await eventually(found, "the release")
        return release

    async def manager(self) -> Manager:
        manager = await manager_of((await self.told()).body, self.lab.reader)
        assert manager is not None
        return manager

    async def way(self, **rules: Any) -> WayInGit:
        """Tell what is needed to go back by Git, once the Application knows what it has brought."""

        async def brought() -> Manager | None:
            found = await self.manager()
            return found if found.applied == (await self.repository.branches())["main"] else None

        by: Manager = await eventually(brought, "the Application's status")
        release = await self.told()
        return WayInGit(
            release=release,
            to=release.earlier[0],
            by=by,
            rules=Git(secret="git-mender", repositories=(self.lab.forge.server.url,), **rules),
            because="app crashes",
            episode=f"{release.current.hash}/{release.current.number}",
        )

    async def next(self, way: WayInGit, *steps: Taken) -> Any:
        course = Course(OURS, way.release.changed_at, steps)
        return await step_in_git(way, course, self.lab.world)

    async def apply(self, action: Any) -> str:
        for _ in range(5):
            try:
                note: str = await action.apply(self.lab.writer, self.lab.reader, OURS)
                return note
            except ConflictError:
                release = await self.told()
                action = replace(action, release=release) if isinstance(action, ReleaseAction) else action
        raise AssertionError("it changes all the time")

    def taken(self, action: Any, note: str, way: WayInGit) -> Taken:
        now = self.lab.reader.now()
        return Taken(action=action.step_name, first=now, last=now, note=note)


@pytest.fixture
async def shop(lab: Lab, here: kit.Place) -> AsyncIterator[Shop]:
    def body(image: str) -> kit.Json:
        made = kit.deployment("shop", 1, containers=[{"name": "app", "image": image}])
        return {**made, "metadata": {**made["metadata"], "namespace": here.name}}

    repository = await lab.forge.server.make(f"team/{here.name}", {"shop/shop.yaml": yaml.safe_dump(body("shop:1"))})
    await argo_cd.follow(lab.plane, here.name, here.name, repository, ME, "shop")
    made = Shop(lab, here, repository, body)
    await made.runs("shop:1")
    await here.ready_pods("shop", 1)
    yield made
    await argo_cd.remove(lab.plane, here.name)


async def test_a_live_rollback_does_not_last_and_admission_denies_it(shop: Shop) -> None:
    await shop.release(BAD)
    kit.kubectl(shop.lab.plane, "set", "image", "deployment/shop", "app=shop:1", f"--namespace={shop.name}")
    await shop.runs(BAD)
    release = await shop.told()
    with pytest.raises(DeniedError, match=r"Git owns spec\.template of it: change it there"):
        await shop.apply(RevertTemplate("it crashes", release.earlier[0], release=release))
    assert await shop.image() == BAD


async def test_a_commit_takes_the_release_back_and_argo_cd_brings_the_old_one(shop: Shop) -> None:
    bad = await shop.release(BAD)
    way = await shop.way(mode="Commit")
    push = await shop.next(way)
    assert isinstance(push, PushRevert)
    note = await shop.apply(push)
    (pushed, *_) = await shop.repository.log()
    good, worse = f"revision 1 ({way.to.hash})", f"revision 2 ({way.bad})"
    assert (note, pushed.parents) == (f"pushed {pushed.sha[:12]} to main of {shop.repository.url}", (bad,))
    assert pushed.message.splitlines() == [
        f"Take back {bad[:12]}: Deployment {shop.name}/shop fails with it"[:72],
        "",
        "app crashes.",
        "",
        f"It was well with {good}, and is ill with {worse}, which {way.by} has brought from main.",
        "Taken back is only what these commits did to these files, and nothing that came later:",
        f"- {bad[:12]} Release {BAD} (Lab)",
        "  shop/shop.yaml",
        "",
        f"With it Deployment {shop.name}/shop has shop:1 again, as when it was well.",
        "",
        f"Kreflex-Record: {shop.name}/{OURS}",
        f"Kreflex-Reverts: {bad}",
    ]
    assert await shop.apply(push) == f"{pushed.sha[:12]} is in main of {shop.repository.url} already"
    assert (await shop.repository.log())[0] == pushed

    told = await history_of(way.release.workload.ref, shop.lab.reader)
    assert {one.hash: one.bad for one in told.revisions} == {way.bad: OURS}
    took = shop.taken(push, note, way)
    request = await shop.next(way, took)
    assert isinstance(request, RequestSync)
    assert await shop.apply(request) == f"Application argocd/{shop.name} was asked"
    asked = shop.taken(request, "", way)
    waits = await shop.next(way, took, asked)
    assert isinstance(waits, Defer)
    await shop.runs("shop:1")
    after = await shop.told()
    arrived = await shop.next(replace(way, release=after), took, asked)
    assert arrived == Skip(f"Application argocd/{shop.name} has brought {way.to.hash} instead of {way.bad}")
    await shop.here.ready_pods("shop", 1)


async def test_a_step_that_was_cut_off_is_taken_again(shop: Shop) -> None:
    await shop.release(BAD)
    way = await shop.way(mode="Commit")
    push = await shop.next(way)
    again = await shop.next(way, shop.taken(push, CUT_OFF, way))
    assert type(again) is PushRevert


async def test_what_does_not_arrive_in_time_is_told_to_people(shop: Shop) -> None:
    await shop.release(BAD)
    way = await shop.way(mode="Commit", within="1s")
    way = replace(way, by=replace(way.by, complaint="no such path"))
    then = way.release.changed_at - timedelta(seconds=5)
    steps = [Taken(action=name, first=then, last=then) for name in ("PushRevert", "RequestSync")]
    late = await shop.next(way, *steps)
    assert isinstance(late, Refuse)
    assert late.cause == "GitLate"
    assert late.because.endswith(f"has not brought what Git says since {then:%H:%M:%S}: no such path")


async def test_a_pull_request_is_opened_once_and_waited_for_and_then_it_arrives(shop: Shop) -> None:
    await shop.release(BAD)
    way = await shop.way(mode="PullRequest", forge="GitHub", api=shop.lab.forge.server.url)
    propose = await shop.next(way)
    assert isinstance(propose, ProposeRevert)
    note = await shop.apply(propose)
    assert await shop.apply(propose) == note
    (pull,) = [one for one in shop.lab.forge.pulls if one.repository == shop.repository]
    assert note == f"{PROPOSED}{shop.repository.url.removesuffix('.git')}/pull/1"
    assert (pull.head, pull.base, pull.title) == (
        f"kreflex/{OURS}",
        "main",
        f"Take back {way.by.applied[:12]}: Deployment {shop.name}/shop fails with it"[:72],
    )
    assert f"Kreflex-Record: {shop.name}/{OURS}" in pull.body
    took = shop.taken(propose, note, way)
    waits = await shop.next(way, took)
    assert isinstance(waits, Defer)
    assert waits.because == f"{note.removeprefix(PROPOSED)} waits for people"

    await shop.lab.forge.merge(pull)
    assert isinstance(await shop.next(way, took), RequestSync)
    await shop.runs("shop:1")
    assert isinstance(await shop.next(replace(way, release=await shop.told()), took), Skip)


async def test_people_who_close_a_pull_request_have_decided(shop: Shop) -> None:
    await shop.release(BAD)
    way = await shop.way(mode="PullRequest", forge="GitLab", api=f"{shop.lab.forge.server.url}/api/v4")
    propose = await shop.next(way)
    took = shop.taken(propose, await shop.apply(propose), way)
    (pull,) = [one for one in shop.lab.forge.pulls if one.repository == shop.repository]
    shop.lab.forge.close(pull)
    declined = await shop.next(way, took)
    assert isinstance(declined, Refuse)
    assert declined.cause == "Declined"


async def test_a_commit_that_would_change_others_too_is_only_proposed(shop: Shop) -> None:
    mail = {**shop.body("mail:1"), "metadata": {"name": "mail", "namespace": shop.name}}
    both = {"shop/shop.yaml": yaml.safe_dump(shop.body(BAD)), "shop/mail.yaml": yaml.safe_dump(mail)}
    await shop.repository.commit("Release all", both)
    await shop.runs(BAD)
    way = await shop.way(mode="Commit")
    push = await shop.next(way)
    before = (await shop.repository.branches())["main"]
    note = await shop.apply(push)
    assert note == f"{PROPOSED}branch kreflex/{OURS} of {shop.repository.url}, to be merged into main"
    branches = await shop.repository.branches()
    assert branches["main"] == before
    (proposed, *_) = await shop.repository.log(f"kreflex/{OURS}")
    assert "Attention: it also changes Deployment mail." in proposed.message
    assert isinstance(await shop.next(way, shop.taken(push, note, way)), Defer)


async def test_a_secret_that_is_not_there_is_named_and_no_version_is_condemned(shop: Shop) -> None:
    await shop.release(BAD)
    way = await shop.way(mode="Commit")
    push = await shop.next(replace(way, rules=way.rules.model_copy(update={"secret": "other"})))
    with pytest.raises(BlockedError, match="Secret kreflex-system/other is not there"):
        await shop.apply(push)
    refused = replace(push, rules=way.rules.model_copy(update={"secret": ""}))
    with pytest.raises(BlockedError, match="does not let us in"):
        await shop.apply(refused)
    assert (await history_of(way.release.workload.ref, shop.lab.reader)).revisions == ()


async def test_nothing_is_shown_to_a_repository_that_the_policy_does_not_name(shop: Shop) -> None:
    await shop.release(BAD)
    way = await shop.way(mode="Commit")
    push = await shop.next(way)
    elsewhere = ("https://git.example/team", f"{shop.repository.url.removesuffix('.git')}-2")
    way = replace(way, rules=way.rules.model_copy(update={"repositories": elsewhere}))
    because = f"the policy's releases.git.repositories does not name {shop.repository.url}"
    refused = await shop.next(way)
    assert isinstance(refused, Refuse)
    assert (refused.cause, because in refused.because) == ("GitForeign", True)
    before = await shop.repository.branches()
    with pytest.raises(HopelessError, match="does not name"):
        await shop.apply(replace(push, rules=way.rules))
    assert await shop.repository.branches() == before


async def test_secrets_are_read_at_home_and_nowhere_else(shop: Shop) -> None:
    found = await shop.lab.reader.get(f"/api/v1/namespaces/{HOME}/secrets/git-mender")
    assert found is not None
    assert base64.b64decode(found["data"]["username"]).decode() == ME.name
    with pytest.raises(ApiError, match="forbidden"):
        await shop.lab.reader.get(f"/api/v1/namespaces/{shop.name}/secrets/any")


async def test_a_sync_is_suspended_and_then_a_live_rollback_lasts_and_says_so(shop: Shop) -> None:
    await shop.release(BAD)
    way = await shop.way(mode="Suspend")
    note = step_to_suspend(way, None, shop.lab.reader.now())
    assert isinstance(note, NoteSuspension)
    await shop.apply(note)
    way = await shop.way(mode="Suspend")
    suspend = step_to_suspend(way, None, shop.lab.reader.now())
    assert isinstance(suspend, SuspendSync)
    assert await shop.apply(suspend) == f"Application argocd/{shop.name} is not synced automatically any more"
    way = await shop.way(mode="Suspend")
    assert (way.by.suspended, way.by.suspended_by) == (True, OURS)
    now = shop.lab.reader.now()
    course = Course(OURS, now, (Taken(action="SuspendSync", first=now, last=now),))
    assert isinstance(step_to_suspend(way, course, now), Defer)
    assert step_to_suspend(way, course, now + timedelta(seconds=10)) is None
    waits = step_to_suspend(replace(way, by=replace(way.by, syncing=True)), course, now + timedelta(seconds=10))
    assert isinstance(waits, Defer)
    assert waits.because.endswith("is suspended and still being synced: wait for it, or terminate it")

    await argo_cd.refreshed(shop.lab.plane, shop.name)
    await shop.apply(RevertTemplate("it crashes", way.to, release=way.release))
    await shop.runs("shop:1")
    await shop.here.ready_pods("shop", 1)
    assert await shop.image() == "shop:1"
    told = still_suspended(await shop.told(), await shop.manager())
    assert isinstance(told, Refuse)
    assert (told.cause, told.episode) == ("SyncSuspended", f"suspended/{OURS}")
    assert f"kubectl -n argocd patch application {shop.name} --type merge" in told.because

    resumed = {"spec": {"syncPolicy": {"automated": {"enabled": True}}}}
    with pytest.raises(DeniedError, match="a sync is suspended and never resumed: that is for people"):
        await shop.lab.writer.merge(shop.application, resumed)
    await shop.lab.plane.api.patch(shop.application, resumed)
    forget = still_suspended(await shop.told(), await shop.manager())
    assert isinstance(forget, ForgetSuspension)
    await shop.apply(forget)
    assert SYNC_SUSPENDED not in (await shop.told()).workload.annotations


async def test_of_an_application_nothing_else_may_be_changed(shop: Shop) -> None:
    for changed in (
        {"spec": {"source": {"targetRevision": "other"}}},
        {"spec": {"syncPolicy": {"retry": {"limit": 1}}}},
        {"metadata": {"annotations": {"argocd.argoproj.io/skip-reconcile": "true"}}},
    ):
        with pytest.raises(DeniedError, match="may change"):
            await shop.lab.writer.merge(shop.application, changed)


async def test_an_application_that_another_one_brings_is_not_suspended(shop: Shop) -> None:
    tracked = {"argocd.argoproj.io/tracking-id": f"root:argoproj.io/Application:argocd/{shop.name}"}
    await shop.lab.plane.api.patch(shop.application, {"metadata": {"annotations": tracked}})
    await shop.release(BAD)
    way = await shop.way(mode="Suspend")
    refused = step_to_suspend(way, None, shop.lab.reader.now())
    assert isinstance(refused, Refuse)
    assert refused.because.endswith("can't be suspended, for it would be resumed by Application root")
    release = await shop.told()
    with pytest.raises(HopelessError, match="would be resumed by Application root"):
        await shop.apply(SuspendSync("it crashes", remedy=remedy_of(release), by=way.by))
    with pytest.raises(DeniedError, match=r"Git owns spec\.syncPolicy\.automated of it"):
        await shop.apply(SuspendSync("it crashes", remedy=remedy_of(release), by=replace(way.by, restored="")))


async def test_the_mark_of_who_suspended_it_stands_on_the_application(shop: Shop) -> None:
    await shop.release(BAD)
    way = await shop.way(mode="Suspend")
    await shop.apply(SuspendSync("it crashes", remedy=remedy_of(way.release), by=way.by))
    body = await shop.lab.plane.api.get(shop.application)
    assert body["metadata"]["annotations"][SUSPENDED_BY] == OURS
    assert body["spec"]["syncPolicy"]["automated"] == {"selfHeal": True, "enabled": False}
