"""Tests that validating messages in chunks gives the same result as validating each one alone."""

from __future__ import annotations

import json
from datetime import UTC, timedelta, timezone, tzinfo
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flux_memory.transfer.rows.validate import RowValidator

USUAL = ("s", "id", "user", "Hello", '{"a": 1.5, "bb": "x"}', "2026-01-31T12:00:00.5", 0, 1)
VALUES: list[list[Any]] = [
    ["s"],
    ["id", "é" * 255, "x" * 256, "", None, b"id", 5, "a\0b", "\udc80"],
    ["user", "", None, b"user", "a\0b"],
    ["Hello", "", "한국어", "\udced\udca0\udc80", "a\0b", None, b"Hello", 1.5],
    [
        *(json.dumps({"a": number, "bb": text}) for number in (1, 1.5, -0.0, 1e-5, 0.1 + 0.2) for text in ("x", "é\n")),
        *('{"a": 1.50, "bb": "x"}', '{"a": 01.5, "bb": "x"}', '{"a": 1.5, "bb": "x"}\n', '{"a": -0.0, "bb": ""}'),
        *('{"a": 12345678901234567.5, "bb": "x"}', '{"a": 0.00001, "bb": "x"}', "{}", "", "[1]", '{"a": NaN}'),
        *('{"a": "\\u0000"}', '{"a": "\\ud800"}', "{}\n{}", None, b"{}", 7),
    ],
    [
        *("2026-01-31T12:00:00", "2026-01-31 12:00:00Z", "2026-01-31T12:00:00.123456+00:00"),
        *("0001-01-01T00:00:00+09:00", "9999-12-31T23:59:59-01:00", "20260131T120000", "2026-1-31T12:00:00.000"),
        *("1767225600", "1767225600123", "2026-13-01T00:00:00", "", "2026"),
        *(None, 1767225600, 1767225600.25, 1e18, b"2026-01-31T12:00:00"),
    ],
    [0, 1],
    [1],
]
ROWS = st.tuples(*map(st.sampled_from, VALUES)) | st.just(USUAL)


def near_usual_rows(column: int) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.sampled_from(VALUES[column]).map(lambda value: (*USUAL[:column], value, *USUAL[column + 1 :]))


@pytest.mark.parametrize("naive", [UTC, timezone(timedelta(hours=9))], ids=["utc", "seoul"])
@given(rows=st.lists(ROWS | st.integers(1, 6).flatmap(near_usual_rows), min_size=1, max_size=6))
@example(rows=[USUAL, (*USUAL[:4], '{"a": -0.0, "bb": "x"}', *USUAL[5:])])
@example(rows=[USUAL, (*USUAL[:4], '{"a": 1.5, "bb": "x"}\n', *USUAL[5:])])
@example(rows=[USUAL, (*USUAL[:3], "a\0b", *USUAL[4:])])
@example(rows=[USUAL, (*USUAL[:5], "20260131T120000", *USUAL[6:])])
def test_messages_together_come_out_as_each_alone(naive: tzinfo, rows: list[tuple[Any, ...]]) -> None:
    """The fast path finds the problems of each message, and no problem in its neighbours."""
    experienced = RowValidator(naive)
    for _ in range(2):
        assert experienced.validate_messages(rows) == [RowValidator(naive).validate_message(row) for row in rows]
