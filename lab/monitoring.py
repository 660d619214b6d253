"""Prometheus, Alertmanager and the exporter, started beside a control plane."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lab import callers, manifests, processes
from lab.cluster import ControlPlane
from lab.paths import REPOSITORY
from lab.toolchain import Toolchain

NAMESPACE = callers.NAMESPACE
_RULES = REPOSITORY / "triggers" / "prometheus"
_ROUTES = REPOSITORY / "triggers" / "alertmanager" / "alertmanager.yaml"
_EXPORTED = [
    {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["list", "watch"]},
    {
        "apiGroups": ["apps"],
        "resources": ["deployments", "replicasets", "statefulsets", "daemonsets"],
        "verbs": ["list", "watch"],
    },
    {
        "apiGroups": ["kreflex.dev"],
        "resources": ["remediations", "anomalies", "anomalywatches", "experiments"],
        "verbs": ["list", "watch"],
    },
]
# Production's patience would make a demonstration of minutes.
_LAB_TIMES = {"group_wait": "1s", "group_interval": "10s"}


async def start_metrics(plane: ControlPlane, port: int) -> str:
    """Start the exporter; its URL."""
    account = "metrics"
    config = await plane.kubeconfig_for(NAMESPACE, account)
    await manifests.grant(plane.api, NAMESPACE, account, _EXPORTED)
    url = f"http://127.0.0.1:{port}"
    command = processes.python("lab.metrics", f"--kubeconfig={config}", f"--port={port}")
    child = plane.start_child("metrics", command, environment=processes.importable(), url=f"{url}/healthz")
    await child.ready(processes.answers(f"{url}/healthz"))
    return url


async def start_prometheus(
    plane: ControlPlane,
    port: int,
    targets: Mapping[str, str],
    *,
    alertmanager: str = "",
    interval: str = "2s",
    program: Path | None = None,
) -> str:
    """Start Prometheus on these targets (job → URL) with the rules of triggers/prometheus; its URL."""
    program = program or Toolchain().ensure(["prometheus"])["prometheus"]
    config = plane.home.config / "prometheus.yaml"
    rules = write_rules(plane.home.config / "rules")
    config.write_text(yaml.safe_dump(prometheus_config(targets, rules, alertmanager, interval), sort_keys=False))
    url = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={plane.home.data / 'prometheus'}",
        "--storage.tsdb.retention.time=2d",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.enable-lifecycle",
        "--log.level=warn",
    ]
    child = plane.start_child("prometheus", command, url=f"{url}/-/ready")
    await child.ready(processes.answers(f"{url}/-/ready"))
    return url


def prometheus_config(
    targets: Mapping[str, str], rules: list[Path], alertmanager: str, interval: str
) -> dict[str, Any]:
    """Prometheus' configuration."""
    config: dict[str, Any] = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(file) for file in rules],
        "scrape_configs": [_scrape(job, url) for job, url in targets.items()],
    }
    if alertmanager:
        target = {"targets": [_address(alertmanager)]}
        config["alerting"] = {"alertmanagers": [{"static_configs": [target]}]}
    return config


def write_rules(directory: Path) -> list[Path]:
    """Copies of the shipped rule files whose groups are evaluated as often as everything else in the lab."""
    directory.mkdir(exist_ok=True)
    written = []
    for file in sorted(_RULES.glob("*.rules.yaml")):
        content = yaml.safe_load(file.read_text())
        for group in content["groups"]:
            group.pop("interval", None)
        copy = directory / file.name
        copy.write_text(yaml.safe_dump(content, sort_keys=False, width=1000))
        written.append(copy)
    return written


def _scrape(job: str, url: str) -> dict[str, Any]:
    # The exporter's namespace label is the object's, as with kube-prometheus.
    return {"job_name": job, "honor_labels": True, "static_configs": [{"targets": [_address(url)]}]}


def _address(url: str) -> str:
    return url.removeprefix("http://").rstrip("/")


async def start_alertmanager(
    plane: ControlPlane, port: int, receivers: Mapping[str, str], *, program: Path | None = None
) -> str:
    """Start Alertmanager with the shipped routes, the receivers of these names being at these URLs; its URL."""
    program = program or Toolchain().ensure(["alertmanager"])["alertmanager"]
    config = plane.home.config / "alertmanager.yaml"
    routes = yaml.safe_load(_ROUTES.read_text()) if _ROUTES.exists() else None
    token = await callers.issue(plane, "alertmanager")
    config.write_text(yaml.safe_dump(alertmanager_config(receivers, token, routes), sort_keys=False))
    url = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [
        program,
        f"--config.file={config}",
        f"--storage.path={plane.home.data / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        # No gossip: that would be a port of its own.
        "--cluster.listen-address=",
        "--log.level=warn",
    ]
    child = plane.start_child("alertmanager", command, url=f"{url}/-/ready")
    await child.ready(processes.answers(f"{url}/-/ready"))
    return url


def alertmanager_config(
    receivers: Mapping[str, str], token_file: Path, shipped: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The shipped configuration with the lab's URLs, token and patience, or one that tells all receivers of all."""
    config = shipped or _send_all(receivers)
    for receiver in config["receivers"]:
        url = receivers.get(receiver["name"])
        if url is None:
            receiver.pop("webhook_configs", None)
        for webhook in receiver.get("webhook_configs", ()):
            webhook["url"] = f"{url}/"
            webhook["http_config"] = {"authorization": {"type": "Bearer", "credentials_file": str(token_file)}}
    _hurry(config["route"])
    return config


def _hurry(route: dict[str, Any]) -> None:
    route |= _LAB_TIMES
    for child in route.get("routes", ()):
        _hurry(child)


def _send_all(receivers: Mapping[str, str]) -> dict[str, Any]:
    hooks = [{"name": name, "webhook_configs": [{"url": "", "send_resolved": True}]} for name in receivers]
    return {
        "route": {
            "receiver": "people",
            "group_by": ["alertname", "namespace"],
            "repeat_interval": "1m",
            "routes": [{"receiver": name, "continue": True} for name in receivers],
        },
        "receivers": [*hooks, {"name": "people"}],
    }
