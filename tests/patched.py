"""An API server's answers to writes, for tests of what chaos-runner does when one of many things can't be read."""

import copy
from datetime import timedelta
from typing import Any

from kreflex.errors import ApiError, ConflictError, GoneError
from kreflex.views import JSON
from tests.values import CannedApi, stamp


class PatchedApi(CannedApi):
    """Keeps what is written, under resourceVersions; its clock goes on with each call.

    `broken` are paths, or parts of them, and what is answered there instead.
    """

    def __init__(self, objects: dict[str, JSON] | None = None, each: timedelta = timedelta(milliseconds=200)) -> None:
        super().__init__(objects)
        self.each = each
        self.broken: dict[str, Exception] = {}

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        self.watch.moment += self.each
        for part, error in self.broken.items():
            if part in f"{method} {path}":
                self.calls.append(f"{method} {path}")
                raise error
        if method in {"POST", "PATCH", "DELETE"}:
            self.calls.append(f"{method} {path}")
            return self._written(method, path, body, options)
        if _of_one(path) and path not in self.objects:
            self.calls.append(f"{method} {path}")
            raise GoneError(f"{path} is not there", 404)
        return copy.deepcopy(await super().send(method, path, body, **options))

    def _written(self, method: str, path: str, body: JSON | None, options: dict[str, Any]) -> JSON:
        if method == "POST":
            return self._created(path, body or {})
        where = path.removesuffix("/status")
        if where not in self.objects:
            raise GoneError(f"{where} is not there", 404)
        there = self.objects[where]
        if method == "DELETE":
            return self.objects.pop(where)
        changed = copy.deepcopy(there)
        for step in options.get("operations") or ():
            _step(changed, step)
        _merge(changed, body or {})
        for key in ("uid", "resourceVersion"):
            if changed["metadata"][key] != there["metadata"][key]:
                raise ConflictError(f"{where} has changed", 409)
        changed["metadata"]["resourceVersion"] = str(int(there["metadata"]["resourceVersion"]) + 1)
        self.objects[where] = changed
        return copy.deepcopy(changed)

    def _created(self, path: str, body: JSON) -> JSON:
        where = f"{path}/{body['metadata']['name']}"
        if where in self.objects:
            raise ConflictError(f"{where} is there", 409, "AlreadyExists")
        meta = {
            "uid": f"uid-{len(self.objects)}",
            "resourceVersion": "1",
            "creationTimestamp": stamp(self.watch.moment),
        }
        self.objects[where] = {**body, "metadata": {**meta, **body["metadata"]}}
        return copy.deepcopy(self.objects[where])


def _of_one(path: str) -> bool:
    """Whether a path is that of one object, and not of a collection."""
    parts = path.split("/")[3 if path.startswith("/api/") else 4 :]
    return len(parts[2:] if parts[0] == "namespaces" and len(parts) > 2 else parts) == 2


def _merge(there: JSON, patch: JSON) -> None:
    """Merge as RFC 7396 has it."""
    for key, value in patch.items():
        if value is None:
            there.pop(key, None)
        elif isinstance(value, dict):
            _merge(there.setdefault(key, {}), value)
        else:
            there[key] = value


def _step(body: Any, step: JSON) -> None:
    """Do one operation of RFC 6902."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
    for part in way:
        body = body[int(part)] if isinstance(body, list) else body[part]
    if step["op"] == "remove":
        del body[int(last) if isinstance(body, list) else last]
    elif isinstance(body, list) and step["op"] == "add":
        body.insert(len(body) if last == "-" else int(last), step["value"])
    else:
        body[int(last) if isinstance(body, list) else last] = step["value"]


def refused(status: int, text: str = "no") -> ApiError:
    """An answer of the API server that the request itself has earned."""
    return ApiError(f"it said {text}", status)
