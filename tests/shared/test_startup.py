"""Garbage is collected wherever Kreflex is a library, and by a function that serves."""

import subprocess
import sys


def test_whoever_imports_kreflex_keeps_the_collection_of_garbage() -> None:
    program = "import gc, kreflex; print(gc.isenabled())"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"


def test_a_process_that_serves_collects_again() -> None:
    steps = ("import gc, kreflex.startup as s", "gc.disable()", "s.serving()")
    program = "; ".join((*steps, "print(gc.isenabled())"))
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"
