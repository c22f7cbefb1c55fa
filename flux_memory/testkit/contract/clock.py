"""A clock that is stopped at a chosen moment, for the Python code of this process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, tzinfo
from typing import Final, Self
from unittest.mock import patch

from flux_memory.testkit.verdicts import unverified

UNSET_CLOCK: Final = (
    "the times do not come from datetime.now() or time.time(); override the fixture clock_at to set the backend's clock"
)


@contextmanager
def python_clock_at(moment: datetime) -> Iterator[None]:
    """Make `datetime.now`, `datetime.utcnow` and `time.time` return this moment, wherever they were imported.

    `time.time_ns` and the monotonic clocks keep running: ids and event loops need them.
    """
    real = datetime

    class _AnyDatetime(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

    class _Stopped(datetime, metaclass=_AnyDatetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            local = moment.astimezone(tz)
            return local if tz else local.replace(tzinfo=None)  # type: ignore[return-value]

        @classmethod
        def utcnow(cls) -> Self:
            return moment.astimezone(UTC).replace(tzinfo=None)  # type: ignore[return-value]

    replacements = {real: _Stopped, time.time: moment.timestamp}
    with ExitStack() as stack:
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", {})
            for name in ("datetime", "time"):
                if (replacement := _lookup(replacements, names.get(name))) is not None:
                    stack.enter_context(patch.object(module, name, replacement))
        yield


@contextmanager
def process_time_zone(zone: str) -> Iterator[None]:
    """Set the time zone of this process, by its name or in POSIX's form."""
    before = os.environ.get("TZ")
    if not hasattr(time, "tzset"):
        unverified("this platform cannot change a process's time zone")
    os.environ["TZ"] = zone
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


def _lookup(replacements: dict[object, object], value: object) -> object:
    return next((new for old, new in replacements.items() if old is value), None)
