"""Memories that break clauses on revisions: ones that stay, change for nothing, return or are not compared."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from flux_memory import ConflictError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.reference.rows import new_id


class _KeepsTheRevision(Sound):
    """Restores the revision after some calls."""

    async def _kept(self, session_id: Any, call: Any) -> Any:
        row = await super().get_session(session_id)
        made = await call
        if row is None:
            return made
        with self._store.writing() as sessions:
            sessions[session_id]["revision"] = row["revision"]
        return await super().get_session(session_id) if isinstance(made, dict) else made


@caught_by("FM-REV-001", reference_only=True)
class TitlesKeepTheRevision(_KeepsTheRevision):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await self._kept(session_id, super().update_session_title(session_id, title))


@caught_by("FM-REV-001", reference_only=True)
class MergesKeepTheRevision(_KeepsTheRevision):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        call = super().update_session(session_id, **given)
        return await (self._kept(session_id, call) if given.keys() == {"merge_metadata"} else call)


@caught_by("FM-REV-001", reference_only=True)
class TruncationsKeepTheRevision(_KeepsTheRevision):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        call = super().update_session(session_id, **given)
        return await (self._kept(session_id, call) if given.keys() == {"truncate_from"} else call)


@caught_by("FM-REV-001", reference_only=True)
class AddsKeepTheRevision(_KeepsTheRevision):
    async def add_message(self, session_id: Any, *args: Any, **given: Any) -> Any:
        return await self._kept(session_id, super().add_message(session_id, *args, **given))


@caught_by("FM-REV-001", reference_only=True)
class UpdatesWithoutADifferenceKeepTheRevision(_KeepsTheRevision):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        row = await super().get_session(session_id)
        call = super().update_session(session_id, **given)
        same = row is not None and given == {"title": row["title"]}
        return await (self._kept(session_id, call) if same else call)


class _ChangesTheRevision(Sound):
    """Gives a session another revision without a change."""

    def _change(self, session_id: Any) -> None:
        with self._store.writing() as sessions:
            if session_id in sessions:
                sessions[session_id]["revision"] = new_id()


@caught_by("FM-REV-002", reference_only=True)
class ReadsChangeTheRevision(_ChangesTheRevision):
    async def get_history(self, session_id: Any, *args: Any, **given: Any) -> Any:
        self._change(session_id)
        return await super().get_history(session_id, *args, **given)


@caught_by("FM-REV-002", reference_only=True)
class RetriesChangeTheRevision(_ChangesTheRevision):
    async def add_message(self, session_id: Any, *args: Any, **given: Any) -> Any:
        made = await super().add_message(session_id, *args, **given)
        self._change(session_id)
        return made


@caught_by("FM-REV-002", reference_only=True)
class EmptyBatchesChangeTheRevision(_ChangesTheRevision):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        made = await super().add_messages(session_id, messages, **given)
        self._change(session_id)
        return made


@caught_by("FM-REV-002", reference_only=True)
class RefusalsChangeTheRevision(_ChangesTheRevision):
    """Takes the revision of its lock for that of the session."""

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        try:
            return await super().update_session(session_id, **given)
        except ConflictError:
            self._change(session_id)
            raise


@caught_by("FM-REV-003")
class ListsShortenRevisions(Sound):
    async def get_sessions(self, *args: Any, **given: Any) -> Any:
        return [{**row, "revision": row["revision"][:8]} for row in await super().get_sessions(*args, **given)]


@caught_by("FM-REV-003")
class UpdatesReturnAnotherRevision(Sound):
    """Returns the revision that it expected."""

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        row = await super().get_session(session_id)
        made = await super().update_session(session_id, **given)
        return {**made, "revision": row["revision"]} if row and given.keys() == {"merge_metadata"} else made


@caught_by("FM-REV-003")
class HandlesRememberRevisions(Sound):
    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        known = self.__dict__.setdefault("revisions", {})
        return row and {**row, "revision": known.setdefault((session_id, row["message_count"]), row["revision"])}


class _MakesRevisions(Sound):
    """Replaces the revision of each changed session by one that is made of the number of its changes."""

    def made(self, session_id: str, changes: int) -> str:
        raise NotImplementedError

    async def create_session(self, *args: Any, **given: Any) -> Any:
        session = await super().create_session(*args, **given)
        self._count(session)
        return session

    async def add_message(self, session_id: Any, *args: Any, **given: Any) -> Any:
        made = await super().add_message(session_id, *args, **given)
        self._count(session_id)
        return made

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        await super().update_session(session_id, **given)
        self._count(session_id)
        return await super().get_session(session_id)

    def _count(self, session_id: Any) -> None:
        with self._store.writing() as sessions:
            state = sessions[session_id]
            state["changes"] = state.get("changes", 0) + 1
            state["revision"] = self.made(session_id, state["changes"])


@caught_by("FM-REV-004", reference_only=True)
class RevisionsAreCounters(_MakesRevisions):
    """A session that is deleted and created anew has the same ones."""

    def made(self, session_id: str, changes: int) -> str:
        return f"{session_id} {changes}"


@caught_by("FM-REV-004", reference_only=True)
class RevisionsOfOneCounterEach(_MakesRevisions):
    """Another session has the same ones."""

    def made(self, session_id: str, changes: int) -> str:
        return f"r{changes}"


@caught_by("FM-REV-004", reference_only=True)
class RevisionsWrapAround(_MakesRevisions):
    prefixes: ClassVar[dict[str, str]] = {}

    def made(self, session_id: str, changes: int) -> str:
        if changes == 1:
            self.prefixes[session_id] = new_id()
        return f"{self.prefixes[session_id]} {changes % 32}"


@caught_by("FM-REV-004")
class OldRevisionsAreAccepted(Sound):
    """Accepts each revision that a session with this id began with."""

    first: ClassVar[dict[str, set[str]]] = {}

    async def create_session(self, *args: Any, **given: Any) -> Any:
        session = await super().create_session(*args, **given)
        row = await super().get_session(session)
        self.first.setdefault(session, set()).add(row["revision"] if row else "")
        return session

    async def update_session(self, session_id: Any, *, expected_revision: Any = None, **given: Any) -> Any:
        old = self.first.get(session_id, set()) if isinstance(session_id, str) else set[str]()
        if expected_revision in old and len(old) > 1:
            expected_revision = None
        return await super().update_session(session_id, expected_revision=expected_revision, **given)


class _Compares(Sound):
    """Compares the expected revision in its own way."""

    def fits(self, expected: str, current: str) -> bool:
        raise NotImplementedError

    async def update_session(self, session_id: Any, *, expected_revision: Any = None, **given: Any) -> Any:
        row = await super().get_session(session_id)
        if row is not None and isinstance(expected_revision, str) and self.fits(expected_revision, row["revision"]):
            expected_revision = None
        return await super().update_session(session_id, expected_revision=expected_revision, **given)


@caught_by("FM-REV-005")
class NoRevisionIsAnyRevision(_Compares):
    def fits(self, expected: str, current: str) -> bool:
        return not expected


@caught_by("FM-REV-005")
class RevisionsAreStripped(_Compares):
    def fits(self, expected: str, current: str) -> bool:
        return expected.strip() == current


@caught_by("FM-REV-005")
class RevisionsAreCut(_Compares):
    """Compares as many characters as both have."""

    def fits(self, expected: str, current: str) -> bool:
        return expected.startswith(current) or (len(expected) > 8 and current.startswith(expected))


@caught_by("FM-REV-005")
class RevisionsArePatterns(_Compares):
    def fits(self, expected: str, current: str) -> bool:
        return expected in {"%", "*"}


@caught_by("FM-REV-005")
class ARevisionOfAnySessionFits(_Compares):
    seen: ClassVar[set[str]] = set()

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        self.seen.update([row["revision"]] if row else [])
        return row

    def fits(self, expected: str, current: str) -> bool:
        self.seen.discard(current)
        return expected in self.seen


class _ComparesFirst(Sound):
    """Compares the revision, and then makes an update that does not depend on it."""

    async def update_session(self, session_id: Any, *, expected_revision: Any = None, **given: Any) -> Any:
        row = await super().get_session(session_id)
        if row is None or expected_revision != row["revision"]:
            return await super().update_session(session_id, expected_revision=expected_revision, **given)
        await asyncio.sleep(0)
        return await super().update_session(session_id, **given)


@caught_by("FM-REV-006")
class ComparesOutsideTheLock(_ComparesFirst):
    pass


@caught_by("FM-REV-006")
class LosersChangeTheSession(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        await asyncio.sleep(0)
        try:
            return await super().update_session(session_id, **given)
        except ConflictError:
            if await super().get_session(session_id) and given.get("merge_metadata"):
                await super().update_session(session_id, merge_metadata=given["merge_metadata"])
            raise


@caught_by("FM-REV-006")
class EveryRacerLoses(Sound):
    """Gives up as soon as another update is under way."""

    busy: ClassVar[dict[str, int]] = {}

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        self.busy[session_id] = self.busy.get(session_id, 0) + 1
        try:
            await asyncio.sleep(0)
            if self.busy[session_id] > 1 and given.get("expected_revision"):
                raise ConflictError("another update is under way")
            return await super().update_session(session_id, **given)
        finally:
            await asyncio.sleep(0)
            self.busy[session_id] -= 1


@caught_by("FM-REV-007")
class AddsSlipInBetween(_ComparesFirst):
    """Makes updates one after the other, but adds may run between the comparison and the change."""

    locks: ClassVar[dict[Any, Any]] = {}

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        lock = self.locks.setdefault((asyncio.get_running_loop(), session_id), asyncio.Lock())
        async with lock:
            return await super().update_session(session_id, **given)
