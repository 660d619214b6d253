"""States are kept whole, whatever happens to those who write them: in ConfigMaps, in a folder, in an object store."""

import asyncio
import os
import sys
import textwrap
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kreflex.anomaly.objects import Objects
from kreflex.anomaly.store import PREFIX, ConfigMaps, Folder, Store, Stored, store_at
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.errors import ConflictError, SettingsError, UnavailableError
from lab.cluster import ControlPlane

HOME = "kreflex-system"
# A bucket of any server that speaks S3, which the AWS_… variables lead to.
S3 = "KREFLEX_S3"
MAPS = f"/api/v1/namespaces/{HOME}/configmaps"
# Three parts in ConfigMaps.
LARGE = os.urandom(2_300_000)


def a_name() -> str:
    return f"{uuid.uuid4()}.{'signal' * 6}"


@asynccontextmanager
async def in_configmaps(plane: ControlPlane) -> AsyncIterator[ConfigMaps]:
    transport = Transport(load_credentials(str(plane.kubeconfig)))
    try:
        yield ConfigMaps(Reader(transport), Writer(transport), HOME)
    finally:
        await transport.close()


@pytest.fixture(params=["configmaps", "folder", "objects"])
async def store(request: pytest.FixtureRequest, installed: ControlPlane, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "folder":
        yield Folder(tmp_path / "states")
        return
    if request.param == "objects":
        yield Objects.at(os.environ.get(S3, "") or pytest.skip(f"{S3} names no bucket, as s3://bucket/prefix does"))
        return
    async with in_configmaps(installed) as maps:
        yield maps


async def test_what_was_never_written_is_not_there(store: Store) -> None:
    name = a_name()
    assert (await store.read(name), await store.version(name), name in await store.names()) == (None, "", False)
    await store.delete(name)


@pytest.mark.parametrize("content", [b"", b"one\ntwo\n", LARGE], ids=["nothing", "little", "much"])
async def test_what_was_written_is_read(store: Store, content: bytes) -> None:
    name = a_name()
    version = await store.write(name, content, "")
    assert await store.read(name) == Stored(content, version)
    assert await store.version(name) == version
    assert name in await store.names()
    await store.delete(name)
    assert (await store.read(name), name in await store.names()) == (None, False)


async def test_only_what_was_read_is_replaced(store: Store) -> None:
    name = a_name()
    first = await store.write(name, b"first", "")
    second = await store.write(name, b"second", first)
    for stale in ("", first):
        with pytest.raises(ConflictError):
            await store.write(name, b"late", stale)
    assert await store.read(name) == Stored(b"second", second)
    await store.delete(name)
    with pytest.raises(ConflictError):
        await store.write(name, b"late", second)
    assert await store.read(name) is None


async def test_of_many_that_write_at_once_one_wins_and_is_whole(store: Store) -> None:
    name = a_name()
    version = await store.write(name, b"before", "")
    contents = [bytes([65 + number]) * 800_000 for number in range(6)]
    ends = await asyncio.gather(*(store.write(name, one, version) for one in contents), return_exceptions=True)
    (won,) = [number for number, end in enumerate(ends) if isinstance(end, str)]
    assert all(isinstance(end, ConflictError) for number, end in enumerate(ends) if number != won)
    assert await store.read(name) == Stored(contents[won], await store.version(name))


async def test_a_reader_sees_one_of_them_whole_while_they_are_replaced(store: Store) -> None:
    name = a_name()
    version = await store.write(name, b"0" * 800_000, "")

    async def replaced() -> None:
        nonlocal version
        for number in range(1, 6):
            version = await store.write(name, str(number).encode() * 800_000, version)

    writing, seen = asyncio.create_task(replaced()), []
    while not writing.done():
        found = await store.read(name)
        assert found is not None
        seen.append((len(found.content), len(set(found.content))))
    await writing
    assert set(seen) == {(800_000, 1)}


async def parts(plane: ControlPlane, name: str) -> list[str]:
    items = (await plane.api.get(MAPS))["items"]
    return sorted(one["metadata"]["name"] for one in items if one["metadata"]["name"].startswith(f"{PREFIX}{name}."))


async def test_nothing_is_left_of_what_was_replaced_or_lost(installed: ControlPlane) -> None:
    name = a_name()
    async with in_configmaps(installed) as maps:
        version = await maps.write(name, LARGE, "")
        with pytest.raises(ConflictError):
            await maps.write(name, LARGE, "")
        await maps.write(name, LARGE[:1_000_000], version)
        assert len(await parts(installed, name)) == 2
        await maps.delete(name)
        assert await parts(installed, name) == []


async def test_what_lost_a_part_is_known_as_damaged_and_can_be_replaced(installed: ControlPlane) -> None:
    name = a_name()
    async with in_configmaps(installed) as maps:
        version = await maps.write(name, LARGE, "")
        await installed.api.delete(f"{MAPS}/{(await parts(installed, name))[1]}")
        assert await maps.read(name) == Stored(b"", version)
        version = await maps.write(name, b"anew", version)
        assert await maps.read(name) == Stored(b"anew", version)


WRITER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from kreflex.anomaly.store import ConfigMaps, Folder
    from kreflex.cluster import Reader, Transport, Writer
    from kreflex.credentials import load_credentials

    async def main():
        where, name = sys.argv[1:]
        transport = Transport(load_credentials(where)) if where.endswith("config") else None
        store = ConfigMaps(Reader(transport), Writer(transport)) if transport else Folder(Path(where))
        print("begun", flush=True)
        for number in range(100_000):
            found = await store.read(name)
            await store.write(name, str(number % 10).encode() * 2_300_000, found.version)

    asyncio.run(main())
""")


@pytest.mark.parametrize("where", ["configmaps", "folder"])
async def test_a_writer_that_is_killed_leaves_a_whole_one(where: str, installed: ControlPlane, tmp_path: Path) -> None:
    name, config = a_name(), tmp_path / "config"
    config.write_text(installed.kubeconfig.read_text())
    async with in_configmaps(installed) as maps:
        store: Store = Folder(tmp_path / "states") if where == "folder" else maps
        place = str(tmp_path / "states" if where == "folder" else config)
        await store.write(name, b"0" * 2_300_000, "")
        for number in range(3):
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, place, name, stdout=PIPE)
            assert process.stdout is not None
            assert await process.stdout.readline() == b"begun\n"
            await asyncio.sleep(0.05 + 0.037 * number)
            process.kill()
            await process.wait()
            found = await store.read(name)
            assert found is not None
            assert (len(found.content), len(set(found.content))) == (2_300_000, 1)
        # Nor does it keep the next one from writing, who clears away what it has left.
        version = await store.write(name, b"next", await store.version(name))
        assert await store.read(name) == Stored(b"next", version)
        assert len(await parts(installed, name)) <= 1


async def test_a_folder_that_can_not_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="STATE_STORE can't be used"):
        await Folder(tmp_path / "file").write("name", b"", "")


async def test_an_image_without_the_extra_says_what_is_missing(
    installed: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = Transport(load_credentials(str(installed.kubeconfig)))
    monkeypatch.delitem(sys.modules, "kreflex.anomaly.objects", raising=False)
    for name in ("obstore", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=r"s3://states/of needs the package obstore.*: pip install kreflex\[s3\]"):
        store_at("s3://states/of", Reader(transport), Writer(transport), HOME)


async def test_a_store_is_chosen_by_its_address(installed: ControlPlane) -> None:
    transport = Transport(load_credentials(str(installed.kubeconfig)))
    given = Reader(transport), Writer(transport), HOME
    assert isinstance(store_at("configmaps", *given), ConfigMaps)
    assert isinstance(store_at("file:///var/states", *given), Folder)
    assert isinstance(store_at("s3://bucket/prefix", *given), Objects)
    with pytest.raises(SettingsError, match="STATE_STORE must name a bucket"):
        store_at("s3:///prefix", *given)
    with pytest.raises(SettingsError, match=r"STATE_STORE must be configmaps, file:///path or s3://bucket/prefix"):
        store_at("redis://here", *given)


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "x" * 121, "-a"])
async def test_a_name_that_not_every_store_takes_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be kept under the name"):
        await Folder(tmp_path).read(name)
