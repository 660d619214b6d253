"""Start without the collection of garbage: imports make much and throw little away, and looking costs a seventh of it.

Only in a process that is a function and nothing else; `main` switches the collection on again before it serves.
"""

import gc
import sys


def serving() -> None:
    """Collect garbage from now on; what the imports have left is collected at once, in one go."""
    gc.enable()


if sys.orig_argv[1:3] == ["-m", "kreflex"]:
    gc.disable()
