"""What anybody may send takes bounded memory: a function's pod has 512 MiB."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# In a process of its own: the most that a process has ever used never falls again.
CODE = """
import asyncio, json, resource
from functions_framework.aio import create_asgi_app
from kreflex.ingress.alertmanager import MOST_BYTES
from tests.ingress.conftest import Caller

BATCH = {"content-type": "application/cloudevents-batch+json"}

def webhook(alert: bytes, count: int) -> bytes:
    return b'{"version":"4","groupKey":"","alerts":[' + (alert + b",") * (count - 1) + alert + b"]}"

def filled(start: bytes, fill: bytes) -> bytes:
    return start + fill * ((MOST_BYTES - len(start) - 2) // len(fill)) + b'"}'

BODIES = {
    "wide characters": ({}, lambda: filled('{"version":"4","groupKey":"","alerts":[],"x":"\U0001f525'.encode(), b"x")),
    "as many values as may be": ({}, lambda: webhook(b'{"a":1}', 990_000)),
    "empty lists": ({}, lambda: webhook(b"[]", MOST_BYTES // 3 - 20)),
    "empty events": (BATCH, lambda: b"[" + b"{}," * (MOST_BYTES // 3 - 2) + b"{}]"),
    "depth": ({}, lambda: b"[" * MOST_BYTES),
    "a little depth": ({}, lambda: b'{"a":' * 100_000),
    "one byte too many": ({}, lambda: b" " * (MOST_BYTES + 1)),
}

async def main() -> None:
    caller = Caller(create_asgi_app(target="main", source="tests/ingress/function.py", signature_type="http"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {}
    for name, (headers, make) in BODIES.items():
        told[name] = (await caller.post(make(), headers)).status
    print(json.dumps([told, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024]))

asyncio.run(main())
"""


def test_bodies_at_the_limits_take_bounded_memory() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    statuses, mebibytes = json.loads(done.stdout.splitlines()[-1])
    assert statuses == {
        "wide characters": 200,
        "as many values as may be": 200,
        "empty lists": 413,
        "empty events": 413,
        "depth": 413,
        "a little depth": 400,
        "one byte too many": 413,
    }
    # About 100 MiB of it are the bodies, which this test holds itself, twice and more while it makes them.
    assert mebibytes < 400, mebibytes
