"""The real Alertmanager, also two of them, calls the real function, which acts on the real API server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lab import callers, senders
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.senders import Alertmanager
from tests import kit
from tests.senders.surroundings import Function, alert

Json = dict[str, Any]


async def config(plane: ControlPlane, url: str, again: str = "1s", **webhook: Any) -> Json:
    """A configuration with one receiver at this URL, which is shown Alertmanager's token.

    It is told again and again, should the pod run at the moment when it is looked at.
    """
    token = await callers.issue(plane, "alertmanager")
    shown = {"authorization": {"credentials_file": str(token)}}
    times = {"group_wait": "0s", "group_interval": again, "repeat_interval": again}
    return {
        "route": {"receiver": "function", "group_by": ["..."], **times},
        "receivers": [{"name": "function", "webhook_configs": [{"url": url, "http_config": shown, **webhook}]}],
    }


@asynccontextmanager
async def alertmanager(plane: ControlPlane, home: Path, url: str, **more: Any) -> AsyncIterator[Alertmanager]:
    """Run an Alertmanager that tells one receiver."""
    async with senders.alertmanagers(home, {"alertmanager": await config(plane, url, **more)}) as running:
        yield running["alertmanager"]


async def applied(here: kit.Place) -> bool:
    """Tell whether there is one record, and it was applied."""
    records = await here.records()
    return [record.get("status", {}).get("outcome") for record in records] == ["applied"]


async def test_an_alert_is_answered_with_an_eviction_and_2xx(
    here: kit.Place, function: Function, tmp_path: Path
) -> None:
    pod = await here.loop((await here.deployment())[0], speed="20")
    async with alertmanager(here.plane, tmp_path, function.url) as manager:
        await manager.tell(alert(pod))
        await eventually(lambda: applied(here), "the remediation", 60)
        await eventually(lambda: notified(manager), "the answer")

    assert here.evictions() == [pod["metadata"]["uid"]]
    assert not manager.said("will retry")


async def notified(manager: Alertmanager) -> bool:
    return manager.said("Notify success")


async def test_what_it_can_t_understand_is_400_with_the_field_and_never_retried(
    here: kit.Place, function: Function, tmp_path: Path
) -> None:
    pod = await here.loop((await here.deployment())[0], speed="20")
    strange: Json = {"again": "1h", "payload": {"version": "5", "groupKey": "{{ .GroupLabels }}", "alerts": []}}
    async with alertmanager(here.plane, tmp_path, function.url, **strange) as manager:
        await manager.tell(alert(pod))

        async def refused() -> bool:
            return manager.said("unrecoverable error", "400", "version")

        await eventually(refused, "Alertmanager says what the function found wrong")
        assert not manager.said("will retry")
    assert here.evictions() == []


async def test_while_the_api_server_is_down_it_is_told_again_until_it_is_up(
    here: kit.Place, function: Function, tmp_path: Path
) -> None:
    pod = await here.loop((await here.deployment())[0], speed="20")
    async with alertmanager(here.plane, tmp_path, function.url) as manager:
        function.shut_door()
        try:
            await manager.tell(alert(pod))

            async def failed() -> bool:
                return manager.said("will retry", "503")

            await eventually(failed, "an answer 503")
            assert here.evictions() == []
        finally:
            function.door.open()
        await eventually(lambda: applied(here), "the remediation", 60)
    assert here.evictions() == [pod["metadata"]["uid"]]
