"""`python -m kreflex.once`: one round of the waker and no server, for a CronJob in a cluster without Knative.

`python -m kreflex.once anomaly-scorer` is one tick of that function, `python -m kreflex.once chaos-runner` one search
for what was injected and no experiment answers for any more. Exits 1 when something was not reached, so that the Job
says so. What is due stays due: the next round asks again.
"""

from __future__ import annotations

import asyncio
import importlib
import sys

from kreflex import trace
from kreflex.audit import configure_logging, log
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.errors import KreflexError, SettingsError, UnavailableError
from kreflex.prom import Metrics
from kreflex.serve import CLOCKED, ERRANDS, REFLEXES
from kreflex.settings import CoreSettings
from kreflex.signals import Delivery
from kreflex.waking import Waker
from kreflex.world import World

_NAMES = ("waker", "anomaly-scorer", "chaos-runner")


def main() -> None:
    """Go one round; configuration that can't be used ends it with every fault named."""
    name = sys.argv[1] if len(sys.argv) > 1 else "waker"
    if name not in _NAMES:
        sys.exit(f"a clock wakes {', '.join(_NAMES)}, and not {name!r}")
    configure_logging()
    try:
        trace.start(name)
        # It reads its settings as it is imported; the waker loads the functions that they name.
        importlib.import_module(f"functions.{name.replace('-', '_')}.main")
        failures = asyncio.run(_once(name))
    except SettingsError as error:
        sys.exit("\n".join([f"{name} can't start with its configuration:", *(f"  {one}" for one in error.faults)]))
    except KreflexError as error:
        failures = [str(error)]
    finally:
        trace.stop()
    log.info(f"{name}.round", failures=failures)
    sys.exit(1 if failures else 0)


async def _once(name: str) -> list[str]:
    core = CoreSettings.from_environment()
    transport = Transport(load_credentials())
    try:
        with trace.span("round"):
            return await (_round if name == "waker" else _tick)(name, core, transport)
    finally:
        await transport.close()


async def _round(name: str, core: CoreSettings, transport: Transport) -> list[str]:
    settings = importlib.import_module(f"functions.{name}.main").settings
    urls: dict[str, str] = settings.urls
    world = World(Reader(transport, core.looked_after), Metrics(*core.metrics))
    reflexes = [REFLEXES[one] for one in urls if one in REFLEXES]
    errands = {one: ERRANDS[one] for one in urls if one in ERRANDS}
    return await Waker(urls, reflexes, world, Writer(transport), core, settings.retain, errands).go()


async def _tick(name: str, core: CoreSettings, transport: Transport) -> list[str]:
    try:
        await CLOCKED[name](Reader(transport, core.looked_after), Writer(transport))(Delivery(tick=True))
    except UnavailableError as error:
        return [str(error)]
    return []


if __name__ == "__main__":
    main()
