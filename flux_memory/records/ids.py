"""Makes the ids of new sessions, messages and feedback: UUIDv7 (RFC 9562), which sort by the time of creation.

Packages that do the same take a fifth of the time to import that the whole library takes.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final

_TICKS_PER_MILLISECOND: Final = 4096
"""Steps of the clock of ids: the RFC's method 3 keeps fractions of a millisecond in 12 bits."""
_VERSION: Final = 0x7 << 76
_VARIANT: Final = 0x2 << 62
_RANDOM_BITS: Final = 62


class _Clock(threading.local):
    """The last step of a thread's clock: without a lock, which a fork could leave held for good in the child."""

    ticks = 0


_clock: Final = _Clock()


def make_id() -> str:
    """Return a new id: a UUIDv7, 36 characters.

    Ids of one thread sort in the order of their making, also when the clock is set back.
    """
    _clock.ticks = ticks = max(time.time_ns() * _TICKS_PER_MILLISECOND // 1_000_000, _clock.ticks + 1)
    milliseconds, fraction = divmod(ticks, _TICKS_PER_MILLISECOND)
    random = int.from_bytes(os.urandom(8)) >> (64 - _RANDOM_BITS)
    text = f"{milliseconds << 80 | _VERSION | fraction << 64 | _VARIANT | random:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
