"""A function as an ASGI application: its `main`, with nothing around it.

The same `main` runs under `functions-framework --asgi`. That loads Flask as well, routes and wraps each request, which
is a seventh of a cold start and a fifth of what an irrelevant event costs (docs/adr/0015).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from kreflex.serve import Main


def load(source: Path) -> ASGIApp:
    """Load a function from its main.py; raises SettingsError with every faulty variable."""
    main: Main = _module(source).main

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # The server is told to speak HTTP only, and to send no lifespan events.
        response = await main(Request(scope, receive))
        await response(scope, receive, send)

    return app


def _module(source: Path) -> ModuleType:
    name = f"functions.{source.parent.name}.main"
    spec = importlib.util.spec_from_file_location(name, source)
    if spec is None or spec.loader is None:
        raise ImportError(f"{source} is no Python module")
    module = importlib.util.module_from_spec(spec)
    # Where pydantic looks for the names in its annotations.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
