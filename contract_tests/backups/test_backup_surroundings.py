"""Tests backups in unusual surroundings: the original application's file, handles in use, leftovers, schemas."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from backup_stores import MakeStore, Store, back_up, fill, restore, run_command
from original_application import make_file_with_data
from raw_postgres import execute, fetch_rows
from transfer_memories import insert_message

from flux_memory.errors import BackupError


def dump_file(path: Path) -> list[str]:
    """Return a database as SQL."""
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def test_a_file_of_the_original_application_is_copied_as_it_is(tmp_path: Path, backups: Path) -> None:
    """Before its upgrade a file is copied with all its rows, invalid ones included, which an archive refuses."""
    path = tmp_path / "memory.db"
    make_file_with_data(path)
    with closing(sqlite3.connect(path)) as db:
        insert_message(db, "bad", "one", when="never")
        db.execute("CREATE TABLE notes (text)")
        db.execute("INSERT INTO notes VALUES ('mine')")
        db.commit()
    before = dump_file(path)
    made = run_command("backup", backups, "--sqlite-path", path)
    assert made.exit_code == 0, made.output
    assert "Not valid, and copied as they are: 1 row;" in made.output
    (backup,) = backups.glob("*.db")
    assert dump_file(backup) == before
    assert dump_file(path) == before
    refused = run_command("backup", backups, "--sqlite-path", path, "--archive")
    assert refused.exit_code == 1
    assert "without --archive" in refused.output
    target = tmp_path / "restored.db"
    assert run_command("restore", backup, "--sqlite-path", target).exit_code == 0
    assert dump_file(target) == before


def test_an_open_handle_goes_on_after_a_replacement(make_store: MakeStore, backups: Path) -> None:
    """A handle that was open during the replacement reads the restored rows, or says that the file was changed."""
    source, target = make_store("sqlite"), make_store("sqlite")
    source.use(lambda memory: fill(memory, users=5, messages=40))
    target.use(lambda memory: fill(memory, users=1, seed=4))
    backup = back_up(source, backups)

    async def work() -> int:
        async with target.open() as memory:
            assert await memory.count_sessions() == 2
            await asyncio.to_thread(restore, backup, target, replace=True)
            await memory.create_session("after")
            return await memory.count_sessions()

    assert asyncio.run(work()) == 11
    assert len(target.rows()["messages"]) == len(source.rows()["messages"])


def test_tables_of_other_programs_in_a_file_are_named_before_they_are_lost(
    make_store: MakeStore, backups: Path
) -> None:
    """A file with a table of another program is not overwritten without `replace`, even if it has no sessions."""
    source, target = make_store("sqlite"), make_store("sqlite")
    source.use(fill)
    target.use(lambda memory: memory.count_sessions())
    assert target.sqlite_path is not None
    with closing(sqlite3.connect(target.sqlite_path)) as db:
        db.execute("CREATE TABLE notes (text)")
        db.commit()
    backup = back_up(source, backups)
    with pytest.raises(BackupError, match="not conversation memory: notes"):
        restore(backup, target)
    assert "notes" in str(dump_file(target.sqlite_path))


def test_a_scratch_database_of_a_killed_run_is_dropped(make_store: MakeStore, backups: Path) -> None:
    """A database that a killed trial restore left behind is dropped by the next one, and those of others are kept."""
    store = make_store("postgres")
    store.use(fill)
    assert store.postgres_dsn is not None
    (number,) = asyncio.run(
        fetch_rows(store.postgres_dsn, "SELECT oid::text FROM pg_database WHERE datname = current_database()")
    )[0]
    ours, others = f"flux_memory_scratch_{number}_dead", "flux_memory_scratch_1_other"
    for name in (ours, others):
        asyncio.run(execute(store.postgres_dsn, f"CREATE DATABASE {name}"))
    back_up(store, backups)
    listed = asyncio.run(
        fetch_rows(store.postgres_dsn, "SELECT datname FROM pg_database WHERE datname LIKE '%scratch%'")
    )
    asyncio.run(execute(store.postgres_dsn, f"DROP DATABASE {others}"))
    assert [name for (name,) in listed] == [others]


def test_tables_keep_their_rights_and_policies(make_store: MakeStore, backups: Path) -> None:
    """A dump that is restored over existing tables leaves their grants and policies in place."""
    store = make_store("postgres")
    store.use(fill)
    assert store.postgres_dsn is not None
    rights = (
        "SELECT relname::text, relacl::text, relrowsecurity FROM pg_class WHERE relname IN ('sessions', 'messages')"
    )
    asyncio.run(execute(store.postgres_dsn, "GRANT SELECT ON sessions, messages TO pg_monitor"))
    before = sorted(asyncio.run(fetch_rows(store.postgres_dsn, rights)))
    rows = store.rows()
    backup = back_up(store, backups)
    store.use(lambda memory: fill(memory, seed=8))
    restore(backup, store, replace=True)
    assert store.rows() == rows
    assert sorted(asyncio.run(fetch_rows(store.postgres_dsn, rights))) == before


def test_a_memory_in_its_own_schema_is_dumped_and_restored(make_store: MakeStore, backups: Path) -> None:
    """The schema that search_path names is that of the dump, and another schema gets the rows all the same."""
    plain, target = make_store("postgres"), make_store("postgres")
    assert plain.postgres_dsn is not None
    asyncio.run(execute(plain.postgres_dsn, 'CREATE SCHEMA "my Chat"'))
    joint = "&" if "?" in plain.postgres_dsn else "?"
    store = Store(None, f"{plain.postgres_dsn}{joint}search_path=%22my%20Chat%22")
    store.use(fill)
    backup = back_up(store, backups)
    restore(backup, target)
    assert len(target.rows()["sessions"]) == 6
    asyncio.run(execute(plain.postgres_dsn, 'DROP SCHEMA "my Chat" CASCADE; CREATE SCHEMA "my Chat"'))
    restore(backup, store)
    assert store.use(lambda memory: memory.count_sessions()) == 6
