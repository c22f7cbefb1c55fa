"""Writes and reads the times of the records: UTC text of 32 characters, which sorts by time."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

_LENGTH: Final = len("2026-01-31T23:59:59.123456+00:00")
_FORM: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", re.ASCII)
_DIGITS_TO_ZERO: Final = bytes(ord("0") if chr(byte).isdecimal() else byte for byte in range(256))
_FORM_OF_DIGITS: Final = "0000-00-00T00:00:00.000000+00:00"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MILLISECONDS: Final = 100_000_000_000
"""The first epoch number that counts milliseconds: in seconds it would be after the year 5000."""


def utc_now() -> str:
    """Return the current time, by the clock of this process, in the form of `format_time`."""
    return format_time(datetime.now(UTC))


def format_time(value: datetime) -> str:
    """Return a time in the form of the records: UTC, `YYYY-MM-DDTHH:MM:SS.ffffff+00:00`, 32 characters.

    Args:
        value: An aware time, in any zone.
    """
    return value.astimezone(UTC).isoformat(timespec="microseconds")


def check(text: object) -> str:
    """Return a stored time if it has the records' form.

    Raises:
        ValueError: The value does not have the records' form.
    """
    if type(text) is str and _FORM.fullmatch(text):
        datetime.fromisoformat(text)
        return text
    raise ValueError(f"{text!r:.60} where a UTC time of {_LENGTH} characters belongs")


def check_all(texts: Sequence[str]) -> None:
    """Do what `check` does for each text, at less cost.

    Raises:
        ValueError: A text does not have the records' form.
    """
    # The form has no line break, so that joined texts match only if each matches.
    form = "\n".join([_FORM_OF_DIGITS] * len(texts)).encode()
    if "\n".join(texts).encode().translate(_DIGITS_TO_ZERO) != form:
        raise ValueError("a text is not a time in the records' form")
    # Without a step of the interpreter for each text.
    deque(map(datetime.fromisoformat, texts), maxlen=0)


def parse(value: object, naive: tzinfo = UTC) -> str:
    """Read a time in any form that the original application wrote, and return it in the records' form.

    The forms are ISO 8601 text, naive or with an offset or `Z`, with or without a fraction, and seconds or milliseconds
    since 1970 as a number or its digits.

    Args:
        value: The stored value.
        naive: The time zone of a text without one.

    Raises:
        ValueError: The value is not a time, or is outside the years 1 to 9999.
    """
    try:
        if isinstance(value, str):
            if not _is_number(value):
                moment = datetime.fromisoformat(value)
                return format_time(moment if moment.tzinfo else moment.replace(tzinfo=naive))
            value = float(value) if "." in value else int(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            unit = "milliseconds" if abs(value) >= _FIRST_MILLISECONDS else "seconds"
            return format_time(_EPOCH + timedelta(**{unit: value}))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{value!r:.60} is not a time: {error}") from error
    raise ValueError(f"{value!r:.60} is not a time")


def _is_number(text: str) -> bool:
    # Eight digits are a date in ISO 8601's basic form; an epoch number since 1973 has nine or more.
    return len(text) > len("YYYYMMDD") and text.replace(".", "", 1).isdecimal() and text.isascii()
