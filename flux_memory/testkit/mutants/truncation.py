"""Memories that break clauses on what updates remove from and append to a history."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
import copy
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from flux_memory import ConflictError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by

PAGE = 1_000
"""Messages that fit one statement or request."""


@caught_by("FM-UPD-040")
class TruncationsKeepTheCounter(Sound):
    removed: ClassVar[dict[str, int]] = {}

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        before = await super().get_session(session_id)
        made = await super().update_session(session_id, **given)
        if before is not None and "messages" not in given:
            gone = before["message_count"] - made["message_count"]
            self.removed[session_id] = self.removed.get(session_id, 0) + gone
        return await self.get_session(session_id)

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "message_count": row["message_count"] + self.removed.get(session_id, 0)}


@caught_by("FM-UPD-040")
class TruncatesAfterTheMessage(Sound):
    async def update_session(self, session_id: Any, *, truncate_from: Any = None, **given: Any) -> Any:
        ids = [row["id"] for row in await super().get_history(session_id)]
        if truncate_from not in ids:
            return await super().update_session(session_id, truncate_from=truncate_from, **given)
        following = ids[ids.index(truncate_from) + 1 :]
        if not following:
            return await super().update_session(session_id, merge_metadata={}, **given)
        return await super().update_session(session_id, truncate_from=following[0], **given)


@caught_by("FM-UPD-040", reference_only=True)
class RemovesOneMessage(Sound):
    async def update_session(self, session_id: Any, *, truncate_from: Any = None, **given: Any) -> Any:
        before = await super().get_history(session_id)
        made = await super().update_session(session_id, truncate_from=truncate_from, **given)
        ids = [row["id"] for row in before]
        if truncate_from not in ids:
            return made
        with self._store.writing() as sessions:
            sessions[session_id]["messages"] += copy.deepcopy(before[ids.index(truncate_from) + 1 :])
        return await super().get_session(session_id)


@caught_by("FM-UPD-041")
class UnknownMessagesAreNotTruncated(Sound):
    """Makes the other parts of the update."""

    async def update_session(self, session_id: Any, *, truncate_from: Any = None, **given: Any) -> Any:
        try:
            return await super().update_session(session_id, truncate_from=truncate_from, **given)
        except ConflictError:
            if truncate_from is None:
                raise
            return await super().update_session(session_id, **{"merge_metadata": {}, **given})


@caught_by("FM-UPD-041")
class UnknownMessagesTruncateEverything(Sound):
    """Compares places, of which an unknown message has none."""

    async def update_session(self, session_id: Any, *, truncate_from: Any = None, **given: Any) -> Any:
        if truncate_from is not None and truncate_from not in [r["id"] for r in await super().get_history(session_id)]:
            return await super().update_session(session_id, truncate_all=True, **given)
        return await super().update_session(session_id, truncate_from=truncate_from, **given)


@caught_by("FM-UPD-041")
class RemovedMessagesTruncateNothing(Sound):
    removed: ClassVar[set[tuple[Any, Any]]] = set()

    async def update_session(self, session_id: Any, *, truncate_from: Any = None, **given: Any) -> Any:
        if (session_id, truncate_from) in self.removed:
            return await super().update_session(session_id, **{"merge_metadata": {}, **given})
        made = await super().update_session(session_id, truncate_from=truncate_from, **given)
        self.removed.add((session_id, truncate_from))
        return made


class _Remembers(Sound):
    """Remembers the ids that were stored, also when updates remove the messages."""

    stored: ClassVar[dict[tuple[Any, Any], Any]] = {}

    async def _remember(self, session_id: Any) -> None:
        for row in await super().get_history(session_id):
            self.stored[session_id, row["id"]] = row["content"]

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        made = await super().add_messages(session_id, messages, **given)
        await self._remember(session_id)
        return made


@caught_by("FM-UPD-042")
class RemovedIdsAreRetries(_Remembers):
    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **given: Any) -> Any:
        if (session_id, message_id) in self.stored:
            return message_id
        return await super().add_message(session_id, *args, message_id=message_id, **given)


@caught_by("FM-UPD-042")
class RemovedIdsConflict(_Remembers):
    async def add_message(
        self, session_id: Any, role: Any, content: Any, *args: Any, message_id: Any = None, **given: Any
    ) -> Any:
        if self.stored.get((session_id, message_id), content) != content:
            raise ConflictError("the session had another message with this id")
        return await super().add_message(session_id, role, content, *args, message_id=message_id, **given)


@caught_by("FM-UPD-042", reference_only=True)
class AddsContinueInTheOldPlace(Sound):
    """Puts the first message after a truncation before the kept ones: places are made of the counter."""

    truncated: ClassVar[set[Any]] = set()

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        made = await super().update_session(session_id, **given)
        if given.get("truncate_from") is not None:
            self.truncated.add(session_id)
        return made

    async def add_message(self, session_id: Any, *args: Any, **given: Any) -> Any:
        made = await super().add_message(session_id, *args, **given)
        if session_id in self.truncated:
            self.truncated.discard(session_id)
            with self._store.writing() as sessions:
                messages = sessions[session_id]["messages"]
                messages[-2:] = reversed(messages[-2:])
        return made


@caught_by("FM-UPD-043", reference_only=True)
class TruncatesAPage(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        before = await super().get_history(session_id)
        made = await super().update_session(session_id, **given)
        gone = len(before) - made["message_count"]
        if gone <= PAGE or given.get("messages"):
            return made
        with self._store.writing() as sessions:
            sessions[session_id]["messages"] += copy.deepcopy(before[made["message_count"] : -PAGE])
        return await super().get_session(session_id)


@caught_by("FM-UPD-043")
class AppendsAPage(Sound):
    async def update_session(self, session_id: Any, *, messages: Any = (), **given: Any) -> Any:
        batch = messages[:PAGE] if isinstance(messages, list) else messages
        return await super().update_session(session_id, messages=batch, **given)


class _ChangesAppends(Sound):
    def appended(self, one: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    async def update_session(self, session_id: Any, *, messages: Any = (), **given: Any) -> Any:
        batch: Any = messages if isinstance(messages, str | bytes | dict) else list(messages)
        stored = {row["id"]: row for row in await super().get_history(session_id)}
        if isinstance(batch, list) and all(isinstance(one, dict) for one in batch):
            batch = [self.appended(one, stored) for one in batch]
        return await super().update_session(session_id, messages=batch, **given)


@caught_by("FM-UPD-044")
class AppendedMetadataIsLost(_ChangesAppends):
    def appended(self, one: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
        del stored
        return {key: value for key, value in one.items() if key != "metadata"}


@caught_by("FM-UPD-044")
class AppendsAreOfUsers(_ChangesAppends):
    def appended(self, one: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
        del stored
        return one | {"role": "user"} if one.get("role") == "tool" and one.get("metadata") else one


@caught_by("FM-UPD-044")
class StoredIdsAreNotCompared(_ChangesAppends):
    def appended(self, one: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
        row = stored.get(one.get("message_id", ""))
        return one if row is None else {**one, **{key: row[key] for key in ("role", "content", "metadata")}}


@caught_by("FM-UPD-044")
class RetriedAppendsConflict(Sound):
    async def update_session(self, session_id: Any, *, messages: Any = (), **given: Any) -> Any:
        batch = list(messages)
        known = {row["id"] for row in await super().get_history(session_id)}
        if not given.get("truncate_from") and known & {one.get("message_id") for one in batch}:
            raise ConflictError("the session has this message")
        return await super().update_session(session_id, messages=batch, **given)


@caught_by("FM-UPD-044")
class RetriedAppendsAreDoubled(Sound):
    async def update_session(self, session_id: Any, *, messages: Any = (), **given: Any) -> Any:
        batch = list(messages)
        known = {row["id"]: row["content"] for row in await super().get_history(session_id)}
        fresh: list[Any] = [
            {key: value for key, value in one.items() if key != "message_id"}
            if known.get(one.get("message_id", "")) == one["content"]
            else one
            for one in batch
        ]
        return await super().update_session(session_id, messages=fresh, **given)


@caught_by("FM-UPD-045")
class CountsWhatItSaw(Sound):
    """Sets the counter as if there were no adds between the beginning and the end of a truncation."""

    drift: ClassVar[dict[str, int]] = {}

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        if given.get("truncate_from") is None:
            return await super().update_session(session_id, **given)
        before = await super().get_session(session_id)
        await asyncio.sleep(0)
        now = await super().get_session(session_id)
        made = await super().update_session(session_id, **given)
        apart = (before["message_count"] - now["message_count"]) if before and now else 0
        self.drift[session_id] = self.drift.get(session_id, 0) + apart
        return made

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "message_count": row["message_count"] + self.drift.get(session_id, 0)}


@caught_by("FM-UPD-045")
class CollidingUpdatesBlockTheSession(Sound):
    """After a truncation beside an add, the place of the next message is taken."""

    busy: ClassVar[dict[str, int]] = {}
    stuck: ClassVar[set[str]] = set()

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        self.busy[session_id] = self.busy.get(session_id, 0) + 1
        try:
            await asyncio.sleep(0)
            return await super().update_session(session_id, **given)
        finally:
            self.busy[session_id] -= 1

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        if self.busy.get(session_id):
            self.stuck.add(session_id)
        return await super().add_messages(session_id, messages, **given)

    async def add_message(self, session_id: Any, *args: Any, **given: Any) -> Any:
        if session_id in self.stuck:
            raise ConflictError("duplicate key value violates unique constraint")
        return await super().add_message(session_id, *args, **given)


def _later(moment: str, **by: float) -> str:
    return (datetime.fromisoformat(moment) + timedelta(**by)).isoformat(timespec="microseconds")


class _ChangesRows(Sound):
    """Changes a session's stored record after an update."""

    def change(self, state: dict[str, Any], before: dict[str, Any]) -> None:
        raise NotImplementedError

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        with self._store.reading() as sessions:
            before = copy.deepcopy(sessions.get(session_id, {}))
        await super().update_session(session_id, **given)
        with self._store.writing() as sessions:
            self.change(sessions[session_id], before)
        return await super().get_session(session_id)


@caught_by("FM-UPD-046", reference_only=True)
class EachAppendHasItsOwnTime(_ChangesRows):
    def change(self, state: dict[str, Any], before: dict[str, Any]) -> None:
        for place, message in enumerate(state["messages"][len(before["messages"]) :]):
            message["created_at"] = _later(message["created_at"], microseconds=-place)


@caught_by("FM-UPD-046", reference_only=True)
class UpdatesOfTheSessionAreNotDated(_ChangesRows):
    def change(self, state: dict[str, Any], before: dict[str, Any]) -> None:
        if state["messages"] == before["messages"]:
            state["updated_at"] = before["updated_at"]


@caught_by("FM-UPD-047", reference_only=True)
class UpdatesFollowTheClock(_ChangesRows):
    def change(self, state: dict[str, Any], before: dict[str, Any]) -> None:
        del before
        state["updated_at"] = min(state["updated_at"], datetime.now(UTC).isoformat(timespec="microseconds"))


@caught_by("FM-UPD-047", reference_only=True)
class AppendsFollowTheClock(_ChangesRows):
    def change(self, state: dict[str, Any], before: dict[str, Any]) -> None:
        known = {message["id"] for message in before["messages"]}
        for message in state["messages"]:
            if message["id"] not in known:
                message["created_at"] = datetime.now(UTC).isoformat(timespec="microseconds")


@caught_by("FM-UPD-046", reference_only=True)
class UpdatesAreCreations(_ChangesRows):
    def change(self, state: dict[str, Any], before: dict[str, Any]) -> None:
        del before
        state["created_at"] = state["updated_at"]


@caught_by("FM-UPD-046", reference_only=True)
class ATruncationGoesBackInTime(_ChangesRows):
    """Takes the time of the newest message that is left for that of the session."""

    def change(self, state: dict[str, Any], before: dict[str, Any]) -> None:
        if len(state["messages"]) < len(before["messages"]) and state["messages"]:
            state["updated_at"] = state["messages"][-1]["created_at"]


@caught_by("FM-UPD-048")
class TruncatesFromASimilarMessage(Sound):
    async def update_session(self, session_id: Any, *, truncate_from: Any = None, **given: Any) -> Any:
        name = truncate_from and truncate_from.strip().lower()
        return await super().update_session(session_id, truncate_from=name, **given)
