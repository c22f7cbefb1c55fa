"""Clauses on timestamps: their format, that they never decrease, and which calls update them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from flux_memory import Memory, Session
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.clock import UNSET_CLOCK, process_time_zone
from flux_memory.testkit.contract.pace import bumped, together
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered
from flux_memory.testkit.contract.updates import EVERY_PART, fill, parts_of
from flux_memory.testkit.verdicts import unverified

FORM: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}\+00:00", re.ASCII)
SKEW: Final = timedelta(minutes=10)
"""How far a server's clock may be off; time zones differ by more."""
WRITES: Final = 8
"""Changes of each kind by one caller."""


class TimesContract(Binding):
    """The promises on `created_at` and `updated_at`."""

    @clause(
        "FM-TIM-001",
        promise="Times are UTC text, `YYYY-MM-DDTHH:MM:SS.ffffff+00:00`, always 32 characters.",
        impact="Times with zero microseconds are sorted and compared wrongly as text.",
        needs=Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_times_have_one_form(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await add_numbered(memory, session, range(3))
        # A time without a fraction is easily printed in a shorter form.
        async with store.clock_at((datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)):
            await add_numbered(memory, session, range(3, 5))
            await memory.create_session()
        for text in await _all_times(memory):
            assert FORM.fullmatch(text), text

    @clause(
        "FM-TIM-002",
        promise="Times are correct in any time zone of the process.",
        impact="Conversations are hours off on servers that do not run on UTC.",
        needs=Capability.SESSIONS | Capability.TITLES | Capability.TIMESTAMPS | Capability.SEVERAL_HANDLES,
    )
    async def test_times_do_not_depend_on_the_time_zone(self, store: StoreUnderTest) -> None:
        for zone in ("Asia/Seoul", "XXX+11:30"):
            with process_time_zone(zone):
                memory = store.open()
                session = await memory.create_session()
                await add_numbered(memory, session, range(2))
                await memory.update_session_title(session, zone)
        for text in await _all_times(memory):
            assert FORM.fullmatch(text), text
            assert abs(datetime.fromisoformat(text) - datetime.now(UTC)) < SKEW

    @clause(
        "FM-TIM-003",
        promise="`created_at` never decreases along a history, even if the clock is set back.",
        impact="A transcript shows an answer before its question.",
        needs=Capability.BATCH | Capability.TIMESTAMPS,
    )
    async def test_created_at_never_decreases(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await add_numbered(memory, session, range(3))
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        async with store.clock_at(tomorrow):
            await add_numbered(memory, session, range(3, 6))
        await add_numbered(memory, session, range(6, 9))
        await memory.add_messages(session, [{"role": "user", "content": "9"}, {"role": "user", "content": "10"}])
        times = [message["created_at"] for message in await memory.get_history(session)]
        assert times == sorted(times)
        if times[-1] < tomorrow.isoformat(timespec="seconds"):
            unverified(UNSET_CLOCK)

    @clause(
        "FM-TIM-004",
        promise="`updated_at` never decreases, even if the clock is set back.",
        impact="A conversation that was just used sinks in the list.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.TITLES | Capability.TIMESTAMPS,
    )
    async def test_updated_at_never_decreases(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        times = [(await _session(memory, session))["updated_at"]]
        async with store.clock_at(tomorrow):
            await add_numbered(memory, session, [0])
        times.append((await _session(memory, session))["updated_at"])
        await add_numbered(memory, session, [1])
        times.append((await _session(memory, session))["updated_at"])
        await memory.update_session_title(session, "new")
        times.append((await _session(memory, session))["updated_at"])
        await memory.add_messages(session, [{"role": "user", "content": "2"}])
        times.append((await _session(memory, session))["updated_at"])
        assert times == sorted(times)
        if times[1] < tomorrow.isoformat(timespec="seconds"):
            unverified(UNSET_CLOCK)

    @clause(
        "FM-TIM-005",
        promise="`updated_at` is the time of the newest change: the `created_at` of a message or batch, or the rename.",
        impact="The list of conversations is not in the order of their last use.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_updated_at_is_the_newest_change(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        created = await _session(memory, session)
        assert created["updated_at"] == created["created_at"]
        await add_numbered(memory, session, range(2))
        assert (await _session(memory, session))["updated_at"] == await _last_created(memory, session)
        await memory.add_messages(session, [{"role": "user", "content": str(number)} for number in range(3)])
        batched = await _session(memory, session)
        assert batched["updated_at"] == await _last_created(memory, session)
        assert batched["created_at"] == created["created_at"]

    @clause(
        "FM-TIM-006",
        promise="A rename updates `updated_at`, and so does every add. Times may be as coarse as a second.",
        impact="A renamed or continued conversation stays at the bottom of the list.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.TITLES | Capability.TIMESTAMPS,
    )
    async def test_changes_bump_updated_at(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        changes: dict[str, Callable[[], Awaitable[object]]] = {
            "rename": lambda: memory.update_session_title(session, "new"),
            "add": lambda: memory.add_message(session, "user", "text"),
            "batch": lambda: memory.add_messages(session, [{"role": "user", "content": "text"}]),
        }
        for name, change in changes.items():
            before = (await _session(memory, session))["updated_at"]

            async def is_later(before: str = before) -> bool:
                return (await _session(memory, session))["updated_at"] > before

            assert await bumped(change, is_later), f"updated_at was still {before} after a {name} a second later"

    @clause(
        "FM-TIM-007",
        promise="Reads change nothing.",
        impact="Opening a conversation moves it to the top of the list.",
        needs=Capability.CURSOR | Capability.SESSIONS | Capability.TITLES | Capability.TIMESTAMPS,
    )
    async def test_reads_change_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        older, newer = await memory.create_session("older"), await memory.create_session("newer")
        (first,) = await add_numbered(memory, older, [0])
        await add_numbered(memory, newer, [0])
        before = await memory.get_sessions(), await memory.get_history(older)
        for _ in range(3):
            await memory.get_session(older)
            await memory.get_history(older)
            await memory.get_history(older, 1, before=first)
            await memory.get_sessions(1, 1, user_id="", metadata={})
            await memory.count_sessions()
        assert (await memory.get_sessions(), await memory.get_history(older)) == before

    @clause(
        "FM-TIM-008",
        promise="A change affects the times of its own session only.",
        impact="Unrelated conversations jump to the top of the list.",
        needs=Capability.SESSIONS | Capability.TITLES | Capability.TIMESTAMPS,
    )
    async def test_changes_touch_one_session(self, store: StoreUnderTest) -> None:
        memory = store.open()
        still, busy = await memory.create_session(), await memory.create_session()
        before = await _session(memory, still)
        await add_numbered(memory, busy, range(3))
        await memory.update_session_title(busy, "busy")
        await memory.delete_session(busy)
        assert await _session(memory, still) == before

    @clause(
        "FM-TIM-020",
        promise="`created_at` never decreases along a history that several callers and batches write at once.",
        impact="A transcript shows an answer before its question.",
        needs=Capability.BATCH | Capability.TIMESTAMPS | Capability.SEVERAL_HANDLES,
    )
    async def test_created_at_of_concurrent_writers(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session()

        async def write(handle: Memory) -> None:
            for number in range(WRITES):
                await handle.add_message(session, "user", str(number))
                await handle.add_messages(session, [{"role": "user", "content": "x"} for _ in range(2)])

        await asyncio.gather(*map(write, (memory, other, memory, other)))
        times = [message["created_at"] for message in await memory.get_history(session)]
        assert len(times) == 4 * 3 * WRITES
        assert times == sorted(times)

    @clause(
        "FM-TIM-021",
        promise="`updated_at` never decreases with a change, and is never earlier than a message's `created_at`.",
        impact="A conversation that was just used sinks in the list.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.TITLES | Capability.TIMESTAMPS,
    )
    async def test_updated_at_of_each_change(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        seen = [(await _session(memory, session))["updated_at"]]
        for number in range(WRITES):
            await memory.add_message(session, "user", str(number))
            seen += [await _last_created(memory, session), (await _session(memory, session))["updated_at"]]
            await memory.update_session_title(session, str(number))
            seen.append((await _session(memory, session))["updated_at"])
            await memory.add_messages(session, [{"role": "user", "content": "x"} for _ in range(2)])
            seen += [await _last_created(memory, session), (await _session(memory, session))["updated_at"]]
        assert seen == sorted(seen)

    @clause(
        "FM-TIM-022",
        promise="The order of a history is that of the adds, also if ids sort otherwise and a batch has one time.",
        impact="Messages that were stored together are shuffled.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS,
    )
    async def test_order_does_not_depend_on_ids(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        ids = [f"{number * 7 % 10}" for number in range(10)]
        await memory.add_message(session, "user", "", message_id="z")
        await memory.add_messages(session, [{"role": "r", "content": "", "message_id": each} for each in ids])
        await memory.add_message(session, "user", "", message_id="a")
        assert [message["id"] for message in await memory.get_history(session)] == ["z", *ids, "a"]

    @clause(
        "FM-TIM-061",
        promise="An update changes `updated_at` whichever part it has, with and without an expected revision. Times "
        "may be as coarse as a second.",
        impact="A conversation that was answered under a condition stays at the bottom of the list, and expires.",
        needs=EVERY_PART | Capability.TIMESTAMPS,
    )
    async def test_updates_bump_updated_at(self, store: StoreUnderTest) -> None:
        memory = store.open()
        message = {"role": "user", "content": "text"}
        changes: dict[str, dict[str, Any]] = {
            name: part for name, part in parts_of(store).items() if name != "truncate"
        }
        changes |= {"one message": {"messages": [message]}, "two messages": {"messages": [message, message]}}

        cases = [(name, conditional) for name in changes for conditional in (False, True)]
        sessions = await together(fill(memory) for _ in cases)
        before = await together(_session(memory, session) for session in sessions)
        latest, probes = max(row["updated_at"] for row in before), list[str]()

        async def probe() -> None:
            probes.append(await memory.create_session())

        async def is_later() -> bool:
            return (await _session(memory, probes[-1]))["created_at"] > latest

        assert await bumped(probe, is_later), f"the clock has stood still at {latest}"
        # One at a time: a store may take another way beside other changes.
        for (name, conditional), old in zip(cases, before, strict=True):
            condition: dict[str, Any] = {"expected_revision": old["revision"]} if conditional else {}
            await memory.update_session(old["id"], **changes[name], **condition)
        after = await together(_session(memory, session) for session in sessions)
        for (name, conditional), old, new in zip(cases, before, after, strict=True):
            how = "a conditional" if conditional else "an"
            assert new["updated_at"] > old["updated_at"], f"still {old['updated_at']} after {how} update: {name}"


async def _session(memory: Memory, session_id: str) -> Session:
    found = await memory.get_session(session_id)
    assert found is not None
    return found


async def _last_created(memory: Memory, session_id: str) -> str:
    (message,) = await memory.get_history(session_id, 1)
    return message["created_at"]


async def _all_times(memory: Memory) -> list[str]:
    times: list[str] = []
    for session in await memory.get_sessions(None):
        for record in (session, await _session(memory, session["id"])):
            times += [record["created_at"], record["updated_at"]]
        times += [message["created_at"] for message in await memory.get_history(session["id"])]
    return times
