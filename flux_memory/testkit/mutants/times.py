"""Memories that break clauses on times."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from flux_memory.testkit.mutants.catalogue import Sound, caught_by


@caught_by("FM-TIM-001")
class NaiveTimes(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        for row in rows:
            row["created_at"] = row["created_at"].removesuffix("+00:00")
        return rows


@caught_by("FM-TIM-001")
class ShortTimes(Sound):
    """`isoformat()` without `timespec`: no fraction if it is zero."""

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        for row in rows:
            row["created_at"] = datetime.fromisoformat(row["created_at"]).isoformat()
        return rows


@caught_by("FM-TIM-002")
class LocalTimes(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        for row in rows:
            row["created_at"] = row["created_at"].replace("T", "T", 1)
            hour = (int(row["created_at"][11:13]) + 9) % 24
            row["created_at"] = f"{row['created_at'][:11]}{hour:02}{row['created_at'][13:]}"
        return rows


@caught_by("FM-TIM-003", reference_only=True)
class CreatedRunsBack(Sound):
    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(session_id, *args, **kwargs)
        with self._store.writing() as sessions:
            sessions[session_id]["messages"][-1]["created_at"] = datetime.now(UTC).isoformat(timespec="microseconds")
        return made


@caught_by("FM-TIM-004", reference_only=True)
class UpdatedRunsBack(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(session_id, title)
        with self._store.writing() as sessions:
            sessions[session_id]["updated_at"] = datetime.now(UTC).isoformat(timespec="microseconds")


@caught_by("FM-TIM-005", reference_only=True)
class BatchesDoNotBump(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        before = await super().get_session(session_id)
        made = await super().add_messages(session_id, messages, **given)
        with self._store.writing() as sessions:
            assert before is not None
            sessions[session_id]["updated_at"] = before["updated_at"]
        return made


@caught_by("FM-TIM-006", reference_only=True)
class TitlesDoNotBump(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        before = await super().get_session(session_id)
        await super().update_session_title(session_id, title)
        with self._store.writing() as sessions:
            assert before is not None
            sessions[session_id]["updated_at"] = before["updated_at"]


@caught_by("FM-TIM-006")
class TimesToTheMinute(Sound):
    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "updated_at": f"{row['updated_at'][:17]}00.000000+00:00"}


@caught_by("FM-TIM-007")
class ReadsBump(Sound):
    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        if row is not None:
            await super().update_session_title(session_id, row["title"])
        return row


@caught_by("FM-TIM-008")
class ChangesTouchAll(Sound):
    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(*args, **kwargs)
        for row in await super().get_sessions(None):
            await super().update_session_title(row["id"], row["title"])
        return made


@caught_by("FM-TIM-020")
class TimesOfTheReader(Sound):
    """Gives the messages the times of a client whose clock runs backwards."""

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        times = sorted((row["created_at"] for row in rows), reverse=True)
        return [{**row, "created_at": time} for row, time in zip(rows, times, strict=True)]


@caught_by("FM-TIM-021", reference_only=True)
class RenamesRestoreTheTime(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(session_id, title)
        with self._store.writing() as sessions:
            sessions[session_id]["updated_at"] = sessions[session_id]["created_at"]


@caught_by("FM-TIM-022")
class BatchesById(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        rows: list[Any] = list(messages)
        named = all(isinstance(row, dict) and row.get("message_id") for row in rows)
        return await super().add_messages(session_id, sorted(rows, key=_id_of) if named else rows, **given)


class _UpdatesKeepTheTime(Sound):
    """Restores the time after some updates."""

    parts: ClassVar[set[str]]

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        row = await super().get_session(session_id)
        made = await super().update_session(session_id, **given)
        if row is None or given.keys() != self.parts:
            return made
        with self._store.writing() as sessions:
            sessions[session_id]["updated_at"] = row["updated_at"]
        return await super().get_session(session_id)


@caught_by("FM-TIM-061", reference_only=True)
class MergesKeepTheTime(_UpdatesKeepTheTime):
    parts: ClassVar = {"merge_metadata"}


@caught_by("FM-TIM-061", reference_only=True)
class ConditionalAppendsKeepTheTime(_UpdatesKeepTheTime):
    parts: ClassVar = {"messages", "expected_revision"}


def _id_of(row: Any) -> str:
    return str(row["message_id"])
