"""Joins the stream of sessions with the stream of messages, one session at a time."""

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
    """Iterate over the sessions with their messages; `None` stands for a missing session.

    The caller must consume a session's messages before it takes the next session.

    Args:
        sessions: Tuples that begin with the session's id, in the order of these ids.
        messages: Tuples that begin with the session's id, in the order of these ids.
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
    """Return a sort key for SQLite's order: NULL, numbers, text by its bytes, BLOBs."""
    if value is None:
        return 0, 0
    if isinstance(value, str):
        return 2, value.encode("utf-8", "surrogateescape")
    return (3, value) if isinstance(value, bytes) else (1, value)
