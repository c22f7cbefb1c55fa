"""Memories that break clauses on pops and on looking up messages."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
import copy
from typing import Any, ClassVar

from flux_memory import SessionNotFoundError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.reference.rows import message_record


@caught_by("FM-POP-001", reference_only=True)
class PopsTheOldest(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        with self._store.writing() as sessions:
            if session_id in sessions and sessions[session_id]["messages"]:
                sessions[session_id]["messages"].append(sessions[session_id]["messages"].pop(0))
        return await super().pop_message(session_id)


@caught_by("FM-POP-001")
class PopsLoseMetadata(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        return popped and {**popped, "metadata": {}}


@caught_by("FM-POP-001")
class PopsOnlyLook(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        return next(iter(await super().get_history(session_id, 1)), None)


@caught_by("FM-POP-001")
class PopsTheTurn(Sound):
    """Removes the question together with its answer."""

    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        if popped is not None:
            await super().pop_message(session_id)
        return popped


@caught_by("FM-POP-002")
class PopsOfNothingAreErrors(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        if popped is None:
            raise SessionNotFoundError(session_id)
        return popped


@caught_by("FM-POP-002")
class PopsOfNothingAreChanges(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        row = await super().get_session(session_id)
        if popped is None and row is not None:
            await super().update_session_title(session_id, row["title"])
        return popped


@caught_by("FM-POP-002")
class PopsTakeAnyId(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        return await super().pop_message(str(session_id))


@caught_by("FM-POP-003")
class PopsKeepTheCounter(Sound):
    popped: ClassVar[dict[Any, int]] = {}

    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        if popped is not None:
            self.popped[session_id] = self.popped.get(session_id, 0) + 1
        return popped

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "message_count": row["message_count"] + self.popped.get(session_id, 0)}


class _Restores(Sound):
    """Restores part of a session's record after a pop."""

    part = ""

    async def pop_message(self, session_id: Any) -> Any:
        with self._store.reading() as sessions:
            before = sessions.get(session_id, {}).get(self.part)
        popped = await super().pop_message(session_id)
        with self._store.writing() as sessions:
            if session_id in sessions:
                sessions[session_id][self.part] = before
        return popped


@caught_by("FM-POP-003", reference_only=True)
class PopsKeepTheRevision(_Restores):
    part = "revision"


@caught_by("FM-POP-003", reference_only=True)
class PopsKeepTheTime(_Restores):
    part = "updated_at"


@caught_by("FM-POP-003")
class PopsRename(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        if popped is not None:
            await super().update_session_title(session_id, "edited")
        return popped


@caught_by("FM-POP-004")
class PoppedIdsAreStillTaken(Sound):
    """Remembers the ids that it has stored, and takes an add with one of them for a retry."""

    known: ClassVar[set[Any]] = set()

    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        if popped is not None:
            self.known.add((session_id, popped["id"]))
        return popped

    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        if (session_id, message_id) in self.known:
            return message_id
        return await super().add_message(session_id, *args, message_id=message_id, **kwargs)


@caught_by("FM-POP-004", reference_only=True)
class AddsFillTheHole(Sound):
    """Puts a batch where the popped message was, counted from the old end."""

    popped: ClassVar[dict[Any, int]] = {}

    async def pop_message(self, session_id: Any) -> Any:
        self.popped[session_id] = self.popped.get(session_id, 0) + 1
        return await super().pop_message(session_id)

    async def add_messages(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_messages(session_id, *args, **kwargs)
        with self._store.writing() as sessions:
            messages = sessions[session_id]["messages"]
            messages.insert(max(len(messages) - len(made) - self.popped.get(session_id, 0), 0), messages.pop())
        return made


@caught_by("FM-POP-005")
class PopsReadAndThenRemove(Sound):
    """Returns what it read first, although another caller may have popped it meanwhile."""

    async def pop_message(self, session_id: Any) -> Any:
        newest = await super().get_history(session_id, 1)
        await asyncio.sleep(0.001)
        popped = await super().pop_message(session_id)
        return popped and newest[0] if newest else popped


@caught_by("FM-POP-005")
class ConcurrentPopsAreOne(Sound):
    """Gives callers that wait at the same time the message of one pop."""

    async def pop_message(self, session_id: Any) -> Any:
        popping: dict[Any, Any] = self.__dict__.setdefault("popping", {})
        if session_id in popping:
            return await popping[session_id]
        popping[session_id] = asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)
        popped = await super().pop_message(session_id)
        popping.pop(session_id).set_result(popped)
        return popped


@caught_by("FM-POP-005", reference_only=True)
class PopsOfOneSnapshot(Sound):
    """Counts every pop, although the row that some of them saw was removed by another."""

    async def pop_message(self, session_id: Any) -> Any:
        with self._store.reading() as sessions:
            seen = copy.deepcopy(sessions[session_id]["messages"][-1:]) if session_id in sessions else []
        await asyncio.sleep(0)
        with self._store.writing() as sessions:
            if seen and seen[0] in sessions[session_id]["messages"]:
                sessions[session_id]["messages"].remove(seen[0])
        return message_record(seen[0]) if seen else None


@caught_by("FM-POP-006", reference_only=True)
class PopsWriteBackWhatTheyRead(Sound):
    """Reads the history, and stores it without its last message: concurrent adds are lost."""

    async def pop_message(self, session_id: Any) -> Any:
        with self._store.reading() as sessions:
            before = copy.deepcopy(sessions[session_id]["messages"]) if session_id in sessions else []
        await asyncio.sleep(0)
        popped = await super().pop_message(session_id)
        if before and popped is not None:
            with self._store.writing() as sessions:
                sessions[session_id]["messages"] = before[:-1]
        return popped


@caught_by("FM-POP-006")
class RepeatsPopsThatFound(Sound):
    """Takes a change during the pop for a conflict, and pops again: the first message is lost."""

    async def pop_message(self, session_id: Any) -> Any:
        before = await super().get_history(session_id)
        await asyncio.sleep(0)
        popped = await super().pop_message(session_id)
        again = popped is not None and popped["id"] not in [row["id"] for row in before]
        return await super().pop_message(session_id) if again else popped


@caught_by("FM-POP-007", reference_only=True)
class PopsTheIdEverywhere(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        if popped is not None:
            with self._store.writing() as sessions:
                for state in sessions.values():
                    state["messages"] = [one for one in state["messages"] if one["id"] != popped["id"]]
        return popped


@caught_by("FM-GET-001")
class LookUpsWithoutMetadata(Sound):
    async def get_message(self, *args: Any) -> Any:
        found = await super().get_message(*args)
        return found and {**found, "metadata": {}}


@caught_by("FM-GET-001")
class LookUpsToTheSecond(Sound):
    async def get_message(self, *args: Any) -> Any:
        found = await super().get_message(*args)
        return found and {**found, "created_at": f"{found['created_at'][:19]}.000000+00:00"}


@caught_by("FM-GET-002")
class LookUpsInEverySession(Sound):
    async def get_message(self, session_id: Any, message_id: Any) -> Any:
        for row in sorted(await super().get_sessions(None), key=lambda row: row["id"] != session_id):
            if found := await super().get_message(row["id"], message_id):
                return found
        return await super().get_message(session_id, message_id)


@caught_by("FM-GET-002")
class LookUpsIgnoreCase(Sound):
    async def get_message(self, session_id: Any, message_id: Any) -> Any:
        found = await super().get_message(session_id, message_id)
        for row in await super().get_history(session_id) if isinstance(message_id, str) else ():
            if found is None and row["id"].casefold() == message_id.casefold():
                return row
        return found


@caught_by("FM-GET-003")
class UnknownMessagesAreErrors(Sound):
    async def get_message(self, session_id: Any, message_id: Any) -> Any:
        if await super().get_session(session_id) is None:
            raise SessionNotFoundError(session_id)
        return await super().get_message(session_id, message_id)


@caught_by("FM-GET-003")
class LookUpsOfAnything(Sound):
    async def get_message(self, session_id: Any, message_id: Any) -> Any:
        return await super().get_message(session_id, str(message_id))


@caught_by("FM-GET-004")
class RemembersLookUps(Sound):
    async def get_message(self, *args: Any) -> Any:
        seen: dict[Any, Any] = self.__dict__.setdefault("seen", {})
        if seen.get(args) is None:
            seen[args] = await super().get_message(*args)
        return seen[args]


@caught_by("FM-GET-004")
class RemembersMisses(Sound):
    async def get_message(self, *args: Any) -> Any:
        missed: set[Any] = self.__dict__.setdefault("missed", set())
        found = None if args in missed else await super().get_message(*args)
        if found is None:
            missed.add(args)
        return found


@caught_by("FM-POP-008", reference_only=True)
class PopsTurnBackTheTime(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        with self._store.writing() as sessions:
            if popped is not None:
                sessions[session_id]["updated_at"] = self._now()
        return popped


class _CountsPopped(Sound):
    """Takes the number of a message for its place, which are not the same once messages were popped."""

    async def pop_message(self, session_id: Any) -> Any:
        self.__dict__.setdefault("popped", set()).add(session_id)
        return await super().pop_message(session_id)

    async def one_before(self, session_id: Any, name: Any) -> Any:
        """Return the id of the message before this one, in a session with popped ones."""
        ids = [row["id"] for row in await super().get_history(session_id)]
        at = ids.index(name) if session_id in self.__dict__.get("popped", ()) and name in ids else 0
        return ids[at - 1] if at else name


@caught_by("FM-POP-009")
class ThroughCountsPopped(_CountsPopped):
    async def fork_session(self, session_id: Any, *, through: Any = None, **given: Any) -> Any:
        place = await self.one_before(session_id, through)
        return await super().fork_session(session_id, through=place, **given)


@caught_by("FM-POP-009")
class TruncationsCountPopped(_CountsPopped):
    async def update_session(self, session_id: Any, *, truncate_from: Any = None, **given: Any) -> Any:
        place = await self.one_before(session_id, truncate_from)
        return await super().update_session(session_id, truncate_from=place, **given)


@caught_by("FM-POP-009")
class AfterCountsPopped(_CountsPopped):
    async def get_history(self, session_id: Any, limit: Any = None, *, after: Any = None, **given: Any) -> Any:
        place = await self.one_before(session_id, after)
        return await super().get_history(session_id, limit, after=place, **given)
