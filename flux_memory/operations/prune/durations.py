"""Reads durations such as `90d`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from flux_memory.errors import InvalidInputError

_FORM: Final = re.compile(r"(\d{1,9})([hdw])", re.ASCII)
_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}
_LONGEST: Final = timedelta(days=36_500)
"""A hundred years: the time before that many is in the calendar, and the duration is not a mistake in the unit."""


def parse_duration(text: str) -> timedelta:
    """Return the duration that a text names: a whole number and `h`, `d` or `w`.

    Raises:
        InvalidInputError: The text is not such a duration, is zero, or is longer than a hundred years.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise InvalidInputError(
            f"{text!r:.40} is not a duration; write a whole number and a unit: 12h, 90d or 4w (hours, days, weeks)"
        )
    duration = timedelta(**{_UNITS[match[2]]: int(match[1])}) if int(match[1]) < 10**8 else timedelta.max
    if not duration:
        raise InvalidInputError(f"{text!r} is zero, and would include sessions in use; give at least 1h")
    if duration > _LONGEST:
        raise InvalidInputError(f"{text!r} is longer than a hundred years; give a shorter duration")
    return duration
