"""States in an object store that speaks S3: `pip install kreflex[s3]`.

Credentials, region and end point are those of the AWS_… variables. The store has to know conditional writes (If-Match,
If-None-Match), as S3 itself does since the end of 2024.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import S3Store

from kreflex.anomaly.store import Stored, checked
from kreflex.errors import ConflictError, KreflexError, SettingsError, UnavailableError

_TIMEOUT = timedelta(seconds=20)
_SUFFIX = ".state"


class Objects:
    """Keeps each as one object. A put is all or nothing, and conditioned on the entity tag that was read."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    @classmethod
    def at(cls, address: str) -> Objects:
        """Open `s3://bucket/prefix`."""
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        if not bucket:
            raise SettingsError([f"STATE_STORE must name a bucket, as s3://bucket/prefix does, not {address!r}"])
        with _of_objects(address):
            return cls(
                S3Store(
                    bucket,
                    prefix=prefix.strip("/") or None,
                    client_options={"allow_http": plain, "timeout": _TIMEOUT},
                    retry_config={"max_retries": 2, "retry_timeout": _TIMEOUT},
                    conditional_put="etag",
                )
            )

    async def read(self, name: str) -> Stored | None:
        with _of_objects(name):
            try:
                found = await self._store.get_async(_key(name))
                return Stored(bytes(await found.bytes_async()), found.meta["e_tag"] or "")
            except (NotFoundError, FileNotFoundError):
                return None

    async def version(self, name: str) -> str:
        with _of_objects(name):
            try:
                return (await self._store.head_async(_key(name)))["e_tag"] or ""
            except (NotFoundError, FileNotFoundError):
                return ""

    async def write(self, name: str, content: bytes, version: str) -> str:
        with _of_objects(name):
            try:
                written = await self._store.put_async(
                    _key(name), content, mode={"e_tag": version} if version else "create", use_multipart=False
                )
            except (AlreadyExistsError, PreconditionError, NotFoundError) as error:
                raise ConflictError(f"the state {name} was written by somebody else meanwhile", 409) from error
            return written["e_tag"] or ""

    async def names(self) -> tuple[str, ...]:
        with _of_objects("all"):
            pages = self._store.list()
            found = [one["path"].rpartition("/")[2] async for page in pages for one in page]
        return tuple(sorted(name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX)))

    async def delete(self, name: str) -> None:
        with _of_objects(name), contextlib.suppress(NotFoundError, FileNotFoundError):
            await self._store.delete_async(_key(name))


def _key(name: str) -> str:
    return f"{checked(name)}{_SUFFIX}"


@contextlib.contextmanager
def _of_objects(what: str) -> Iterator[None]:
    try:
        yield
    except KreflexError:
        raise
    except (BaseError, OSError) as error:
        # What follows the first line is for who debugs the library.
        first = str(error).partition("\n")[0]
        raise UnavailableError(f"STATE_STORE can't be used for {what}: {first}") from error
