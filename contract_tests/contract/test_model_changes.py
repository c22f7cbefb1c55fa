"""Tests that the state machine finds breaks of updates, pops, forks, cursors, bulk deletions and revisions."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from bound_stores import make_reference_factory

from flux_memory.testkit import ReferenceMemory
from flux_memory.testkit.contract.model.exploration import Profile, explore
from flux_memory.testkit.contract.model.findings import Finding

# A broken memory may leave handles open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_leaks() -> Iterator[None]:
    """Collect leaked handles here, so that their warnings do not fail another test."""
    yield
    gc.collect()


class IgnoresRevisions(ReferenceMemory):
    async def update_session(self, session_id: str, *, expected_revision: Any = None, **given: Any) -> Any:
        if expected_revision is not None and not isinstance(expected_revision, str):
            given["expected_revision"] = expected_revision
        return await super().update_session(session_id, **given)


class DeletesWhateverTheRevision(ReferenceMemory):
    async def delete_session(self, session_id: str, *, expected_revision: Any = None) -> None:
        if expected_revision is not None and not isinstance(expected_revision, str):
            await super().delete_session(session_id, expected_revision=expected_revision)
        await super().delete_session(session_id)


class PopsKeepTheRevision(ReferenceMemory):
    async def pop_message(self, session_id: str) -> Any:
        self._check_open()
        with self._store.reading() as sessions:
            before = sessions[session_id]["revision"] if session_id in sessions else ""
        popped = await super().pop_message(session_id)
        if popped is not None:
            with self._store.writing() as sessions:
                sessions[session_id]["revision"] = before
        return popped


class PopsReadFirst(ReferenceMemory):
    """Two concurrent pops return the same message."""

    async def pop_message(self, session_id: str) -> Any:
        last = (await self.get_history(session_id, 1))[-1:]
        await asyncio.sleep(0)
        await super().pop_message(session_id)
        return last[0] if last else None


class UpdatesInTwoSteps(ReferenceMemory):
    """Another call can come between the truncation and the rest."""

    async def update_session(self, session_id: str, **given: Any) -> Any:
        if given.get("truncate_all") is True and len(given) > 1:
            expected = {name: given.pop(name) for name in ("expected_revision", "truncate_all") if name in given}
            await super().update_session(session_id, **expected)
            await asyncio.sleep(0)
        return await super().update_session(session_id, **given)


class AfterIsInclusive(ReferenceMemory):
    async def get_history(self, session_id: str, limit: Any = None, *, before: Any = None, after: Any = None) -> Any:
        found = await super().get_history(session_id, limit, before=before, after=after)
        first = await self.get_message(session_id, after) if after is not None else None
        return [first, *found] if first else found


class ForksAreNew(ReferenceMemory):
    """The copies of messages have the time of the fork."""

    async def fork_session(self, session_id: str, **given: Any) -> Any:
        made = await super().fork_session(session_id, **given)
        with self._store.writing() as sessions:
            for message in sessions[made]["messages"]:
                message["created_at"] = sessions[made]["created_at"]
        return made


class PagesRepeatTheCursor(ReferenceMemory):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, before: Any = None, **given: Any) -> Any:
        found = await super().get_sessions(limit, offset, before=before, **given)
        last = await self.get_session(before["id"]) if before else None
        return [last, *found] if last and last == before and limit is None and not given.get("user_id") else found


class CreatesForAnybody(ReferenceMemory):
    async def add_message(self, *args: Any, user_id: Any = "", **given: Any) -> Any:
        session = await self.get_session(given.get("session_id", args[0] if args else ""))
        if session and isinstance(user_id, str) and user_id:
            user_id = session["user_id"]
        return await super().add_message(*args, user_id=user_id, **given)


class DeletesOneTooMany(ReferenceMemory):
    """The time of the last change counts as inactive."""

    async def delete_sessions(self, *, user_id: Any = None, inactive_since: Any = None) -> int:
        removed = await super().delete_sessions(user_id=user_id, inactive_since=inactive_since)
        if inactive_since is not None and user_id is None:
            for session in await self.get_sessions(None):
                if session["updated_at"] == inactive_since.isoformat(timespec="microseconds"):
                    await self.delete_session(session["id"])
        return removed


class ReturnsTheOldSession(ReferenceMemory):
    async def update_session(self, session_id: str, **given: Any) -> Any:
        before = await self.get_session(session_id)
        after: Any = await super().update_session(session_id, **given)
        return after | {"revision": before["revision"] if before else ""}


BREAKS = (
    IgnoresRevisions,
    DeletesWhateverTheRevision,
    PopsKeepTheRevision,
    PopsReadFirst,
    UpdatesInTwoSteps,
    AfterIsInclusive,
    ForksAreNew,
    PagesRepeatTheCursor,
    CreatesForAnybody,
    DeletesOneTooMany,
    ReturnsTheOldSession,
)


def find(broken: type[ReferenceMemory]) -> Finding:
    # It has to be found, not to be short.
    profile = Profile(examples=40, steps=30, shrinking=0.4)
    for seed in range(1, 12):
        finding = explore(make_reference_factory(broken), replace(profile, seed=seed))
        if finding is not None:
            return finding
    pytest.fail("no seed found the break")


@pytest.mark.parametrize("broken", BREAKS)
def test_a_break_of_a_change_is_found(broken: type[ReferenceMemory]) -> None:
    """Each break is found, and the code that leads to it names no value that only one run has."""
    finding = find(broken)
    compile(finding.code, "reproduction", "exec")
    assert not re.search(r"expected_revision='[0-9a-f-]{36}'", finding.code), finding.code


def test_a_reproduction_with_revisions_is_a_test() -> None:
    """The printed code takes revisions and records from calls of its own: it fails on the broken memory only."""
    factory = make_reference_factory(IgnoresRevisions)
    profile = Profile(examples=40, steps=30, shrinking=1.5)
    found = (explore(factory, replace(profile, seed=seed)) for seed in range(1, 12))
    # A concurrent group has no one order in which it fails.
    code = next(each.code for each in found if each is not None and "gather" not in each.code)
    names: dict[str, Any] = {}
    exec(compile(code, "reproduction", "exec"), names)
    asyncio.run(names["test_reproduction"](make_reference_factory(ReferenceMemory)))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        asyncio.run(names["test_reproduction"](factory))
