"""Who else is at work on a node, as other objects tell."""

import json
from datetime import timedelta
from typing import Any

import pytest

from kreflex.cluster import Reader
from kreflex.errors import OutageError, UnavailableError
from kreflex.fleet import Stop
from kreflex.others import LOCK, UPGRADES, at_work
from kreflex.views import JSON
from tests.values import HOUR, MINUTE, NOW, CannedApi, stamp, the_node

NODE = the_node("blue-1")
OPENSHIFT = the_node("blue-1", annotations={"machineconfiguration.openshift.io/currentConfig": "a"})
MACHINE = the_node(
    "blue-1", annotations={"cluster.x-k8s.io/cluster-namespace": "infra", "cluster.x-k8s.io/cluster-name": "shop"}
)
CLUSTER = "/apis/cluster.x-k8s.io/v1beta2/namespaces/infra/clusters/shop"


class OnlyServes(CannedApi):
    """An API server that serves only some groups."""

    def __init__(self, *groups: str, objects: dict[str, JSON] | None = None, status: int = 404) -> None:
        super().__init__(objects)
        self.groups = groups
        self.status = status

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        answer = await super().send(method, path, body, **options)
        if path.split("/")[2] not in self.groups:
            raise OutageError("404 page not found", self.status)
        return answer


def a_daemonset(lock: object, name: str = "kured") -> dict[str, JSON]:
    noted = lock if isinstance(lock, str) else json.dumps(lock)
    meta = {"namespace": "kube-system", "name": name, "annotations": {LOCK: noted}}
    return {f"/apis/apps/v1/daemonsets/{name}": {"metadata": meta}}


def a_lock(node: str = "blue-1", ago: timedelta = MINUTE, ttl: timedelta = timedelta()) -> JSON:
    return {"nodeID": node, "created": stamp(NOW - ago), "TTL": int(ttl.total_seconds() * 1e9), "metadata": {}}


async def told(api: CannedApi, node: Any = NODE) -> str | None:
    stop = await at_work(node, Reader(api), NOW)
    if stop is None:
        return None
    assert stop == Stop("AtWork", stop.because, NOW + MINUTE)
    return stop.because


async def test_nobody_is_at_work_where_nobody_is_installed() -> None:
    assert await told(OnlyServes("apps", "batch")) is None
    assert await told(OnlyServes("apps", "batch"), OPENSHIFT) is None
    assert await told(OnlyServes("apps", "batch"), MACHINE) is None


async def test_only_what_the_node_gives_a_hint_of_is_read() -> None:
    api = OnlyServes("apps", "batch")
    await told(api)
    assert sorted(api.calls) == ["GET /apis/apps/v1/daemonsets", "GET /apis/batch/v1/jobs"]


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_whoever_may_not_read_does_not_know(status: int) -> None:
    with pytest.raises(UnavailableError):
        await told(OnlyServes("apps", status=status))


KURED = "kured is restarting it: it holds the lock of DaemonSet kube-system/kured"


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        (a_lock(), KURED),
        (a_lock("another"), None),
        (a_lock(ago=29 * MINUTE), KURED),
        (a_lock(ago=30 * MINUTE), None),
        (a_lock(ago=10 * MINUTE, ttl=5 * MINUTE), None),
        (a_lock(ago=4 * MINUTE, ttl=5 * MINUTE), KURED),
        (a_lock(ago=40 * MINUTE, ttl=HOUR), None),
        ({"maxOwners": 2, "locks": [a_lock("another"), a_lock()]}, KURED),
        ({"maxOwners": 2, "locks": [a_lock("another")]}, None),
        ({"maxOwners": 2, "locks": None}, None),
        ("not JSON", KURED),
        ({"nodeID": "blue-1"}, KURED),
        ([], KURED),
        ("", None),
    ],
    ids=[
        "held",
        "by another",
        "for long",
        "for too long",
        "expired",
        "not yet expired",
        "never came back",
        "one of two",
        "two others",
        "free",
        "no JSON",
        "no time",
        "no object",
        "empty",
    ],
)
async def test_kured_is_at_work_where_the_node_holds_its_lock(lock: object, words: str | None) -> None:
    assert await told(CannedApi(a_daemonset(lock))) == words


async def test_kured_is_known_by_its_lock_whatever_it_is_called() -> None:
    words = "kured is restarting it: it holds the lock of DaemonSet kube-system/reboots"
    assert await told(CannedApi(a_daemonset(a_lock(), "reboots"))) == words


@pytest.mark.parametrize(("active", "works"), [(1, True), (0, False)])
async def test_a_job_that_upgrades_the_node_is_at_work_while_it_is_active(active: int, works: bool) -> None:
    meta = {"namespace": "system-upgrade", "name": "apply-k3s-on-blue-1", "labels": {UPGRADES: "blue-1"}}
    job = {"metadata": meta, "status": {"active": active} if active else {}}
    because = "the system-upgrade-controller is upgrading it: Job system-upgrade/apply-k3s-on-blue-1 is active"
    assert await told(CannedApi({"/apis/batch/v1/jobs/apply": job})) == (because if works else None)


async def test_a_name_that_is_no_label_is_not_asked_for() -> None:
    api = CannedApi()
    assert await told(api, the_node("n" * 64)) is None
    assert api.calls == ["GET /apis/apps/v1/daemonsets"]


@pytest.mark.parametrize(("status", "works"), [("True", True), ("False", False)])
async def test_an_upgrade_of_openshift_is_waited_for(status: str, works: bool) -> None:
    version = {"metadata": {"name": "version"}, "status": {"conditions": [{"type": "Progressing", "status": status}]}}
    api = CannedApi({"/apis/config.openshift.io/v1/clusterversions/version": version})
    because = "OpenShift is being upgraded: ClusterVersion version is Progressing"
    assert await told(api, OPENSHIFT) == (because if works else None)
    assert await told(api) is None


@pytest.mark.parametrize(
    ("status", "reason", "works"),
    [
        ("False", "ClusterUpgrading", True),
        ("False", "MachineDeploymentsUpgradePending", True),
        ("False", "ReconcileFailed", False),
        ("True", "ReconcileSucceeded", False),
    ],
)
async def test_an_upgrade_by_a_cluster_class_is_waited_for(status: str, reason: str, works: bool) -> None:
    conditions = {"conditions": [{"type": "TopologyReconciled", "status": status, "reason": reason}]}
    because = f"Cluster infra/shop is being upgraded: TopologyReconciled is False ({reason})"
    new = CannedApi({CLUSTER: {"status": conditions}})
    assert await told(new, MACHINE) == (because if works else None)


async def test_an_older_cluster_api_is_understood() -> None:
    class Older(CannedApi):
        async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
            if "/v1beta2/" in path:
                raise OutageError("404 page not found", 404)
            return await super().send(method, path, body, **options)

    conditions = {"conditions": [{"type": "TopologyReconciled", "status": "False", "reason": "ClusterUpgrading"}]}
    for status in (conditions, {"v1beta2": conditions}):
        api = Older({CLUSTER.replace("v1beta2", "v1beta1"): {"status": status}})
        because = "Cluster infra/shop is being upgraded: TopologyReconciled is False (ClusterUpgrading)"
        assert await told(api, MACHINE) == because


async def test_a_cluster_that_is_managed_elsewhere_is_not_asked() -> None:
    assert await told(CannedApi(), MACHINE) is None
