"""Tests isolation between callers on PostgreSQL: silent connections, locked rows and refused rows cost no neighbour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest
from fault_told import AWAITING_A_LOCK, in_order, make_sessions, opened, quiet, stored, told
from raw_postgres import BUSY, connected, execute, named, rows
from waiting import until

from flux_memory import FluxMemoryError, Memory, PostgresConversationMemory, deadline
from flux_memory.testkit import Proxy

SESSIONS: Final = [f"s{number}" for number in range(8)]
SOON: Final = 1.0
"""Seconds within which a call without anything to wait for ends on a busy machine; 0.02 is usual."""


@pytest.fixture
def proxy(flux_empty_database: str) -> Iterator[Proxy]:
    """A breakable network in front of an empty database; its connections have an application name."""
    with Proxy(named(flux_empty_database)) as made:
        yield made


@asynccontextmanager
async def held(dsn: str, sessions: Iterable[str]) -> AsyncIterator[None]:
    """Lock the rows of sessions, as a migration or another program's transaction does."""
    async with connected(dsn) as other, other.transaction():
        await other.execute("SELECT FROM sessions WHERE id = ANY ($1::text[]) FOR UPDATE", [*sessions])
        yield


async def some_wait(connection: Any) -> None:
    """Return when statements wait for a lock, or after a moment if the implementation waits on the client."""
    with suppress(TimeoutError):
        await until(lambda: connection.fetchval(AWAITING_A_LOCK), seconds=0.5)


async def seconds(call: Awaitable[object]) -> float:
    """Await a call and return the seconds it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await call
    return loop.time() - began


def add(memory: Memory, session: str, content: str, patience: float) -> asyncio.Task[Any]:
    """Start an add with its content as its id, under a deadline of its own."""
    with deadline(patience):
        return asyncio.ensure_future(memory.add_message(session, "user", content, message_id=content))


# A connection that falls silent.


@pytest.mark.asyncio
@pytest.mark.fault("silent connection loss beside a patient neighbour", backend="postgres")
@pytest.mark.parametrize("leaving", ["by deadline beside a patient neighbour", "all by wait_for"])
async def test_a_retry_after_a_silent_loss_waits_for_no_neighbour(
    proxy: Proxy, flux_empty_database: str, leaving: str
) -> None:
    """Callers of a swallowed statement retry with the same ids, and succeed on a working connection."""
    everybody = "all" in leaving
    await make_sessions(flux_empty_database, SESSIONS)
    async with PostgresConversationMemory(proxy.dsn, timeout=30) as memory:
        await quiet(memory, flux_empty_database, SESSIONS, close=False)
        proxy.silence("bind")
        first = {
            session: add(memory, session, f"of {session}", 20 if session == "s3" or everybody else 0.7)
            for session in SESSIONS
        }
        if everybody:
            calls: dict[str, Awaitable[Any]] = {session: asyncio.wait_for(call, 0.7) for session, call in first.items()}
        else:
            calls = {session: call for session, call in first.items() if session != "s3"}
        outcomes = await asyncio.wait_for(asyncio.gather(*calls.values(), return_exceptions=True), 4)
        assert all(isinstance(outcome, FluxMemoryError | TimeoutError) for outcome in outcomes)
        # From here on the network works again; connections that fell silent stay silent.
        proxy.lose_reply("bind", times=0)
        again = {f"of {session}": add(memory, session, f"of {session}", 4) for session in calls}
        seen = await told(again, within=6)
        assert len(seen.acknowledged) == len(calls), [str(error) for error in seen.errors]
        for call in first.values():
            call.cancel()
        await asyncio.wait_for(asyncio.wait(first.values()), 3)
        proxy.heal()
        found = await quiet(memory, flux_empty_database, SESSIONS)
        assert {content: found[content] for content in again} == dict.fromkeys(again, 1)
        assert found.total() <= len(SESSIONS)


@pytest.mark.asyncio
@pytest.mark.fault("silent connection loss beside a patient neighbour", backend="postgres")
async def test_no_error_blames_the_pool_where_connections_are_free(proxy: Proxy, flux_empty_database: str) -> None:
    """A caller behind a hanging statement learns what it waited for; the error does not blame max_size."""
    await make_sessions(flux_empty_database, SESSIONS)
    async with PostgresConversationMemory(proxy.dsn, timeout=30) as memory:
        await quiet(memory, flux_empty_database, SESSIONS, close=False)
        proxy.silence("bind")
        stuck = [add(memory, session, f"of {session}", 20) for session in SESSIONS]
        await asyncio.wait(stuck, timeout=0.2)
        late = {f"late {session}": add(memory, session, f"late {session}", 0.5) for session in SESSIONS}
        seen = await told(late, within=3)
        assert len(seen.errors) == len(SESSIONS)
        assert [str(error) for error in seen.errors if "max_size" in str(error)] == []
        for call in stuck:
            call.cancel()
        await asyncio.wait_for(asyncio.wait(stuck), 3)
        proxy.heal()
        found = await quiet(memory, flux_empty_database, SESSIONS)
        assert [content for content in seen.refused if content in found] == []


# A session that another program locks.


@pytest.mark.asyncio
@pytest.mark.fault("add cancelled while its session is held", backend="postgres")
@pytest.mark.parametrize("how", ["cancelled", "wait_for"])
@pytest.mark.parametrize(("count", "sessions"), [(1, 1), (4, 1), (8, 8), (8, 3)])
async def test_an_add_that_was_cancelled_while_it_waited_for_a_lock_is_not_stored_when_that_is_released(
    flux_empty_database: str, count: int, sessions: int, how: str
) -> None:
    """The statement ends with its last caller, shared or alone, long before the lock is released."""
    await make_sessions(flux_empty_database, SESSIONS)
    async with PostgresConversationMemory(named(flux_empty_database)) as memory:
        await quiet(memory, flux_empty_database, SESSIONS, close=False)
        async with connected(flux_empty_database) as other:
            async with held(flux_empty_database, SESSIONS[:sessions]):
                adds = [
                    asyncio.ensure_future(memory.add_message(SESSIONS[number % sessions], "user", str(number)))
                    for number in range(count)
                ]
                await some_wait(other)
                await asyncio.wait(adds, timeout=0.2)
                if how == "wait_for":
                    leaving = asyncio.gather(*(asyncio.wait_for(call, 0.01) for call in adds), return_exceptions=True)
                    outcomes = await asyncio.wait_for(leaving, 3)
                else:
                    for call in adds:
                        call.cancel()
                    outcomes = await asyncio.wait_for(asyncio.gather(*adds, return_exceptions=True), 3)
                assert not any(isinstance(outcome, str) for outcome in outcomes)

                async def none_waits() -> bool:
                    return not await other.fetchval(AWAITING_A_LOCK)

                try:
                    await until(none_waits, seconds=3)
                except TimeoutError:
                    still = await other.fetchval(AWAITING_A_LOCK)
                else:
                    still = 0
            found = await quiet(memory, flux_empty_database, SESSIONS)
        assert dict(found) == {}, f"stored for callers that had left; {still} statements still waited"
        assert still == 0, "statements waited without callers"


@pytest.mark.asyncio
@pytest.mark.fault("add cancelled while its session is held", backend="postgres")
async def test_a_caller_that_leaves_a_held_session_takes_no_neighbour_along(flux_empty_database: str) -> None:
    """Half of the callers leave: the messages of the others are stored once and in order after the release."""
    await make_sessions(flux_empty_database, SESSIONS)
    async with PostgresConversationMemory(named(flux_empty_database)) as memory:
        await quiet(memory, flux_empty_database, SESSIONS, close=False)
        async with connected(flux_empty_database) as other, held(flux_empty_database, SESSIONS[:2]):
            adds = {f"{number}": add(memory, SESSIONS[number % 2], f"{number}", 20) for number in range(12)}
            await some_wait(other)
            await asyncio.wait(adds.values(), timeout=0.1)
            leaving = [call for content, call in adds.items() if int(content) % 3 == 0]
            for call in leaving:
                call.cancel()
            await asyncio.wait_for(asyncio.wait(leaving), 3)
        staying = {content: call for content, call in adds.items() if int(content) % 3}
        seen = await told(staying, within=15)
        assert len(seen.acknowledged) == len(staying), seen.errors
        found = await quiet(memory, flux_empty_database, SESSIONS)
        # A caller that left may have been sent already, and its cancellation may have come too late.
        assert {content: found[content] for content in staying} == dict.fromkeys(staying, 1)
        assert sum(found.values()) <= len(staying) + 1
        assert await in_order(flux_empty_database, seen.acknowledged)


@pytest.mark.asyncio
@pytest.mark.fault("sessions held by others", backend="postgres")
async def test_an_error_behind_a_held_session_names_the_lock_and_not_the_pool(flux_empty_database: str) -> None:
    """Nine of ten connections are free: a higher max_size would not help."""
    await make_sessions(flux_empty_database, SESSIONS)
    async with PostgresConversationMemory(named(flux_empty_database)) as memory:
        await quiet(memory, flux_empty_database, SESSIONS, close=False)
        async with held(flux_empty_database, ["s0"]):
            adds = {f"{number}": add(memory, "s0", f"{number}", 0.6) for number in range(6)}
            seen = await told(adds, within=3)
        assert len(seen.errors) == len(adds)
        assert [str(error) for error in seen.errors if "max_size" in str(error)] == []
        found = await quiet(memory, flux_empty_database, SESSIONS)
        assert [content for content in seen.refused if content in found] == []


@pytest.mark.asyncio
@pytest.mark.fault("sessions held by others", backend="postgres")
@pytest.mark.parametrize(
    ("count", "each", "borrowed"),
    [(10, 1, False), (10, 3, False), (30, 1, False), (100, 1, False), (100, 3, False), (10, 1, True)],
)
async def test_held_sessions_stop_neither_reads_nor_free_sessions(
    flux_empty_database: str, count: int, each: int, borrowed: bool
) -> None:
    """With as many locked sessions as the pool has connections, or a migration's batch sessions, others continue."""
    shut = [f"held {number}" for number in range(count)]
    await make_sessions(flux_empty_database, ["free", "free too", *shut])
    async with opened(named(flux_empty_database), borrowed=borrowed) as memory:
        await quiet(memory, flux_empty_database, ["free"], close=False)
        longest = 0.0
        async with held(flux_empty_database, shut):
            waiting = {
                f"{session} {number}": add(memory, session, f"{session} {number}", 20)
                for number in range(each)
                for session in shut
            }
            loop = asyncio.get_running_loop()
            end = loop.time() + 1.5
            done = 0
            while loop.time() < end:
                with deadline(4):
                    took = await asyncio.gather(
                        seconds(memory.get_history("free")),
                        seconds(memory.get_sessions()),
                        seconds(memory.get_history(shut[0])),
                        seconds(memory.add_message("free", "user", f"free {done}")),
                        seconds(memory.add_messages("free too", [{"role": "user", "content": f"too {done}"}])),
                        seconds(memory.update_session_title("free", f"{done}")),
                        return_exceptions=True,
                    )
                assert not [str(one) for one in took if isinstance(one, BaseException)]
                longest = max(longest, *(one for one in took if isinstance(one, float)))
                done += 1
            assert not any(call.done() for call in waiting.values())
        seen = await told(waiting)
        assert len(seen.acknowledged) == len(waiting), seen.errors
        found = await quiet(memory, flux_empty_database, ["free"])
        assert len(found) == len(waiting) + 2 * done
        assert set(found.values()) == {1}
        assert await in_order(flux_empty_database, seen.acknowledged)
        assert longest < SOON


@pytest.mark.asyncio
@pytest.mark.fault("sessions held by others", backend="postgres")
@pytest.mark.parametrize("size", [3, 10])
async def test_renames_and_deletions_of_held_sessions_stop_nothing_else(flux_empty_database: str, size: int) -> None:
    """As many calls as connections, beside adds to the same sessions: reads, adds and creations continue."""
    shut = [f"held {number}" for number in range(size)]
    await make_sessions(flux_empty_database, ["free", *shut])
    async with PostgresConversationMemory(named(flux_empty_database), max_size=size) as memory:
        await quiet(memory, flux_empty_database, ["free"], close=False)
        async with held(flux_empty_database, shut):
            waiting = [add(memory, session, session, 20) for session in shut]
            with deadline(20):
                waiting += [
                    asyncio.ensure_future(call)
                    for session in shut
                    for call in (memory.update_session_title(session, "new"), memory.delete_session(session))
                ]
            await asyncio.wait(waiting, timeout=0.3)
            with deadline(4):
                took = [
                    await seconds(memory.get_history("free")),
                    await seconds(memory.get_sessions()),
                    await seconds(memory.add_message("free", "user", "x")),
                    await seconds(memory.create_session()),
                    await seconds(memory.create_session(session_id="new")),
                ]
            assert not any(call.done() for call in waiting)
        await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        assert max(took) < SOON, took


@pytest.mark.asyncio
@pytest.mark.fault("sessions held by others", backend="postgres")
async def test_renames_of_held_sessions_stop_no_rename_of_a_free_one(flux_empty_database: str) -> None:
    """Creations and deletions continue too: only callers of a session wait for its row."""
    shut = [f"held {number}" for number in range(6)]
    await make_sessions(flux_empty_database, ["free", "gone", *shut])
    async with PostgresConversationMemory(named(flux_empty_database)) as memory:
        await quiet(memory, flux_empty_database, ["free"], close=False)
        async with held(flux_empty_database, shut):
            with deadline(20):
                waiting = [asyncio.ensure_future(memory.update_session_title(session, "new")) for session in shut]
            await asyncio.wait(waiting, timeout=0.3)
            with deadline(4):
                took = await asyncio.gather(
                    seconds(memory.update_session_title("free", "new")),
                    seconds(memory.delete_session("gone")),
                    seconds(memory.create_session(session_id="new")),
                    return_exceptions=True,
                )
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
        assert [str(one) for one in took if isinstance(one, BaseException)] == []
        assert all(isinstance(one, float) and one < SOON for one in took), took


@pytest.mark.asyncio
@pytest.mark.fault("sessions held by others", backend="postgres")
@pytest.mark.parametrize("call", ["create_session", "clear_all"])
async def test_creations_and_clears_that_wait_for_others_stop_no_read(flux_empty_database: str, call: str) -> None:
    """As many calls as the pool has connections wait for uncommitted ids or locked sessions."""
    await make_sessions(flux_empty_database, ["free"])
    async with PostgresConversationMemory(named(flux_empty_database), max_size=4) as memory:
        await quiet(memory, flux_empty_database, ["free"], close=False)
        async with connected(flux_empty_database) as other, other.transaction():
            await other.execute(
                "INSERT INTO sessions (id, created_at, updated_at) SELECT 'new ' || n, now(), now() "
                "FROM generate_series(0, 5) AS n"
            )
            await other.execute("SELECT FROM sessions WHERE id = 'free' FOR UPDATE")
            calls = [
                memory.create_session(session_id=f"new {n}") if call == "create_session" else memory.clear_all()
                for n in range(6)
            ]
            waiting = [asyncio.ensure_future(each) for each in calls]
            await asyncio.wait(waiting, timeout=0.3)
            with deadline(4):
                took = [await seconds(memory.get_history("free")), await seconds(memory.create_session())]
            assert not any(each.done() for each in waiting)
        await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        assert max(took) < SOON, took


@pytest.mark.asyncio
@pytest.mark.fault("thousands of adds to held sessions", backend="postgres")
@pytest.mark.parametrize("sessions", [1, 100])
async def test_thousands_that_wait_for_held_sessions_do_not_slow_down_a_read(
    flux_empty_database: str, sessions: int
) -> None:
    """Waiting callers, and callers that leave at once, cost the event loop little."""
    shut = [f"held {number}" for number in range(sessions)]
    await make_sessions(flux_empty_database, ["free", *shut])
    async with PostgresConversationMemory(named(flux_empty_database)) as memory:
        await quiet(memory, flux_empty_database, ["free"], close=False)
        async with held(flux_empty_database, shut):
            leaving = [add(memory, shut[number % sessions], f"leaves {number}", 20) for number in range(4000)]
            staying = {f"{number}": add(memory, shut[number % sessions], f"{number}", 20) for number in range(400)}
            await asyncio.wait(leaving, timeout=0.5)
            waiting = [await seconds(memory.get_history("free")) for _ in range(30)]
            for call in leaving:
                call.cancel()
            gone = await seconds(asyncio.wait(leaving))
            after = [await seconds(memory.get_history("free")) for _ in range(10)]
        seen = await told(staying)
        assert len(seen.acknowledged) == len(staying), seen.errors
        found = await quiet(memory, flux_empty_database, ["free"])
        assert {content: found[content] for content in staying} == dict.fromkeys(staying, 1)
        assert len([content for content in found if "leaves" in content]) == 0
        assert await in_order(flux_empty_database, [*staying])
        assert sorted(waiting)[len(waiting) // 2] < 0.05, waiting
        assert max(*waiting, *after) < SOON
        assert gone < 2


@pytest.mark.asyncio
@pytest.mark.fault("refused row beside a held session", backend="postgres")
@pytest.mark.parametrize("refused", ["by a constraint", "by its id", "by its session"])
@pytest.mark.parametrize("first", ["held", "bad"])
async def test_a_refused_row_makes_no_free_session_wait_behind_a_held_one(
    flux_empty_database: str, refused: str, first: str
) -> None:
    """The other calls of a bad row's statement are sent again, separately by session, none behind a lock."""
    await make_sessions(flux_empty_database, ["free 0", "free 1", "free 2", "free 3", "held", "bad"])
    async with PostgresConversationMemory(named(flux_empty_database)) as memory:
        await quiet(memory, flux_empty_database, ["free 0"], close=False)
        await memory.add_message("bad", "user", "good", message_id="taken")
        await execute(flux_empty_database, "ALTER TABLE messages ADD CONSTRAINT good CHECK (content NOT LIKE 'bad%')")
        bad_call = {
            "by a constraint": lambda: memory.add_message("bad", "user", "bad"),
            "by its id": lambda: memory.add_message("bad", "user", "another", message_id="taken"),
            "by its session": lambda: memory.add_message("none", "user", "x"),
        }[refused]
        async with held(flux_empty_database, ["held"]):
            # The others queue while the first two are in flight.
            free = {f"{number}": add(memory, f"free {number}", f"{number}", 10) for number in range(2)}
            bad: list[asyncio.Task[Any]] = []
            if first == "bad":
                bad.append(asyncio.ensure_future(bad_call()))
            held_calls = {f"held {number}": add(memory, "held", f"held {number}", 10) for number in range(2)}
            if first == "held":
                bad.append(asyncio.ensure_future(bad_call()))
            free |= {f"{number}": add(memory, f"free {number % 4}", f"{number}", 10) for number in range(2, 10)}
            took = await seconds(asyncio.wait([*bad, *free.values()], timeout=3))
            late = [content for content, call in free.items() if not call.done()]
            assert not any(call.done() for call in held_calls.values())
        outcomes = await asyncio.wait_for(asyncio.gather(*bad, return_exceptions=True), 11)
        assert isinstance(outcomes[0], FluxMemoryError)
        seen = await told(held_calls | free)
        assert len(seen.acknowledged) == len(held_calls) + len(free), seen.errors
        found = await quiet(memory, flux_empty_database, ["free 0"])
        assert dict(found) == dict.fromkeys([*seen.acknowledged, "good"], 1)
        assert await in_order(flux_empty_database, [*held_calls, *free])
        assert late == []
        assert took < SOON


@pytest.mark.asyncio
@pytest.mark.fault("call cancelled in a slow statement", backend="postgres")
async def test_a_cancelled_call_leaves_no_statement_on_the_server(flux_empty_database: str) -> None:
    """For each method: the statement of a cancelled call ends on the server long before the lock is released."""
    await make_sessions(flux_empty_database, SESSIONS)
    async with (
        PostgresConversationMemory(named(flux_empty_database)) as memory,
        connected(flux_empty_database) as other,
    ):
        await memory.count_sessions()
        async with held(flux_empty_database, SESSIONS):
            calls = [
                asyncio.ensure_future(call)
                for call in (
                    memory.update_session_title("s0", "cancelled"),
                    memory.delete_session("s1"),
                    memory.clear_all(),
                    memory.add_message("s2", "user", "cancelled"),
                    memory.add_message("s3", "user", "cancelled"),
                    memory.add_messages("s4", [{"role": "user", "content": "cancelled"}] * 2),
                )
            ]
            await some_wait(other)
            await asyncio.wait(calls, timeout=0.2)
            for call in calls:
                call.cancel()
            await asyncio.wait_for(asyncio.wait(calls), 3)

            async def none_is_busy() -> bool:
                return not await other.fetchval(BUSY)

            await until(none_is_busy, seconds=3)
        assert await rows(flux_empty_database, "SELECT count(*) FROM sessions WHERE title = ''") == [(8,)]
        assert dict(await stored(flux_empty_database)) == {}
