"""The exporter says what kube-state-metrics says."""

from typing import Any

from lab import metrics

POD = {
    "metadata": {
        "namespace": "shop",
        "name": "cart-1",
        "uid": "u1",
        "creationTimestamp": "2026-08-01T10:00:00Z",
        "deletionTimestamp": "2026-08-01T11:00:00Z",
        "ownerReferences": [{"kind": "ReplicaSet", "name": "cart", "controller": True}],
    },
    "spec": {"nodeName": "node-0"},
    "status": {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "False"}],
        "initContainerStatuses": [{"name": "prepare", "restartCount": 2, "ready": True, "state": {}}],
        "containerStatuses": [
            {
                "name": "app",
                "restartCount": 7,
                "ready": False,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {
                    "terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2026-08-01T10:30:00Z"}
                },
            }
        ],
    },
}


def said(thing: dict[str, Any], path: str) -> list[str]:
    return [metrics._line(sample) for sample in metrics.KINDS[path](thing)]


def test_of_a_looping_pod() -> None:
    lines = said(POD, "/api/v1/pods")
    pod = 'namespace="shop",pod="cart-1",uid="u1"'
    for line in (
        f'kube_pod_container_status_restarts_total{{{pod},container="app"}} 7',
        f'kube_pod_init_container_status_restarts_total{{{pod},container="prepare"}} 2',
        f'kube_pod_container_status_waiting_reason{{{pod},container="app",reason="CrashLoopBackOff"}} 1',
        f'kube_pod_container_status_last_terminated_reason{{{pod},container="app",reason="OOMKilled"}} 1',
        f'kube_pod_container_status_last_terminated_exitcode{{{pod},container="app"}} 137',
        f'kube_pod_status_phase{{{pod},phase="Running"}} 1',
        f'kube_pod_status_phase{{{pod},phase="Failed"}} 0',
        f'kube_pod_status_ready{{{pod},condition="true"}} 0',
        f'kube_pod_status_ready{{{pod},condition="false"}} 1',
        f'kube_pod_owner{{{pod},owner_kind="ReplicaSet",owner_name="cart",owner_is_controller="true"}} 1',
        f"kube_pod_created{{{pod}}} 1785578400",
        f"kube_pod_deletion_timestamp{{{pod}}} 1785582000",
    ):
        assert line in lines


def test_of_a_node_that_is_unreachable() -> None:
    node = {
        "metadata": {"name": "node-0"},
        "spec": {"unschedulable": True, "taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}]},
        "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]},
    }
    lines = said(node, "/api/v1/nodes")
    assert 'kube_node_spec_unschedulable{node="node-0"} 1' in lines
    assert (
        'kube_node_spec_taint{node="node-0",key="node.kubernetes.io/unreachable",value="",effect="NoSchedule"} 1'
        in lines
    )
    assert [line for line in lines if "status_condition" in line] == [
        'kube_node_status_condition{node="node-0",condition="Ready",status="true"} 0',
        'kube_node_status_condition{node="node-0",condition="Ready",status="false"} 0',
        'kube_node_status_condition{node="node-0",condition="Ready",status="unknown"} 1',
    ]


def test_of_workloads() -> None:
    metadata = {"namespace": "shop", "name": "cart"}
    spec, status = {"replicas": 3}, {"replicas": 3, "readyReplicas": 2, "availableReplicas": 1, "updatedReplicas": 3}
    deployment = said({"metadata": metadata, "spec": spec, "status": status}, "/apis/apps/v1/deployments")
    labels = '{namespace="shop",deployment="cart"}'
    assert f"kube_deployment_spec_replicas{labels} 3" in deployment
    assert f"kube_deployment_status_replicas_available{labels} 1" in deployment
    assert f"kube_deployment_status_replicas_unavailable{labels} 0" in deployment
    statefulset = said({"metadata": metadata, "spec": spec, "status": status}, "/apis/apps/v1/statefulsets")
    assert 'kube_statefulset_status_replicas_ready{namespace="shop",statefulset="cart"} 2' in statefulset
    revisions = {"currentRevision": "cart-1", "updateRevision": "cart-2"}
    changing = said({"metadata": metadata, "spec": spec, "status": revisions}, "/apis/apps/v1/statefulsets")
    named = 'namespace="shop",statefulset="cart"'
    assert f'kube_statefulset_status_current_revision{{{named},revision="cart-1"}} 1' in changing
    assert f'kube_statefulset_status_update_revision{{{named},revision="cart-2"}} 1' in changing
    daemonset = said({"metadata": metadata, "spec": {}, "status": {"numberReady": 2}}, "/apis/apps/v1/daemonsets")
    assert 'kube_daemonset_status_number_ready{namespace="shop",daemonset="cart"} 2' in daemonset


def test_of_a_remediation_whose_verdict_is_open() -> None:
    remediation = {
        "metadata": {"namespace": "shop", "name": "r"},
        "spec": {"function": "restart-loop-killer"},
        "status": {"phase": "Applied", "outcome": "applied"},
    }
    assert said(remediation, "/apis/kreflex.dev/v1alpha1/remediations") == [
        (
            'kreflex_remediation_info{namespace="shop",name="r",function="restart-loop-killer",'
            'phase="Applied",outcome="applied",guard="",verdict=""} 1'
        ),
        'kreflex_remediation_due_timestamp_seconds{namespace="shop",name="r"} 0',
    ]


def test_labels_are_escaped() -> None:
    assert metrics._line(("a", {"b": 'x"\\\n'}, 1)) == r'a{b="x\"\\\n"} 1'
