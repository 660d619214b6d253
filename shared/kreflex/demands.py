"""What a template asks a cluster for, to see whether two templates differ in what the cluster complains of."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from kreflex.views import JSON

Named = tuple[str, str, str]
# By which key of a template an object is named: its kind, and under which key its name stands.
_NAMING = {
    "configMap": ("ConfigMap", "name"),
    "configMapRef": ("ConfigMap", "name"),
    "configMapKeyRef": ("ConfigMap", "name"),
    "secret": ("Secret", "secretName"),
    "secretRef": ("Secret", "name"),
    "secretKeyRef": ("Secret", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
}
# What a scheduler looks at beside the requests.
_PLACING = (
    "affinity",
    "nodeName",
    "nodeSelector",
    "priorityClassName",
    "runtimeClassName",
    "schedulerName",
    "tolerations",
    "topologySpreadConstraints",
)
_RESTARTED = "kubectl.kubernetes.io/restartedAt"
_CHECKSUM = re.compile(r"checksum|config-?(hash|sha|version)|^reloader\.stakater\.com/last-reloaded", re.IGNORECASE)
_QUOTA = re.compile(r"requested: (?P<requested>\S+), used: (?P<used>\S+), limited: (?P<limited>[^\s;]+)")
_FACTORS = {
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
    "m": Decimal("0.001"),
    "u": Decimal("0.000001"),
    "n": Decimal("0.000000001"),
}


def containers(template: JSON) -> list[JSON]:
    """Give all containers of a template, the init containers first."""
    spec = template.get("spec") or {}
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def image_of(template: JSON, container: str) -> str:
    """Tell the image of one container, "" for one that the template does not have."""
    return next((str(one.get("image", "")) for one in containers(template) if one["name"] == container), "")


def registry(image: str) -> str:
    """Tell where an image comes from: the host and the repository, without tag and digest."""
    name = image.partition("@")[0]
    head, _, tail = name.rpartition("/")
    return f"{head}/{tail.partition(':')[0]}" if head else tail.partition(":")[0]


def host(image: str) -> str:
    """Tell the host of an image's registry; without one in its name it is Docker's.

    As https://github.com/distribution/reference reads names: the first part is a host if it has a dot or a colon, or
    is localhost.
    """
    first, slash, _ = image.partition("/")
    return first if slash and (set(first) & {".", ":"} or first == "localhost") else "docker.io"


def named(template: JSON) -> frozenset[Named]:
    """Tell which ConfigMaps, Secrets and claims a template names: kind, name, and key where one is named."""
    spec = template.get("spec") or {}
    pulling = {("Secret", str(one.get("name", "")), "") for one in spec.get("imagePullSecrets") or ()}
    return frozenset(pulling | set(_named(spec)))


def _named(value: Any) -> Iterator[Named]:
    if isinstance(value, list):
        for one in value:
            yield from _named(one)
    if isinstance(value, dict):
        for key, one in value.items():
            if key in _NAMING and isinstance(one, dict):
                kind, called = _NAMING[key]
                # In a projected volume a Secret's name stands under `name`, too.
                name = str(one.get(called) or one.get("name", ""))
                keys = [str(one["key"])] if "key" in one else [str(item["key"]) for item in one.get("items") or ()]
                yield from ((kind, name, said) for said in keys or [""])
            yield from _named(one)


def names(template: JSON, kind: str, name: str, key: str = "") -> bool:
    """Tell whether a template names an object; with `key`, whether it would look for this key of it."""
    found = {said for one, called, said in named(template) if (one, called) == (kind, name)}
    return bool(found) if not key else key in found


def placing(template: JSON) -> JSON:
    """Give what decides where its pods may run, beside what they ask for."""
    spec = template.get("spec") or {}
    ports = sorted(
        int(port["hostPort"]) for one in containers(template) for port in one.get("ports") or () if "hostPort" in port
    )
    claims = sorted(name for kind, name, _ in named(template) if kind == "PersistentVolumeClaim")
    return {**{key: spec[key] for key in _PLACING if spec.get(key)}, "hostPorts": ports, "claims": claims}


def asks_more(new: JSON, old: JSON) -> bool:
    """Tell whether a pod of the new template requests or limits more of anything than one of the old."""
    before = _asked(old)
    return any(amount > before.get(what, Decimal(0)) for what, amount in _asked(new).items())


def requests_more(new: JSON, old: JSON, resources: Iterable[str]) -> bool:
    """Tell whether a pod of the new template requests more of one of these; without a request a limit is one."""
    return any(_requested(new, one) > _requested(old, one) for one in resources)


def _requested(template: JSON, resource: str) -> Decimal:
    total = Decimal(0)
    for container in containers(template):
        asked = container.get("resources") or {}
        said = [(asked.get(kind) or {}).get(resource) for kind in ("requests", "limits")]
        total += next((quantity(str(amount)) for amount in said if amount is not None), Decimal(0))
    return total


def fitted(said: str, new: JSON, old: JSON) -> bool:
    """Tell, from what the API server says of a quota, whether a pod of the old template would have had room.

    It names what is exceeded only (kubernetes, pkg/quota/v1/resourcequota/controller.go). Pods are asked for by what
    others put into them as well, so it is the difference of the two templates that counts.
    """
    told = _QUOTA.search(said)
    if told is None:
        return asks_more(new, old)
    requested, used, limited = (_amounts(told[name]) for name in ("requested", "used", "limited"))
    ours, theirs = _asked(new), _asked(old)
    return all(
        used.get(what, Decimal(0)) + amount - ours.get(_what(what), Decimal(0)) + theirs.get(_what(what), Decimal(0))
        <= limited.get(what, Decimal(0))
        for what, amount in requested.items()
    )


def _amounts(said: str) -> dict[str, Decimal]:
    return {name: quantity(amount) for name, _, amount in (one.partition("=") for one in said.split(","))}


def _what(quota: str) -> tuple[str, str]:
    """`cpu` and `memory` of a quota are requests."""
    kind, dot, resource = quota.partition(".")
    return (kind, resource) if dot and kind in {"requests", "limits"} else ("requests", quota)


def starts_as_before(new: JSON, old: JSON, container: str) -> bool:
    """Tell whether a container runs before all that was changed: an init container, beside others of the same kind.

    A sidecar runs beside what was changed, and may fail for it.
    """
    ahead, before = ({**(one.get("spec") or {}), "containers": None} for one in (new, old))
    first = (one for one in ahead.get("initContainers") or () if one.get("restartPolicy") != "Always")
    return ahead == before and any(one["name"] == container for one in first)


def injected(template: JSON, container: str) -> bool:
    """Tell whether a container is none of the template's: a webhook has put it into the pod."""
    return all(one["name"] != container for one in containers(template))


def _asked(template: JSON) -> dict[tuple[str, str], Decimal]:
    total: dict[tuple[str, str], Decimal] = {}
    for container in containers(template):
        for kind in ("requests", "limits"):
            for resource, amount in ((container.get("resources") or {}).get(kind) or {}).items():
                total[kind, resource] = total.get((kind, resource), Decimal(0)) + quantity(str(amount))
    return total


def quantity(text: str) -> Decimal:
    """Read a quantity as Kubernetes writes it: `100m`, `1.5Gi`, `2e3`; what can't be read is nothing."""
    number = text.rstrip("kMGTPEimunK")
    try:
        return Decimal(number) * _FACTORS.get(text[len(number) :], Decimal(1))
    except InvalidOperation:
        return Decimal(0)


def resources_differ(new: JSON, old: JSON) -> bool:
    """Tell whether the two ask for something else."""
    return _asked(new) != _asked(old)


def secured(template: JSON) -> JSON:
    """Give what Pod Security and its like look at."""
    spec = template.get("spec") or {}
    kept = ("hostIPC", "hostNetwork", "hostPID", "securityContext", "serviceAccountName")
    inside = {one["name"]: one.get("securityContext") for one in containers(template) if one.get("securityContext")}
    paths = [one["hostPath"] for one in spec.get("volumes") or () if "hostPath" in one]
    return {**{key: spec[key] for key in kept if spec.get(key)}, "containers": inside, "hostPaths": paths}


def only_restarted(new: JSON, old: JSON) -> bool:
    """Tell whether nothing was changed but that `kubectl rollout restart` has asked for new pods.

    https://kubernetes.io/docs/reference/kubectl/generated/kubectl_rollout/kubectl_rollout_restart/
    """
    return _without_notes(new, {_RESTARTED}.__contains__) == _without_notes(old, {_RESTARTED}.__contains__)


def same_but_notes(new: JSON, old: JSON) -> bool:
    """Tell whether two templates differ in nothing that runs: a pipeline may note its build in each."""
    return _without_notes(new, lambda _: True) == _without_notes(old, lambda _: True)


def only_configured(new: JSON, old: JSON) -> bool:
    """Tell whether nothing was changed but a note of what it is configured with: that itself is not in a template.

    Helm's charts note a checksum (https://helm.sh/docs/howto/charts_tips_and_tricks/), Reloader that, or a variable
    (https://github.com/stakater/Reloader).
    """
    return _unconfigured(new) == _unconfigured(old) and new != old


def _unconfigured(template: JSON) -> JSON:
    bare = copy.deepcopy(_without_notes(template, _tells_configuration))
    for container in containers(bare):
        left = [one for one in container.pop("env", None) or () if not one["name"].startswith("STAKATER_")]
        if left:
            container["env"] = left
    return bare


def _tells_configuration(key: str) -> bool:
    return key == _RESTARTED or _CHECKSUM.search(key) is not None


def _without_notes(template: JSON, which: Callable[[str], bool]) -> JSON:
    meta = template.get("metadata") or {}
    left = {key: value for key, value in (meta.get("annotations") or {}).items() if not which(key)}
    return {**template, "metadata": {"labels": meta.get("labels") or {}, "annotations": left}}


def warm_up(template: JSON) -> int:
    """Tell how many seconds the probes of a template give its containers to start."""
    return max((_warm_up(one) for one in containers(template)), default=0)


def _warm_up(container: JSON) -> int:
    start, ready = container.get("startupProbe") or {}, container.get("readinessProbe") or {}
    # The defaults of Kubernetes: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#Probe
    tries = int(start.get("failureThreshold", 3)) * int(start.get("periodSeconds", 10)) if start else 0
    return int(start.get("initialDelaySeconds", 0)) + tries + int(ready.get("initialDelaySeconds", 0))
