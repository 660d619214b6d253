"""The way of events: Knative's adapter watches objects, the relay hands its events on, the ticker wakes the waker."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lab import audit, callers, manifests, processes
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.monitoring import NAMESPACE
from lab.relay import Subscriber
from lab.toolchain import Toolchain

_QUIET = {"metrics": {"protocol": "none"}, "tracing": {"protocol": "none"}, "runtime": {"profiling": "disabled"}}


async def start_relay(plane: ControlPlane, port: int, subscribers: Sequence[Subscriber]) -> str:
    """Start the relay with these subscribers; its URL."""
    file = plane.home.config / "subscribers.json"
    file.write_text(json.dumps([asdict(subscriber) for subscriber in subscribers], indent=1))
    url = f"http://127.0.0.1:{port}"
    token = await callers.issue(plane, "relay")
    options = (f"--subscribers={file}", f"--journal={plane.home.events}", f"--port={port}", f"--token-file={token}")
    command = processes.python("lab.relay", *options)
    child = plane.start_child("relay", command, environment=processes.importable(), url=f"{url}/healthz")
    await child.ready(processes.answers(f"{url}/healthz"))
    return url


async def start_adapter(
    plane: ControlPlane,
    sink: str,
    *,
    program: Path | None = None,
    name: str = "adapter",
    mode: str = "Resource",
    namespaces: Sequence[str] = (),
    kinds: Sequence[str] = ("pods",),
    audience: str = "",
) -> None:
    """Start Knative's ApiServerSource adapter on the pods of these namespaces, or of all, with rights to watch them.

    Or on other `kinds`, told as kubectl has them: `nodes`, `deployments.v1.apps`. It watches all nodes, whatever the
    namespaces. It ends if the group of one is not served: a kind that may be missing needs an adapter of its own.

    With an audience it shows the sink a token that it gets for itself, as with Knative's authentication-oidc.
    """
    program = program or Toolchain().ensure(["apiserver_receive_adapter"])["apiserver_receive_adapter"]
    account = "apiserversource"
    config = await plane.kubeconfig_for(NAMESPACE, account)
    # It asks for trust bundles in its namespace before it starts.
    served = [_served(kind) for kind in kinds]
    seen = ["get", "list", "watch"]
    rules = [{"apiGroups": [group], "resources": [resource], "verbs": seen} for resource, _, group in served]
    rules.append({"apiGroups": [""], "resources": ["configmaps"], "verbs": seen})
    tokens = {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]}
    # A role for each adapter: several have one account, the one whose watches the audit log has.
    role = f"{account}-{name}"
    await manifests.grant(plane.api, NAMESPACE, account, [*rules, tokens] if audience else rules, role=role)
    where = {"namespaces": list(namespaces), "allNamespaces": not namespaces}
    watched = [
        {"gvr": {"Group": group, "Version": version, "Resource": resource}} for resource, version, group in served
    ]
    source = {**where, "resources": watched, "mode": mode}
    identity = {"K_AUDIENCE": audience, "K_OIDC_SERVICE_ACCOUNT": account} if audience else {}
    environment = {
        "K_SINK": sink,
        "K_SOURCE_CONFIG": json.dumps(source),
        "K_OBSERVABILITY_CONFIG": json.dumps(_QUIET),
        "K_LOGGING_CONFIG": "{}",
        "NAMESPACE": NAMESPACE,
        "NAME": "pods",
        "SYSTEM_NAMESPACE": NAMESPACE,
        "METRICS_DOMAIN": "knative.dev/eventing",
        # No limit, said aloud: it warns otherwise.
        "K_SINK_TIMEOUT": "-1",
        "KUBECONFIG": str(config),
        **identity,
    }
    plurals = [resource for resource, _, _ in served]
    before = {plural: audit.watches(plane.audit_log, audit.WATCHER, plural) for plural in plurals}
    child = plane.start_child(name, [program, "--disable-ha"], environment=environment)

    async def watches() -> bool:
        begun = (audit.watches(plane.audit_log, audit.WATCHER, plural) > count for plural, count in before.items())
        return all(begun) or not child.alive

    await eventually(watches, f"the adapter's watch of {' and '.join(plurals)}")
    if not child.alive:
        raise processes.ChildDied(child)


def _served(kind: str) -> tuple[str, str, str]:
    resource, _, rest = kind.partition(".")
    version, _, group = rest.partition(".")
    return resource, version or "v1", group


async def start_ticker(plane: ControlPlane, url: str, seconds: float = 2.0, name: str = "ticker") -> None:
    """Start to wake a function as a PingSource would."""
    token = await callers.issue(plane, "ticker")
    command = processes.python("lab.ticker", url, f"--seconds={seconds}", f"--token-file={token}")
    plane.start_child(name, command, environment=processes.importable())
