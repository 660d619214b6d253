"""`python -m kreflex.once`: one round of the waker and no server, for a CronJob in a cluster without Knative.

Exits 1 when a function could not be called, so that the Job says so. What is due stays due: the next round asks again.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from datetime import timedelta

from kreflex import trace
from kreflex.audit import configure_logging, log
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.errors import KreflexError, SettingsError
from kreflex.prom import Metrics
from kreflex.serve import REFLEXES
from kreflex.settings import CoreSettings
from kreflex.waking import Waker
from kreflex.world import World


def main() -> None:
    """Go one round; configuration that can't be used ends it with every fault named."""
    configure_logging()
    try:
        trace.start("waker")
        # It reads its settings as it is imported, and loads the functions that they name.
        settings = importlib.import_module("functions.waker.main").settings
        failures = asyncio.run(_round(settings.urls, settings.retain))
    except SettingsError as error:
        sys.exit("\n".join(["The waker can't start with its configuration:", *(f"  {one}" for one in error.faults)]))
    except KreflexError as error:
        failures = [str(error)]
    finally:
        trace.stop()
    log.info("waker.round", failures=failures)
    sys.exit(1 if failures else 0)


async def _round(urls: dict[str, str], retain: timedelta) -> list[str]:
    core = CoreSettings.from_environment()
    transport = Transport(load_credentials())
    try:
        world = World(Reader(transport, core.looked_after), Metrics(*core.metrics))
        reflexes = [REFLEXES[name] for name in urls]
        with trace.span("round"):
            return await Waker(urls, reflexes, world, Writer(transport), core, retain).go()
    finally:
        await transport.close()


if __name__ == "__main__":
    main()
