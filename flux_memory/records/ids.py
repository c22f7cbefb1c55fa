"""Makes the ids of new sessions, messages and feedback: UUIDv7 (RFC 9562), which sort by the time of creation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from uuid import UUID


def make_id() -> str:
    """Return a new id: a UUIDv7, 36 characters."""
    return str(_find_maker()())


@cache
def _find_maker() -> Callable[[], UUID]:
    # The package's import takes a sixth of a command's start, and most commands make no id.
    if sys.version_info >= (3, 14):
        from uuid import uuid7  # noqa: PLC0415
    else:
        from uuid6 import uuid7  # noqa: PLC0415
    return uuid7
