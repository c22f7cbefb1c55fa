"""Times in PostgreSQL's binary format: microseconds since 2000-01-01 UTC."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from flux_memory.records import timestamps

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH: Final = datetime(2000, 1, 1)  # noqa: DTZ001 - naive times are taken as UTC
_ISO_LENGTH: Final = len("2026-01-31T23:59:59")


def microseconds(value: object, naive: tzinfo = UTC) -> int:
    """Convert a time in any form that `timestamps.parse` reads.

    Raises:
        ValueError: The value is not a time, or lies outside the years 1 to 9999.
    """
    try:
        delta = _since_epoch(value, naive)
    except OverflowError as error:
        raise ValueError(f"{value!r:.60} is not a time: {error}") from error
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _since_epoch(value: object, naive: tzinfo) -> timedelta:
    # The usual forms, without the cost of `timestamps.parse`.
    if type(value) is str and len(value) >= _ISO_LENGTH and value[4] == "-":
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            # `astimezone` raises where UTC leaves the years 1 to 9999, as `parse` does.
            return moment.astimezone(UTC) - _EPOCH if moment.year in {1, 9999} else moment - _EPOCH
        if naive is UTC:
            return moment - _NAIVE_EPOCH
        return moment.replace(tzinfo=naive).astimezone(UTC) - _EPOCH
    return datetime.fromisoformat(timestamps.parse(value, naive)) - _EPOCH


def all_microseconds(values: Sequence[object], naive: tzinfo = UTC) -> list[int]:
    """Return what `microseconds` returns for each value; faster if all are naive texts of the usual form."""
    try:
        if naive is UTC and {type(value) for value in values} == {str} and {value[4] for value in values} == {"-"}:  # type: ignore[index]  # text
            deltas = [moment - _NAIVE_EPOCH for moment in map(datetime.fromisoformat, values)]  # type: ignore[arg-type]
            return [(delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds for delta in deltas]
    except (IndexError, TypeError, ValueError):
        pass
    return [microseconds(value, naive) for value in values]


def time_text(value: int) -> str:
    """Return a time in the text form of the library's records.

    Raises:
        OverflowError: The time lies outside the years 1 to 9999.
    """
    return timestamps.format_time(_EPOCH + timedelta(microseconds=value))
