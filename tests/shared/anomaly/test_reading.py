"""Answers of range queries, however they are written."""

import json
from typing import Any

import numpy as np
import pytest

from kreflex.anomaly.reading import _Gathered, key_of, labels_of, tick_of
from kreflex.errors import QueryError

NAN = float("nan")


def an_answer(*series: dict[str, Any]) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": "matrix", "result": list(series)}}


def plain(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def spaced(body: dict[str, Any]) -> bytes:
    return json.dumps(body, indent=1).encode()


def gathered(*contents: bytes, samples: int = 4) -> tuple[tuple[str, ...], list[list[float | None]]]:
    pieces = _Gathered("q", samples, 240, 60)
    for content in contents:
        pieces.take(content)
    matrix = pieces.matrix()
    rows = [[None if np.isnan(value) else float(value) for value in row] for row in matrix.values]
    return matrix.keys, rows


A: dict[str, Any] = {"metric": {"pod": "a"}, "values": [[60, "1"], [120, "2"], [180, "3"], [240, "4"]]}
GAP: dict[str, Any] = {"metric": {"pod": "b"}, "values": [[60, "1e3"], [240.0, "NaN"]]}
ODD: dict[str, Any] = {"metric": {"pod": 'x","values":[[1,"{\\"metric\\":'}, "values": [[180, "+Inf"], [240, "-4.5"]]}
HISTOGRAM: dict[str, Any] = {"metric": {"pod": "h"}, "histograms": [[60, {"count": "1", "sum": "2", "buckets": []}]]}


@pytest.mark.parametrize("write", [plain, spaced])
def test_each_sample_is_in_its_place(write: Any) -> None:
    assert gathered(write(an_answer(A, GAP, ODD))) == (
        ('{pod="a"}', '{pod="b"}', key_of(ODD["metric"])),
        [[1, 2, 3, 4], [1000, None, None, None], [None, None, None, -4.5]],
    )


@pytest.mark.parametrize("series", [[A, HISTOGRAM], [HISTOGRAM, A]])
def test_a_native_histogram_is_left_out(series: list[dict[str, Any]]) -> None:
    assert gathered(plain(an_answer(*series))) == (('{pod="a"}',), [[1, 2, 3, 4]])


@pytest.mark.parametrize("write", [plain, spaced])
def test_nothing_is_nothing(write: Any) -> None:
    assert gathered(write(an_answer())) == ((), [])
    assert gathered(write(an_answer(HISTOGRAM))) == ((), [])


def test_what_comes_in_a_later_piece_has_a_row_of_its_own() -> None:
    late = {"metric": {"pod": "a"}, "values": [[60, "1"]]}
    new = {"metric": {"pod": "0"}, "values": [[120, "7"]]}
    known = {"metric": {"pod": "a"}, "values": [[180, "3"]]}
    early = {"metric": {"pod": "a"}, "values": [[240, "4"]]}
    assert gathered(plain(an_answer(early)), plain(an_answer(known)), plain(an_answer(late, new))) == (
        ('{pod="0"}', '{pod="a"}'),
        [[None, 7, None, None], [1, None, 3, 4]],
    )


def test_two_names_of_one_series_are_told() -> None:
    both = [{**A, "metric": {"__name__": name, "pod": "a"}} for name in ("one", "other")]
    with pytest.raises(QueryError, match="twice, under two metric names"):
        gathered(plain(an_answer(*both)))


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b'{"data":{"result":"x"}}'])
def test_what_is_no_answer_is_an_error(content: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        gathered(content)


def test_all_look_at_the_same_moments() -> None:
    assert [tick_of(now, 60) for now in (120, 179.9, 180)] == [120, 120, 180]


@pytest.mark.parametrize("value", ["cart", 'a="b",c="d"', "\\n", "\n", "", "ü,}"])
def test_a_key_tells_the_labels_of_its_series(value: str) -> None:
    labels = {"pod": value, "namespace": "shop", "service.name": "cart"}
    assert labels_of(key_of(labels)) == labels
