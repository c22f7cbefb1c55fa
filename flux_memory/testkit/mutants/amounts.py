"""Memories that break clauses on amounts."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any, ClassVar

from flux_memory.testkit.mutants.catalogue import Sound, caught_by


def cut(rows: list[Any], limit: Any, offset: Any) -> list[Any]:
    """Return one page of the rows."""
    return rows[offset:] if limit is None else rows[offset : offset + limit]


def is_more(value: Any, most: int) -> bool:
    """Return whether a value is a number above the cap; the sound memory refuses other types."""
    return type(value) is int and value > most


@caught_by("FM-LIM-010")
class CountsToOneThousand(Sound):
    """Like a search engine that stops to count exactly."""

    async def count_sessions(self, **given: Any) -> Any:
        return min(await super().count_sessions(**given), 1_000)


@caught_by("FM-LIM-010")
class CountsOnePage(Sound):
    async def count_sessions(self, **given: Any) -> Any:
        return len(await super().get_sessions())


@caught_by("FM-LIM-010")
class ListsOneThousand(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        await super().get_sessions(limit, offset, **filters)
        return cut((await super().get_sessions(None, **filters))[:1_000], limit, offset)


@caught_by("FM-LIM-010")
class SkipsOneThousandAtMost(Sound):
    """Like a search engine with a window over the results."""

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        return await super().get_sessions(0 if is_more(offset, 1_000) else limit, offset, **filters)


@caught_by("FM-LIM-010")
class OwnersHaveOneHundred(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, user_id: Any = None, **filters: Any) -> Any:
        rows = await super().get_sessions(limit, offset, user_id=user_id, **filters)
        every = await super().get_sessions(None, user_id=user_id, **filters)
        return rows if user_id is None else cut(every[:100], limit, offset)


@caught_by("FM-LIM-010")
class FindsOneHundred(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, metadata: Any = None, **filters: Any) -> Any:
        rows = await super().get_sessions(limit, offset, metadata=metadata, **filters)
        every = await super().get_sessions(None, metadata=metadata, **filters)
        return cut(every[:100], limit, offset) if metadata else rows


@caught_by("FM-LIM-010")
class LooksUpTheNewestOneThousand(Sound):
    """Looks sessions up in a cache that holds the newest ones."""

    async def get_session(self, session_id: Any) -> Any:
        found = await super().get_session(session_id)
        newest = {row["id"] for row in await super().get_sessions(1_000)}
        return found if session_id in newest else None


@caught_by("FM-LIM-010")
class ClearsOneThousand(Sound):
    async def clear_all(self) -> None:
        for row in await super().get_sessions(1_000):
            await super().delete_session(row["id"])


class _ChangesCounts(Sound):
    def change(self, count: Any) -> Any:
        raise NotImplementedError

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "message_count": self.change(row["message_count"])}

    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [{**row, "message_count": self.change(row["message_count"])} for row in rows]


@caught_by("FM-LIM-011")
class CountsOneHundredMessages(_ChangesCounts):
    def change(self, count: Any) -> Any:
        return min(count, 100)


@caught_by("FM-LIM-011")
class CountsMessagesInAByte(_ChangesCounts):
    def change(self, count: Any) -> Any:
        return count % 256


@caught_by("FM-LIM-011")
class ListsCountOneThousand(Sound):
    """Counts the messages of a page of the history, for the list only."""

    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [{**row, "message_count": min(row["message_count"], 1_000)} for row in rows]


@caught_by("FM-LIM-011")
class PagesBackOneThousand(Sound):
    """Looks for `before` among the newest messages."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, limit, before=before, **given)
        newest = {row["id"] for row in await super().get_history(session_id, 1_000, **given)}
        return rows if before is None or before in newest else []


@caught_by("FM-LIM-011")
class RemembersOneThousandIds(Sound):
    """Recognises a retry by the newest ids."""

    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        ids = [row["id"] for row in await super().get_history(session_id)] if isinstance(session_id, str) else []
        if message_id in ids[:-1_000]:
            await super().add_message(session_id, *args, **kwargs)
            return message_id
        return await super().add_message(session_id, *args, message_id=message_id, **kwargs)


@caught_by("FM-LIM-011")
class DeletesOneThousandMessages(Sound):
    left: ClassVar[dict[str, Any]] = {}

    async def delete_session(self, session_id: Any, **given: Any) -> None:
        left = (await super().get_history(session_id))[1_000:]
        await super().delete_session(session_id, **given)
        self.left[session_id] = left

    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(session_id, *args, **kwargs)
        return [*self.left.get(session_id, []), *rows]


@caught_by("FM-LIM-011")
class HistoryOfTenThousand(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return (await super().get_history(*args, **kwargs))[-10_000:]


@caught_by("FM-LIM-011")
class PagesBackFiveThousand(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, limit, before=before, **given)
        newest = {row["id"] for row in await super().get_history(session_id, 5_000, **given)} if before else set()
        return rows if before is None or before in newest else []


@caught_by("FM-LIM-011")
class OthersReadTwoThousand(Sound):
    """Reads the rest of a history from a cache, which only the handle that wrote it has."""

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        self._wrote = session_id
        return await super().add_messages(session_id, messages, **given)

    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(session_id, *args, **kwargs)
        return rows if session_id == getattr(self, "_wrote", None) else rows[-2_000:]


@caught_by("FM-AMT-001")
class ListsTenThousand(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        every = (await super().get_sessions(None, **filters))[:10_000]
        return cut(every, limit, offset)


@caught_by("FM-AMT-001")
class CountsFourThousand(Sound):
    async def count_sessions(self, **given: Any) -> Any:
        return min(await super().count_sessions(**given), 4_096)


@caught_by("FM-AMT-001")
class SkipsFiveThousandAtMost(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        return await super().get_sessions(0 if is_more(offset, 5_000) else limit, offset, **filters)


@caught_by("FM-AMT-001")
class FindsTenThousand(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, metadata: Any = None, **filters: Any) -> Any:
        if metadata is None:
            return await super().get_sessions(limit, offset, **filters)
        return cut((await super().get_sessions(None, metadata=metadata, **filters))[:10_000], limit, offset)


@caught_by("FM-AMT-001")
class LooksUpTheNewestFiveThousand(Sound):
    async def get_session(self, session_id: Any) -> Any:
        found = await super().get_session(session_id)
        newest = {row["id"] for row in await super().get_sessions(5_000)}
        return found if session_id in newest else None


@caught_by("FM-AMT-001")
class ClearsTwoThousand(Sound):
    async def clear_all(self) -> None:
        for row in await super().get_sessions(2_048):
            await super().delete_session(row["id"])


@caught_by("FM-AMT-002")
class RecognisesSixHundredOfABatch(Sound):
    """Looks for the ids of a batch in one statement, with as many parameters as it takes."""

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        known = {row["id"] for row in await super().get_history(session_id)}
        rows: list[Any] = [
            {"role": row["role"], "content": row["content"]} if at >= 600 and row["message_id"] in known else row
            for at, row in enumerate(messages)
        ]
        made = await super().add_messages(session_id, rows, **given)
        return [row.get("message_id", new) for row, new in zip(messages, made, strict=True)]


@caught_by("FM-AMT-002")
class StoresTenThousandOfABatch(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        made = await super().add_messages(session_id, messages[:10_000], **given)
        return made + [row["message_id"] for row in messages[10_000:]]


class _CommitsParts(Sound):
    part = 0

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        made: list[str] = []
        for start in range(0, len(messages), self.part):
            made += await super().add_messages(session_id, messages[start : start + self.part], **given)
        return made


@caught_by("FM-AMT-002")
class CommitsEveryThousand(_CommitsParts):
    part = 1_000


@caught_by("FM-AMT-002")
class CommitsEveryTenThousand(_CommitsParts):
    part = 10_000


@caught_by("FM-AMT-008")
class CountsMessagesInTwoBytes(_ChangesCounts):
    def change(self, count: Any) -> Any:
        return count % 65_536


@caught_by("FM-AMT-010", reference_only=True)
class ForksFiveThousand(Sound):
    async def fork_session(self, *args: Any, **given: Any) -> Any:
        made = await super().fork_session(*args, **given)
        with self._store.writing() as sessions:
            del sessions[made]["messages"][5_000:]
        return made


@caught_by("FM-AMT-010", reference_only=True)
class TruncatesFiveThousand(Sound):
    async def update_session(self, session_id: Any, *, truncate_from: Any = None, **given: Any) -> Any:
        with self._store.reading() as sessions:
            rest = list(sessions[session_id]["messages"]) if session_id in sessions else []
        updated = await super().update_session(session_id, truncate_from=truncate_from, **given)
        with self._store.writing() as sessions:
            kept = sessions[session_id]["messages"]
            if truncate_from is not None and len(rest) - len(kept) > 5_000:
                kept += rest[len(kept) + 5_000 :]
        return updated
