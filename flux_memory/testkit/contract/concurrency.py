"""Clauses on concurrent use: nothing lost or duplicated, no deadlock, and errors stay with their call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from flux_memory import ConflictError, FluxMemoryError, InvalidInputError, Memory, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, contents, gather_outcomes


class ConcurrencyContract(Binding):
    """The promises to tasks and handles that work at the same time."""

    @clause(
        "FM-CON-001",
        promise="First use may race: many tasks on a new handle to a new store all succeed.",
        impact="The first requests after a deployment fail.",
        fresh=True,
        needs=Capability.SESSIONS | Capability.TITLES,
    )
    async def test_tasks_race_to_first_use(self, store: StoreUnderTest) -> None:
        memory = store.open_fresh()
        sessions = await asyncio.gather(*(memory.create_session(str(number)) for number in range(12)))
        assert await memory.count_sessions() == len(set(sessions)) == 12

    @clause(
        "FM-CON-002",
        promise="First use may race: many handles on a new store all succeed, for reads and writes.",
        impact="A service with several workers fails on its first start.",
        fresh=True,
        needs=Capability.SESSIONS | Capability.SEVERAL_HANDLES,
    )
    async def test_handles_race_to_first_use(self, store: StoreUnderTest) -> None:
        handles = [store.open_fresh() for _ in range(10)]
        writes = [handle.create_session() for handle in handles]
        reads = [handle.count_sessions() for handle in handles]
        outcomes = await gather_outcomes(*writes, *reads)
        assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)], outcomes
        for handle in handles:
            assert await handle.count_sessions() == 10

    @clause(
        "FM-CON-003",
        promise="Concurrent adds through one handle are all stored exactly once, and counts are correct.",
        impact="Messages from users who write at the same time are lost.",
        needs=Capability.SESSIONS,
    )
    async def test_concurrent_adds_through_one_handle(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await _adds_lose_nothing([memory], sessions=[await memory.create_session() for _ in range(2)])

    @clause(
        "FM-CON-004",
        promise="Concurrent adds through several handles are all stored exactly once, and counts are correct.",
        impact="Two workers lose each other's messages.",
        needs=Capability.SESSIONS | Capability.SEVERAL_HANDLES,
    )
    async def test_concurrent_adds_through_several_handles(self, store: StoreUnderTest) -> None:
        handles = [store.open() for _ in range(3)]
        await _adds_lose_nothing(handles, sessions=[await handles[0].create_session() for _ in range(2)])

    @clause(
        "FM-CON-005",
        promise="A write through one handle is immediately visible to all other handles.",
        impact="A user reloads, reaches another worker, and the message is gone.",
        needs=Capability.SESSIONS | Capability.TITLES | Capability.SEVERAL_HANDLES,
    )
    async def test_handles_see_each_other(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session("old")
        for number in range(4):
            await memory.add_message(session, "user", str(number))
            assert contents(await other.get_history(session)) == [str(n) for n in range(number + 1)]
            assert contents(await other.get_history(session, 1)) == [str(number)]
            found = await other.get_session(session)
            assert found is not None
            assert found["message_count"] == number + 1
        await other.update_session_title(session, "new")
        assert [row["title"] for row in await memory.get_sessions()] == ["new"]
        await other.delete_session(session)
        assert await memory.get_session(session) is None
        assert await memory.get_history(session) == []

    @clause(
        "FM-CON-006",
        promise="Failing calls do not affect concurrent calls: acknowledged writes are stored, failed ones are not.",
        impact="One user's error rolls back another user's message.",
        needs=Capability.BATCH
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSION_IDS
        | Capability.TITLES
        | Capability.SEVERAL_HANDLES,
    )
    async def test_failures_do_not_harm_neighbours(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session(session_id="s")
        await memory.add_message(session, "user", "taken", message_id="taken")
        expected_kinds = [ConflictError, ConflictError, SessionNotFoundError, InvalidInputError, ConflictError]
        expected_kinds += [SessionNotFoundError]
        for handle in (memory, other):
            calls = []
            for number in range(6):
                calls += [
                    memory.add_message(session, "user", f"good {number}", message_id=f"{id(handle)}{number}"),
                    handle.add_message(session, "user", "bad", message_id="taken"),
                    handle.add_messages(session, [_message("bad"), _message("bad", message_id="taken")]),
                    handle.add_message("nowhere", "user", "bad"),
                    handle.add_message(session, "user", "bad\x00"),
                    handle.create_session(session_id="s"),
                    handle.update_session_title("nowhere", "bad"),
                ]
            outcomes = await gather_outcomes(*calls)
            kinds = [type(outcome) if isinstance(outcome, Exception) else None for outcome in outcomes]
            for at in range(0, len(kinds), 7):
                good, *bad = kinds[at : at + 7]
                assert good is None, outcomes[at]
                assert all(
                    kind is not None and issubclass(kind, expected)
                    for kind, expected in zip(
                        bad,
                        expected_kinds,
                        strict=True,
                    )
                ), bad
        stored = sorted(contents(await memory.get_history(session)))
        assert stored == sorted(["taken", *[f"good {number}" for number in range(6)] * 2])

    @clause(
        "FM-CON-007",
        promise="If an id is created concurrently, one creation succeeds and the others raise `ConflictError`.",
        impact="Two conversations share an id, or one overwrites the other.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.TITLES | Capability.SEVERAL_HANDLES,
    )
    async def test_concurrent_creations_of_one_session(self, store: StoreUnderTest) -> None:
        handles = [store.open(), store.open()]
        outcomes = await gather_outcomes(*(handles[n % 2].create_session(str(n), session_id="s") for n in range(8)))
        refused = [outcome for outcome in outcomes if isinstance(outcome, ConflictError)]
        assert (outcomes.count("s"), len(refused)) == (1, 7), outcomes
        found = await handles[0].get_session("s")
        assert found is not None
        assert found["title"] == str(outcomes.index("s"))

    @clause(
        "FM-CON-008",
        promise="If a session is deleted during adds, each add is stored or raises `SessionNotFoundError`, and no "
        "message remains.",
        impact="Calls deadlock, or messages of a deleted conversation reappear.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.SESSION_IDS | Capability.SEVERAL_HANDLES,
    )
    async def test_deleting_beside_adders(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        for _ in range(3):
            await memory.create_session(session_id="s")
            adds = [(memory, other)[n % 2].add_message("s", "user", str(n)) for n in range(10)]
            batches = [other.add_messages("s", [_message("a"), _message("b")]) for _ in range(3)]
            listings = [handle.get_sessions() for handle in (memory, other, memory)]
            deletions = [other.delete_session("s"), memory.delete_session("s")]
            outcomes = await gather_outcomes(*listings, *adds, *batches, *deletions)
            _only(outcomes, SessionNotFoundError)
            for rows in outcomes[: len(listings)]:
                assert all(type(row) is dict and row["id"] == "s" for row in rows), f"listed during a deletion: {rows}"
            assert await memory.get_session("s") is None
            await memory.create_session(session_id="s")
            assert await other.get_history("s") == []
            await memory.delete_session("s")

    @clause(
        "FM-CON-009",
        promise="`clear_all` during concurrent creations and adds neither deadlocks nor leaves messages behind.",
        impact="Clearing a busy store blocks every user.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.CLEAR_ALL | Capability.SEVERAL_HANDLES,
    )
    async def test_clearing_beside_adders(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        for _ in range(3):
            sessions = [await memory.create_session(session_id=str(number)) for number in range(3)]
            adds = [(memory, other)[n % 2].add_message(sessions[n % 3], "user", str(n)) for n in range(12)]
            creations = [other.create_session() for _ in range(3)]
            _only(await gather_outcomes(*adds, other.clear_all(), *creations, memory.clear_all()), SessionNotFoundError)
            await memory.clear_all()
            assert await other.count_sessions() == 0
            await memory.create_session(session_id="0")
            assert await other.get_history("0") == []
            await memory.clear_all()

    @clause(
        "FM-CON-010",
        promise="All methods called concurrently on two handles finish without a deadlock; every error is a "
        "`FluxMemoryError`.",
        impact="Under load, calls fail with driver errors that applications do not handle.",
        needs=Capability.BATCH
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.TITLES
        | Capability.SEVERAL_HANDLES,
    )
    async def test_everything_at_once(self, store: StoreUnderTest) -> None:
        handles = [store.open(), store.open()]
        for at in range(2):
            await handles[0].create_session(session_id=str(at))
        calls = []
        for number in range(24):
            memory, session = handles[number % 2], str(number % 3)
            calls += [
                memory.add_message(session, "user", "x", message_id=str(number % 5)),
                memory.add_messages(session, [_message("y"), _message("z")]),
                memory.get_history(session, 3),
                memory.get_sessions(5, metadata={}),
                memory.update_session_title(session, str(number)),
            ]
            if number % 8 == 7:
                calls += [memory.delete_session(session), memory.create_session(session_id=session)]
        outcomes = await gather_outcomes(*calls)
        _only(outcomes, SessionNotFoundError, ConflictError)
        for row in await handles[0].get_sessions():
            assert row["message_count"] == len(await handles[1].get_history(row["id"]))

    @clause(
        "FM-CON-011",
        promise="For any arguments and any state of the store, every error is a `FluxMemoryError`.",
        impact="Applications have to catch the errors of every driver.",
        needs=Capability.IDEMPOTENT_IDS | Capability.MESSAGE_METADATA | Capability.SESSIONS | Capability.SESSION_IDS,
    )
    async def test_foreign_errors_never_escape(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await memory.create_session(session_id="s")
        await memory.add_message("s", "user", "", message_id="m")
        odd: tuple[Any, ...] = (
            "",
            "s",
            "m",
            "\x00",
            "\ud800",
            "x" * 1000,
            10**30,
            -1,
            2.5,
            None,
            b"",
            [],
            {},
            {"a": {1}},
            True,
        )
        outcomes = []
        for value in odd:
            calls: tuple[Callable[[Any], Awaitable[Any]], ...] = (
                lambda value: memory.create_session(value, session_id=value),
                lambda value: memory.create_session("", value, user_id=value),
                lambda value: memory.add_message(value, value, value),
                lambda value: memory.add_message("s", "user", "x", value, message_id=value),
                lambda value: memory.add_messages("s", value),
                lambda value: memory.add_messages("s", [value]),
                lambda value: memory.add_messages("s", [{"role": "r", "content": "c", "message_id": value}]),
                lambda value: memory.get_history("s", value, before=value),
                lambda value: memory.get_sessions(value, 0, user_id=value),
                lambda value: memory.get_sessions(1, value),
                lambda value: memory.get_sessions(metadata=value),
                lambda value: memory.update_session_title("s", value),
                memory.get_session,
                lambda value: memory.delete_session("other" if value == "s" else value),
            )
            outcomes += await gather_outcomes(*(call(value) for call in calls))
        _only(outcomes, FluxMemoryError)
        assert await memory.get_session("s") is not None

    @clause(
        "FM-CON-012",
        promise="A failed call does not break the handle: the next call works.",
        impact="After one error, a worker fails until it is restarted.",
        needs=Capability.BATCH | Capability.IDEMPOTENT_IDS | Capability.SESSION_IDS,
    )
    async def test_failures_do_not_poison(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session(session_id="s")
        for number in range(15):
            failing = [
                memory.create_session(session_id="s"),
                memory.add_messages("nowhere", [_message("x")]),
                *([memory.add_message(session, "user", "another", message_id=str(number - 1))] if number else []),
            ]
            outcomes = await gather_outcomes(*failing)
            for outcome, kind in zip(outcomes, (ConflictError, SessionNotFoundError, ConflictError), strict=False):
                assert isinstance(outcome, kind), outcomes
            await memory.add_message(session, "user", str(number), message_id=str(number))
        assert contents(await memory.get_history(session)) == [str(number) for number in range(15)]


def _message(content: str, **more: str) -> Any:
    return {"role": "user", "content": content, **more}


def _only(outcomes: list[object], *expected: type[Exception]) -> None:
    """Assert that every call succeeded or failed with an expected error."""
    wrong = [
        outcome for outcome in outcomes if isinstance(outcome, BaseException) and not isinstance(outcome, expected)
    ]
    if wrong:
        raise AssertionError(f"unexpected: {wrong!r}") from wrong[0]


async def _adds_lose_nothing(handles: list[Memory], sessions: list[str]) -> None:
    tasks = []
    for writer in range(6):
        numbers = range(writer * 100, writer * 100 + 6)
        tasks.append(add_numbered(handles[writer % len(handles)], sessions[writer % 2], numbers))
    acknowledged = await asyncio.gather(*tasks)
    for at, session in enumerate(sessions):
        ids = [made for writer in range(at, 6, 2) for made in acknowledged[writer]]
        for handle in handles:
            history = await handle.get_history(session)
            assert sorted(row["id"] for row in history) == sorted(ids)
            found = await handle.get_session(session)
            assert found is not None
            assert found["message_count"] == len(history) == 18
