"""Tests times: the one form of records, and every form that the original application wrote."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_memory.records import timestamps

NOON = "2026-02-05T12:00:00.000000+00:00"


@pytest.mark.parametrize(
    "stored",
    [
        "2026-02-05T12:00:00",
        "2026-02-05T12:00:00.000000",
        "2026-02-05 12:00:00",
        "2026-02-05T12:00:00+00:00",
        "2026-02-05T12:00:00Z",
        "2026-02-05T12:00:00.000Z",
        "2026-02-05T21:00:00+09:00",
        "2026-02-05T12:00",
        "20260205T120000",
        1770292800,
        1770292800.0,
        "1770292800",
        "1770292800.0",
        1770292800000,
        "1770292800000",
    ],
)
def test_every_form_of_the_original_is_read_as_the_same_time(stored: object) -> None:
    """A file of any generation keeps its times: naive is UTC, `Z` and offsets are honoured, numbers are epochs."""
    assert timestamps.parse(stored) == NOON


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("2026-02-05T15:17:45.407069", "2026-02-05T15:17:45.407069+00:00"),
        ("2026-02-05T15:17:45.5", "2026-02-05T15:17:45.500000+00:00"),
        (1770292800.25, "2026-02-05T12:00:00.250000+00:00"),
        ("1770292800.25", "2026-02-05T12:00:00.250000+00:00"),
        (-1.5, "1969-12-31T23:59:58.500000+00:00"),
        (0, "1970-01-01T00:00:00.000000+00:00"),
        ("20260205", "2026-02-05T00:00:00.000000+00:00"),
    ],
)
def test_fractions_and_bounds_of_a_form(stored: object, expected: str) -> None:
    """No fraction is lost or invented, and a basic date is not read as an epoch."""
    assert timestamps.parse(stored) == expected


def test_a_naive_time_can_be_of_another_zone() -> None:
    """The caller can name the zone of a file that was written in local time."""
    assert timestamps.parse("2026-02-05T21:00:00", timezone(timedelta(hours=9))) == NOON


@pytest.mark.parametrize(
    "stored",
    [
        None,
        True,
        b"2026-02-05",
        "",
        "yesterday",
        "2026-02-30T00:00:00",
        "1e9",
        1e300,
        float("nan"),
        float("inf"),
        10**30,
        "0001-01-01T00:00:00+14:00",
        "9" * 40,
    ],
)
def test_an_invalid_time_is_refused_and_shown(stored: object) -> None:
    """An unreadable time is never guessed: the adoption stops and shows it."""
    with pytest.raises(ValueError, match="is not a time"):
        timestamps.parse(stored)


@given(
    st.datetimes(
        min_value=datetime(2, 1, 1),  # noqa: DTZ001 - the zone is drawn below
        max_value=datetime(9998, 12, 31),  # noqa: DTZ001 - the zone is drawn below
    ),
    st.integers(-14 * 60, 14 * 60),
)
def test_the_records_form_is_of_one_length_and_sorts_as_the_times_do(naive: datetime, minutes: int) -> None:
    """32 characters in every zone, so that text order is time order and a round trip loses nothing."""
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    text = timestamps.format_time(moment)
    assert len(text) == 32
    assert timestamps.check(text) == text
    assert timestamps.parse(text) == text
    assert datetime.fromisoformat(text) == moment
    assert text < timestamps.format_time(moment + timedelta(microseconds=1))


def test_now_is_utc_now() -> None:
    """The library's clock is the machine's, in UTC."""
    before = datetime.now(UTC)
    assert before <= datetime.fromisoformat(timestamps.utc_now()) <= datetime.now(UTC)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        17,
        "infinity",
        "2026-02-05T12:00:00.000000",
        "2026-02-05T12:00:00.000000+09:00",
        "2026-13-05T12:00:00.000000+00:00",
        "12026-2-05T12:00:00.000000+00:00",
        "2026-02-05 12:00:00.000000+00:00",
        b"2026-02-05T12:00:00.000000+00:00",
    ],
)
def test_a_stored_time_of_another_form_is_corrupt(stored: object) -> None:
    """A record never shows a time in another form than the promised one."""
    with pytest.raises(ValueError, match=r"where a UTC time of 32 characters belongs|must be in|Invalid isoformat"):
        timestamps.check(stored)


@pytest.mark.parametrize("wrong", ["", "yesterday", NOON + "\n", f"{NOON}\n{NOON}", "2026-13-05T12:00:00.000000+00:00"])
def test_one_wrong_time_among_many_is_found(wrong: str) -> None:
    """Checking many times at once finds each one that a single check would find."""
    timestamps.check_all([])
    timestamps.check_all([NOON] * 3)
    for times in ([wrong, NOON], [NOON, wrong], [wrong]):
        with pytest.raises(ValueError):  # noqa: PT011 - the message is Python's or the library's
            timestamps.check_all(times)
