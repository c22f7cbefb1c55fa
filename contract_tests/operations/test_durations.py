"""Tests the durations that the operator's commands read: a number and a unit that has one meaning."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flux_memory import InvalidInputError
from flux_memory.operations.prune import parse_duration


@pytest.mark.parametrize(
    ("text", "hours"), [("12h", 12), ("90d", 2160), ("4w", 672), ("1h", 1), ("36500d", 876_000), ("007d", 168)]
)
def test_durations(text: str, hours: int) -> None:
    """Hours, days and weeks."""
    assert parse_duration(text) == timedelta(hours=hours)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "90",
        "d",
        "0d",
        "-1d",
        "1.5d",
        "90 d",
        "90D",
        "3m",
        "1y",
        "1d12h",
        "36501d",
        "999999999w",
        "٣d",
        "1d\n",
        "nan",
    ],
)
def test_nonsense_is_not_a_duration(text: str) -> None:
    """A unit that may mean minutes or months is refused: it would delete sessions in use."""
    with pytest.raises(InvalidInputError):
        parse_duration(text)
