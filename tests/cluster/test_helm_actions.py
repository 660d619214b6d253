"""The Job that rolls a release of Helm back, as the real account of rollback may ask for it on a real API server."""

import copy
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from kreflex.actions import BlockedError
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.errors import ConflictError, DeniedError
from kreflex.helm import Held, Installation, Stored, Undo, stored
from kreflex.helmactions import HELM_BACK, RollBackHelm, begun_undo, helm_went
from kreflex.helmjobs import job_name, job_of, jobs_path
from kreflex.histories import history_of
from kreflex.releases import Helm, Releases
from kreflex.reverts import BACK_BY
from kreflex.revisions import Release, release_of
from kreflex.views import Ref
from lab import manifests
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit

IMAGE = "registry.example.com/helm:4.3.1"
RULES = Helm(service_account="helm-rollback", image=IMAGE, timeout=timedelta(seconds=30))
OURS, THEIRS = "rollback-shop-1", "rollback-shop-2"


@dataclass
class Lab:
    """A namespace, and the account of rollback."""

    here: kit.Place
    reader: Reader
    writer: Writer

    @property
    def undo(self) -> Undo:
        return Undo(Installation("shop", self.here.name), 2, 1)

    async def ask(self, body: kit.Json) -> kit.Json:
        """Ask for a Job, without its being made."""
        return await self.writer.create(f"{jobs_path(self.undo.installation)}?dryRun=All", body)

    async def release(self, name: str = "shop") -> Release:
        async def told() -> Release | None:
            found = await release_of(Ref("apps/v1", "Deployment", self.here.name, name, ""), self.reader)
            return found if isinstance(found, Release) else None

        release: Release = await eventually(told, "the release")
        return release

    async def jobs(self) -> list[kit.Json]:
        found: list[kit.Json] = (await self.here.plane.api.get(jobs_path(self.undo.installation)))["items"]
        return found


async def permit(here: kit.Place) -> None:
    """Apply what the shipped variant gives to rollback in a namespace, to this one."""
    await manifests.apply(here.plane.api, kit.manifests("knative/variants/helm/shop/role.yaml"), here.name)


@pytest.fixture
async def bare(installed: ControlPlane, here: kit.Place) -> AsyncIterator[Lab]:
    """A namespace that has given nothing."""
    transport = Transport(load_credentials(str(await installed.kubeconfig_for("kreflex-system", "rollback"))))
    yield Lab(here, Reader(transport), Writer(transport))
    await transport.close()


@pytest.fixture
async def lab(bare: Lab) -> Lab:
    """One that has given its Role, and the API server has seen it."""
    await permit(bare.here)

    async def allowed() -> bool:
        try:
            await bare.ask(job_of(bare.undo, RULES, OURS))
        except DeniedError:
            return False
        return True

    await eventually(allowed, "the Job allowed")
    return bare


async def test_may_ask_for_the_job_that_it_makes_and_may_let_helm_take_fields(lab: Lab) -> None:
    made = await lab.ask(job_of(lab.undo, RULES, OURS))
    assert made["spec"]["template"]["spec"]["serviceAccountName"] == "helm-rollback"
    await lab.ask(job_of(lab.undo, RULES.model_copy(update={"force_conflicts": True}), OURS))


async def test_may_not_before_somebody_has_given_it_account_and_image(bare: Lab) -> None:
    async def said() -> str:
        try:
            await bare.ask(job_of(bare.undo, RULES, OURS))
        except DeniedError as denied:
            return str(denied)
        return ""

    async def refused() -> bool:
        return "nobody has given it the verb use on that ServiceAccount" in await said()

    await eventually(refused, "the account refused")
    (role, binding) = kit.manifests("knative/variants/helm/shop/role.yaml")
    role["rules"] = [rule for rule in role["rules"] if rule["resources"] == ["serviceaccounts"]]
    await manifests.apply(bare.here.plane.api, [role, binding], bare.here.name)

    async def but_for_the_image() -> bool:
        return "nobody has given it the verb use on that image" in await said()

    await eventually(but_for_the_image, "the image refused")


Change = Callable[[kit.Json, kit.Json], Any]
NOTHING_ELSE = "its pods have one container and nothing else"
ONLY_HELM = "it runs helm rollback and nothing else"
OTHERS: dict[str, tuple[Change, str]] = {
    "another account": (lambda pod, _: pod.update(serviceAccountName="default"), "verb use on that ServiceAccount"),
    "no account": (lambda pod, _: pod.pop("serviceAccountName"), "verb use on that ServiceAccount"),
    "another image": (lambda _, one: one.update(image="evil:1"), "verb use on that image"),
    "a second container": (lambda pod, one: pod["containers"].append({**one, "name": "b"}), NOTHING_ELSE),
    "an init container": (lambda pod, one: pod.update(initContainers=[{**one, "name": "b"}]), NOTHING_ELSE),
    "a volume": (lambda pod, _: pod.update(volumes=[{"name": "v", "emptyDir": {}}]), NOTHING_ELSE),
    "the host's network": (lambda pod, _: pod.update(hostNetwork=True), NOTHING_ELSE),
    "the host's processes": (lambda pod, _: pod.update(hostPID=True), NOTHING_ELSE),
    "a node": (lambda pod, _: pod.update(nodeName="n-1"), NOTHING_ELSE),
    "a variable": (lambda _, one: one.update(env=[{"name": "HELM_KUBEAPISERVER", "value": "x"}]), NOTHING_ELSE),
    "arguments": (lambda _, one: one.update(args=["--debug"]), NOTHING_ELSE),
    "a hook": (lambda _, one: one.update(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}), NOTHING_ELSE),
    "another program": (lambda _, one: one["command"].__setitem__(0, "sh"), ONLY_HELM),
    "another command": (lambda _, one: one["command"].__setitem__(1, "upgrade"), ONLY_HELM),
    "a flag for a name": (lambda _, one: one["command"].__setitem__(2, "--kube-token=x"), ONLY_HELM),
    "no revision": (lambda _, one: one["command"].__setitem__(3, "0"), ONLY_HELM),
    "another namespace": (lambda _, one: one["command"].__setitem__(4, "--namespace=default"), ONLY_HELM),
    "another flag": (lambda _, one: one["command"].append("--no-hooks"), ONLY_HELM),
    "no command": (lambda _, one: one.pop("command"), ONLY_HELM),
    "privileges": (
        lambda _, one: one["securityContext"].update(allowPrivilegeEscalation=True),
        "its container has no privilege",
    ),
    "a capability": (
        lambda _, one: one["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
        "its container has no privilege",
    ),
    "no confinement": (lambda _, one: one.pop("securityContext"), "its container has no privilege"),
}


@pytest.mark.parametrize("what", OTHERS)
async def test_may_not_run_anything_else_under_that_account(lab: Lab, what: str) -> None:
    change, because = OTHERS[what]
    body = copy.deepcopy(job_of(lab.undo, RULES, OURS))
    pod = body["spec"]["template"]["spec"]
    change(pod, pod["containers"][0])
    with pytest.raises(DeniedError, match=because):
        await lab.ask(body)


async def test_may_not_without_the_label_or_in_a_protected_namespace(lab: Lab) -> None:
    body = copy.deepcopy(job_of(lab.undo, RULES, OURS))
    del body["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/managed-by"]
    with pytest.raises(DeniedError, match=r"its pods are labelled app.kubernetes.io/managed-by=kreflex"):
        await lab.ask(body)
    elsewhere = Undo(Installation("shop", "kube-system"), 2, 1)
    with pytest.raises(DeniedError, match="nothing is done in kube-system"):
        await lab.writer.create(f"{jobs_path(elsewhere.installation)}?dryRun=All", job_of(elsewhere, RULES, OURS))


async def secret(here: kit.Place, version: int, status: str, name: str = "shop") -> None:
    """Make what Helm keeps of a revision."""
    labels = {"owner": "helm", "name": name, "version": str(version), "status": status}
    body = {
        "metadata": {"name": f"sh.helm.release.v1.{name}.v{version}", "labels": labels},
        "type": "helm.sh/release.v1",
        "stringData": {"release": "hidden"},
    }
    await here.plane.api.post(f"/api/v1/namespaces/{here.name}/secrets", body)


async def test_sees_the_revisions_and_nothing_of_what_is_in_them(lab: Lab) -> None:
    await secret(lab.here, 9, "superseded")
    await secret(lab.here, 10, "deployed")
    await secret(lab.here, 3, "failed", "another")
    found = await stored(lab.undo.installation, lab.reader) or ()
    assert found == (Stored(10, "deployed", found[0].at), Stored(9, "superseded", found[1].at))
    read = [one async for one in lab.reader.list_metadata(f"/api/v1/namespaces/{lab.here.name}/secrets")]
    assert len(read) == 3
    assert {key for one in read for key in one} <= {"kind", "apiVersion", "metadata"}


async def test_who_has_no_right_to_list_secrets_is_told_so(bare: Lab) -> None:
    assert await stored(bare.undo.installation, bare.reader) is None


async def a_bad_release(lab: Lab) -> None:
    """Make a Deployment with two revisions, as Helm marks what is its own."""
    await lab.here.deployment()
    path = f"/apis/apps/v1/namespaces/{lab.here.name}/deployments/shop"
    notes = {"meta.helm.sh/release-name": "shop", "meta.helm.sh/release-namespace": lab.here.name}
    meta = {"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": notes}
    spec = {"template": {"spec": {"containers": [{"name": "app", "image": "shop:2"}]}}}
    await lab.here.plane.api.patch(path, {"metadata": meta, "spec": spec})

    async def two() -> bool:
        return len((await lab.release()).revisions) == 2

    await eventually(two, "two revisions")


def action(lab: Lab, release: Release) -> RollBackHelm:
    return RollBackHelm("it crashes", lab.undo, release.earlier[0], RULES, release=release)


async def applied(lab: Lab, mark: str = OURS) -> str:
    """Do it to the release as it is now; again if its controller changes it in between."""

    async def done() -> str | None:
        release = await lab.release()
        try:
            return await action(lab, release).apply(lab.writer, lab.reader, mark)
        except BlockedError as blocked:
            return str(blocked)
        except ConflictError:
            return None

    said: str = await eventually(done, "the action applied")
    return said


async def test_the_version_is_condemned_the_way_noted_and_one_job_made_however_often_it_is_done(lab: Lab) -> None:
    await a_bad_release(lab)
    release = await lab.release()
    for _ in range(2):
        note = f"Job shop-undo-2 takes Helm's release {lab.here.name}/shop from revision 2 back to 1"
        assert await applied(lab) == note

    after = await lab.release()
    notes = after.workload.annotations
    assert (notes[HELM_BACK], notes[BACK_BY], notes["meta.helm.sh/release-name"]) == ("2/1", OURS, "shop")
    assert begun_undo(after, OURS) == lab.undo
    assert begun_undo(after, THEIRS) is None
    bad = (await history_of(release.workload.ref, lab.reader)).of(release.current.hash)
    assert bad is not None
    assert bad.bad == OURS
    assert [job["metadata"]["name"] for job in await lab.jobs()] == ["shop-undo-2"]


async def test_of_two_records_of_one_release_the_second_waits(lab: Lab) -> None:
    await a_bad_release(lab)
    await applied(lab)
    said = await applied(lab, THEIRS)
    assert said == (
        f"Job {lab.here.name}/shop-undo-2 of {OURS} is there already: one rollback of a release at a time;"
        " if it has ended, delete it"
    )


async def test_what_became_of_the_job_is_told(lab: Lab) -> None:
    await a_bad_release(lab)
    await secret(lab.here, 1, "superseded")
    await secret(lab.here, 2, "deployed")
    await applied(lab)
    release, path = await lab.release(), f"{jobs_path(lab.undo.installation)}/{job_name(lab.undo)}"
    running = await helm_went(release, OURS, Releases(), lab.reader)
    assert isinstance(running, Held)
    assert running.until is not None

    await lab.here.plane.api.delete(path, {"propagationPolicy": "Background"})
    assert await helm_went(release, OURS, Releases(), lab.reader) == lab.undo
    await secret(lab.here, 3, "deployed")
    assert await helm_went(release, OURS, Releases(), lab.reader) is None
    assert await helm_went(release, THEIRS, Releases(), lab.reader) is None
