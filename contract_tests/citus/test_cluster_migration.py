"""Tests that a migration into a cluster, and out of it, does and reports what it does on one server."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from cluster_stores import COORDINATOR, WORKER, in_schema
from original_application import make_file_with_data
from raw_postgres import execute, fetch_rows, with_parameter
from transfer_memories import (
    FORGET,
    Trigger,
    insert_message,
    insert_session,
    make_random_file,
    make_tables,
    move,
    read_target,
)
from transfer_processes import migrate_until_killed

from flux_memory import ConversationMemory, PostgresConversationMemory, SchemaError
from flux_memory.transfer import Mode, Plan, Report, Status, migrate, migrate_back

REVISIONS: Final = 'SELECT id, revision FROM sessions ORDER BY id COLLATE "C"'
MISCOUNTED: Final = """
SELECT id
FROM sessions
WHERE message_count <> (SELECT count(*) FROM messages WHERE messages.session_id = sessions.id)
"""
OWN_SESSION: Final = "INSERT INTO sessions (id, created_at, updated_at) VALUES ('own', '2026-01-01', '2026-01-01')"
OWN_DETAILS: Final = "INSERT INTO session_details (session_id) VALUES ('own')"


@pytest.fixture(params=["by session", "whole schema"])
def target(request: pytest.FixtureRequest) -> str:
    """The DSN of an empty store on the cluster, of which no run moved anything."""
    name = request.getfixturevalue("distributed" if request.param == "by session" else "on_one_worker")
    dsn = in_schema(COORDINATOR, name)
    make_tables(dsn)
    asyncio.run(execute(dsn, "DELETE FROM sessions", "DELETE FROM feedback", FORGET))
    return dsn


@pytest.fixture
def one_server(fresh_schema: str) -> str:
    """The DSN of tables that are not distributed, beside those that are."""
    return in_schema(COORDINATOR, fresh_schema)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with 60 sessions and 600 messages, in random order of ids and times."""
    made = tmp_path / "chat.db"
    make_random_file(made, sessions=60, messages=600)
    return made


def comparable(report: Report) -> dict[str, Any]:
    """Return what a run reports, without its times and without the order in which it named conflicts."""
    found = report.as_dict()
    kept = {name: found[name] for name in ("status", "moved", "recorded", "losses", "verification")}
    if kept["moved"]:
        kept["moved"]["first_conflicts"].sort()
    return kept


def read_back(dsn: str, file: Path) -> Report:
    """Migrate to a file on a new event loop."""
    return asyncio.run(migrate_back(dsn, file))


def run_story(path: Path, dsn: str) -> Iterator[tuple[str, object]]:
    """Migrate again and again between changes of both sides, and yield each report and what is stored then."""

    def run(name: str, **plan: Any) -> tuple[str, object]:
        return name, (comparable(move(path, dsn, **plan)), read_target(dsn))

    def change(*statements: str) -> None:
        asyncio.run(execute(dsn, *statements))

    async def delete(session_id: str) -> None:
        async with PostgresConversationMemory(dsn, min_size=1) as memory:
            await memory.delete_session(session_id)

    yield run("rehearsed", mode=Mode.PREFLIGHT)
    yield run("moved into an empty store")
    yield run("moved again")
    change(OWN_SESSION, OWN_DETAILS)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_session(db, "new", title="New")
        for number in range(70):
            insert_message(db, f"new-{number}", "new", when=f"2026-02-06T00:00:00.{number:06}")
        (ids,) = zip(*db.execute("SELECT id FROM sessions WHERE id LIKE 's-%' ORDER BY id").fetchall(), strict=True)
        insert_message(db, "late", ids[0], when="2026-02-07T00:00:00")
    yield run("rehearsed beside rows", mode=Mode.PREFLIGHT)
    yield run("merged", batch_size=20)
    change(
        f"UPDATE session_details SET title = 'Renamed' WHERE session_id = '{ids[1]}'",
        "UPDATE messages SET content = 'Edited' WHERE session_id = 'new' AND id = 'new-3'",
    )
    asyncio.run(delete(ids[2]))
    yield run("conflicts and a deleted session", batch_size=20)
    yield run("verified", mode=Mode.VERIFY)
    yield run("deleted sessions restored", restore_deleted=True)
    yield run("what replacing would lose", replace=True, mode=Mode.PREFLIGHT)
    yield run("replaced", replace=True)


def test_each_run_reports_and_stores_what_it_does_on_one_server(path: Path, target: str, one_server: str) -> None:
    """Counts, conflicts, deleted sessions, losses and verdicts, run by run, on the same changes of both sides."""
    copy = path.with_name("copy.db")
    copy.write_bytes(path.read_bytes())
    expected = dict(run_story(copy, one_server))
    found = dict(run_story(path, target))
    for name, outcome in expected.items():
        assert found[name] == outcome, name
    assert expected["merged"][0]["moved"]["messages"] == 71  # type: ignore[index] # the story's own
    assert expected["conflicts and a deleted session"][0]["status"] == "different"  # type: ignore[index] # likewise
    assert expected["replaced"][0]["status"] == "identical"  # type: ignore[index] # likewise


def test_a_second_run_changes_no_session(path: Path, target: str) -> None:
    """A revision that changed would refuse the conditional changes of applications."""
    asyncio.run(execute(target, OWN_SESSION, OWN_DETAILS))
    assert move(path, target).status is Status.CONTAINED
    before = asyncio.run(fetch_rows(target, REVISIONS))
    report = move(path, target)
    assert report.moved is not None
    assert (report.moved.skipped_sessions, report.moved.skipped_messages, report.moved.messages) == (60, 600, 0)
    assert asyncio.run(fetch_rows(target, REVISIONS)) == before


@pytest.mark.parametrize("rows", [0, 300, 700, 1000])
@pytest.mark.parametrize("populated", [False, True], ids=["empty", "populated"])
def test_a_killed_run_is_completed_by_the_next(path: Path, target: str, rows: int, populated: bool) -> None:
    """After `kill -9` an empty store is empty or full, and one with rows has whole batches."""
    if populated:
        asyncio.run(execute(target, OWN_SESSION, OWN_DETAILS))
    assert migrate_until_killed(path, target, rows, batch_size=20)
    assert asyncio.run(fetch_rows(target, MISCOUNTED)) == []
    stored = len(read_target(target)[1])
    assert 0 <= stored <= 600
    assert populated or stored in {0, 600}
    assert move(path, target).status is (Status.CONTAINED if populated else Status.IDENTICAL)
    sessions, messages = read_target(target)
    assert (len(sessions), len(messages)) == (60 + populated, 600)


def test_a_cancelled_run_is_completed_by_the_next(path: Path, target: str) -> None:
    """The batches that were committed stay, each whole."""
    asyncio.run(execute(target, OWN_SESSION, OWN_DETAILS))

    async def cancel() -> None:
        plan = Plan(sqlite_path=path, postgres_dsn=target, batch_size=20)
        working: list[asyncio.Task[Report]] = []
        watcher = Trigger("Load", lambda: [task.cancel() for task in working], after_rows=200)
        working.append(asyncio.create_task(migrate(plan, watcher)))
        with pytest.raises(asyncio.CancelledError):
            await working[0]

    asyncio.run(cancel())
    assert asyncio.run(fetch_rows(target, MISCOUNTED)) == []
    assert 0 < len(read_target(target)[1]) < 600
    assert move(path, target).status is Status.CONTAINED
    assert len(read_target(target)[1]) == 600


def test_feedback_moves_and_is_not_moved_again_once_deleted(tmp_path: Path, target: str) -> None:
    """Entries are distributed by their own ids, and their record is on the coordinator."""
    path = tmp_path / "chat.db"

    async def rate() -> None:
        async with ConversationMemory(path) as memory:
            await memory.create_session(session_id="one")
            await memory.feedback.add("one", 1, comment="Good", metadata={"a": 1.0})
            await memory.feedback.add("one", -1, comment="Bad")

    asyncio.run(rate())
    report = move(path, target)
    assert report.status is Status.IDENTICAL
    assert report.moved is not None
    assert report.moved.feedback == 2
    asyncio.run(execute(target, "DELETE FROM feedback WHERE comment = 'Bad'"))
    assert move(path, target).status is Status.SKIPPED
    back = tmp_path / "back.db"
    assert read_back(target, back).status is Status.IDENTICAL
    assert move(path, target, restore_deleted=True).status is Status.IDENTICAL


def test_a_file_from_a_cluster_has_the_rows_of_the_one_that_was_moved(path: Path, target: str, one_server: str) -> None:
    """There and back, read by the library from both files."""
    assert move(path, target).status is Status.IDENTICAL
    back = path.with_name("back.db")
    assert read_back(target, back).status is Status.IDENTICAL
    assert move(back, one_server).status is Status.IDENTICAL
    assert read_target(one_server) == read_target(target)


PAIRS: Final = [(f"first {number}", f"second {number}") for number in range(6)]
"""Sessions to which messages are added in turns, two at a time."""


@asynccontextmanager
async def writing(memory: PostgresConversationMemory) -> AsyncIterator[None]:
    """Add messages to each pair of sessions, first to one, then to the other, until the block ends."""
    ended = asyncio.Event()

    async def write(pair: tuple[str, str]) -> None:
        while not ended.is_set():
            for name in pair:
                await memory.add_messages(name, [{"role": "user", "content": "Hello"}] * 2)

    for pair in PAIRS:
        for name in pair:
            await memory.create_session(session_id=name)
    writers = [asyncio.create_task(write(pair)) for pair in PAIRS]
    try:
        yield
    finally:
        ended.set()
        await asyncio.gather(*writers)


async def check_file(file: Path, status: Status) -> None:
    """Check that sessions are whole, and, if the verdict is that of one moment, that pairs are of one moment."""
    async with ConversationMemory(file) as memory:
        for pair in PAIRS:
            first, second = [len(await memory.get_history(name)) for name in pair]
            assert first % 2 == second % 2 == 0
            if status is Status.IDENTICAL:
                assert first - second in {0, 2}


@pytest.mark.asyncio
async def test_only_a_common_moment_of_all_servers_is_called_identical(tmp_path: Path, emptied: str) -> None:
    """A message is added to one session, then to another: a state of one moment has at most one addition more there."""
    dsn = in_schema(COORDINATOR, emptied)
    found: list[Status] = []
    async with PostgresConversationMemory(dsn) as memory:
        async with writing(memory):
            for number in range(4):
                file = tmp_path / f"back-{number}.db"
                found.append((await migrate_back(dsn, file)).status)
                await check_file(file, found[-1])
        quiet = tmp_path / "quiet.db"
        assert (await migrate_back(dsn, quiet)).status is Status.IDENTICAL
        await check_file(quiet, Status.IDENTICAL)
    assert set(found) <= {Status.IDENTICAL, Status.CONTAINED}
    assert Status.CONTAINED in found, "the sessions did not change often enough to show a difference"


@pytest.mark.parametrize(
    "work", [move, lambda path, dsn: read_back(dsn, path.with_name("back.db"))], ids=["move", "back"]
)
def test_a_worker_is_refused(path: Path, emptied: str, work: Callable[[Path, str], Report]) -> None:
    """It lacks the record of moves, which is on the coordinator."""
    with pytest.raises(SchemaError, match="give the coordinator's DSN"):
        work(path, in_schema(WORKER, emptied))


def test_a_message_beyond_the_counter_is_named_as_one(tmp_path: Path, emptied: str) -> None:
    """A worker refuses the copied row, and Citus passes that on as an internal error."""
    dsn, path = in_schema(COORDINATOR, emptied), tmp_path / "chat.db"
    asyncio.run(execute(dsn, FORGET))
    make_file_with_data(path)
    assert move(path, dsn).status is Status.IDENTICAL
    beyond = "INSERT INTO messages VALUES ('beyond', 'one', 'user', 'Hello', '{}', '2026-01-01', 5)"
    asyncio.run(execute(dsn, beyond))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_message(db, "late", "one", when="2026-03-01T00:00:00")
    with pytest.raises(SchemaError, match="migrate --verify names the sessions with wrong numbers"):
        move(path, dsn)
    assert move(path, dsn, mode=Mode.VERIFY).status is Status.DIFFERENT


@pytest.mark.asyncio
# The driver warns of the listener when the connection is closed.
@pytest.mark.filterwarnings("ignore::asyncpg.InterfaceWarning")
async def test_a_batch_is_committed_on_one_server(path: Path, emptied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit on several servers would need all of them, and a lost one would leave locks on the others."""
    sent: list[str] = []
    driver_connect = asyncpg.connect

    async def logging_connect(*arguments: Any, **options: Any) -> Any:
        connection = await driver_connect(*arguments, **options)
        connection.add_log_listener(lambda _, message: sent.append(message.message))
        return connection

    dsn = in_schema(COORDINATOR, emptied)
    await execute(dsn, FORGET, OWN_SESSION, OWN_DETAILS)
    monkeypatch.setattr(asyncpg, "connect", logging_connect)
    logged = with_parameter(dsn, "citus.log_remote_commands=on&client_min_messages=log")
    report = await migrate(Plan(sqlite_path=path, postgres_dsn=logged, batch_size=20))
    assert report.status is Status.CONTAINED
    # PREPARE TRANSACTION 'citus_<group>_<process>_<transaction>_<connection>'
    prepared = [text.rpartition("_")[0] for text in sent if "issuing PREPARE TRANSACTION" in text]
    assert len(prepared) > 10
    assert len(set(prepared)) == len(prepared)
