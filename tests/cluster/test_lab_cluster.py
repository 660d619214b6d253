"""The control plane is a real one: TLS, RBAC, ServiceAccount tokens, and an audit log that misses no write."""

import asyncio
import subprocess

import aiohttp
import pytest
import yaml

from lab import audit, manifests, workloads
from lab.api import Api, Refused, eventually, from_kubeconfig
from lab.cluster import ControlPlane
from lab.toolchain import Toolchain


def writes(plane: ControlPlane, namespace: str) -> list[tuple[str, str, str]]:
    return [
        (entry["verb"], entry["objectRef"]["resource"], entry["objectRef"].get("subresource", ""))
        for entry in audit.entries(plane.audit_log)
        if entry.get("objectRef", {}).get("namespace") == namespace and entry["user"]["username"] == "admin"
    ]


async def test_is_the_pinned_version(plane: ControlPlane) -> None:
    assert (await plane.api.get("/version"))["gitVersion"] == "v1.36.3"


async def test_refuses_who_has_no_token(plane: ControlPlane) -> None:
    async with Api(plane.url, "wrong", plane.authority.read_bytes()) as api:
        with pytest.raises(Refused, match="401"):
            await api.get("/api/v1/pods")


async def test_serves_tls_with_a_certificate_of_its_own_authority(plane: ControlPlane) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(plane.url)


async def test_a_service_account_may_do_what_it_was_granted_and_nothing_else(plane: ControlPlane) -> None:
    file = await plane.kubeconfig_for("lab-rbac", "reader")
    await manifests.grant(
        plane.api, "lab-rbac", "reader", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    )
    async with from_kubeconfig(file) as api:
        await eventually(lambda: allowed(api, "/api/v1/pods"), "the right to list pods")
        with pytest.raises(Refused, match="403"):
            await api.get("/api/v1/secrets")


async def allowed(api: Api, path: str) -> bool:
    try:
        await api.get(path)
    except Refused:
        return False
    return True


async def test_kubeconfigs_are_for_their_owner_only(plane: ControlPlane) -> None:
    file = await plane.kubeconfig_for("lab-rbac", "reader")
    assert [one.stat().st_mode & 0o777 for one in (file, plane.kubeconfig)] == [0o600, 0o600]
    assert yaml.safe_load(file.read_text())["contexts"][0]["context"]["namespace"] == "lab-rbac"


async def test_the_lab_s_kubectl_understands_the_kubeconfig(plane: ControlPlane) -> None:
    kubectl = Toolchain().ensure(["kubectl"])["kubectl"]
    command = [str(kubectl), f"--kubeconfig={plane.kubeconfig}", "get", "nodes", "-o", "name"]
    answer = await asyncio.to_thread(subprocess.check_output, command, text=True)
    assert "node/node-0" in answer.splitlines()


async def test_the_audit_log_has_each_write_when_it_is_answered_and_an_eviction_with_its_body(
    plane: ControlPlane,
) -> None:
    namespace = "lab-audit"
    await plane.api.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    await eventually(
        lambda: plane.api.find(f"/api/v1/namespaces/{namespace}/serviceaccounts/default"), "the ServiceAccount"
    )
    pods = f"/api/v1/namespaces/{namespace}/pods"
    uid = (await plane.api.post(pods, workloads.pod("one")))["metadata"]["uid"]
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "one"},
        "deleteOptions": {"preconditions": {"uid": uid}},
    }
    await plane.api.post(f"{pods}/one/eviction", body)

    assert writes(plane, namespace)[-2:] == [("create", "pods", ""), ("create", "pods", "eviction")]
    eviction = [
        entry for entry in audit.entries(plane.audit_log) if entry.get("requestObject", {}).get("kind") == "Eviction"
    ]
    assert eviction[-1]["requestObject"]["deleteOptions"]["preconditions"] == {"uid": uid}


async def test_the_audit_log_has_no_reads_and_no_secrets(plane: ControlPlane) -> None:
    secret = {"metadata": {"name": "lab-audit-secret"}, "stringData": {"password": "lab-audit-password"}}
    await plane.api.post("/api/v1/namespaces/default/secrets", secret)
    await plane.token("reader", "lab-rbac")
    reads = [entry for entry in audit.entries(plane.audit_log) if entry["verb"] in ("get", "list")]
    assert reads == []
    text = plane.audit_log.read_text()
    assert "lab-audit-secret" in text
    assert "lab-audit-password" not in text
