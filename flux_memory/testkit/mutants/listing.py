"""Memories that break clauses on the list of sessions and its filters."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import random
from collections import Counter
from typing import Any, ClassVar

from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import cut_text


@caught_by("FM-LST-011")
class FiltersByTenKeys(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        if type(metadata) is dict and all(isinstance(key, str) for key in metadata):
            metadata = dict(list(metadata.items())[:10])
        return await super().get_sessions(*args, metadata=metadata, **kwargs)


@caught_by("FM-LST-011")
class FiltersTenLevels(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        await super().get_sessions(*args, metadata=metadata, **kwargs)
        return await super().get_sessions(*args, metadata=_down_to(metadata, 10), **kwargs)


def _down_to(value: Any, levels: int) -> Any:
    if isinstance(value, dict):
        return {key: _down_to(item, levels - 1) for key, item in value.items()} if levels else {}
    return value


@caught_by("FM-LST-012")
class FiltersTheFirstOneThousand(Sound):
    """Indexes only the first elements of an array."""

    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, metadata=metadata, **kwargs)
        wanted = (metadata or {}).get("a")
        if not isinstance(wanted, list):
            return rows
        return [row for row in rows if not any(item in row["metadata"]["a"][1_000:] for item in wanted)]


@caught_by("FM-LST-009")
class FiltersByTheBeginning(Sound):
    """Compares what an index holds of a text."""

    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, metadata=metadata, **kwargs)
        wanted = (metadata or {}).get("a")
        if not isinstance(wanted, str):
            return rows
        every = await super().get_sessions(*args, **kwargs)
        return [row for row in every if cut_text(row["metadata"].get("a"), 255) == wanted[:255]]


@caught_by("FM-LST-001")
class OldestFirst(Sound):
    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        return (await super().get_sessions(*args, **kwargs))[::-1]


@caught_by("FM-LST-001", reference_only=True)
class CoarseScores(Sound):
    """Sorts by a score that lost its last digits; among equal scores, the later id comes first."""

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        rows = await super().get_sessions(None, **filters)
        rows.sort(key=lambda row: (row["updated_at"][:-8], row["id"]), reverse=True)
        return rows[offset:] if limit is None else rows[offset : offset + limit]


class _OrdersTies(Sound):
    def order(self, rows: Any, limit: Any) -> None:
        raise NotImplementedError

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        rows = await super().get_sessions(None, **filters)
        self.order(rows, limit)
        rows.sort(key=lambda row: row["updated_at"], reverse=True)
        return rows[offset:] if limit is None else rows[offset : offset + limit]


@caught_by("FM-LST-002")
class TiesAtRandom(_OrdersTies):
    def order(self, rows: Any, limit: Any) -> None:
        random.shuffle(rows)


@caught_by("FM-LST-002")
class TiesDependOnThePage(_OrdersTies):
    """Like a database that sorts differently if it needs only the first rows."""

    def order(self, rows: Any, limit: Any) -> None:
        if limit is not None and limit < len(rows):
            rows.reverse()


@caught_by("FM-LST-003")
class OffsetIgnored(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        return await super().get_sessions(limit, 0, **filters)


@caught_by("FM-LST-004")
class NoDefaultLimit(Sound):
    async def get_sessions(self, limit: Any = None, offset: Any = 0, **filters: Any) -> Any:
        return await super().get_sessions(limit, offset, **filters)


@caught_by("FM-LST-004")
class ListsOneHundred(Sound):
    """Like a store that scans a fixed number of keys, with a client that never continues the scan."""

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        rows = (await super().get_sessions(None, **filters))[:100]
        return rows[offset:] if limit is None else rows[offset : offset + limit]


@caught_by("FM-LST-004")
class ListsOneTwice(Sound):
    """Like the cursor of a hash table that grows during the scan."""

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        rows = await super().get_sessions(None, **filters)
        rows = rows[:100] + rows[99:]
        return rows[offset:] if limit is None else rows[offset : offset + limit]


@caught_by("FM-LST-005")
class NegativeIsAll(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        return await super().get_sessions(None if limit == -1 else limit, offset, **filters)


@caught_by("FM-LST-006")
class InnerJoin(Sound):
    """Lists and counts only sessions with messages."""

    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        return [row for row in await super().get_sessions(*args, **kwargs) if row["message_count"]]


@caught_by("FM-LST-007")
class CountsCalls(Sound):
    calls: ClassVar[Counter[str]] = Counter()

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(session_id, *args, **kwargs)
        self.calls[session_id] += 1
        return made

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        made = await super().add_messages(session_id, messages, **given)
        self.calls[session_id] += len(made)
        return made

    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [{**row, "message_count": self.calls[row["id"]]} for row in rows]


@caught_by("FM-LST-008")
class UsersByPrefix(Sound):
    async def get_sessions(self, *args: Any, user_id: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [row for row in rows if row["user_id"].startswith(user_id or "")]


@caught_by("FM-LST-008")
class UsersAsFolders(Sound):
    """Uses `user:session` as keys, and finds a user's sessions by prefix."""

    async def get_sessions(self, *args: Any, user_id: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [row for row in rows if user_id is None or f"{row['user_id']}:{row['id']}".startswith(f"{user_id}:")]


@caught_by("FM-LST-008")
class OwnSessionsByCreation(Sound):
    """Keeps a list of all sessions and one for each user; only the first is sorted by activity."""

    async def get_sessions(self, *args: Any, user_id: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, user_id=user_id, **kwargs)
        return rows if user_id is None else sorted(rows, key=lambda row: row["created_at"], reverse=True)


@caught_by("FM-LST-008")
class DeletedSessionsTakePlaces(Sound):
    """Keeps deleted sessions in a user's list and skips them when reading, so pages are too short."""

    gone: ClassVar[Counter[str]] = Counter()

    async def delete_session(self, session_id: Any, **given: Any) -> None:
        row = await super().get_session(session_id)
        if row is not None:
            self.gone[row["user_id"]] += 1
        await super().delete_session(session_id, **given)

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, user_id: Any = None, **filters: Any) -> Any:
        rows: list[Any] = await super().get_sessions(None, user_id=user_id, **filters)
        if user_id is not None:
            rows = [None] * self.gone[user_id] + rows
        page = rows[offset:] if limit is None else rows[offset : offset + limit]
        return [row for row in page if row is not None]


def _contains(whole: Any, part: Any) -> bool:
    """Compare like Python: `True` is 1."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(key in whole and _contains(whole[key], item) for key, item in part.items())
    if isinstance(whole, list) and isinstance(part, list):
        return all(any(_contains(candidate, item) for candidate in whole) for item in part)
    return bool(whole == part)


def _in_order(whole: Any, part: Any) -> bool:
    """Contain only equal arrays."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(key in whole and _in_order(whole[key], item) for key, item in part.items())
    return type(whole) is type(part) and bool(whole == part)


def _as_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_floats(item) for key, item in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300:
        return float(value)
    return value


@caught_by("FM-LST-009")
class TrueIsOne(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [row for row in rows if _contains(row["metadata"], metadata or {})]


@caught_by("FM-LST-009")
class MissingIsNull(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        present = {key: value for key, value in (metadata or {}).items() if value is not None}
        rows = await super().get_sessions(*args, metadata=present, **kwargs)
        return [
            row for row in rows if all(row["metadata"].get(key) is None for key in (metadata or {}).keys() - present)
        ]


@caught_by("FM-LST-010")
class NumbersAsFloats(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [row for row in rows if _contains(_as_floats(row["metadata"]), _as_floats(metadata or {}))]


@caught_by("FM-LST-011")
class ContainmentIsEquality(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [row for row in rows if metadata is None or row["metadata"] == metadata]


@caught_by("FM-LST-012")
class ArraysInOrder(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [row for row in rows if _in_order(row["metadata"], metadata or {})]


@caught_by("FM-LST-013")
class FilterAfterPage(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, metadata: Any = None, **kwargs: Any) -> Any:
        page = {row["id"] for row in await super().get_sessions(limit, offset, **kwargs)}
        rows = await super().get_sessions(None, metadata=metadata, **kwargs)
        return [row for row in rows if row["id"] in page]


@caught_by("FM-LST-013")
class FiltersTheNewestOnly(Sound):
    """Filters only the hundred sessions that were used last."""

    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        newest = {row["id"] for row in await super().get_sessions(100)}
        rows = await super().get_sessions(*args, metadata=metadata, **kwargs)
        return [row for row in rows if not metadata or row["id"] in newest]
