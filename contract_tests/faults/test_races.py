"""Tests some rounds of races on each engine, whose counts are right, and that wrong counts are noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from fault_report import Fault
from races import Tally, run

from flux_memory import ConversationMemory, Memory, Message, PostgresConversationMemory, Session

ROUNDS: Final = 20
ROUNDS_UNTIL_NOTICED: Final = 50


def assert_right(engine: str, make: Callable[[], Memory], fault: Fault) -> None:
    """Assert that each count of some rounds is right."""
    for seed in fault.rounds(1, 20):
        tally = asyncio.run(run(engine, make, seed, lambda tally: tally.rounds < ROUNDS))
        assert not tally.wrong, "\n".join(tally.wrong[:20])
        fault.add(rounds=tally.rounds, acknowledged=tally.pops)


@pytest.mark.fault("racing pops and updates", backend="postgres")
def test_racing_calls_on_postgres_are_counted_right(flux_empty_database: str, fault: Fault) -> None:
    """A DELETE does not see a message that was committed after its snapshot, and an UPDATE of the counter does."""
    assert_right("postgres", partial(PostgresConversationMemory, flux_empty_database), fault)


@pytest.mark.fault("racing pops and updates", backend="sqlite")
def test_racing_calls_on_sqlite_are_counted_right(path: Path, fault: Fault) -> None:
    """Four handles have a worker thread each."""
    assert_right("sqlite", partial(ConversationMemory, path), fault)


class ReadsThenPops(ConversationMemory):
    """Reads the newest message in one transaction and removes it in another."""

    async def pop_message(self, session_id: str) -> Message | None:
        newest = (await self.get_history(session_id, 1))[-1:]
        await super().pop_message(session_id)
        return newest[0] if newest else None


class PopsNothing(ConversationMemory):
    """Returns the newest message and keeps it."""

    async def pop_message(self, session_id: str) -> Message | None:
        newest = (await self.get_history(session_id, 1))[-1:]
        return newest[0] if newest else None


class PopsNone(ConversationMemory):
    """Removes the newest message and returns none."""

    async def pop_message(self, session_id: str) -> Message | None:
        await super().pop_message(session_id)
        return None


class PopsOlder(ConversationMemory):
    """Removes the message before the newest one."""

    async def pop_message(self, session_id: str) -> Message | None:
        newest = await super().pop_message(session_id)
        older = await super().pop_message(session_id)
        if newest is None or older is None:
            return newest
        await self.add_message(session_id, newest["role"], newest["content"], message_id=newest["id"])
        return older


class ComparesFirst(ConversationMemory):
    """Compares the revision in one transaction and changes the session in another."""

    async def update_session(self, session_id: str, *, expected_revision: str | None = None, **parts: Any) -> Session:
        found = await self.get_session(session_id)
        expected = None if found and found["revision"] == expected_revision else expected_revision
        return await super().update_session(session_id, expected_revision=expected, **parts)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (ReadsThenPops, "times"),
        (PopsNothing, "still stored"),
        (PopsNone, "is lost"),
        (PopsOlder, "an older message was popped"),
        (ComparesFirst, "updates of one revision were made"),
    ],
)
def test_a_wrong_count_is_noticed(path: Path, broken: Callable[[Path], Memory], sentence: str) -> None:
    """Races that notice nothing would call every memory right."""

    def goes_on(tally: Tally) -> bool:
        return tally.rounds < ROUNDS_UNTIL_NOTICED and not any(sentence in each for each in tally.wrong)

    tally = asyncio.run(run("sqlite", partial(broken, path), 1, goes_on))
    assert any(sentence in each for each in tally.wrong), tally
