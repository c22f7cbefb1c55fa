"""Sessions with their messages, from two streams: one session at a time, whatever their number."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

from flux_memory.transfer.rows.raw import RawRow

Messages = TypeVar("Messages", bound=tuple[Any, ...])


def group_by_session(
    sessions: Iterator[RawRow], messages: Iterator[Messages]
) -> Iterator[tuple[RawRow | None, Iterator[Messages]]]:
    """Return each session with its messages; messages without a session come with `None`.

    The messages of one must be read before the next is asked for.

    Args:
        sessions: In the order of their ids, which come first in each.
        messages: In the order of their sessions' ids, which come first in each.
    """
    groups = groupby(messages, key=itemgetter(0))
    session = next(sessions, None)
    group = next(groups, None)
    while session is not None or group is not None:
        if session is None or (group is not None and _rank(group[0]) < _rank(session[0])):
            assert group is not None  # noqa: S101 - one of the two is there
            yield None, group[1]
            group = next(groups, None)
        elif group is None or _rank(session[0]) < _rank(group[0]):
            yield session, iter(())
            session = next(sessions, None)
        else:
            yield session, group[1]
            session, group = next(sessions, None), next(groups, None)


def _rank(value: Any) -> tuple[int, Any]:
    """Return what sorts as SQLite does: NULL, numbers, text by its bytes, BLOBs."""
    if value is None:
        return 0, 0
    if isinstance(value, str):
        return 2, value.encode("utf-8", "surrogateescape")
    return (3, value) if isinstance(value, bytes) else (1, value)
