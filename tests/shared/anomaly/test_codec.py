"""A state as bytes: the same for the same, and never mistaken."""

import hashlib
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from kreflex.anomaly.codec import Bundle, StateError, decode, encode

DTYPE = np.dtype([("level", "f8"), ("count", "u2"), ("profile", "f4", (6,)), ("flag", "?"), ("grid", "i4", (2, 3))])


def a_bundle(rows: int = 3, seed: int = 1) -> Bundle:
    random = np.random.default_rng(seed)
    state = np.zeros(rows, DTYPE)
    state["level"], state["count"] = random.normal(size=rows), random.integers(0, 9, rows)
    state["profile"], state["flag"] = random.normal(size=(rows, 6)), random.integers(0, 2, rows)
    state["grid"] = random.integers(-9, 9, (rows, 2, 3))
    keys = tuple(f'{{pod="cart-{number}"}}' for number in range(rows))
    return Bundle("calibrated", 3, "watch/signal", 1.7e9, keys, state, np.full(rows, 1.7e9), np.full(rows, 1.6e9))


def same(one: Bundle, other: Bundle) -> bool:
    plain = replace(one, state=None, until=None, seen=None) == replace(other, state=None, until=None, seen=None)  # type: ignore[arg-type]
    arrays = ("state", "until", "seen")
    return plain and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


@given(rows=some.integers(0, 50), seed=some.integers(0, 1000))
def test_what_is_read_is_what_was_written(rows: int, seed: int) -> None:
    bundle = a_bundle(rows, seed)
    found = decode(encode(bundle), DTYPE)
    assert same(found, bundle)
    assert found.state.dtype == DTYPE
    assert encode(found) == encode(bundle)


def test_equal_states_are_equal_bytes_in_each_process() -> None:
    here = hashlib.sha256(encode(a_bundle(40))).hexdigest()
    code = "import hashlib, test_codec; print(hashlib.sha256(test_codec.encode(test_codec.a_bundle(40))).hexdigest())"
    place = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=place)
    assert done.stdout.strip() == here


def test_numbers_that_are_none_are_the_same_bytes_however_they_came_about() -> None:
    one, other = a_bundle(), a_bundle()
    one.state["level"][0] = np.nan
    other.state["level"][0] = np.frombuffer(np.uint64(0xFFF8_0000_0000_0001).tobytes(), "f8")[0]
    assert encode(one) == encode(other)


def test_what_lies_between_the_fields_does_not_matter() -> None:
    aligned = np.dtype({"names": ["a", "b"], "formats": ["u1", "f8"], "offsets": [0, 8], "itemsize": 16})
    dirty = np.frombuffer(b"\x07" + b"\xee" * 7 + np.float64(4).tobytes(), aligned)
    clean = np.zeros(1, aligned)
    clean["a"], clean["b"] = 7, 4
    bundles = [replace(a_bundle(1), state=state) for state in (dirty, clean)]
    assert encode(bundles[0]) == encode(bundles[1])


@pytest.mark.parametrize("place", [0, 7, 8, 39, 40, 60, -1])
def test_one_changed_byte_is_found(place: int) -> None:
    content = bytearray(encode(a_bundle()))
    content[place] ^= 1
    with pytest.raises(StateError):
        decode(bytes(content), DTYPE)


@given(some.binary(max_size=200))
def test_what_is_no_state_is_refused(content: bytes) -> None:
    with pytest.raises(StateError):
        decode(content, DTYPE)


@pytest.mark.parametrize("length", [0, 4, 8, 40, 100])
def test_half_a_state_is_refused(length: int) -> None:
    with pytest.raises(StateError):
        decode(encode(a_bundle())[:length], DTYPE)


def test_another_layout_is_refused_and_told() -> None:
    other = np.dtype([*DTYPE.descr[:2], ("profile", "f4", (8,))])
    with pytest.raises(StateError, match="it is laid out as that of calibrated 3"):
        decode(encode(a_bundle()), other)


def test_what_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kreflex.anomaly.codec._MOST_BYTES", 1000)
    body = zlib.compress(b"0" * 1001)
    with pytest.raises(StateError, match="it unpacks to more than 1000 bytes"):
        decode(b"kreflex\x01" + hashlib.sha256(body).digest() + body, DTYPE)


def test_states_are_given_in_any_order_and_unknown_ones_are_known_as_such() -> None:
    bundle = a_bundle()
    state, known = bundle.of((bundle.keys[2], "unknown", bundle.keys[0]))
    assert known.tolist() == [True, False, True]
    assert np.array_equal(state[[0, 2]], bundle.state[[2, 0]])
    assert state[1] == np.zeros(1, DTYPE)[0]


def test_it_is_compact() -> None:
    bundle = a_bundle(2000)
    bundle.state["profile"] = 5 + np.random.default_rng(1).normal(size=(2000, 6)) / 10
    assert len(encode(bundle)) < 0.8 * bundle.state.nbytes + 2000 * 10
