"""Clauses on adds that create one session at the same time, or beside readers and deletions."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from flux_memory import ConflictError, Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.created_by_adds import BATCHES, OWNED
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle, contents, gather_outcomes
from flux_memory.testkit.contract.updates import state_of

RACERS: Final = 12
ROUNDS: Final = 3


class RacingCreatorsContract(Binding):
    """The promises to adds that create their session beside other calls."""

    @clause(
        "FM-CRE-005",
        promise="Concurrent adds with `create` make one session, with every message of them; of adds by several users "
        "those of one are stored, and the others raise `ConflictError`.",
        impact="Of two messages that open a conversation one is lost, or it is refused as taken.",
        needs=OWNED,
    )
    async def test_concurrent_creators(self, store: StoreUnderTest) -> None:
        memory = store.open()
        handles = (memory, another_handle(store, memory))
        for turn in range(ROUNDS):
            session, race = f"s{turn}", f"race {turn}"
            adds = [handles[n % 2].add_message(session, "user", str(n), create=True) for n in range(RACERS)]
            batches = [handles[n % 2].add_messages(session, numbered(100 + n), create=True) for n in range(RACERS // 2)]
            await asyncio.gather(*adds, *batches)
            record, history = await state_of(handles[turn % 2], session)
            said = [*map(str, range(RACERS)), *(str(100 + n) for n in range(RACERS // 2))]
            assert sorted(contents(history)) == sorted(said)
            assert record["message_count"] == len(said)
            users = ("ann", "bob", "eve")
            outcomes = await gather_outcomes(
                *(
                    handles[n % 2].add_message(race, "user", f"{users[n % 3]} {n}", create=True, user_id=users[n % 3])
                    for n in range(RACERS)
                )
            )
            record, history = await state_of(memory, race)
            assert record["user_id"] in users
            made = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, str)]
            assert made == [n for n in range(RACERS) if users[n % 3] == record["user_id"]], outcomes
            assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == RACERS - len(made), outcomes
            assert sorted(contents(history)) == sorted(f"{record['user_id']} {n}" for n in made)
        assert await memory.count_sessions() == 2 * ROUNDS

    @clause(
        "FM-CRE-008",
        promise="No reader sees a session that is created by an add without its first messages.",
        impact="A page shows an empty conversation, or a worker answers before the question is there.",
        needs=BATCHES | Capability.SEVERAL_HANDLES,
    )
    async def test_no_reader_sees_an_empty_session(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        done = asyncio.Event()
        wrong: list[Any] = []

        def expected(session_id: str) -> int:
            return 1 if session_id.startswith("s one") else 3

        async def add_batch(number: int) -> None:
            await memory.add_messages(f"s {number}", numbered(1, 2, 3), create=True)

        async def add_one(number: int) -> None:
            await memory.add_message(f"s one {number}", "user", "text", create=True)

        async def read() -> None:
            while not done.is_set():
                # Let the writers run even if the backend never suspends.
                await asyncio.sleep(0)
                wrong.extend(
                    row for row in await other.get_sessions(None) if row["message_count"] != expected(row["id"])
                )
                for session in ("s 5", "s one 5"):
                    found = await other.get_session(session)
                    if found is None:
                        continue
                    rows = await other.get_history(session)
                    if not found["message_count"] == len(rows) == expected(session):
                        wrong.append(found)

        reading = asyncio.ensure_future(read())
        try:
            await together(call(n) for n in range(RACERS) for call in (add_batch, add_one))
        finally:
            done.set()
            await reading
        assert not wrong, f"a reader saw {wrong[:3]}"

    @clause(
        "FM-CRE-011",
        promise="Adds with `create` beside deletions all succeed, and what is stored in the end is whole.",
        impact="A message to a conversation that is deleted at that moment fails, or belongs to no session.",
        needs=BATCHES | Capability.SEVERAL_HANDLES,
    )
    async def test_creating_beside_deletions(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        handles: tuple[Memory, ...] = (memory, other)
        for turn in range(ROUNDS):
            adds = [handles[n % 2].add_message("s", "user", str(n), create=True) for n in range(RACERS)]
            batches = [handles[n % 2].add_messages("s", numbered(70, 80, 90), create=True) for n in range(4)]
            deletions = [handle.delete_session("s") for handle in handles]
            calls = [*adds[::2], deletions[0], *batches, deletions[1], *adds[1::2]]
            # In the last turn the deletions begin last: each add has found the session by then.
            outcomes = await gather_outcomes(*(calls if turn < ROUNDS - 1 else (*adds, *batches, *deletions)))
            assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)], outcomes
            record, history = await memory.get_session("s"), await other.get_history("s")
            assert (record["message_count"] if record else 0) == len(history)
            said = contents(history)
            assert "".join(said).count("708090") == said.count("80"), said
            await other.add_message("s", "user", "last", create=True)
            assert contents(await memory.get_history("s")) == [*said, "last"]
            await memory.delete_session("s")
            assert await other.get_history("s") == []
