"""Makes the ids of new sessions, messages and feedback: UUIDv7 (RFC 9562), which sort by the time of creation."""

from __future__ import annotations

import time
from os import urandom
from typing import Final

_LAST: Final = [0]
"""The time of the last id in 4,096ths of a millisecond since 1970.

The next id gets a later one, even if the clock is set back.
"""


def make_id() -> str:
    """Return a new id: a UUIDv7, 36 characters."""
    # Threads may take the same time; the random digits differ. `uuid.uuid7()` is slower, and new in Python 3.14.
    _LAST[0] = made = max((time.time_ns() << 12) // 1_000_000, _LAST[0] + 1)
    moment, chance = f"{made:015x}", urandom(8)
    digits = chance.hex()
    return f"{moment[:8]}-{moment[8:12]}-7{moment[12:]}-{'89ab'[chance[0] & 3]}{digits[1:4]}-{digits[4:]}"
