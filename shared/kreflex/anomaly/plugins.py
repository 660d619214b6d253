"""Detectors by name: the one that ships, and those that other packages bring as entry points of `kreflex.detectors`.

An entry point names something that makes a Detector when it is called without arguments:

    [project.entry-points."kreflex.detectors"]
    mine = "my_package.detectors:Mine"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from kreflex.anomaly.detector import Detector
from kreflex.anomaly.engine import Calibrated
from kreflex.errors import SettingsError

GROUP = "kreflex.detectors"
_NEEDED = ("name", "version", "window", "dtype", "learn", "update", "score")


def detector(name: str = "calibrated") -> Detector:
    """Make the detector of this name; raises SettingsError if there is none, or if it is none."""
    if name == Calibrated.name:
        return Calibrated()
    found = next(iter(entry_points(group=GROUP, name=name)), None)
    if found is None:
        known = sorted({Calibrated.name, *(point.name for point in entry_points(group=GROUP))})
        raise SettingsError([f"DETECTOR must be one of {', '.join(known)}, not {name!r}: is its package installed?"])
    return _made(found)


def _made(point: EntryPoint) -> Detector:
    try:
        made: Detector = point.load()()
    # It is somebody else's code: whatever it raises, the function can't start with it, and says why.
    except Exception as error:
        raise SettingsError([f"DETECTOR {point.name!r} ({point.value}) can't be made: {error!r}"]) from error
    missing = [name for name in _NEEDED if not hasattr(made, name)]
    if missing:
        raise SettingsError([f"DETECTOR {point.name!r} ({point.value}) is no detector: it has no {', '.join(missing)}"])
    return made
