"""A target becomes exactly the source: what was deleted or renamed there is deleted and renamed, all or nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from original_application import add_message, add_sessions, make_file_with_data, read_rows
from raw_postgres import execute, fetch_rows, make_original
from terminal import run_on_terminal
from transfer_memories import insert_message, insert_session, make_random_file, move, read_target
from transfer_processes import invoke_migrate, name_sides

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory
from flux_memory.transfer import Mode, OnInvalid, Plan, Status, migrate

# Kills itself at the beginning of a phase, or in it after some rows.
CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from flux_memory.transfer import Plan, migrate
path, dsn, name, rows = sys.argv[1:]
class Watcher:
    now, left = "", int(rows)
    def phase(self, name, rows):
        self.now = name
        self.advance(0)
    def say(self, line): pass
    def advance(self, rows):
        if self.now == name:
            self.left -= rows
            if self.left <= 0: os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(migrate(Plan(sqlite_path=Path(path), postgres_dsn=dsn, replace=True), Watcher()))
"""
THERE: Final = "INSERT INTO sessions (id, created_at, updated_at) VALUES ('there', now(), now())"
ADD_THERE: Final = (
    "UPDATE sessions SET message_count = 5, updated_at = now() WHERE id = 'one'",
    "INSERT INTO messages (session_id, seq, id, role, content, created_at) VALUES ('one', 5, 'm9', 'user', '', now())",
)
DELETE_TWO: Final = ("DELETE FROM messages WHERE session_id = 'two'", "DELETE FROM sessions WHERE id = 'two'")
RECREATE_TWO: Final = (*DELETE_TWO, "INSERT INTO sessions VALUES ('two', 'anew', '2026-11-30', '2026-11-30', '{}')")

# What happens between two runs, in the file or in PostgreSQL, and the status of a plain second run. Extend freely.
CHANGES: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...], Status]]] = {
    "nothing": ((), (), Status.IDENTICAL),
    "deleted": (DELETE_TWO, (), Status.DIFFERENT),
    "all deleted": (("DELETE FROM messages", "DELETE FROM sessions"), (), Status.DIFFERENT),
    "renamed": (("UPDATE sessions SET title = 'renamed' WHERE id = 'one'",), (), Status.DIFFERENT),
    "metadata changed": (("""UPDATE sessions SET metadata = '{"n": 1}'""",), (), Status.DIFFERENT),
    "created anew under its id": (RECREATE_TWO, (), Status.DIFFERENT),
    "message edited": (("UPDATE messages SET content = 'edited' WHERE id = 'm1'",), (), Status.DIFFERENT),
    "message deleted": (("DELETE FROM messages WHERE id = 'm6'",), (), Status.CONTAINED),
    "deleted there": ((), ("DELETE FROM sessions WHERE id = 'two'",), Status.SKIPPED),
    "all deleted there": ((), ("DELETE FROM sessions",), Status.SKIPPED),
    "deleted on both sides": (DELETE_TWO, ("DELETE FROM sessions WHERE id = 'two'",), Status.IDENTICAL),
    "session added there": ((), (THERE,), Status.CONTAINED),
    "message added there": ((), ADD_THERE, Status.CONTAINED),
    "renamed there": ((), ("UPDATE session_details SET title = 'there' WHERE session_id = 'one'",), Status.DIFFERENT),
    "details deleted there": ((), ("DELETE FROM session_details WHERE session_id = 'one'",), Status.DIFFERENT),
    "miscounted there": ((), ("UPDATE sessions SET message_count = 7 WHERE id = 'one'",), Status.DIFFERENT),
}


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


@pytest.mark.parametrize("name", CHANGES)
def test_replace_settles_each_change_on_either_side(path: Path, target: str, name: str) -> None:
    """A plain run says what it cannot settle; after --replace PostgreSQL has what the file has."""
    here, there, status = CHANGES[name]
    make_file_with_data(path)
    assert move(path, target).status is Status.IDENTICAL
    change(path, *here)
    asyncio.run(execute(target, *there))
    assert move(path, target).status is status
    report = move(path, target, replace=True)
    assert (report.status, report.exit_code) == (Status.IDENTICAL, 0)
    sessions, messages = read_target(target)
    assert [(row[0], row[2], row[5]) for row in sessions] == read_rows(path, "SELECT id, title, metadata FROM sessions")
    assert [row[:5] for row in messages] == read_rows(
        path,
        "SELECT session_id, id, role, content, metadata FROM messages ORDER BY session_id, created_at, rowid",
    )


def test_a_target_is_replaced_repeatedly(path: Path, target: str) -> None:
    """A live move: each run replaces the rows of the run before, and adds one row to the record."""
    make_file_with_data(path)
    for number in range(3):
        report = move(path, target, replace=True)
        assert report.status is Status.IDENTICAL
        assert report.moved is not None
        assert report.moved.replaced_sessions == (2 if number else 0)
        change(path, f"UPDATE sessions SET title = 'title {number}' WHERE id = 'one'", *DELETE_TWO)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            add_sessions(db, "two", when=f"2026-02-0{number + 1}T00:00:00")
            add_message(db, f"n{number}", "two", "2026-02-09T00:00:00")
    assert len(asyncio.run(fetch_rows(target, "SELECT FROM flux_memory_moves"))) == 3


def test_a_live_move_ends_with_the_rows_of_the_application(path: Path, target: str) -> None:
    """An application creates, renames and deletes sessions meanwhile; after it stopped, both engines show the same."""

    async def contents(memory: Memory) -> list[Any]:
        sessions = await memory.get_sessions(1000)
        return [({**session, "revision": ""}, await memory.get_history(session["id"])) for session in sessions]

    async def application(memory: Memory, stopped: asyncio.Event) -> None:
        number = 0
        while not stopped.is_set() or number < 20:
            id_ = await memory.create_session(f"session {number}", {"n": number})
            await memory.add_messages(id_, [{"role": "user", "content": f"message {n}"} for n in range(3)])
            for session in (await memory.get_sessions(9))[1::4]:
                await memory.update_session_title(session["id"], f"renamed {number}")
            for session in (await memory.get_sessions(9))[3:4] * (number % 2):
                await memory.delete_session(session["id"])
            number += 1

    async def live() -> tuple[list[Any], list[Any]]:
        plan = Plan(sqlite_path=path, postgres_dsn=target, replace=True)
        async with ConversationMemory(path) as memory:
            await memory.create_session()
            stopped = asyncio.Event()
            working = asyncio.create_task(application(memory, stopped))
            for _ in range(2):
                assert (await migrate(plan)).status is Status.IDENTICAL
            stopped.set()
            await working
            assert (await migrate(plan)).status is Status.IDENTICAL
            async with PostgresConversationMemory(target, min_size=1) as there:
                return await contents(memory), await contents(there)

    here, there = asyncio.run(live())
    assert here == there
    assert len(here) > 10


def test_the_library_goes_on_in_a_replaced_target(path: Path, target: str) -> None:
    """A handle that is open meanwhile keeps working, and the keys are in force."""
    make_file_with_data(path)
    move(path, target)
    change(path, *DELETE_TWO)

    async def go_on() -> tuple[list[str], Any]:
        async with PostgresConversationMemory(target, min_size=1) as memory:
            await memory.create_session(session_id="new")
            await asyncio.to_thread(move, path, target, replace=True)
            await memory.add_message("one", "user", "next", message_id="next")
            return [row["id"] for row in await memory.get_history("one")], await memory.get_session("new")

    assert asyncio.run(go_on()) == (["m3", "m4", "m1", "m6", "next"], None)


@pytest.mark.parametrize(
    ("phase", "after_rows", "replaced"),
    [
        ("Load", 5, False),
        ("Keys", 0, False),
        ("Analyze", 0, False),
        ("Verify", 0, False),
        ("Flush", 0, True),
    ],
)
def test_a_run_killed_before_its_commit_changes_nothing(
    path: Path, target: str, phase: str, after_rows: int, replaced: bool
) -> None:
    """Until the commit the target and its record are unchanged; the next run replaces the rows."""
    make_file_with_data(path)
    move(path, target)
    before, moves = read_target(target), asyncio.run(fetch_rows(target, "SELECT count(*) FROM flux_memory_moves"))
    change(path, "UPDATE sessions SET title = 'renamed'", *DELETE_TWO)
    asyncio.run(execute(target, THERE))
    done = subprocess.run([sys.executable, "-c", CHILD, path, target, phase, str(after_rows)], check=False)
    assert done.returncode == -9
    if replaced:
        assert move(path, target, mode=Mode.VERIFY).status is Status.IDENTICAL
    else:
        asyncio.run(execute(target, "DELETE FROM sessions WHERE id = 'there'"))
        assert read_target(target) == before
        assert asyncio.run(fetch_rows(target, "SELECT count(*) FROM flux_memory_moves")) == moves
    assert move(path, target, replace=True).status is Status.IDENTICAL


CENSOR: Final = """
CREATE FUNCTION censor() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.content = 'censored'; RETURN NEW; END$$;
CREATE TRIGGER censor BEFORE INSERT ON messages FOR EACH ROW WHEN (NEW.id = 'm3') EXECUTE FUNCTION censor()
"""


def test_only_proven_rows_are_committed(path: Path, target: str) -> None:
    """If the proof fails, here since a trigger changes a row on its way, the old rows are still there."""
    make_file_with_data(path)
    move(path, target)
    change(path, *DELETE_TWO)
    asyncio.run(execute(target, CENSOR))
    before = read_target(target)
    report = move(path, target, replace=True)
    assert (report.status, report.moved) == (Status.DIFFERENT, None)
    assert read_target(target) == before
    looked = invoke_migrate(*name_sides(path, target), "--replace", "--yes")
    assert looked.exit_code == 1
    assert "message differs: m3 of session one" in looked.output
    assert "Nothing was overwritten" in looked.output
    assert "run with --replace" not in looked.output


def test_a_dry_run_shows_what_the_target_would_lose(path: Path, target: str) -> None:
    """Counts and first ids of what only PostgreSQL has, and the content that it has otherwise; nothing is changed."""
    make_file_with_data(path)
    move(path, target)
    change(path, "UPDATE sessions SET title = 'renamed' WHERE id = 'one'", *DELETE_TWO)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        add_sessions(db, "gained")
    added = (f"ALTER TABLE {table} ADD COLUMN stars INTEGER" for table in ("sessions", "session_details", "messages"))
    asyncio.run(execute(target, *added, THERE, *ADD_THERE))
    before = read_target(target)
    written = path.with_name("report.json")
    looked = invoke_migrate(*name_sides(path, target), "--replace", "--dry-run", "--report", written)
    assert looked.exit_code == 0, looked.output
    assert "PostgreSQL would lose 2 sessions (with 2 messages), and 1 message of other sessions" in looked.output
    assert "\n  First sessions: there, two, one\n" in looked.output
    assert "\n  session's title differs: one\n" in looked.output
    assert (
        "\nPostgreSQL would lose the values of your columns: sessions.stars, session_details.stars, messages.stars\n"
        in looked.output
    )
    assert "missing" not in looked.output
    assert read_target(target) == before
    losses = json.loads(written.read_text("utf-8"))["losses"]
    assert (losses["only_in_target"], losses["messages_only_in_target"], losses["added_since"]) == (2, 2, 1)
    assert losses["first_only_in_target"] == ["there", "two", "one"]
    assert losses["differences"] == {"session's title differs": 1}


def test_a_dry_run_without_losses_says_so(path: Path, target: str) -> None:
    """A reader need not add up zeros to see that nothing would be lost; the rows are not replaced yet."""
    make_file_with_data(path)
    move(path, target)
    looked = invoke_migrate(*name_sides(path, target), "--replace", "--dry-run")
    assert looked.exit_code == 0, looked.output
    assert "\nPostgreSQL would lose no session and no message\n" in looked.output
    assert "which would be replaced\n" in looked.output


def test_the_original_applications_tables_are_replaced(path: Path, target: str) -> None:
    """A dry run of tables that would be upgraded first shows their losses, too."""
    asyncio.run(make_original(target))
    make_random_file(path, sessions=3, messages=10)
    looked = move(path, target, replace=True, mode=Mode.PREFLIGHT)
    assert looked.losses is not None
    assert (looked.losses.only_in_target, looked.losses.messages_only_in_target) == (2, 6)
    assert move(path, target, replace=True).status is Status.IDENTICAL
    assert len(read_target(target)[0]) == 3


def test_a_dry_run_of_a_new_target_loses_nothing(path: Path, target: str) -> None:
    """A database without tables has nothing to lose, and none are made."""
    make_file_with_data(path)
    report = move(path, target, replace=True, mode=Mode.PREFLIGHT)
    assert (report.status, report.losses) == (Status.READY, None)
    assert read_target(target) == ([], [])


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_a_terminal_shows_the_losses_and_asks(path: Path, target: str, answer: str, code: int) -> None:
    """The question comes after the losses, and only yes replaces."""
    make_file_with_data(path)
    move(path, target)
    asyncio.run(execute(target, THERE))
    before = read_target(target)
    written = run_on_terminal(200, "--replace", *name_sides(path, target), typed=f"{answer}\n".encode(), code=code)
    shown, asked, after = written.partition("? [y/N]: ")
    assert asked, written
    assert "PostgreSQL would lose 1 session (" in shown
    assert "First sessions: there" in shown
    assert "Replace everything in " in shown
    assert ("Proven identical" in after) == (answer == "y")
    assert (read_target(target) == before) == (answer == "n")


def test_refused_rows_are_neither_moved_nor_kept(path: Path, target: str) -> None:
    """Rows corrected in a quarantine file are not in the source: they are named as a loss, and can be retried again."""
    make_file_with_data(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_message(db, "bad", "one", metadata="{")
        insert_session(db, "worse", metadata="{")
    held = path.with_name("held.jsonl")
    invalid = {"on_invalid": OnInvalid.QUARANTINE}
    assert move(path, target, **invalid, quarantine_file=held).status is Status.QUARANTINED
    held.write_text(held.read_text("utf-8").replace('"{"', '"{}"'), "utf-8")
    assert move(held, target, retry=True).status is Status.CONTAINED
    corrected = read_target(target)
    looked = move(path, target, replace=True, mode=Mode.PREFLIGHT, **invalid, quarantine_file=held)
    assert looked.losses is not None
    assert (looked.losses.only_in_target, looked.losses.added_since) == (1, 1)
    again = path.with_name("again.jsonl")
    assert move(path, target, replace=True, **invalid, quarantine_file=again).status is Status.QUARANTINED
    assert [row[0] for row in read_target(target)[0]] == ["one", "two"]
    assert move(held, target, retry=True, restore_deleted=True).status is Status.CONTAINED
    assert read_target(target) == corrected


GUARDS: Final = {
    "clustered": "ALTER TABLE messages CLUSTER ON messages_pkey",
    "a view by the key": "CREATE VIEW busy AS SELECT id, user_id, count(*) FROM sessions GROUP BY id",
    "a trigger on TRUNCATE": """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'never'; END$$;
        CREATE TRIGGER guard BEFORE TRUNCATE ON sessions EXECUTE FUNCTION refuse()
    """,
}


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
def test_a_target_whose_keys_must_stay_is_replaced_beside_them(path: Path, target: str, guard: str) -> None:
    """A view, a trigger or a clustered index slows the replacement, and does not prevent it."""
    make_file_with_data(path)
    move(path, target)
    asyncio.run(execute(target, guard, THERE))
    change(path, *DELETE_TWO)
    assert move(path, target, replace=True).status is Status.IDENTICAL
    assert [row[0] for row in read_target(target)[0]] == ["one"]
