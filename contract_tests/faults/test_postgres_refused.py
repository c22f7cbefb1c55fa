"""Refused is not stored, on PostgreSQL: mixed deadlines, a stalled event loop, cancellations, lost replies."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from fault_cluster import cluster, meanwhile
from fault_told import ASLEEP, SLOW_SESSIONS, Told, in_order, make_sessions, opened, quiet, stored, told
from raw_postgres import OPEN, connected, execute, named, rows, until_none
from waiting import until

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    Memory,
    OutcomeUnknownError,
    PostgresConversationMemory,
    deadline,
)
from flux_memory.testkit import Proxy

ADDS: Final[dict[str, Callable[[Memory, str, str], Awaitable[object]]]] = {
    "message": lambda memory, session, content: memory.add_message(session, "user", content),
    "message with an id": lambda memory, session, content: memory.add_message(
        session, "user", content, message_id=content
    ),
    "batch": lambda memory, session, content: memory.add_messages(
        session, [{"role": "user", "content": f"{content}{part}"} for part in ("", " b", " c")]
    ),
}
SESSIONS: Final = [f"s{number}" for number in range(8)]


@pytest.fixture
def proxy(flux_empty_database: str) -> Iterator[Proxy]:
    """A network that can be broken, before an empty database; its connections are named."""
    with Proxy(named(flux_empty_database)) as made:
        yield made


def start(memory: Memory, seconds: float, session: str, content: str, kind: str = "message") -> asyncio.Task[Any]:
    """Start an add under a deadline of its own."""
    with deadline(seconds):
        return asyncio.ensure_future(ADDS[kind](memory, session, content))


async def go_away(proxy: Proxy, dsn: str) -> None:
    """Refuse connections and end those that are open, so that nothing can be sent."""
    proxy.refuse()
    proxy.reset()
    await until_none(dsn, OPEN)


# A server that is away, and comes back.


@dataclass(frozen=True)
class Gathering:
    """Eight adds that gather while the server is away."""

    sessions: int = 8
    kinds: tuple[str, ...] = ("message",)
    arguments: dict[str, Any] = field(default_factory=dict)
    used: bool = True
    """The handle was used before the server went away."""
    apart: float = 0.0
    """Seconds between two starts."""
    silent: bool = False
    """The network swallows packets, instead of refusing connections."""


GATHERINGS: Final = {
    "different sessions": Gathering(),
    "one session": Gathering(sessions=1),
    "two sessions": Gathering(sessions=2),
    "batches": Gathering(kinds=("batch",)),
    "messages with ids": Gathering(kinds=("message with an id",)),
    "all kinds in one session": Gathering(sessions=1, kinds=tuple(ADDS)),
    "one connection": Gathering(sessions=3, arguments={"min_size": 1, "max_size": 1}),
    "handle not yet opened": Gathering(used=False),
    "different start times": Gathering(sessions=3, apart=0.03),
    "borrowed pool": Gathering(sessions=3, arguments={"borrowed": True}),
    "silent network": Gathering(sessions=3, silent=True, kinds=("message with an id",)),
}


@pytest.mark.asyncio
@pytest.mark.fault("server away, deadlines mixed on one handle", backend="postgres")
@pytest.mark.parametrize("name", GATHERINGS)
async def test_what_an_impatient_caller_was_refused_is_not_sent_with_its_neighbours(
    proxy: Proxy, flux_empty_database: str, name: str
) -> None:
    """Half of the callers leave while the server is away: none of theirs is stored, each of the others' once."""
    gathering = GATHERINGS[name]
    sessions = SESSIONS[: gathering.sessions]
    await make_sessions(flux_empty_database, sessions)
    async with opened(proxy.dsn, timeout=20, **gathering.arguments) as memory:
        if gathering.used:
            await quiet(memory, flux_empty_database, sessions, close=False)
        if gathering.silent:
            proxy.silence()
        else:
            await go_away(proxy, flux_empty_database)
        tasks: dict[str, asyncio.Task[Any]] = {}
        kinds: dict[str, str] = {}
        for number in range(8):
            content = f"{number} {'patient' if number % 2 else 'impatient'}"
            kinds[content] = gathering.kinds[number % len(gathering.kinds)]
            seconds = 15 if number % 2 else 0.5
            tasks[content] = start(memory, seconds, sessions[number % len(sessions)], content, kinds[content])
            if gathering.apart:
                await asyncio.wait([tasks[content]], timeout=gathering.apart)
        impatient = await told({content: task for content, task in tasks.items() if " impatient" in content}, within=3)
        assert impatient.acknowledged == []
        assert gathering.silent or len(impatient.refused) == 4
        proxy.heal()
        patient = await told({content: task for content, task in tasks.items() if " patient" in content}, within=16)
        assert len(patient.acknowledged) == 4, patient.errors
        found = await quiet(memory, flux_empty_database, sessions, close=False)
        assert [content for content in impatient.refused if content in found] == []
        # As the application does that was told so.
        again = impatient.refused + [content for content in impatient.unknown if kinds[content] == "message with an id"]
        for content in again:
            await ADDS[kinds[content]](memory, sessions[int(content[0]) % len(sessions)], content)
        found = await quiet(memory, flux_empty_database, sessions)
        assert {content: found[content] for content in [*patient.acknowledged, *again]} == dict.fromkeys(
            [*patient.acknowledged, *again], 1
        )
        assert all(count == 1 for count in found.values())
        assert await in_order(flux_empty_database, patient.acknowledged)


@pytest.mark.asyncio
@pytest.mark.fault("server stopped, deadlines mixed on one handle", backend="postgres")
async def test_what_was_refused_while_the_server_was_stopped_is_not_stored_when_it_is_back() -> None:
    """The same with a server that is really gone, and many callers."""
    with cluster(durable=False) as own:
        await make_sessions(own.dsn, SESSIONS)
        async with PostgresConversationMemory(named(own.dsn), timeout=20) as memory:
            await quiet(memory, own.dsn, SESSIONS, close=False)
            await meanwhile(own.end, signal.SIGINT)
            tasks = {
                f"{number}": start(memory, 25 if number % 2 else 0.5 + number / 100, SESSIONS[number % 7], f"{number}")
                for number in range(40)
            }
            impatient = await told({content: tasks[content] for content in tasks if not int(content) % 2}, within=3)
            assert len(impatient.refused) == 20
            await meanwhile(own.start)
            patient = await told({content: tasks[content] for content in tasks if int(content) % 2})
            assert len(patient.acknowledged) == 20, patient.errors
            found = await quiet(memory, own.dsn, SESSIONS)
            assert [content for content in impatient.refused if content in found] == []
            assert dict(found) == dict.fromkeys(patient.acknowledged, 1)
            assert await in_order(own.dsn, patient.acknowledged)


@pytest.mark.asyncio
@pytest.mark.fault("shared answers lost, then refused", backend="postgres")
@pytest.mark.parametrize("kind", ADDS)
async def test_what_was_stored_and_whose_answer_was_lost_is_not_refused(
    proxy: Proxy, flux_empty_database: str, kind: str
) -> None:
    """The impatient leave before the server can be asked: their outcome is not known. The others have it once."""
    await make_sessions(flux_empty_database, SESSIONS)
    async with PostgresConversationMemory(proxy.dsn, timeout=20) as memory:
        await quiet(memory, flux_empty_database, SESSIONS, close=False)
        proxy.lose_reply("sync", times=100)
        proxy.refuse()
        tasks = {
            f"{number}": start(memory, 15 if number % 3 else 0.6, SESSIONS[number % 5], f"{number}", kind)
            for number in range(12)
        }
        impatient = await told({content: task for content, task in tasks.items() if not int(content) % 3}, within=3)
        assert impatient.acknowledged == []
        proxy.heal()
        patient = await told({content: task for content, task in tasks.items() if int(content) % 3}, within=16)
        assert len(patient.acknowledged) == 8, patient.errors
        found = await quiet(memory, flux_empty_database, SESSIONS)
        assert [content for content in impatient.refused if content in found] == []
        assert all(times == 1 for times in found.values())
        assert {content: found[content] for content in patient.acknowledged} == dict.fromkeys(patient.acknowledged, 1)
        assert await in_order(flux_empty_database, patient.acknowledged)


@pytest.mark.asyncio
@pytest.mark.fault("tasks of the library cancelled in flight, then refused", backend="postgres")
async def test_what_was_in_flight_when_the_librarys_tasks_were_cancelled_is_not_refused(
    proxy: Proxy, flux_empty_database: str
) -> None:
    """An application cancels every task but its own, and the server cannot be asked any more: the outcome is open."""
    await make_sessions(flux_empty_database, SESSIONS)
    async with PostgresConversationMemory(proxy.dsn, timeout=20) as memory:
        await quiet(memory, flux_empty_database, SESSIONS, close=False)
        await execute(flux_empty_database, SLOW_SESSIONS)
        async with connected(flux_empty_database) as other:
            tasks = {f"{number}": start(memory, 1.0, SESSIONS[number % 8], f"{number}") for number in range(12)}
            await until(lambda: other.fetchval(ASLEEP))
        proxy.refuse()
        for task in asyncio.all_tasks() - {asyncio.current_task(), *tasks.values()}:
            task.cancel()
        # The server does not notice, and goes on with what it was sent.
        proxy.reset()
        seen = await told({**tasks}, within=4)
        proxy.heal()
        found = await quiet(memory, flux_empty_database, SESSIONS)
        assert [content for content in seen.refused if content in found] == []
        assert [content for content in seen.acknowledged if found[content] != 1] == []
        assert seen.cancelled == []


# An event loop that stands still.

MOMENTS: Final = (0.0, 0.01, 0.03, 0.06, 0.1, 0.14)
"""Seconds after the start of calls whose statements take 0.1 s: before they are sent, in flight, the next in flight."""


@pytest.mark.asyncio
@pytest.mark.fault("event loop stalled past the deadline", backend="postgres")
@pytest.mark.parametrize(("count", "mixed"), [(1, False), (4, False), (4, True), (20, False), (20, True)])
async def test_a_deadline_that_passes_while_the_answer_arrives_does_not_say_nothing_was_stored(
    flux_empty_database: str, count: int, mixed: bool
) -> None:
    """Answer and deadline are found in the same turn of the loop: the caller is told the truth, or that it is open.

    A few patient callers keep the statement alive that the others share.
    """
    await make_sessions(flux_empty_database, SESSIONS)
    async with PostgresConversationMemory(named(flux_empty_database)) as memory:
        await quiet(memory, flux_empty_database, SESSIONS, close=False)
        await execute(flux_empty_database, SLOW_SESSIONS)
        seen = Told()
        for moment in MOMENTS:
            tasks = {
                f"{moment} {number}": start(
                    memory, 10 if mixed and number % 5 == 3 else 0.25, SESSIONS[number % 8], f"{moment} {number}", kind
                )
                for number, kind in zip(range(count), [*ADDS, "message"] * count, strict=False)
            }
            await asyncio.wait(tasks.values(), timeout=moment)
            time.sleep(0.5)  # noqa: ASYNC251 - the loop stands still
            outcomes = await asyncio.gather(*tasks.values(), return_exceptions=True)
            for content, outcome in zip(tasks, outcomes, strict=True):
                seen.note(content, outcome)
        found = await quiet(memory, flux_empty_database, SESSIONS)
        assert found, "nothing was in flight when the loop stood still"
        assert [content for content in seen.refused if content in found] == []
        assert [content for content in seen.acknowledged if found[content] != 1] == []
        assert all(times == 1 for times in found.values())


@dataclass(frozen=True)
class Write:
    """A write that is not an add, and how to see from outside that it took effect."""

    call: Callable[[Memory], Awaitable[object]]
    effect: str


WRITES: Final = {
    "create_session": Write(
        lambda memory: memory.create_session("new"), "SELECT count(*) FROM sessions WHERE title = 'new'"
    ),
    "create_session with an id": Write(
        lambda memory: memory.create_session("new", session_id="new"), "SELECT count(*) FROM sessions WHERE id = 'new'"
    ),
    "update_session_title": Write(
        lambda memory: memory.update_session_title("s0", "new"), "SELECT count(*) FROM sessions WHERE title = 'new'"
    ),
    "delete_session": Write(
        lambda memory: memory.delete_session("s0"), "SELECT 1 - count(*) FROM sessions WHERE id = 's0'"
    ),
    "clear_all": Write(lambda memory: memory.clear_all(), "SELECT 1 - count(*) FROM sessions WHERE id = 's0'"),
}


@pytest.mark.asyncio
@pytest.mark.fault("event loop stalled past the deadline", backend="postgres")
@pytest.mark.parametrize("name", WRITES)
async def test_other_writes_whose_answer_arrives_at_the_deadline_are_not_refused_and_done(
    flux_empty_database: str, name: str
) -> None:
    """Alone, and beside three others of the same kind."""
    async with PostgresConversationMemory(named(flux_empty_database)) as memory:
        await memory.create_session(session_id="s1")
        await memory.create_session(session_id="s0")
        await execute(flux_empty_database, SLOW_SESSIONS)
        write = WRITES[name]
        with deadline(0.3):
            call = asyncio.ensure_future(write.call(memory))
        async with connected(flux_empty_database) as other:
            await until(lambda: other.fetchval(ASLEEP))
            time.sleep(0.5)  # noqa: ASYNC251 - the loop stands still
            seen = await told({name: call}, within=2)
            assert await other.fetchval(write.effect) == 1
        assert seen.acknowledged or seen.unknown, seen.errors


# Adds that are cancelled before anything can be sent.


@dataclass(frozen=True)
class Leaving:
    """Callers that leave while the server is away."""

    count: int
    sessions: int = 8
    after: float = 0.2
    """Seconds."""
    staying: int = 0
    """Callers that stay, beside those that leave."""
    kind: str = "message"
    timed: bool = False
    """They leave by `wait_for`, not by a cancellation from outside."""
    used: bool = True
    """The handle was used before the server went away."""
    borrowed: bool = False


LEAVINGS: Final = {
    "alone": Leaving(1),
    "alone at once": Leaving(1, after=0.0),
    "eight": Leaving(8),
    "eight at once": Leaving(8, after=0.0),
    "eight, soon": Leaving(8, after=0.03),
    "eight of one session": Leaving(8, sessions=1),
    "eight batches": Leaving(8, kind="batch"),
    "eight with ids": Leaving(8, kind="message with an id"),
    "eight by wait_for": Leaving(8, timed=True),
    "eight beside eight": Leaving(8, sessions=3, staying=8),
    "forty beside forty": Leaving(40, staying=40),
    "eight of a borrowed pool": Leaving(8, borrowed=True),
    "eight of a handle not yet opened": Leaving(8, used=False),
    "eight beside eight of a handle not yet opened": Leaving(8, used=False, staying=8),
}


@pytest.mark.asyncio
@pytest.mark.fault("adds cancelled while the server is away", backend="postgres")
@pytest.mark.parametrize("name", LEAVINGS)
async def test_an_add_that_was_cancelled_before_it_could_be_sent_is_not_stored(
    proxy: Proxy, flux_empty_database: str, name: str
) -> None:
    """Alone or gathered: the caller knows that nothing can have been sent, and begins anew elsewhere."""
    leaving = LEAVINGS[name]
    sessions = SESSIONS[: leaving.sessions]
    await make_sessions(flux_empty_database, sessions)
    async with opened(proxy.dsn, borrowed=leaving.borrowed, timeout=20) as memory:
        if leaving.used:
            await quiet(memory, flux_empty_database, sessions, close=False)
        await go_away(proxy, flux_empty_database)
        calls: dict[str, asyncio.Future[Any]] = {}
        staying: dict[str, asyncio.Future[Any]] = {}
        for number in range(max(leaving.count, leaving.staying)):
            session = sessions[number % len(sessions)]
            if number < leaving.count:
                adding = start(memory, 15, session, f"{number} leaves", leaving.kind)
                timed = asyncio.ensure_future(asyncio.wait_for(adding, leaving.after)) if leaving.timed else adding
                calls[f"{number} leaves"] = timed
            if number < leaving.staying:
                staying[f"{number} stays"] = start(memory, 15, session, f"{number} stays", leaving.kind)
        if leaving.after:
            await asyncio.wait(calls.values(), timeout=leaving.after)
        for call in calls.values():
            call.cancel()
        outcomes = await asyncio.wait_for(asyncio.gather(*calls.values(), return_exceptions=True), 3)
        assert {type(outcome) for outcome in outcomes} <= {asyncio.CancelledError, TimeoutError}
        proxy.heal()
        seen = await told(staying, within=16)
        assert len(seen.acknowledged) == leaving.staying, seen.errors
        found = await quiet(memory, flux_empty_database, sessions)
        assert [content for content in found if "leaves" in content] == []
        assert {content: found[content] for content in staying} == dict.fromkeys(staying, 1)
        assert await in_order(flux_empty_database, [*staying])


# A session whose creation was answered, and the answer lost.

BETWEEN: Final = {
    "renamed": "UPDATE sessions SET title = 'renamed' WHERE id = 'new'",
    "its metadata changed": """UPDATE sessions SET metadata = '{"changed": true}' WHERE id = 'new'""",
    "its user changed": "UPDATE sessions SET user_id = 'another' WHERE id = 'new'",
    "added to": """
        UPDATE sessions SET message_count = 1 WHERE id = 'new';
        INSERT INTO messages (session_id, id, seq, role, content, created_at)
        VALUES ('new', 'm', 1, 'user', 'between', '2026-01-01')
    """,
    "deleted": "DELETE FROM sessions WHERE id = 'new'",
    "nothing": "SELECT 1",
}


async def lost_reply(proxy: Proxy, dsn: str, between: str, **given: Any) -> BaseException | str:
    """Create a session whose answer is lost, do something to it before the next attempt, and return the outcome."""
    async with PostgresConversationMemory(proxy.dsn, timeout=20, min_size=1, max_size=1) as memory:
        # The statement is prepared, so that the session's id is in the message that is answered.
        await memory.create_session("t", {"a": 1}, session_id="before")
        proxy.lose_reply("bind", containing=given.get("session_id", given["title"]).encode())
        proxy.refuse()
        creating = asyncio.ensure_future(memory.create_session(**given))
        async with connected(dsn) as other:
            await until(lambda: other.fetchval("SELECT count(*) FROM sessions WHERE id = 'new' OR title = 'new'"))
            # Or the answer would still be on its way.
            await until_none(dsn, OPEN)
            await other.execute(between)
        proxy.heal()
        (outcome,) = await asyncio.wait_for(asyncio.gather(creating, return_exceptions=True), 15)
        return outcome


@pytest.mark.asyncio
@pytest.mark.fault("reply to create_session lost, session changed before the retry", backend="postgres")
@pytest.mark.parametrize("name", BETWEEN)
async def test_a_session_that_a_lost_attempt_made_is_recognised_after_it_was_changed(
    proxy: Proxy, flux_empty_database: str, name: str
) -> None:
    """Another handle saw the session and used it: its creator must not be told that the id was taken."""
    outcome = await lost_reply(
        proxy, flux_empty_database, BETWEEN[name], title="title", metadata={"a": 1}, session_id="new"
    )
    if name == "deleted":
        assert outcome == "new" or isinstance(outcome, OutcomeUnknownError), repr(outcome)
        return
    assert outcome == "new"
    columns = "title, metadata::text, user_id, message_count"
    ((title, metadata, user, count),) = await rows(
        flux_empty_database, f"SELECT {columns} FROM sessions WHERE id = 'new'"
    )
    assert title == ("renamed" if name == "renamed" else "title")
    assert metadata == ('{"changed": true}' if "metadata" in name else '{"a": 1}')
    assert user == ("another" if "user" in name else "")
    assert count == len(await stored(flux_empty_database)) == (name == "added to")


@pytest.mark.asyncio
@pytest.mark.fault("reply to create_session lost, session changed before the retry", backend="postgres")
async def test_a_session_without_a_given_id_is_recognised_as_well(proxy: Proxy, flux_empty_database: str) -> None:
    """It is made once, although its title changed."""
    outcome = await lost_reply(
        proxy, flux_empty_database, "UPDATE sessions SET title = 'renamed' WHERE title = 'new'", title="new"
    )
    assert await rows(flux_empty_database, "SELECT id, title FROM sessions WHERE id <> 'before'") == [
        (outcome, "renamed")
    ]


@pytest.mark.asyncio
@pytest.mark.fault("reply to create_session lost, and its id taken", backend="postgres")
async def test_a_session_of_another_with_the_same_content_is_a_conflict_after_a_lost_reply(
    proxy: Proxy, flux_empty_database: str
) -> None:
    """The session was there before: content that happens to be the same is not a proof of an attempt of one's own."""
    given: dict[str, Any] = {"title": "title", "metadata": {"a": 1}, "session_id": "new"}
    async with PostgresConversationMemory(flux_empty_database) as theirs:
        await theirs.create_session(**given)
    outcome = await lost_reply(proxy, flux_empty_database, "SELECT 1", **given)
    assert isinstance(outcome, ConflictError), repr(outcome)


@pytest.mark.asyncio
@pytest.mark.fault("reply to create_session lost, and its id taken", backend="postgres")
async def test_a_session_that_another_made_while_the_first_attempt_was_swallowed_is_a_conflict(
    proxy: Proxy, flux_empty_database: str
) -> None:
    """Of two callers that ask for the same session one is told that it has it, however alike they are."""
    given: dict[str, Any] = {"title": "title", "metadata": {"a": 1}, "session_id": "new"}
    async with (
        PostgresConversationMemory(proxy.dsn, timeout=20, min_size=1, max_size=1) as memory,
        PostgresConversationMemory(flux_empty_database) as theirs,
    ):
        await memory.create_session("t", {"a": 1}, session_id="before")
        proxy.silence("bind")
        creating = asyncio.ensure_future(memory.create_session(**given))
        await asyncio.wait([creating], timeout=0.2)
        assert await theirs.create_session(**given) == "new"
        proxy.heal()
        (outcome,) = await asyncio.wait_for(asyncio.gather(creating, return_exceptions=True), 15)
    assert isinstance(outcome, ConflictError), repr(outcome)


@pytest.mark.asyncio
@pytest.mark.fault("create_session refused while the server is away", backend="postgres")
async def test_a_session_whose_creation_was_refused_or_cancelled_is_not_made_when_the_server_is_back(
    proxy: Proxy, flux_empty_database: str
) -> None:
    """Of all writes that wait for a server, only those whose callers stayed take effect."""
    await make_sessions(flux_empty_database, ["kept", "gone"])
    async with PostgresConversationMemory(proxy.dsn, timeout=20) as memory:
        await memory.count_sessions()
        await go_away(proxy, flux_empty_database)
        with deadline(0.5):
            impatient = [
                asyncio.ensure_future(call)
                for call in (
                    memory.create_session(session_id="refused"),
                    memory.update_session_title("kept", "refused"),
                    memory.delete_session("kept"),
                    memory.clear_all(),
                )
            ]
        cancelled = [
            asyncio.ensure_future(call)
            for call in (
                memory.create_session(session_id="cancelled"),
                memory.delete_session("kept"),
                memory.clear_all(),
            )
        ]
        with deadline(15):
            patient = [
                asyncio.ensure_future(call)
                for call in (memory.create_session(session_id="patient"), memory.delete_session("gone"))
            ]
        outcomes = await asyncio.wait_for(asyncio.gather(*impatient, return_exceptions=True), 3)
        assert {type(outcome) for outcome in outcomes} == {BackendUnavailableError}
        assert all("Nothing was stored" in str(outcome) for outcome in outcomes)
        for call in cancelled:
            call.cancel()
        await asyncio.wait_for(asyncio.wait(cancelled), 3)
        proxy.heal()
        await asyncio.wait_for(asyncio.gather(*patient), 16)
        await memory.close()
        await until_none(flux_empty_database, OPEN)
        assert await rows(flux_empty_database, "SELECT id, title FROM sessions ORDER BY id") == [
            ("kept", ""),
            ("patient", ""),
        ]
