"""Service level objectives as people keep them in Git, made one value: OpenSLO's, Sloth's and Pyrra's.

They are read from their custom resources, and from ConfigMaps of Kreflex' own namespace with the label
`kreflex.dev/slos`, for OpenSLO mostly has no custom resource.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from kreflex.cluster import Reader
from kreflex.policy import GROUP
from kreflex.rule import Rule
from kreflex.sloformats import OPENSLO, PYRRA, SLOTH, WORKLOADS, BadSloError, Named, Slo, openslo, pyrra, sloth
from kreflex.views import JSON

# On a workload: the SLO that it is part of, or several with commas between, each as NAME or NAMESPACE/NAME.
SLO = f"{GROUP}/slo"
# On a ConfigMap of Kreflex' own namespace: it holds SLOs as YAML.
KEPT = f"{GROUP}/slos"
_LISTS = (
    (OPENSLO, "SLO", "slos"),
    (OPENSLO, "SLI", "slis"),
    (SLOTH, "PrometheusServiceLevel", "prometheusservicelevels"),
    (PYRRA, "ServiceLevelObjective", "servicelevelobjectives"),
)
# Among documents only: it tells of what type a source is, where an SLO does not say it itself.
_SOURCE = (OPENSLO, "DataSource")
RBAC = (
    *(Rule(api.partition("/")[0], plural, "list") for api, _, plural in _LISTS),
    Rule("", "configmaps", "list", "home"),
)


def read_slos(bodies: Iterable[JSON]) -> tuple[Slo, ...]:
    """Read objects of the three kinds, wherever they come from; others are passed over.

    One that can't be read is there all the same, and says why: who depends on it must not run as if it were not.
    """
    known = list(bodies)
    named = {(str(body.get("kind")), _namespace(body), str(body["metadata"].get("name", ""))): body for body in known}
    return tuple(slo for body in known for slo in _read(body, named))


def is_slo(body: object) -> bool:
    """Tell whether a document is of one of the kinds that are read, or an SLI or DataSource that one of them names."""
    if not isinstance(body, dict) or not isinstance(body.get("metadata"), dict):
        return False
    # So the specification has it (https://github.com/OpenSLO/OpenSLO#general-schema), but it names no group.
    api = {"openslo/v1": OPENSLO}.get(str(body.get("apiVersion")), body.get("apiVersion"))
    return (api, body.get("kind")) in {_SOURCE, *((version, kind) for version, kind, _ in _LISTS)}


def _read(body: JSON, named: Named) -> Iterable[Slo]:
    name, kind = str(body["metadata"].get("name", "")), str(body["kind"])
    blank = Slo(_namespace(body), name, name, kind, broken=_unusable(body))
    if kind in {"SLI", "DataSource"}:
        return ()
    try:
        return (blank,) if blank.broken else tuple(_found(replace(blank, workloads=_selector(body)), body, named))
    except BadSloError as error:
        return (replace(blank, broken=str(error)),)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        return (replace(blank, broken=f"its spec is not as a {kind} has it: {error!r}"),)


def _unusable(body: JSON) -> str:
    nowhere = "" if _namespace(body) else "metadata.namespace is missing: that of the workloads that it is about"
    return str(body.get("broken", nowhere))


def _found(blank: Slo, body: JSON, named: Named) -> Iterable[Slo]:
    if blank.kind == "SLO":
        return openslo(blank, body, named)
    return sloth(blank, body) if blank.kind == "PrometheusServiceLevel" else pyrra(blank, body)


def _namespace(body: JSON) -> str:
    return str(body["metadata"].get("namespace", ""))


def _selector(body: JSON) -> tuple[tuple[str, str], ...]:
    text = str((body["metadata"].get("annotations") or {}).get(WORKLOADS, ""))
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not sign or not key.strip() for key, sign, _ in pairs):
        raise BadSloError(f"annotation {WORKLOADS} must be labels as app=cart,tier=web, not {text!r}")
    return tuple((key.strip(), value.strip()) for key, _, value in pairs)


async def load_slos(reader: Reader, home: str, namespace: str = "") -> tuple[Slo, ...]:
    """Read the SLOs of a namespace, or all; raises UnavailableError if one of the lists can't be had."""
    return await reader.share(f"slos {namespace}", lambda: _load(reader, home, namespace))


async def _load(reader: Reader, home: str, namespace: str) -> tuple[Slo, ...]:
    lists = [_listed(reader, api, kind, plural, namespace) for api, kind, plural in _LISTS]
    found = await asyncio.gather(*lists, _kept(reader, home))
    slos = read_slos(body for bodies in found for body in bodies)
    return tuple(slo for slo in slos if not namespace or slo.namespace == namespace)


async def _listed(reader: Reader, api: str, kind: str, plural: str, namespace: str) -> list[JSON]:
    where = f"namespaces/{namespace}/{plural}" if namespace else plural
    # What is in a list does not say what it is.
    return [{**body, "apiVersion": api, "kind": kind} async for body in reader.list_served(f"/apis/{api}/{where}")]


async def _kept(reader: Reader, home: str) -> list[JSON]:
    path = f"/api/v1/namespaces/{home}/configmaps"
    maps = [body async for body in reader.list(path, labelSelector=KEPT)]
    return [body for one in maps for name, text in (one.get("data") or {}).items() for body in parse(text, name)]


def parse(text: str, where: str) -> list[JSON]:
    """Read the SLOs among YAML documents; what is no YAML is a broken SLO, called after the file."""
    import yaml  # noqa: PLC0415 - most functions never read a file

    try:
        return [body for body in yaml.safe_load_all(text) if is_slo(body)]
    # PyYAML makes dates of what looks like one, and calls itself for what is nested.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        broken = f"it is no YAML: {' '.join(str(error).split())}"
        return [{"apiVersion": OPENSLO, "kind": "SLO", "metadata": {"name": where}, "broken": broken}]
