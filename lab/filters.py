"""The filters of a Knative Trigger, decided as its Broker does, so that the relay can go by those that are shipped.

https://knative.dev/docs/eventing/triggers/#trigger-filtering, without cesql.
"""

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from lab.paths import REPOSITORY

Expression = Mapping[str, Any]
_TRIGGERS = REPOSITORY / "triggers" / "knative-eventing"
_TEXTS: Mapping[str, Callable[[str, str], bool]] = {
    "exact": str.__eq__,
    "prefix": str.startswith,
    "suffix": str.endswith,
}


def passes(expression: Expression, attributes: Mapping[str, str]) -> bool:
    """Whether an event with these attributes passes; raises ValueError for a dialect that is not known."""
    ((dialect, value),) = expression.items()
    if dialect in {"all", "any"}:
        return {"all": all, "any": any}[dialect](passes(one, attributes) for one in value)
    if dialect == "not":
        return not passes(value, attributes)
    if dialect not in _TEXTS:
        raise ValueError(f"no filter is called {dialect!r} here: there are all, any, not, {', '.join(_TEXTS)}")
    return all(name in attributes and _TEXTS[dialect](attributes[name], text) for name, text in value.items())


def is_told(function: str) -> bool:
    """Whether a Trigger is shipped for a function."""
    return (_TRIGGERS / f"{function}.yaml").exists()


def shipped(function: str) -> tuple[Expression, ...]:
    """The filters of the Trigger that is shipped for a function, all of which an event has to pass."""
    documents = yaml.safe_load_all((_TRIGGERS / f"{function}.yaml").read_text())
    (trigger,) = [one for one in documents if one["kind"] == "Trigger"]
    return tuple(trigger["spec"]["filters"])
