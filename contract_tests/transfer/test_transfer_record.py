"""The target's record of moves: a kept file does not bring back sessions that were deleted in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from original_application import add_message, add_sessions, make_file, make_file_with_data
from raw_postgres import execute, fetch_rows
from transfer_memories import FORGET, Trigger, insert_message, make_random_file, move, read_target
from transfer_processes import invoke_migrate

from flux_memory import ConversationMemory, PostgresConversationMemory
from flux_memory.transfer import Mode, OnInvalid, Plan, Status, migrate, migrate_back

RECORDED: Final = 'SELECT session_id FROM flux_memory_moved_sessions ORDER BY session_id COLLATE "C"'
SOURCES: Final = "SELECT count(*), count(DISTINCT source) FROM flux_memory_moves"
DELETE_TWO: Final = "DELETE FROM sessions WHERE id = 'two'"


def ids(dsn: str) -> list[str]:
    return [row[0] for row in read_target(dsn)[0]]


def renamed(path: Path, _: str) -> Path:
    """Move the file elsewhere."""
    return path.rename(path.with_name("elsewhere.db"))


def copied(path: Path, _: str) -> Path:
    """Copy the file, as a backup does."""
    return Path(shutil.copy(path, path.with_name("backup.db")))


def vacuumed(path: Path, _: str) -> Path:
    """Write the file again."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("VACUUM INTO ?", (str(path.with_name("new.db")),))
    return path.with_name("new.db")


def adopted(path: Path, _: str) -> Path:
    """Open the file with the library, which upgrades it."""

    async def work() -> None:
        async with ConversationMemory(path) as memory:
            await memory.count_sessions()

    asyncio.run(work())
    return path


def grown(path: Path, _: str) -> Path:
    """Let the old application go on."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        add_sessions(db, "a new one", "three")
        add_message(db, "m7", "two", "2026-02-05T15:17:09")
    return path


def came_back(path: Path, dsn: str) -> Path:
    """Restore the session, and write the whole memory to a file by the way back, before it is deleted again."""
    assert move(path, dsn, restore_deleted=True).status is Status.IDENTICAL
    assert asyncio.run(migrate_back(dsn, path.with_name("back.db"))).status is Status.IDENTICAL
    asyncio.run(execute(dsn, DELETE_TWO))
    return path.with_name("back.db")


@pytest.mark.parametrize(
    "act", [lambda path, _: path, renamed, copied, vacuumed, adopted, grown, came_back], ids=lambda act: act.__name__
)
def test_a_kept_file_does_not_bring_back_deleted_sessions(
    deleted: Path, target: str, act: Callable[[Path, str], Path]
) -> None:
    """However the file was kept, its sessions are recognised: skipped, listed, and restored on request only."""
    path = act(deleted, target)
    report = move(path, target, batch_size=1)
    assert (report.status, report.exit_code) == (Status.SKIPPED, 3)
    assert report.verification is not None
    assert report.verification.first_deleted_since == ["two"]
    assert "two" not in ids(target)
    assert asyncio.run(fetch_rows(target, SOURCES))[0][1] == 1
    assert move(path, target, restore_deleted=True).status is Status.IDENTICAL
    assert "two" in ids(target)


def test_skipped_sessions_are_named_with_the_option_that_restores_them(deleted: Path, target: str) -> None:
    """The terminal and the report list the sessions; a comparison calls them missing."""
    sides, written = ("--sqlite-path", deleted, "--postgres-dsn", target), deleted.with_name("report.json")
    skipped = invoke_migrate(*sides, "--report", written)
    assert skipped.exit_code == 3
    assert "Skipped, since an earlier run moved them and they were deleted in PostgreSQL: 1 session, " in skipped.output
    assert "2 messages. First: two\n" in skipped.output
    assert skipped.output.rstrip().endswith("To move them again, run with --restore-deleted.")
    assert "identical" not in skipped.output
    found = json.loads(written.read_text("utf-8"))
    assert (found["status"], found["exit_code"], found["recorded"]) == ("skipped", 3, True)
    verification = found["verification"]
    assert (verification["deleted_since"], verification["messages_deleted_since"]) == (1, 2)
    assert (found["moved"]["sessions"], found["moved"]["skipped_sessions"], found["moved"]["skipped_messages"]) == (
        0,
        1,
        4,
    )
    compared = invoke_migrate(*sides, "--verify")
    assert compared.exit_code == 1
    assert "session missing: two with 2 messages, deleted since it was moved" in compared.output
    restored = invoke_migrate(*sides, "--restore-deleted")
    assert restored.exit_code == 0
    assert "Proven identical" in restored.output


def test_an_emptied_target_stays_empty(path: Path, target: str) -> None:
    """`clear_all` deletes every conversation; the kept file brings none of them back, and new ones are moved."""
    make_file_with_data(path)
    move(path, target)

    async def clear() -> None:
        async with PostgresConversationMemory(target, min_size=1) as memory:
            await memory.clear_all()

    asyncio.run(clear())
    looked = move(path, target, mode=Mode.PREFLIGHT)
    assert looked.status is Status.READY
    assert looked.verification is not None
    assert looked.verification.first_deleted_since == ["one", "two"]
    grown(path, target)
    assert move(path, target).status is Status.SKIPPED
    assert ids(target) == ["a new one", "three"]


def test_rows_added_by_the_application_stay(deleted: Path, target: str) -> None:
    """After the switch a plain run leaves the application's sessions and messages alone, and says what there is."""
    move(deleted, target, restore_deleted=True)

    async def go_on() -> None:
        async with PostgresConversationMemory(target, min_size=1) as memory:
            await memory.create_session(session_id="of the application")
            await memory.add_message("one", "user", "next")

    asyncio.run(go_on())
    before = read_target(target)
    contained = invoke_migrate("--sqlite-path", deleted, "--postgres-dsn", target)
    assert contained.exit_code == 0
    assert (
        "Only in PostgreSQL: 1 session, and 1 message of sessions that are on both sides. "
        "First sessions: of the application, one"
    ) in contained.output
    closing_line = contained.output.rstrip().splitlines()[-1]
    assert closing_line.startswith("Proven: every session and message of the file is in PostgreSQL")
    assert "identical" not in contained.output
    assert read_target(target) == before


def test_a_session_created_anew_under_its_id_is_another(deleted: Path, target: str) -> None:
    """An application that names its sessions by user deletes one and creates it again: that one was never moved."""
    with closing(sqlite3.connect(deleted, isolation_level=None)) as db:
        db.execute("DELETE FROM messages WHERE session_id = 'two'")
        db.execute(DELETE_TWO)
        add_sessions(db, "two", when="2026-11-30T00:00:00")
    assert move(deleted, target).status is Status.IDENTICAL
    assert ids(target) == ["one", "two"]


def test_a_session_deleted_while_it_is_moved_is_not_made_again(path: Path, target: str) -> None:
    """A session of several batches, deleted by an application between two of them, stays deleted."""
    make_random_file(path, sessions=1, messages=40)
    asyncio.run(execute(target, "SELECT 1"))
    with closing(make_file(path.with_name("other.db"), generation=2)) as db:
        add_sessions(db, "other")
    move(path.with_name("other.db"), target)

    async def run() -> Status:
        async with PostgresConversationMemory(target, min_size=1) as memory:
            (first,) = await memory.get_sessions()

            async def delete() -> None:
                for session in await memory.get_sessions():
                    if session["id"] != first["id"]:
                        await memory.delete_session(session["id"])
                        gone.set()

            gone = asyncio.Event()
            trigger = Trigger("Load", lambda: deleting.append(asyncio.ensure_future(delete())), after_rows=5)
            deleting: list[asyncio.Future[None]] = []
            report = await migrate(Plan(sqlite_path=path, postgres_dsn=target, batch_size=1), trigger)
            await asyncio.gather(*deleting)
            assert gone.is_set()
            return report.status

    assert asyncio.run(run()) is Status.SKIPPED
    assert read_target(target)[1] == []


def test_other_files_are_other_sources(path: Path, target: str) -> None:
    """Sessions of another file in the same target do not look deleted in this one."""
    make_file_with_data(path)
    other = path.with_name("other.db")
    with closing(make_file(other)) as db:
        add_sessions(db, "three", "four")
    assert move(path, target).status is Status.IDENTICAL
    assert move(other, target).status is Status.CONTAINED
    assert move(path, target).status is Status.CONTAINED
    assert asyncio.run(fetch_rows(target, SOURCES)) == [(3, 2)]
    assert asyncio.run(fetch_rows(target, RECORDED)) == [("four",), ("one",), ("three",), ("two",)]


def test_files_that_share_a_session_are_other_sources(path: Path, target: str) -> None:
    """Two memories that share a session, such as "default", are not one memory that lost sessions."""
    other = path.with_name("other.db")
    for file, names in ((path, ("default", "two", "three")), (other, ("default", "four", "five"))):
        with closing(make_file(file)) as db:
            add_sessions(db, *names)
    assert move(path, target).status is Status.IDENTICAL
    assert move(other, target).status is Status.CONTAINED
    assert asyncio.run(fetch_rows(target, SOURCES)) == [(2, 2)]
    assert move(path, target, mode=Mode.VERIFY).status is Status.CONTAINED
    assert move(other, target, mode=Mode.VERIFY).status is Status.CONTAINED


def test_retried_rows_are_recorded_but_not_of_the_file(path: Path, target: str) -> None:
    """A session added in a quarantine file is not called deleted in the file, nor brought back by a second retry."""
    make_file_with_data(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_message(db, "orphan", "three")
    held = path.with_name("held.jsonl")
    invalid = {"on_invalid": OnInvalid.QUARANTINE}
    move(path, target, **invalid, quarantine_file=held)
    when = "2026-02-05T15:17:45"
    session = {"table": "sessions", "row": {"id": "three", "title": "", "created_at": when, "updated_at": when}}
    held.write_text(f"{held.read_text('utf-8')}{json.dumps(session)}\n", "utf-8")
    assert move(held, target, retry=True).status is Status.CONTAINED
    again = move(path, target, **invalid, quarantine_file=path.with_name("again.jsonl"))
    assert again.status is Status.QUARANTINED
    asyncio.run(execute(target, "DELETE FROM sessions WHERE id = 'three'"))
    assert move(held, target, retry=True).status is Status.SKIPPED
    assert ids(target) == ["one", "two"]


def test_tables_that_were_dropped_have_no_record(path: Path, target: str) -> None:
    """Nothing was moved into tables that were created again."""
    make_file_with_data(path)
    move(path, target)
    asyncio.run(execute(target, "DROP TABLE messages, session_details, sessions, feedback, flux_memory_schema"))
    assert move(path, target).status is Status.IDENTICAL
    assert asyncio.run(fetch_rows(target, SOURCES)) == [(1, 1)]


def test_a_target_of_an_earlier_release_gets_its_record(deleted: Path, target: str) -> None:
    """Without a record a run knows of no deletion; it records the sessions that it finds, for the next run."""
    asyncio.run(execute(target, FORGET))
    assert move(deleted, target).status is Status.IDENTICAL
    assert asyncio.run(fetch_rows(target, RECORDED)) == [("one",), ("two",)]
    asyncio.run(execute(target, "DELETE FROM sessions WHERE id = 'one'"))
    assert move(deleted, target).status is Status.SKIPPED


def test_the_record_says_which_file_and_how_far(path: Path, target: str) -> None:
    """One row for each move, one for each session ever moved."""
    make_file_with_data(path)
    move(path, target)
    grown(path, target)
    move(path, target)
    move(path, target, replace=True)
    moves = asyncio.run(fetch_rows(target, "SELECT file, sessions, messages FROM flux_memory_moves ORDER BY id"))
    assert moves == [(str(path), 2, 6), (str(path), 4, 7), (str(path), 4, 7)]
    assert asyncio.run(fetch_rows(target, RECORDED)) == [("a new one",), ("one",), ("three",), ("two",)]


def test_an_applications_own_session_is_not_called_deleted_in_the_file(path: Path, target: str) -> None:
    """An application may create a session anew under the id of one that was moved, and deleted on both sides."""
    make_file_with_data(path)
    move(path, target)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM messages WHERE session_id = 'two'")
        db.execute("DELETE FROM sessions WHERE id = 'two'")

    async def recreate() -> None:
        async with PostgresConversationMemory(target, min_size=1) as memory:
            await memory.delete_session("two")
            await memory.create_session(session_id="two")

    asyncio.run(recreate())
    for mode in (Mode.MOVE, Mode.VERIFY):
        assert move(path, target, mode=mode).status is Status.CONTAINED
