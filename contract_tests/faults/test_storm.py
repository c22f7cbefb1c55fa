"""Tests a storm of a few seconds on each engine, which breaks no promise, and that its workers notice broken ones."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from fault_owner import Owner
from fault_report import Fault
from fault_storm import Summary, Workers
from storm import on_postgres, on_sqlite
from waiting import wait_until

from flux_memory import ConversationMemory, Message, Session
from flux_memory.testkit.histories import Journal, Recorder

STORM_SECONDS: Final = 6.0
CHANGES: Final = ("pop_message", "update_session", "fork_session", "add_messages creates")


def assert_clean(summary: Summary, fault: Fault) -> None:
    """Assert that every promise held, and that the storm was one."""
    shown = json.dumps(summary.shown(), indent=2)
    assert not summary.broken, "\n".join([shown, *summary.examples[:5]])
    assert min(summary.outcomes[name] for name in ("acknowledged", "refused", "cancelled")) > 0, shown
    assert min(summary.acknowledged[name] for name in CHANGES) > 0, shown
    fault.add(acknowledged=summary.outcomes["acknowledged"])


@pytest.mark.fault("storm", backend="postgres")
def test_a_storm_over_postgres_breaks_no_promise(flux_empty_database: str, fault: Fault) -> None:
    """Mixed deadlines on one handle, cancellations, lost connections and replies, locked rows, a stalling loop."""
    for seed in fault.rounds(1, 20):
        summary = asyncio.run(on_postgres(flux_empty_database, STORM_SECONDS, seed))
        assert summary.outcomes["unknown"] > 0
        assert_clean(summary, fault)


@pytest.mark.fault("storm", backend="sqlite")
def test_a_storm_over_sqlite_breaks_no_promise(path: Path, fault: Fault) -> None:
    """Mixed deadlines on one handle, cancellations, a file that another process locks, a stalling loop."""
    for seed in fault.rounds(1, 20):
        assert_clean(asyncio.run(on_sqlite(path, STORM_SECONDS, seed)), fault)


class PopsOldest(ConversationMemory):
    """Returns the oldest message instead of the one that it removes."""

    async def pop_message(self, session_id: str) -> Message | None:
        oldest = (await self.get_history(session_id))[:1]
        return (await super().pop_message(session_id)) and oldest[0]


class KeepsRevision(ConversationMemory):
    """Shows one revision for every state of a session."""

    async def get_session(self, session_id: str) -> Session | None:
        found = await super().get_session(session_id)
        return found and {**found, "revision": "same"}


class IgnoresRevision(ConversationMemory):
    """Changes a session without a look at its revision."""

    async def update_session(self, session_id: str, **parts: Any) -> Session:
        return await super().update_session(session_id, **{**parts, "expected_revision": None})


class Forgets(ConversationMemory):
    """Acknowledges messages that it does not store."""

    async def add_messages(self, session_id: str, messages: Any, **given: Any) -> list[str]:
        return [one["message_id"] for one in messages]


async def is_noticed(summary: Summary, kind: str) -> bool:
    """Return whether a worker has noticed a broken promise of this kind."""
    return kind in summary.broken


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (PopsOldest, "popped another message"),
        (KeepsRevision, "revision repeated"),
        (IgnoresRevision, "overwritten"),
        (Forgets, "read another history"),
    ],
)
def test_the_owner_of_a_session_notices_a_wrong_answer(
    tmp_path: Path, broken: Callable[[Path], ConversationMemory], kind: str
) -> None:
    """Workers that notice nothing would call every storm clean."""

    async def blow() -> Summary:
        summary = Summary("sqlite", 1)
        async with broken(tmp_path / "chat.db") as memory:
            recorder = Recorder(memory, Journal(tmp_path / "owner.jsonl"), "owner")
            workers = Workers(recorder, summary, "r", 1)
            working = asyncio.ensure_future(Owner(recorder, workers, summary).work(random.Random(1)))
            await wait_until(partial(is_noticed, summary, kind))
            workers.stopping = True
            await working
        return summary

    assert asyncio.run(asyncio.wait_for(blow(), 30)).broken[kind] > 0
