"""Where states are kept between two calls: in ConfigMaps, in a folder, or in an object store (docs/adr/0027)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kreflex.audit import log
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError, GoneError, KreflexError, SettingsError, UnavailableError
from kreflex.policy import GROUP
from kreflex.rule import Check, Rule
from kreflex.views import JSON

PREFIX = "kreflex-anomaly-"
# What an entry has, and its parts. A label's value is shorter than a name may be.
_ENTRY = f"{GROUP}/anomaly-state"
_PART = f"{GROUP}/anomaly-state-part"
# A ConfigMap holds 1 MiB (kubernetes, pkg/apis/core/validation: MaxSecretSize). As base64 this is a little less than
# 1 MiB, too: aiohttp warns of a body that is larger.
_PART_BYTES = 740 * 1024
_AT_ONCE = 4
_TRIES = 5
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,118}[a-z0-9])?")
_OURS = Check(
    f"(object == null ? oldObject : object).metadata.name.startsWith('{PREFIX}')",
    f"only ConfigMaps named {PREFIX}… are its own",
)
RBAC = (
    Rule("", "configmaps", "get", "home"),
    Rule("", "configmaps", "list", "home"),
    Rule("", "configmaps", "create", "home", checks=(_OURS,)),
    Rule("", "configmaps", "update", "home", fields=("data",), checks=(_OURS,)),
    Rule("", "configmaps", "delete", "home", checks=(_OURS,)),
)


@dataclass(frozen=True)
class Stored:
    """What is kept under a name, and the version of it that a write may replace.

    Empty if it is damaged: what it consisted of is not all there any more.
    """

    content: bytes
    version: str


class Store(Protocol):
    """Keeps bytes under names; a name is lower-case letters, digits, dots and dashes, 120 at most."""

    async def read(self, name: str) -> Stored | None:
        """Read what is kept; None if nothing is."""
        ...

    async def version(self, name: str) -> str:
        """Tell the version of what is kept, without reading it; "" if nothing is."""
        ...

    async def write(self, name: str, content: bytes, version: str) -> str:
        """Replace the version that was read ("" for none), and give the new one.

        Raises ConflictError if somebody else has written since.
        """
        ...

    async def names(self) -> tuple[str, ...]:
        """Tell what is kept."""
        ...

    async def delete(self, name: str) -> None:
        """Forget what is kept; nothing happens if there is nothing."""
        ...


def store_at(address: str, reader: Reader, writer: Writer, home: str) -> Store:
    """Give the store of STATE_STORE; raises SettingsError for one that can't be used."""
    if address in {"", "configmaps"}:
        return ConfigMaps(reader, writer, home)
    if address.startswith("file:///"):
        return Folder(Path(address.removeprefix("file://")))
    if address.startswith("s3://"):
        try:
            from kreflex.anomaly.objects import Objects  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            told = f"STATE_STORE={address} needs the package {error.name}: pip install kreflex[s3]"
            raise SettingsError([told]) from error
        return Objects.at(address)
    raise SettingsError([f"STATE_STORE must be configmaps, file:///path or s3://bucket/prefix, not {address!r}"])


class ConfigMaps:
    """Keeps each in ConfigMaps of Kreflex' own namespace: parts that never change, and one entry that names them.

    The entry is written last, and conditioned on what was read: whoever is killed before leaves the old one whole.
    """

    def __init__(self, reader: Reader, writer: Writer, home: str = "kreflex-system") -> None:
        self._reader = reader
        self._writer = writer
        self._path = f"/api/v1/namespaces/{home}/configmaps"
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def read(self, name: str) -> Stored | None:
        version = ""
        for _ in range(_TRIES):
            entry = await self._entry(name)
            if entry is None:
                return None
            parts = await asyncio.gather(*(self._part(part) for part in _parts(entry)))
            if parts and None not in parts:
                return Stored(b"".join(part or b"" for part in parts), _version(entry))
            if version == _version(entry):
                break
            # Somebody has replaced it while it was read. Unless it stays as it is:
            version = _version(entry)
        log.warning("state.damaged", name=name, because="parts of it are gone")
        return Stored(b"", version)

    async def version(self, name: str) -> str:
        entry = await self._entry(name)
        return "" if entry is None else _version(entry)

    async def write(self, name: str, content: bytes, version: str) -> str:
        nonce = uuid.uuid4().hex[:12]
        pieces = [content[at : at + _PART_BYTES] for at in range(0, max(1, len(content)), _PART_BYTES)]
        parts = [f"{_entry_name(name)}.{nonce}.{number}" for number in range(len(pieces))]
        await asyncio.gather(*(self._put_part(name, *one) for one in zip(parts, pieces, strict=True)))
        # Listed before the entry changes: after that nobody who has written them can still make them part of it.
        others = [part async for part in self._parts_there(name) if part not in parts]
        try:
            written = await self._put_entry(name, parts, version)
        except ConflictError:
            await self._remove(parts)
            raise
        await self._remove(others)
        return written

    async def names(self) -> tuple[str, ...]:
        found = self._reader.list_metadata(self._path, labelSelector=_ENTRY)
        return tuple(sorted([body["metadata"]["name"].removeprefix(PREFIX) async for body in found]))

    async def delete(self, name: str) -> None:
        await self._remove([_entry_name(name)])
        await self._remove([part async for part in self._parts_there(name)])

    async def _entry(self, name: str) -> JSON | None:
        return await self._reader.get(f"{self._path}/{_entry_name(name)}")

    async def _put_entry(self, name: str, parts: Sequence[str], version: str) -> str:
        meta: JSON = {"name": _entry_name(name), "labels": {_ENTRY: "true"}}
        body: JSON = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"parts": json.dumps(list(parts))}}
        if not version:
            return _version(await self._writer.create(self._path, {**body, "metadata": meta}))
        meta["resourceVersion"] = version
        try:
            written = await self._writer.replace(f"{self._path}/{meta['name']}", {**body, "metadata": meta})
        except GoneError as error:
            raise ConflictError(f"the state {name} was deleted meanwhile", 409) from error
        return _version(written)

    async def _part(self, part: str) -> bytes | None:
        async with self._at_once:
            body = await self._reader.get(f"{self._path}/{part}")
        return None if body is None else base64.b64decode((body.get("binaryData") or {}).get("bytes", ""))

    async def _put_part(self, name: str, part: str, piece: bytes) -> None:
        body: JSON = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": part, "labels": {_PART: _digest(name)}},
            "immutable": True,
            "binaryData": {"bytes": base64.b64encode(piece).decode()},
        }
        async with self._at_once:
            await self._writer.create(self._path, body)

    async def _parts_there(self, name: str) -> AsyncIterator[str]:
        async for body in self._reader.list_metadata(self._path, labelSelector=f"{_PART}={_digest(name)}"):
            yield body["metadata"]["name"]

    async def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            # What stays is removed by the next write.
            with contextlib.suppress(GoneError):
                await self._writer.delete(f"{self._path}/{name}", {})


def _entry_name(name: str) -> str:
    return f"{PREFIX}{checked(name)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _parts(entry: JSON) -> list[str]:
    try:
        parts: list[str] = json.loads((entry.get("data") or {})["parts"])
    except (KeyError, ValueError):
        return []
    return parts


def _version(body: JSON) -> str:
    return str(body["metadata"]["resourceVersion"])


def checked(name: str) -> str:
    """Refuse a name that not every store takes."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"a state can't be kept under the name {name!r}")
    return name


class Folder:
    """Keeps each in a file of a folder, such as a volume that all replicas mount.

    A file begins with the version of what follows. It is replaced as a whole, under a lock that dies with its holder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, name: str) -> Stored | None:
        return await asyncio.to_thread(self._read, name)

    async def version(self, name: str) -> str:
        return await asyncio.to_thread(self._version, name)

    async def write(self, name: str, content: bytes, version: str) -> str:
        return await asyncio.to_thread(self._write, name, content, version)

    async def names(self) -> tuple[str, ...]:
        with _of_files():
            return tuple(sorted(file.stem for file in self._folder.glob("*.state")))

    async def delete(self, name: str) -> None:
        with _of_files(), self._locked(name):
            self._file(name).unlink(missing_ok=True)

    def _read(self, name: str) -> Stored | None:
        with _of_files():
            try:
                version, _, content = self._file(name).read_bytes().partition(b"\n")
            except FileNotFoundError:
                return None
        return Stored(content, version.decode(errors="replace"))

    def _version(self, name: str) -> str:
        with _of_files():
            try:
                with self._file(name).open("rb") as file:
                    return file.readline(64).rstrip(b"\n").decode(errors="replace")
            except FileNotFoundError:
                return ""

    def _write(self, name: str, content: bytes, version: str) -> str:
        with _of_files(), self._locked(name):
            if self._version(name) != version:
                raise ConflictError(f"the state {self._file(name)} was written by somebody else meanwhile", 409)
            new, draft = uuid.uuid4().hex, self._folder / f"{name}.draft"
            with draft.open("wb") as file:
                file.write(new.encode() + b"\n" + content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._file(name))
            return new

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{checked(name)}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _file(self, name: str) -> Path:
        return self._folder / f"{checked(name)}.state"


@contextlib.contextmanager
def _of_files() -> Iterator[None]:
    try:
        yield
    except KreflexError:
        raise
    except OSError as error:
        raise UnavailableError(f"STATE_STORE can't be used: {error}") from error
