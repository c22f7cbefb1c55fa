"""Memories that break clauses on the cursor of the list, on lists without metadata and on counts."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any

from flux_memory.testkit.mutants.catalogue import Sound, caught_by


class _ListsByCode(Sound):
    """Returns what follows a record by code of its own; lists without a cursor are sound."""

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, before: Any = None, **kwargs: Any) -> Any:
        found = await super().get_sessions(limit, offset, before=before, **kwargs)
        if before is None:
            return found
        following = await self.following(before, kwargs)
        return following[offset:] if limit is None else following[offset : offset + limit]

    async def following(self, before: Any, given: dict[str, Any]) -> list[Any]:
        raise NotImplementedError

    async def listed(self, **given: Any) -> list[Any]:
        rows: list[Any] = await super().get_sessions(None, **given)
        return rows


@caught_by("FM-LST-030")
class ListCursorsSkipTies(_ListsByCode):
    async def following(self, before: Any, given: dict[str, Any]) -> list[Any]:
        return [row for row in await self.listed(**given) if row["updated_at"] < before["updated_at"]]


@caught_by("FM-LST-030")
class ListCursorsRepeatTies(_ListsByCode):
    async def following(self, before: Any, given: dict[str, Any]) -> list[Any]:
        rows = await self.listed(**given)
        return [row for row in rows if row["updated_at"] <= before["updated_at"] and row["id"] != before["id"]]


@caught_by("FM-LST-030")
class ListCursorsAreInclusive(_ListsByCode):
    async def following(self, before: Any, given: dict[str, Any]) -> list[Any]:
        rows = await self.listed(**given)
        return rows[[row["id"] for row in rows].index(before["id"]) :]


@caught_by("FM-LST-030")
class ListCursorsCompareLetters(_ListsByCode):
    """Breaks ties as a collation does, and not as the list does."""

    async def following(self, before: Any, given: dict[str, Any]) -> list[Any]:
        mark = before["updated_at"], before["id"].casefold(), before["id"]
        rows = await self.listed(**given)
        return [row for row in rows if (row["updated_at"], row["id"].casefold(), row["id"]) < mark]


@caught_by("FM-LST-031")
class ListCursorsForgetTheUser(Sound):
    async def get_sessions(self, *args: Any, user_id: Any = None, before: Any = None, **kwargs: Any) -> Any:
        user_id = user_id if before is None else None
        return await super().get_sessions(*args, user_id=user_id, before=before, **kwargs)


@caught_by("FM-LST-031")
class ListCursorsForgetTheOffset(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, before: Any = None, **kwargs: Any) -> Any:
        return await super().get_sessions(limit, offset if before is None else 0, before=before, **kwargs)


@caught_by("FM-LST-031")
class ListCursorsHaveNoLimit(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, before: Any = None, **kwargs: Any) -> Any:
        return await super().get_sessions(None if before and limit == 50 else limit, offset, before=before, **kwargs)


@caught_by("FM-LST-031")
class ListCursorsNeedTheirRecord(_ListsByCode):
    """Looks for the record in the filtered list."""

    async def following(self, before: Any, given: dict[str, Any]) -> list[Any]:
        rows = await self.listed(**given)
        ids = [row["id"] for row in rows]
        return rows[ids.index(before["id"]) + 1 :] if before["id"] in ids else []


@caught_by("FM-LST-032")
class ListCursorsLookUpTheirTime(Sound):
    """Pages from where the session of the cursor is now."""

    async def get_sessions(self, *args: Any, before: Any = None, **kwargs: Any) -> Any:
        now: Any = await super().get_session(before["id"]) if isinstance(before, dict) else None
        before = now or before
        return await super().get_sessions(*args, **{"before": before, **kwargs})


@caught_by("FM-LST-032")
class ListCursorsOfDeletedSessionsAreTheEnd(Sound):
    async def get_sessions(self, *args: Any, before: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, before=before, **kwargs)
        gone = isinstance(before, dict) and before["id"] and await super().get_session(before["id"]) is None
        return [] if gone else rows


@caught_by("FM-LST-032")
class ListCursorsAreOffsets(Sound):
    """Remembers how many sessions came before the cursor, and skips as many."""

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, before: Any = None, **kwargs: Any) -> Any:
        shown: dict[Any, int] = self.__dict__.setdefault("shown", {})
        start = shown.get(before["id"]) if isinstance(before, dict) else None
        if start is None:
            kwargs["before"] = before
            rows = await super().get_sessions(limit, offset, **kwargs)
            del kwargs["before"]
            everything = await super().get_sessions(None, **kwargs)
            start = everything.index(rows[0]) if rows else 0
        else:
            rows = await super().get_sessions(limit, start + offset, **kwargs)
        shown.update({row["id"]: start + at + 1 for at, row in enumerate(rows)})
        return rows


@caught_by("FM-LST-033")
class WrongListCursorsStartAgain(Sound):
    async def get_sessions(self, *args: Any, before: Any = None, **kwargs: Any) -> Any:
        record: Any = before if isinstance(before, dict) else None
        return await super().get_sessions(*args, before=record, **kwargs)


@caught_by("FM-LST-033")
class ListCursorsTakeAnyTime(Sound):
    async def get_sessions(self, *args: Any, before: Any = None, **kwargs: Any) -> Any:
        if isinstance(before, dict) and {"id", "updated_at"} <= before.keys() and isinstance(before["id"], str):
            rows = await super().get_sessions(None, **kwargs)
            return [row for row in rows if (row["updated_at"], row["id"]) < (str(before["updated_at"]), before["id"])]
        return await super().get_sessions(*args, **{"before": before, **kwargs})


@caught_by("FM-LST-034")
class BareListsKeepMetadata(Sound):
    async def get_sessions(self, *args: Any, with_metadata: Any = True, **kwargs: Any) -> Any:
        await super().get_sessions(0, with_metadata=with_metadata)
        return await super().get_sessions(*args, **kwargs)


@caught_by("FM-LST-034")
class BareListsIgnoreTheFilter(Sound):
    async def get_sessions(self, *args: Any, with_metadata: Any = True, metadata: Any = None, **kwargs: Any) -> Any:
        metadata = metadata if with_metadata else None
        return await super().get_sessions(*args, with_metadata=with_metadata, metadata=metadata, **kwargs)


@caught_by("FM-LST-034")
class BareListsHaveNoTitles(Sound):
    async def get_sessions(self, *args: Any, with_metadata: Any = True, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, with_metadata=with_metadata, **kwargs)
        return rows if with_metadata else [{**row, "title": ""} for row in rows]


@caught_by("FM-LST-034")
class AnythingIsAFlag(Sound):
    async def get_sessions(self, *args: Any, with_metadata: Any = True, **kwargs: Any) -> Any:
        return await super().get_sessions(*args, with_metadata=bool(with_metadata), **kwargs)


@caught_by("FM-LST-035")
class CountsIgnoreTheUser(Sound):
    async def count_sessions(self, *, user_id: Any = None, metadata: Any = None) -> Any:
        del user_id
        return await super().count_sessions(metadata=metadata)


@caught_by("FM-LST-035")
class CountsIgnoreMetadata(Sound):
    async def count_sessions(self, *, user_id: Any = None, metadata: Any = None) -> Any:
        del metadata
        return await super().count_sessions(user_id=user_id)


@caught_by("FM-LST-035")
class CountsTakeEitherFilter(Sound):
    async def count_sessions(self, *, user_id: Any = None, metadata: Any = None) -> Any:
        of_user, matching = (
            await super().count_sessions(user_id=user_id),
            await super().count_sessions(metadata=metadata),
        )
        if user_id is None or metadata is None:
            return await super().count_sessions(user_id=user_id, metadata=metadata)
        return of_user + matching - await super().count_sessions(user_id=user_id, metadata=metadata)


@caught_by("FM-LST-035")
class CountsOfNoOwnerAreAll(Sound):
    async def count_sessions(self, *, user_id: Any = None, metadata: Any = None) -> Any:
        return await super().count_sessions(user_id=user_id or None, metadata=metadata)


@caught_by("FM-LST-035")
class FilteredCountsStop(Sound):
    """Counts what a filtered list shows at most by default."""

    async def count_sessions(self, *, user_id: Any = None, metadata: Any = None) -> Any:
        most = None if user_id is None and metadata is None else 3
        return len(await super().get_sessions(most, user_id=user_id, metadata=metadata))


@caught_by("FM-LST-036")
class CountsTakeLongFilters(Sound):
    async def count_sessions(self, *, user_id: Any = None, metadata: Any = None) -> Any:
        some = dict(list(metadata.items())[:3]) if isinstance(metadata, dict) else metadata
        return await super().count_sessions(user_id=user_id, metadata=some)


@caught_by("FM-LST-036")
class CountsTakeAnyUser(Sound):
    async def count_sessions(self, *, user_id: Any = None, metadata: Any = None) -> Any:
        return await super().count_sessions(user_id=None if user_id is None else str(user_id), metadata=metadata)


@caught_by("FM-LST-036")
class CountsTrimUsers(Sound):
    async def count_sessions(self, *, user_id: Any = None, metadata: Any = None) -> Any:
        user = user_id.strip() if isinstance(user_id, str) else user_id
        return await super().count_sessions(user_id=user, metadata=metadata)
