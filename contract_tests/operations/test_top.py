"""Tests `flux-memory top`: true numbers, few rights, little load, and ids that cannot control the terminal."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ordinary_user import become_ordinary_user
from original_application import make_file_with_data
from plain_stores import PlainStore
from raw_postgres import connect, create_role, fetch_rows, reserve_port, with_parameter
from rich.console import Console
from waiting import wait_until

from flux_memory import BackendUnavailableError, ConversationMemory, PostgresConversationMemory
from flux_memory.cli import main, top_view
from flux_memory.operations.top import Activity, Reading, with_pace
from flux_memory.operations.top.file_activity import FileActivity
from flux_memory.operations.top.server_activity import ServerActivity

SCANS = "SELECT coalesce(sum(seq_tup_read), 0)::int FROM pg_stat_user_tables WHERE relname IN ('sessions', 'messages')"


PLANTED = """
CREATE TABLE trodden (by text);
CREATE FUNCTION tread() RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO trodden VALUES (current_user); RETURN 'x'; END $$;
CREATE TABLE messages (id text, session_id text);
CREATE VIEW sessions AS SELECT tread() AS id, '' AS user_id, 0 AS message_count, now()::timestamp AS updated_at
"""


def run_top(store: PlainStore, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["top", *store.options, "--interval", "0.5", *arguments])


def open_activity(store: PlainStore) -> Activity:
    return ServerActivity(store.place, 5) if store.is_server else FileActivity(store.place, 5)


def read_once(store: PlainStore) -> Reading:
    async def read() -> Reading:
        activity = open_activity(store)
        try:
            return await activity.read()
        finally:
            await activity.close()

    return asyncio.run(read())


def draw(reading: Reading, width: int) -> str:
    """Return the screen as text."""
    console = Console(width=width, height=60, color_system=None, force_terminal=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(top_view.draw(reading, width))
    return capture.get()


def test_one_reading_shows_what_is_there(plain_store: PlainStore) -> None:
    """Numbers, the newest sessions and sizes, on either engine."""
    plain_store.fill(12, messages=2, user="ann")
    result = run_top(plain_store, "--once")
    assert result.exit_code == 0, result.output
    assert re.search(r"s\d+ +ann +2 +\d s ago", result.stdout)
    assert "adds a minute" in result.stdout
    report = json.loads(run_top(plain_store, "--once", "--json").stdout)
    assert report["backend"] == ("postgres" if plain_store.is_server else "sqlite")
    assert len(report["newest"]) == 8
    assert report["size_bytes"] > 8192
    assert report["missing"] == []
    if plain_store.is_server:
        assert report["role"] == "primary"
        assert 0 < report["connections"] < report["max_connections"]
        assert {table["name"] for table in report["tables"]} >= {"sessions", "session_details", "messages"}
    else:
        assert (report["sessions"], report["messages"]) == (12, 24)
        assert report["log_bytes"] == 0


@pytest.mark.asyncio
async def test_the_pace_of_a_file_is_that_of_its_adds(path: Path) -> None:
    """Adds of other processes are counted, also those to sessions that are not on the screen."""
    activity = FileActivity(str(path), 5)
    async with ConversationMemory(path) as memory:
        await memory.add_message("one", "user", "hello", create=True)
        before = await activity.read()
        assert before.adds_per_minute is None
        for _ in range(30):
            await memory.add_message("one", "user", "hello")
        after = with_pace(await activity.read(), before)
        seconds = (after.at - before.at).total_seconds()
        assert after.adds_per_minute == pytest.approx(30 * 60 / seconds)
        assert after.newest[0].messages == 31
        assert after.log_bytes


@pytest.mark.asyncio
async def test_the_pace_of_a_database_is_that_of_its_adds(flux_memory_postgres_dsn: str) -> None:
    """The server's own counter gives it, once the writing connections have reported."""
    activity = ServerActivity(flux_memory_postgres_dsn, 5)
    async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
        await memory.add_message("one", "user", "hello", create=True)
    before = await activity.read()
    async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
        for _ in range(30):
            await memory.add_message("one", "user", "hello")

    async def reported() -> bool:
        return ((await activity.read()).inserted or 0) >= (before.inserted or 0) + 30

    # A connection reports when it ends.
    await wait_until(reported)
    after = with_pace(await activity.read(), before)
    await activity.close()
    assert after.adds_per_minute is not None
    assert after.adds_per_minute >= 30 * 60 / (after.at - before.at).total_seconds()


def test_counters_that_go_back_give_no_pace(path: Path) -> None:
    """After a reset of the statistics, or of the clock, nothing negative is shown."""
    PlainStore(str(path)).fill(1)
    now = read_once(PlainStore(str(path)))
    assert with_pace(replace(now, inserted=1), replace(now, inserted=5)).adds_per_minute is None
    assert with_pace(now, replace(now, at=now.at + timedelta(seconds=5))).adds_per_minute is None


@pytest.mark.asyncio
async def test_connections_and_lock_waits_are_named(flux_memory_postgres_dsn: str) -> None:
    """The application that waits, what holds the lock, and open transactions."""
    async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
        await memory.create_session(session_id="one")
    update = "UPDATE sessions SET user_id = user_id"
    holder_dsn = with_parameter(flux_memory_postgres_dsn, "application_name=holder")
    waiter_dsn = with_parameter(flux_memory_postgres_dsn, "application_name=waiter")
    activity = ServerActivity(flux_memory_postgres_dsn, 5)
    async with connect(holder_dsn) as holder, connect(waiter_dsn) as waiter:
        holder_pid = holder.get_server_pid()
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(update)
        waiting = asyncio.ensure_future(waiter.execute(update))

        async def seen() -> bool:
            return bool((await activity.read()).waiting)

        await wait_until(seen)
        reading = await activity.read()
        await transaction.rollback()
        await waiting
    await activity.close()
    (wait,) = reading.waits
    assert (wait.application, wait.blocked_by) == ("waiter", [holder_pid])
    found = {each.name: each for each in reading.applications}
    assert (found["holder"].idle_in_transaction, found["waiter"].active) == (1, 1)
    assert "flux-memory top" not in found
    assert "1 connection waits for a lock" in draw(reading, 120)
    long = replace(reading, oldest_transaction_seconds=600.0)
    assert "a transaction is open for 10 min" in draw(long, 80)


@pytest.mark.asyncio
async def test_a_role_without_rights_sees_what_it_may_and_why_not_the_rest(flux_memory_postgres_dsn: str) -> None:
    """Sizes and lock waits need no right; sessions need SELECT, and the state of others' connections a role."""
    store = PlainStore(flux_memory_postgres_dsn)
    await asyncio.to_thread(store.fill, 2)
    async with connect(flux_memory_postgres_dsn), create_role(flux_memory_postgres_dsn) as dsn:
        activity = ServerActivity(dsn, 5)
        reading = await activity.read()
        await activity.close()
    assert reading.size_bytes
    assert reading.newest == []
    assert any("the newest sessions: the role lacks SELECT on the table" in each for each in reading.missing)
    assert any(
        "the state of other roles' connections: needs the role pg_read_all_stats" in each for each in reading.missing
    )
    assert any(each.active is None for each in reading.applications)
    assert "not shown: the newest sessions" in draw(reading, 200)


@pytest.mark.asyncio
async def test_a_table_that_another_role_planted_is_not_read(flux_empty_database: str) -> None:
    """A view in place of a table would run its owner's functions with the rights of the operator."""
    async with create_role(flux_empty_database, grants=("GRANT CREATE ON SCHEMA public TO {role}",)) as planter:
        async with connect(planter) as connection:
            await connection.execute(PLANTED)
        activity = ServerActivity(flux_empty_database, 5)
        reading = await activity.read()
        await activity.close()
        assert await fetch_rows(flux_empty_database, "SELECT by FROM trodden") == []
    assert reading.newest == []
    assert any("the newest sessions: 'sessions' in the schema public is a view" in each for each in reading.missing)


def test_a_reading_reads_no_whole_table(flux_memory_postgres_dsn: str) -> None:
    """The load on the server does not grow with the tables: the newest sessions come from an index."""
    store = PlainStore(flux_memory_postgres_dsn)
    store.fill(300, messages=1)
    asyncio.run(execute_maintenance(flux_memory_postgres_dsn, "VACUUM ANALYZE sessions"))

    async def read_many() -> int:
        async def scanned() -> int:
            rows = await fetch_rows(flux_memory_postgres_dsn, SCANS)
            return int(rows[0][0])

        before = await scanned()
        activity = ServerActivity(flux_memory_postgres_dsn, 5)
        for _ in range(20):
            reading = await activity.read()
        await activity.close()
        assert reading.sessions == 300
        return await scanned() - before

    assert asyncio.run(read_many()) == 0


async def execute_maintenance(dsn: str, statement: str) -> None:
    async with connect(dsn) as connection:
        await connection.execute(statement)


@pytest.mark.asyncio
async def test_a_large_file_is_counted_seldom(path: Path) -> None:
    """Counting takes at most a hundredth of the time; the other parts are read each time."""
    activity = FileActivity(str(path), 5)
    async with ConversationMemory(path) as memory:
        await memory.create_session()
        assert (await activity.read()).sessions == 1
        activity._count_again_at = time.monotonic() + 1000
        await memory.create_session(session_id="new")
        reading = await activity.read()
        assert (reading.sessions, reading.newest[0].id) == (1, "new")


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux shows which processes have a file open")
def test_processes_with_the_file_open_are_named(path: Path) -> None:
    """An operator sees who uses the file."""
    program = (
        "import asyncio, sys\nfrom flux_memory import ConversationMemory\n"
        "async def main():\n async with ConversationMemory(sys.argv[1]) as memory:\n"
        "  await memory.create_session()\n  print('open', flush=True)\n  sys.stdin.read()\nasyncio.run(main())"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "open\n"
        reading = read_once(PlainStore(str(path)))
        assert [each.role for each in reading.applications] == [f"pid {user.pid}"]
        assert reading.connections == 1
        user.communicate("")


def test_other_tables_and_none(path: Path, flux_empty_database: str) -> None:
    """Earlier schemas, and stores without tables, are described and not changed."""
    assert any(
        "the role sees no table of a memory" in each for each in read_once(PlainStore(flux_empty_database)).missing
    )
    make_file_with_data(path)
    before = path.read_bytes()
    (missing,) = read_once(PlainStore(str(path))).missing
    assert "missing or of an earlier version" in missing
    assert path.read_bytes() == before


def test_a_file_of_another_user_needs_no_right_to_write() -> None:
    """Nothing is written, so a reader of the file may watch it; a directory is called one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        path = Path(name) / "chat.db"
        store = PlainStore(str(path))
        store.fill(2)
        path.parent.chmod(0o555)
        path.chmod(0o444)
        with become_ordinary_user():
            reading = read_once(store)
        assert (reading.sessions, sorted(each.name for each in path.parent.iterdir())) == (2, ["chat.db"])
        result = run_top(PlainStore(name), "--once")
        assert (result.exit_code, "is a directory; give the path of a file in it" in result.stderr) == (1, True)
        path.parent.chmod(0o755)


def test_a_store_that_cannot_be_read(path: Path) -> None:
    """A single reading fails with the reason; a missing file is not created."""
    result = run_top(PlainStore(str(path)), "--once")
    assert (result.exit_code, path.exists()) == (1, False)
    assert "FAILED  the file " in result.stderr
    with reserve_port() as port, pytest.raises(BackendUnavailableError):
        read_once(PlainStore(f"postgresql://user:secret@127.0.0.1:{port}/chat"))


HOSTILE = "[bold]\x1b[2J\x07x"


@pytest.mark.parametrize("width", [20, 56, 100, 200])
def test_no_id_controls_the_terminal(path: Path, width: int) -> None:
    """Escape codes and markup in ids are shown as text, at any width."""

    async def work() -> None:
        async with ConversationMemory(path) as memory:
            await memory.create_session(session_id=HOSTILE, user_id=HOSTILE)

    asyncio.run(work())
    reading = read_once(PlainStore(str(path)))
    shown = draw(reading, width)
    assert "\x07" not in shown
    assert "\x1b[2J" not in shown
    assert "[bold]" in shown or width < 56
    assert all(len(line) <= width for line in shown.splitlines())
    assert top_view.as_line(reading).isprintable()
    assert top_view.as_json(reading).isprintable()
    assert json.loads(top_view.as_json(reading))["newest"][0]["id"] == HOSTILE
