"""What was injected and nobody remembers: the object itself says whose it is, until when, and how it was before.

It comes to this if somebody takes the finalizer from an experiment and deletes it, or if a process was stopped in the
middle of its write and goes on after all was taken back.
"""

from __future__ import annotations

from kreflex.audit import log
from kreflex.chaos import engines, turns
from kreflex.chaos.engines import PLURALS
from kreflex.chaos.experiments import INJECTED, PRIOR, REVERT_BY, Experiments, Injection
from kreflex.chaos.faults import Changing, Hands
from kreflex.chaos.targets import ending, place, ref_of
from kreflex.cluster import Writer
from kreflex.errors import ApiError, ConflictError, GoneError, KreflexError, OutageError, UnavailableError
from kreflex.records import Target
from kreflex.views import JSON, moment
from kreflex.world import World

KINDS = ("Node", "Pod", "Deployment", "StatefulSet", "Rollout", "ConfigMap", "Lease")
REMOVED = ("NetworkPolicy", *PLURALS)
# Their CRDs may be missing.
_OF_OTHERS = frozenset({"Rollout", *PLURALS})
_TRIES = 5


class Orphans:
    """Looks at the metadata of all that may be hit, and takes back what is over and left."""

    def __init__(self, world: World, writer: Writer) -> None:
        self._world = world
        self._writer = writer
        self._hands = Hands(world.cluster, writer, world.home)
        self._experiments = Experiments(world.cluster, writer)

    async def take_back(self) -> list[str]:
        """Take back what no experiment answers for any more; what went wrong, in words."""
        errors = []
        for kind, namespace in ((one, place_) for one in (*KINDS, *REMOVED) for place_ in self._places(one)):
            try:
                errors += await self._of_kind(kind, namespace)
            except UnavailableError as error:
                # The others are looked at all the same. What is served nowhere has left nothing, and what is in a
                # namespace that goes, goes with it.
                unserved = kind in _OF_OTHERS and isinstance(error, OutageError) and error.status == 404
                if not unserved and not await ending(namespace, self._world.cluster):
                    errors.append(f"what is left of {kind}s can't be seen{_in(namespace)}: {error}")
        return errors

    async def _of_kind(self, kind: str, namespace: str) -> list[str]:
        found = [
            body
            async for body in self._world.cluster.list_metadata(_all(kind, namespace))
            if INJECTED in (body["metadata"].get("annotations") or {})
        ]
        told = [await self._one(kind, body) for body in found]
        if kind == "Lease":
            await turns.clear(namespace, self._experiments, self._world.cluster, self._writer)
        return [text for text in told if text]

    def _places(self, kind: str) -> tuple[str, ...]:
        """Tell where to look. Who looks after some namespaces only has no nodes, unless it is at home."""
        only = self._world.cluster.namespaces
        if not only or (kind == "Node" and self._world.home in only):
            return ("",)
        return () if kind == "Node" else only

    async def _one(self, kind: str, body: JSON) -> str:
        mark, because = body["metadata"]["annotations"][INJECTED], ""
        for _ in range(_TRIES):
            try:
                if await self._looked_after(mark, body):
                    return ""
                return await self._remove(kind, body) if kind in REMOVED else await self._restore(kind, body, mark)
            except ConflictError as error:
                # Its controller writes its status all the time.
                because = str(error)
            except (KreflexError, ValueError) as error:
                because = str(error)
                break
        return f"{kind} {body['metadata']['name']} is left as {mark} made it: {because}"

    async def _looked_after(self, mark: str, body: JSON) -> bool:
        """Tell whether an experiment is at it, and its time is not over."""
        namespace, name, uid = [*mark.split("/"), "", ""][:3]
        try:
            found = await self._experiments.get(namespace, name) if namespace and name else None
        except (OutageError, ValueError):
            # One that nobody can read, or whose kind is served no more: by the object's own word, then.
            until = moment(body["metadata"]["annotations"].get(REVERT_BY))
            return until is not None and self._world.now() < until
        if found is None or found.uid != uid:
            return False
        mine = [one for one in found.status.injected if one.target.uid == body["metadata"]["uid"]]
        return any(one.open for one in mine) or (not mine and found.status.phase in {"Running", "Reverting"})

    async def _restore(self, kind: str, body: JSON, mark: str) -> str:
        notes, now = body["metadata"]["annotations"], self._world.now()
        ref = ref_of(body, kind)
        left = Injection(
            fault="Image",
            target=Target.of(ref),
            prior=notes.get(PRIOR, "[]"),
            intended_at=now,
            revert_by=moment(notes.get(REVERT_BY)) or now,
        )
        back = await Changing().revert(mark, left, self._hands)
        log.warning("experiment.orphan", object=str(ref), experiment=mark, proven=back.proven, note=back.note)
        return "" if back.proven else f"{ref}: {back.note}"

    async def _remove(self, kind: str, body: JSON) -> str:
        meta = body["metadata"]
        if "deletionTimestamp" in meta:
            return ""
        try:
            await self._writer.delete(
                _all(kind, meta["namespace"], meta["name"]), {"preconditions": {"uid": meta["uid"]}}
            )
        except GoneError:
            return ""
        except ApiError as error:
            return f"{kind} {meta['namespace']}/{meta['name']}: {error}"
        log.warning("experiment.orphan", object=f"{kind} {meta['namespace']}/{meta['name']}", proven=True)
        return ""


def _in(namespace: str) -> str:
    return f" in namespace {namespace}" if namespace else ""


def _all(kind: str, namespace: str, name: str = "") -> str:
    return engines.place(kind, namespace, name) if kind in PLURALS else place(kind, namespace, name)
