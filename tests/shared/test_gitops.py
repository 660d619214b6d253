"""Who writes an object from Git, from where, and which revision was good."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kreflex.cluster import Reader
from kreflex.errors import OutageError
from kreflex.gitops import Deployed, Manager, good_revision, inside, is_syncing, manager_of, revision_in, source_of
from kreflex.views import JSON, Ref
from tests.values import HOUR, MINUTE, NOW, CannedApi, stamp

GOOD, BAD = "a" * 40, "b" * 40
TRACKING = "argocd.argoproj.io/tracking-id"
URL = "https://git.example/team/shop.git"
ARGO = "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications"
KUSTOMIZATION = "/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations/shop"
REPOSITORY = "/apis/source.toolkit.fluxcd.io/v1/namespaces/flux-system/gitrepositories/shop"
HELM_RELEASE = "/apis/helm.toolkit.fluxcd.io/v2/namespaces/shop/helmreleases/cart"
APPLICATION_REF = Ref("argoproj.io/v1alpha1", "Application", "argocd", "shop", "uid-app")
KUSTOMIZATION_REF = Ref("kustomize.toolkit.fluxcd.io/v1", "Kustomization", "flux-system", "shop", "uid-ks")
REPOSITORY_REF = Ref("source.toolkit.fluxcd.io/v1", "GitRepository", "flux-system", "shop", "uid-git")
FLUX = {"kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}
TRACKED = {TRACKING: "shop:apps/Deployment:shop/cart"}
# As both controllers write them.
MAIL: JSON = {"group": "apps", "version": "v1", "kind": "Deployment", "namespace": "shop", "name": "mail"}
CART: JSON = {**MAIL, "name": "cart"}
CONFIG: JSON = {"version": "v1", "kind": "ConfigMap", "namespace": "shop", "name": "cart"}


def a_deployment(
    annotations: dict[str, str] | None = None, labels: dict[str, str] | None = None, writers: Any = ()
) -> JSON:
    fields = [{"manager": one, "fieldsV1": {"f:spec": {"f:template": {}}}} for one in writers]
    meta = {"namespace": "shop", "name": "cart", "uid": "uid-cart", "managedFields": fields}
    noted = {"annotations": annotations or {}, "labels": labels or {}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {**meta, **noted}}


def an_application(
    source: JSON | None = None, status: JSON | None = None, meta: JSON | None = None, **spec: Any
) -> JSON:
    """An Application that has brought GOOD an hour ago, and BAD just now."""
    history = [
        {"id": 0, "revision": GOOD, "deployedAt": stamp(NOW - HOUR)},
        {"id": 1, "revision": BAD, "deployedAt": stamp(NOW - MINUTE)},
    ]
    synced = {"phase": "Succeeded", "syncResult": {"revision": BAD}}
    return {
        "metadata": {"namespace": "argocd", "name": "shop", "uid": "uid-app", "resourceVersion": "7", **(meta or {})},
        "spec": {
            "source": {"repoURL": URL, "path": "shop", "targetRevision": "main", **(source or {})},
            "syncPolicy": {"automated": {"selfHeal": True}},
            **spec,
        },
        "status": {
            "history": history,
            "operationState": synced,
            "resources": [CART, MAIL, CONFIG],
            **(status or {}),
        },
    }


def a_kustomization(status: JSON | None = None, meta: JSON | None = None, **spec: Any) -> JSON:
    entries = [{"id": f"shop_{name}_apps_Deployment", "v": "v1"} for name in ("cart", "mail")]
    return {
        "metadata": {
            "namespace": "flux-system",
            "name": "shop",
            "uid": "uid-ks",
            "resourceVersion": "8",
            **(meta or {}),
        },
        "spec": {"path": "./shop", "sourceRef": {"kind": "GitRepository", "name": "shop"}, **spec},
        "status": {
            "lastAppliedRevision": f"main@sha1:{BAD}",
            "lastAttemptedRevision": f"main@sha1:{BAD}",
            "inventory": {"entries": [*entries, {"id": "shop_cart__ConfigMap", "v": "v1"}]},
            "conditions": [{"type": "Ready", "status": "True", "reason": "ReconciliationSucceeded"}],
            **(status or {}),
        },
    }


def a_repository(**spec: Any) -> JSON:
    meta = {"namespace": "flux-system", "name": "shop", "uid": "uid-git"}
    return {"metadata": meta, "spec": {"url": URL, "ref": {"branch": "main"}, **spec}}


async def found(body: JSON, **objects: JSON) -> Manager | None:
    paths = {"application": f"{ARGO}/shop", "kustomization": KUSTOMIZATION, "repository": REPOSITORY}
    paths["release"] = HELM_RELEASE
    return await manager_of(body, Reader(CannedApi({paths[key]: one for key, one in objects.items()})))


async def the_application(source: JSON | None = None, **about: Any) -> Manager:
    manager = await found(a_deployment(TRACKED), application=an_application(source, **about))
    assert manager is not None
    return manager


async def the_kustomization(repository: JSON | None = None, **about: Any) -> Manager:
    objects = {"kustomization": a_kustomization(**about), "repository": repository or a_repository()}
    manager = await found(a_deployment(labels=FLUX), **objects)
    assert manager is not None
    return manager


async def test_an_application_tells_where_it_reads_and_what_it_has_brought() -> None:
    assert await the_application() == Manager(
        ref=APPLICATION_REF,
        resource_version="7",
        url=URL,
        branch="main",
        paths=("shop",),
        applied=BAD,
        history=(Deployed(GOOD, NOW - HOUR),),
        others=("Deployment shop/mail",),
    )


async def test_a_kustomization_tells_where_it_reads_and_what_it_has_brought() -> None:
    assert await the_kustomization() == Manager(
        ref=KUSTOMIZATION_REF,
        resource_version="8",
        url=URL,
        branch="main",
        paths=("shop",),
        applied=BAD,
        others=("Deployment shop/mail",),
        source=REPOSITORY_REF,
    )


async def test_what_nobody_writes_from_git_has_no_manager() -> None:
    assert await found(a_deployment(writers=["kubectl-client-side-apply"])) is None


async def test_a_label_that_helm_sets_too_proves_nothing() -> None:
    labelled = a_deployment(labels={"app.kubernetes.io/instance": "shop"})
    assert await found(labelled) is None
    elsewhere = an_application(status={"resources": [MAIL]})
    assert await found(labelled, application=elsewhere) is None


async def test_an_application_that_lists_the_object_proves_the_label() -> None:
    labelled = a_deployment(labels={"app.kubernetes.io/instance": "shop"})
    manager = await found(labelled, application=an_application())
    assert manager == await the_application()


async def test_a_tracking_id_that_was_copied_from_another_object_counts_for_nothing() -> None:
    copied = a_deployment({TRACKING: "shop:apps/Deployment:shop/other"})
    assert await found(copied, application=an_application()) is None


async def test_an_application_of_another_namespace_is_named_with_it() -> None:
    path = "/apis/argoproj.io/v1alpha1/namespaces/team-a/applications/shop"
    api = CannedApi({path: an_application()})
    manager = await manager_of(a_deployment({TRACKING: "team-a_shop:apps/Deployment:shop/cart"}), Reader(api))
    assert manager is not None
    assert str(manager) == "Application team-a/shop"


async def test_an_application_that_does_not_list_the_object_takes_nothing_back_for_it() -> None:
    copied = a_deployment({TRACKING: "shop:apps/Deployment:shop/cart"})
    assert await found(copied, application=an_application(status={"resources": [MAIL]})) == Manager(
        replace(APPLICATION_REF, uid=""),
        held="it does not list it in its status.resources: take its mark off the object, or wait for its sync",
    )


async def test_a_kustomization_that_does_not_list_the_object_takes_nothing_back_for_it() -> None:
    others = {"inventory": {"entries": [{"id": "shop_mail_apps_Deployment", "v": "v1"}]}}
    objects = {"kustomization": a_kustomization(status=others), "repository": a_repository()}
    assert await found(a_deployment(labels=FLUX), **objects) == Manager(
        replace(KUSTOMIZATION_REF, uid=""),
        held="it does not list it in its status.inventory: take its mark off the object, or wait for its sync",
    )


async def test_nothing_but_a_commit_is_taken_for_a_revision() -> None:
    """An Application's status may be written by whoever may write it, and git has options for a log's file."""
    history = [{"revision": f"--output=/tmp/{GOOD}/x", "deployedAt": stamp(NOW - HOUR)}]
    status = {"history": history, "operationState": {"syncResult": {"revision": "--output=/tmp/x"}}}
    manager = await the_application(status=status)
    assert (manager.applied, manager.history) == ("", ())


async def test_a_token_in_an_address_is_shown_to_nobody() -> None:
    for token in ("ghp_1234@", "me:ghp_1234@", "me:ghp@1234@"):
        manager = await the_application({"repoURL": f"https://{token}git.example/team/shop.git"})
        assert manager.url == URL
        kustomization = await the_kustomization(a_repository(url=f"https://{token}git.example/team/shop.git"))
        assert kustomization.url == URL


async def test_a_branch_may_be_named_in_full() -> None:
    manager = await the_application({"targetRevision": "refs/heads/main"})
    assert (manager.branch, manager.held) == ("main", "")


async def test_argo_cd_may_live_elsewhere() -> None:
    path = "/apis/argoproj.io/v1alpha1/namespaces/openshift-gitops/applications/shop"
    api = CannedApi({path: an_application()})
    manager = await manager_of(a_deployment(TRACKED), Reader(api), "openshift-gitops")
    assert manager is not None
    assert str(manager) == "Application openshift-gitops/shop"


async def test_what_is_written_from_another_cluster_is_left_alone() -> None:
    for body in (a_deployment(TRACKED), a_deployment(labels=FLUX)):
        manager = await found(body)
        assert manager is not None
        assert "is not in this cluster: it may be in another that manages this one" in manager.held


async def test_a_kind_that_is_not_served_is_not_there() -> None:
    class Unserved(CannedApi):
        async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
            raise OutageError("404 page not found", 404)

    manager = await manager_of(a_deployment(TRACKED), Reader(Unserved()))
    assert manager is not None
    assert "is not in this cluster" in manager.held


async def test_an_api_server_in_trouble_is_not_taken_for_an_absence() -> None:
    class Troubled(CannedApi):
        async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
            raise OutageError("etcd is away", 500)

    with pytest.raises(OutageError):
        await manager_of(a_deployment(TRACKED), Reader(Troubled()))


async def test_fields_that_a_controller_of_git_has_written_are_its_own_without_any_label() -> None:
    manager = await found(a_deployment(writers=["kustomize-controller"]))
    assert manager is not None
    assert manager.held == "Flux has written its template, and nothing on it tells from where"


@pytest.mark.parametrize(
    ("spec", "held"),
    [
        ({"sources": [{"repoURL": URL}]}, "it has several sources, and which of them is to blame nobody can tell"),
        (
            {"sourceHydrator": {"drySource": {}}},
            "what it applies is made from another branch (sourceHydrator), so it has to be undone there",
        ),
        (
            {"source": {"repoURL": "https://charts.example", "chart": "shop"}},
            "its source is the chart shop of a Helm repository, not a path in Git",
        ),
        (
            {"source": {"repoURL": "oci://registry.example/shop", "path": "."}},
            "its source oci://registry.example/shop is no Git repository over https or ssh",
        ),
        (
            {"source": {"repoURL": "--upload-pack=x"}},
            "its source --upload-pack=x is no Git repository over https or ssh",
        ),
        (
            {"source": {"repoURL": "https://me:secret@git.example/shop.git"}},
            "the address of its source has a password in it: put that into a Secret",
        ),
        (
            {"source": {"repoURL": "https://git.example/../other/shop.git"}},
            "its source https://git.example/../other/shop.git is no Git repository over https or ssh",
        ),
        (
            {"source": {"repoURL": URL, "targetRevision": BAD}},
            f"it follows {BAD}, which is no branch: change it there",
        ),
        (
            {"source": {"repoURL": URL, "targetRevision": ">=1.0"}},
            "it follows >=1.0, which is no branch: change it there",
        ),
        (
            {"source": {"repoURL": URL, "targetRevision": "main:refs/heads/other"}},
            "it follows main:refs/heads/other, which is no branch: change it there",
        ),
        ({"source": {"repoURL": URL, "targetRevision": "release/1.0"}}, ""),
        ({"source": {"repoURL": "https://me@git.example/shop.git"}}, ""),
        ({"source": {"repoURL": "git@git.example:team/shop.git"}}, ""),
        ({"source": {"repoURL": "ssh://git@git.example:2222/team/shop.git"}}, ""),
    ],
)
async def test_an_application_whose_source_is_no_path_in_git_is_left_to_people(spec: JSON, held: str) -> None:
    body = an_application()
    manager = await found(a_deployment(TRACKED), application={**body, "spec": {**body["spec"], **spec}})
    assert manager is not None
    assert manager.held == held


@pytest.mark.parametrize(
    ("automated", "suspended"),
    [(None, True), ({}, False), ({"enabled": True}, False), ({"enabled": False, "selfHeal": True}, True)],
)
async def test_an_application_is_suspended_when_nothing_is_synced_by_itself(
    automated: JSON | None, suspended: bool
) -> None:
    policy = {} if automated is None else {"automated": automated}
    assert (await the_application(syncPolicy=policy)).suspended == suspended


async def test_a_sync_that_waits_for_health_has_been_applied() -> None:
    status = {
        "history": [{"revision": GOOD, "deployedAt": stamp(NOW - HOUR)}],
        "operationState": {"phase": "Running", "syncResult": {"revision": BAD}},
    }
    manager = await the_application(status=status)
    assert (manager.applied, manager.history, manager.settled) == (BAD, (Deployed(GOOD, NOW - HOUR),), False)
    assert manager.syncing


@pytest.mark.parametrize(
    ("body", "syncing"),
    [
        ({}, False),
        ({"status": {"operationState": {"phase": "Succeeded"}}}, False),
        ({"status": {"operationState": {"phase": "Failed"}}}, False),
        ({"status": {"operationState": {"phase": "Running"}}}, True),
        ({"status": {"operationState": {"phase": "Terminating"}}}, True),
        ({"operation": {"sync": {}}, "status": {"operationState": {"phase": "Succeeded"}}}, True),
    ],
)
def test_an_application_is_synced_while_an_operation_is_asked_for_or_under_way(body: JSON, syncing: bool) -> None:
    assert is_syncing(body) is syncing


async def test_a_kustomization_that_waits_for_health_has_been_applied() -> None:
    waits = [{"type": "Ready", "status": "False", "reason": "HealthCheckFailed", "message": "timeout"}]
    tried = {"lastAppliedRevision": f"main@sha1:{GOOD}"}
    manager = await the_kustomization(status={**tried, "conditions": waits})
    assert (manager.applied, manager.complaint) == (BAD, "timeout")


async def test_a_kustomization_that_could_not_be_built_has_not_been_applied() -> None:
    fails = [{"type": "Ready", "status": "False", "reason": "BuildFailed", "message": "no such file"}]
    tried = {"lastAppliedRevision": f"main@sha1:{GOOD}"}
    assert (await the_kustomization(status={**tried, "conditions": fails})).applied == GOOD


async def test_the_history_of_flux_tells_what_was_before() -> None:
    snapshots = [
        {"firstReconciled": stamp(NOW - MINUTE), "metadata": {"revision": f"main@sha1:{BAD}"}},
        {"firstReconciled": stamp(NOW - HOUR), "metadata": {"revision": f"main@sha1:{GOOD}"}},
    ]
    assert (await the_kustomization(status={"history": snapshots})).history == (Deployed(GOOD, NOW - HOUR),)


@pytest.mark.parametrize(
    ("spec", "held"),
    [
        ({"ref": {"tag": "v1"}}, "GitRepository flux-system/shop follows tag v1, not a branch: change it there"),
        (
            {"ref": {"branch": "main", "commit": BAD}},
            f"GitRepository flux-system/shop follows commit {BAD}, not a branch: change it there",
        ),
        ({"url": "ssh://git@git.example/shop"}, ""),
    ],
)
async def test_what_follows_no_branch_is_left_to_people(spec: JSON, held: str) -> None:
    assert (await the_kustomization(a_repository(**spec))).held == held


async def test_without_a_branch_flux_means_master_and_argo_cd_the_default_one() -> None:
    assert (await the_kustomization(a_repository(ref={}))).branch == "master"
    assert (await the_application({"targetRevision": "HEAD"})).branch == ""


async def test_a_bucket_is_no_git() -> None:
    manager = await the_kustomization(sourceRef={"kind": "Bucket", "name": "shop"})
    assert (manager.held, manager.source) == ("its source is a Bucket, not a Git repository", None)


async def test_a_source_that_is_not_there_is_told() -> None:
    manager = await found(a_deployment(labels=FLUX), kustomization=a_kustomization())
    assert manager is not None
    assert manager.held == "its source GitRepository flux-system/shop is not there"


async def test_the_values_of_a_chart_and_what_people_name_belong_to_the_path() -> None:
    manager = await the_application(
        {"path": "charts/shop", "helm": {"valueFiles": ["values.yaml", "../../env/prod.yaml"]}},
        meta={"annotations": {"argocd.argoproj.io/manifest-generate-paths": ".;/shared;../lib"}},
    )
    assert manager.paths == ("charts/shop", "charts/shop/values.yaml", "env/prod.yaml", "shared", "charts/lib")


def test_paths_begin_at_the_top_of_the_repository() -> None:
    assert [inside(path) for path in ("./", "", "./a/b/", "/a/../b")] == ["", "", "a/b", "b"]
    assert inside("../../../etc", "a") == "etc"


async def test_who_would_resume_a_sync_is_told() -> None:
    made = {"ownerReferences": [{"kind": "ApplicationSet", "name": "all"}]}
    assert (await the_application(meta=made)).restored == "ApplicationSet argocd/all"
    child = {"annotations": {TRACKING: "root:argoproj.io/Application:argocd/shop"}}
    assert (await the_application(meta=child)).restored == "Application root"


async def test_flux_resumes_what_its_own_files_say() -> None:
    said = {"manager": "kustomize-controller", "fieldsV1": {"f:spec": {"f:suspend": {}}}}
    silent = {"manager": "kustomize-controller", "fieldsV1": {"f:spec": {"f:path": {}}}}
    by_hand = {"manager": "flux", "fieldsV1": {"f:spec": {"f:suspend": {}}}}
    assert (await the_kustomization(meta={"labels": FLUX, "managedFields": [silent, by_hand]})).restored == ""
    restored = (await the_kustomization(meta={"labels": FLUX, "managedFields": [said]})).restored
    assert restored == "Flux, for its own manifest says whether it is suspended"


@pytest.mark.parametrize(
    ("retries", "failures", "held"),
    [
        (3, 1, "it remediates itself: 1 of 3 retries are spent"),
        (-1, 7, "it remediates itself: 7 of endless retries are spent"),
        (1, 2, "its chart's version and its values are in Git, and which of them to take back nobody can tell"),
        (0, 1, "its chart's version and its values are in Git, and which of them to take back nobody can tell"),
    ],
)
async def test_a_helm_release_acts_first_and_then_people(retries: int, failures: int, held: str) -> None:
    labels = {"helm.toolkit.fluxcd.io/name": "cart", "helm.toolkit.fluxcd.io/namespace": "shop"}
    spec = {"upgrade": {"remediation": {"retries": retries}}}
    body = {"metadata": {"uid": "uid-hr"}, "spec": spec, "status": {"upgradeFailures": failures}}
    manager = await found(a_deployment(labels=labels), release=body)
    assert manager == Manager(Ref("helm.toolkit.fluxcd.io/v2", "HelmRelease", "shop", "cart", "uid-hr"), held=held)


async def test_why_a_sync_fails_is_told() -> None:
    failed = {"operationState": {"phase": "Failed", "message": "denied", "syncResult": {"revision": BAD}}}
    assert (await the_application(status=failed)).complaint == "denied"
    broken = {"conditions": [{"type": "ComparisonError", "message": "no such path"}]}
    assert (await the_application(status=broken)).complaint == "no such path"
    by_hand = (await the_application(syncPolicy={})).complaint
    assert by_hand == "it is not synced automatically: somebody has to do it"


def test_the_revision_is_found_in_what_controllers_call_it() -> None:
    texts = (f"main@sha1:{BAD}", f"sha1:{BAD}", f"main/{BAD}", BAD, f"git:{BAD}", f"refs/x@sha256:{'c' * 64}", "1.2.3")
    assert [revision_in(text) for text in texts] == [BAD] * 5 + ["c" * 64, ""]


async def test_the_good_revision_is_that_of_the_history_of_the_release() -> None:
    manager = await the_application()
    assert good_revision(manager, f"git:{'c' * 40}", NOW) == "c" * 40
    assert source_of(manager) == f"git:{BAD}"
    assert source_of(replace(manager, applied="")) == ""


async def test_while_a_sync_is_under_way_nobody_tells_what_a_release_came_from() -> None:
    running = {"operationState": {"phase": "Running", "syncResult": {"revision": BAD}}}
    tried = {"lastAppliedRevision": f"main@sha1:{GOOD}"}
    assert source_of(await the_application(status=running)) == ""
    assert source_of(await the_kustomization(status=tried)) == ""


async def test_else_it_is_the_newest_that_had_come_before_the_good_version_was_left() -> None:
    deployed = tuple(Deployed(name * 40, NOW - ago) for name, ago in (("e", MINUTE), ("d", HOUR), ("c", 2 * HOUR)))
    manager = replace(await the_application(), history=deployed)
    assert good_revision(manager, "", NOW - MINUTE) == "d" * 40
    assert good_revision(manager, "", NOW - HOUR - timedelta(seconds=1)) == "c" * 40
    assert good_revision(manager, "", NOW - 3 * HOUR) == ""
