"""Load into an empty target and merge into one that has rows, also beside other writers."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from original_application import add_sessions, make_file, make_file_with_data
from raw_postgres import connected, execute, make_original, rows
from small_disk import small_files
from transfer_memories import Trigger, add, add_session, everything, make_random, make_tables, move, run

from flux_memory import ConversationMemory, PostgresConversationMemory
from flux_memory.errors import BackendUnavailableError, FluxMemoryError, InvalidInputError, MigrationError, SchemaError
from flux_memory.transfer import Mode, OnInvalid, Plan, Status, migrate, migrate_back

DEFINITIONS = """
SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid), convalidated FROM pg_constraint
WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT tablename::text, indexname::text, indexdef, TRUE FROM pg_indexes WHERE schemaname = 'public'
ORDER BY 1, 2, 3
"""

WHEN = "2026-02-05T15:17:45.407069"


@pytest.fixture
def target(flux_empty_database: str) -> str:
    return flux_empty_database


@contextmanager
def role(dsn: str) -> Iterator[tuple[str, str]]:
    """Create a role, shared by all databases of the server; return its name and its DSN."""
    name = f"role_{uuid4().hex}"
    asyncio.run(execute(dsn, f"CREATE ROLE {name} LOGIN PASSWORD 'word'"))
    scheme, _, rest = dsn.partition("://")
    try:
        yield name, f"{scheme}://{name}:word@{rest.rpartition('@')[2]}"
    finally:
        asyncio.run(execute(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}"))


def test_the_keys_come_back_as_they_were(path: Path, target: str) -> None:
    """After the load every key and index, also one made by hand, has the same definition as before."""
    make_tables(target)
    asyncio.run(execute(target, "CREATE INDEX mine ON messages (lower(role)) WHERE seq > 1"))
    before = asyncio.run(rows(target, DEFINITIONS))
    make_file_with_data(path)
    report = move(path, target)
    assert report.status is Status.IDENTICAL
    assert report.moved is not None
    assert report.moved.messages == 6
    assert asyncio.run(rows(target, DEFINITIONS)) == before


def test_a_library_goes_on_where_the_migration_ended(path: Path, target: str) -> None:
    """The library continues the counters: the next message has the next number."""
    make_file_with_data(path)
    move(path, target)

    async def go_on() -> list[str]:
        async with PostgresConversationMemory(target, min_size=1) as memory:
            await memory.add_message("one", "user", "next", message_id="next")
            return [row["id"] for row in await memory.get_history("one")]

    assert asyncio.run(go_on()) == ["m3", "m4", "m1", "m6", "next"]
    report = move(path, target, mode=Mode.VERIFY)
    assert report.status is Status.IDENTICAL
    assert report.verification is not None
    assert report.verification.added_since == 1


def test_a_second_run_moves_only_what_is_new(path: Path, target: str) -> None:
    """Stored rows are skipped; new messages of a stored session continue its counter."""
    make_file_with_data(path)
    move(path, target)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        add(db, "m7", "one", when="2026-02-05T15:17:09.000000")
        db.execute("UPDATE sessions SET updated_at = '2026-02-05T16:00:00' WHERE id = 'one'")
        add_sessions(db, "three")
    report = move(path, target, batch_size=2)
    assert report.status is Status.IDENTICAL
    assert report.moved is not None
    moved = report.moved
    assert (moved.sessions, moved.messages, moved.skipped_sessions, moved.skipped_messages) == (1, 1, 2, 6)
    sessions, messages = everything(target)
    assert [(row[0], row[6]) for row in sessions] == [("one", 5), ("three", 0), ("two", 2)]
    assert [row[1] for row in messages if row[0] == "one"] == ["m3", "m4", "m1", "m6", "m7"]


@pytest.mark.parametrize("column", ["role", "content", "metadata", "created_at"])
def test_a_message_with_another_content_is_a_conflict(path: Path, target: str, column: str) -> None:
    """A conflict is reported and never overwritten, and the exit code shows it."""
    make_file_with_data(path)
    move(path, target)
    value = {"metadata": '{"n": 2}', "created_at": "2026-01-01"}.get(column, "changed")
    asyncio.run(execute(target, f"UPDATE messages SET {column} = '{value}' WHERE id = 'm1'"))
    before = everything(target)
    report = move(path, target)
    assert (report.status, report.exit_code) == (Status.DIFFERENT, 1)
    assert report.moved is not None
    assert report.moved.first_conflicts == ["message m1"]
    assert report.verification is not None
    assert report.verification.first_differences == ["message differs: m1 of session one"]
    assert everything(target) == before


def test_no_room_for_what_differs_is_said(path: Path, target: str) -> None:
    """A full temporary directory is reported as such, not as a fault of the server or the network."""
    make_random(path, sessions=200, messages=200)
    move(path, target)
    asyncio.run(execute(target, "UPDATE sessions SET title = 'changed'"))
    limited = ExitStack()
    verifying = Trigger("Verify", lambda: limited.enter_context(small_files()))
    with limited, pytest.raises(MigrationError, match=r"cannot hold the rows on their way.*TMPDIR"):
        asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=target, mode=Mode.VERIFY), verifying))


@pytest.mark.parametrize("column", ["title", "metadata", "user_id", "created_at"])
def test_a_session_with_another_content_keeps_its_messages_back(path: Path, target: str, column: str) -> None:
    """Messages are not added to a session in conflict, which may belong to another user."""
    make_file_with_data(path)
    make_tables(target)
    value = {"metadata": '{"n": 2}', "created_at": "2026-01-01"}.get(column, "changed")
    asyncio.run(
        execute(
            target,
            "INSERT INTO sessions (id, user_id, title, metadata, created_at, updated_at) VALUES "
            f"('one', '', 'title of one', '{{\"lang\": \"ko\"}}', '{WHEN}', '{WHEN}')",
            f"UPDATE sessions SET {column} = '{value}'",
        )
    )
    report = move(path, target, batch_size=2)
    assert report.status is Status.DIFFERENT
    assert report.moved is not None
    moved = report.moved
    assert (moved.sessions, moved.messages, moved.conflicting_sessions, moved.held_back) == (1, 2, 1, 4)
    assert {row[0] for row in everything(target)[1]} == {"two"}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("DELETE FROM messages WHERE id = 'm3'", "message missing: m3 of session one"),
        ("DELETE FROM sessions WHERE id = 'two'", "session missing: two with 2 messages"),
        ("UPDATE sessions SET title = 'x' WHERE id = 'one'", "session's title differs: one"),
        ("UPDATE sessions SET updated_at = now() WHERE id = 'one'", "session's updated_at differs: one"),
        ("UPDATE messages SET seq = 9 WHERE id = 'm3'", "message out of order: m4 of session one"),
        ("UPDATE sessions SET message_count = 9 WHERE id = 'one'", "message_count differs"),
        (
            "UPDATE messages SET seq = seq + 100 WHERE session_id = 'one'",
            "seq does not count the messages from 1 on: one",
        ),
        ("UPDATE messages SET seq = 0 WHERE id = 'm3'", "seq does not count the messages from 1 on: one"),
        ("ALTER TABLE sessions DROP CONSTRAINT sessions_pkey CASCADE", "key missing: PRIMARY KEY (id) on sessions"),
        (
            "ALTER TABLE messages DROP CONSTRAINT messages_pkey",
            "key missing: PRIMARY KEY (session_id, seq) on messages",
        ),
        (
            "ALTER TABLE messages DROP CONSTRAINT messages_session_id_id_key; CREATE UNIQUE INDEX ON messages (id)",
            "key missing: UNIQUE (session_id, id) on messages",
        ),
        ("ALTER TABLE messages DROP CONSTRAINT messages_session_id_fkey", "key missing: FOREIGN KEY (session_id)"),
        ("ALTER TABLE messages DISABLE TRIGGER ALL", "key missing: FOREIGN KEY (session_id)"),
        (
            "SET session_replication_role = replica; UPDATE messages SET session_id = 'gone' WHERE id = 'm1'",
            "messages without their session: gone",
        ),
        ("UPDATE messages SET metadata = '{\"n\": 1}' WHERE id = 'm3'", "message differs: m3 of session one"),
        ("UPDATE messages SET created_at = created_at + interval '1 us' WHERE id = 'm3'", "message differs: m3"),
        ("UPDATE messages SET content = content || ' ' WHERE id = 'm3'", "message differs: m3 of session one"),
    ],
)
def test_verification_sees_every_kind_of_damage(path: Path, target: str, damage: str, says: str) -> None:
    """Verification compares content, not counts, and names each difference."""
    make_file_with_data(path)
    move(path, target)
    asyncio.run(execute(target, damage))
    report = move(path, target, mode=Mode.VERIFY)
    assert (report.status, report.exit_code) == (Status.DIFFERENT, 1)
    assert report.verification is not None
    assert any(found.startswith(says) for found in report.verification.first_differences)


@pytest.mark.parametrize("generation", [1, 2])
def test_the_original_applications_tables_are_added_to(path: Path, target: str, generation: int) -> None:
    """PostgreSQL tables of the original application are upgraded; their rows are kept and added to."""
    asyncio.run(make_original(target, generation=generation))
    kept = asyncio.run(rows(target, "SELECT count(*) FROM messages"))[0][0]
    assert kept
    make_random(path, sessions=3, messages=10)
    report = move(path, target)
    assert report.status is Status.IDENTICAL
    assert report.verification is not None
    assert report.verification.target_messages == kept + 10


def test_several_migrations_at_once_are_one(path: Path, target: str) -> None:
    """Concurrent migrations wait for each other; each proves the same result."""
    make_random(path, sessions=20, messages=300)
    reports = run(*(lambda: migrate(Plan(sqlite_path=path, postgres_dsn=target)) for _ in range(4)))
    assert {report.status for report in reports} == {Status.IDENTICAL}
    sessions, messages = everything(target)
    assert (len(sessions), len(messages)) == (20, 300)


def test_migrations_into_a_populated_target_at_once_are_one(path: Path, target: str) -> None:
    """Two merges and an application that add to the same sessions lose nothing."""
    make_random(path, sessions=5, messages=200)
    with closing(make_file(path.with_name("some.db"), generation=2)) as db:
        add_session(db, "other")
    move(path.with_name("some.db"), target)

    async def application() -> int:
        added = 0
        async with PostgresConversationMemory(target) as memory:
            while not stop.is_set():
                for session in await memory.get_sessions():
                    await memory.add_message(session["id"], "user", f"added {added}", message_id=f"added-{added}")
                    added += 1
        return added

    async def migrations() -> list[Any]:
        plans = [
            Plan(sqlite_path=path, postgres_dsn=target, batch_size=7),
            Plan(sqlite_path=path, postgres_dsn=target, batch_size=11),
        ]
        try:
            return await asyncio.gather(*(migrate(plan) for plan in plans))
        finally:
            stop.set()

    stop = asyncio.Event()
    reports, added = run(migrations, application)
    assert {report.status for report in reports} == {Status.IDENTICAL}
    sessions, messages = everything(target)
    assert len(messages) == 200 + added
    assert sum(row[6] for row in sessions) == len(messages)


def test_an_application_writes_to_the_source_meanwhile(path: Path, target: str) -> None:
    """Writes before the snapshot are moved and proven; a second run moves the rest; nothing is lost."""
    stop = asyncio.Event()
    written: list[str] = []

    async def application(memory: ConversationMemory) -> None:
        while not stop.is_set():
            written.append(await memory.add_message("busy", "user", f"message {len(written)}"))

    async def migrations() -> list[Status]:
        async with ConversationMemory(path) as memory:
            await memory.create_session(session_id="busy")
            writing = asyncio.create_task(application(memory))
            statuses = [(await migrate(Plan(sqlite_path=path, postgres_dsn=target))).status for _ in range(3)]
            stop.set()
            await writing
            statuses.append((await migrate(Plan(sqlite_path=path, postgres_dsn=target))).status)
        return statuses

    assert set(asyncio.run(migrations())) == {Status.IDENTICAL}
    assert [row[1] for row in everything(target)[1]] == written


def test_a_lock_that_is_never_given_up_is_named(path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names an application's open transaction as the reason."""
    monkeypatch.setattr("flux_memory.transfer.target.load._LOCK_TIMEOUT", "SET LOCAL lock_timeout = '100ms'")
    make_file_with_data(path)
    make_tables(target)

    async def work() -> None:
        async with connected(target) as connection, connection.transaction():
            await connection.fetch("SELECT * FROM messages")
            await migrate(Plan(sqlite_path=path, postgres_dsn=target))

    with pytest.raises(MigrationError, match="pg_stat_activity"):
        asyncio.run(work())
    assert everything(target) == ([], [])


def test_a_role_that_does_not_own_the_tables_can_load(path: Path, target: str) -> None:
    """Without the right to rebuild keys, rows are merged in batches."""
    make_file_with_data(path)
    make_tables(target)
    with role(target) as (name, dsn):
        asyncio.run(
            execute(
                target,
                f"GRANT SELECT, INSERT ON sessions, messages TO {name}",
                f"GRANT UPDATE ON sessions TO {name}",
                f"GRANT SELECT ON flux_memory_schema TO {name}",
            )
        )
        assert move(path, dsn).status is Status.IDENTICAL


@pytest.mark.parametrize("mode", [Mode.PREFLIGHT, Mode.MOVE])
@pytest.mark.parametrize(
    ("lacking", "says"),
    [
        ("REVOKE INSERT ON messages FROM {role}", "GRANT INSERT ON sessions, messages"),
        ("REVOKE UPDATE ON sessions FROM {role}", "UPDATE ON sessions"),
        ("REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC", "GRANT TEMPORARY ON DATABASE {database}"),
    ],
)
def test_a_right_that_is_lacking_is_found_before_anything_is_moved(
    path: Path, target: str, lacking: str, says: str, mode: Mode
) -> None:
    """A dry run finds missing rights that the move needs."""
    make_file_with_data(path)
    make_tables(target)
    database = target.rpartition("/")[2].partition("?")[0]
    with role(target) as (name, dsn):
        asyncio.run(
            execute(
                target,
                f"GRANT SELECT, INSERT, UPDATE ON sessions, messages TO {name}",
                f"GRANT SELECT ON flux_memory_schema TO {name}",
                lacking.format(role=name, database=database),
            )
        )
        with pytest.raises(SchemaError, match=says.format(database=database)):
            move(path, dsn, mode=mode)
    assert everything(target) == ([], [])


def test_who_may_only_read_can_compare(path: Path, target: str) -> None:
    """`--verify` needs no right to write, and ignores an existing quarantine file."""
    make_file_with_data(path)
    assert move(path, target).status is Status.IDENTICAL
    held = path.with_name("held.jsonl")
    held.write_text("of the migration")
    comparison = {"mode": Mode.VERIFY, "on_invalid": OnInvalid.QUARANTINE, "quarantine_file": held}
    with role(target) as (name, dsn):
        asyncio.run(execute(target, f"GRANT SELECT ON flux_memory_schema TO {name}"))
        with pytest.raises(SchemaError, match="GRANT SELECT ON sessions, messages"):
            move(path, dsn, **comparison)
        asyncio.run(execute(target, f"GRANT SELECT ON sessions, messages TO {name}"))
        assert move(path, dsn, **comparison).status is Status.IDENTICAL


@pytest.mark.parametrize(
    ("prepare", "kind", "says"),
    [
        ("REVOKE ALL ON SCHEMA public FROM PUBLIC", SchemaError, "GRANT USAGE, CREATE ON SCHEMA"),
        ("REVOKE CREATE ON SCHEMA public FROM PUBLIC", SchemaError, "GRANT CREATE ON SCHEMA public"),
        ("CREATE TABLE sessions (cookie TEXT)", SchemaError, "not conversation memory"),
    ],
)
def test_a_target_that_cannot_take_rows_says_why(
    path: Path, target: str, prepare: str, kind: type[FluxMemoryError], says: str
) -> None:
    """A target without rights, or with another application's tables, is refused."""
    make_file_with_data(path)
    asyncio.run(execute(target, prepare))
    with role(target) as (_, guest), pytest.raises(kind, match=says):
        move(path, guest if "REVOKE" in prepare else target)


def test_a_newer_target_is_refused(path: Path, target: str) -> None:
    """The tables of a later release are left unchanged."""
    make_file_with_data(path)
    make_tables(target)
    asyncio.run(execute(target, "INSERT INTO flux_memory_schema (version, name, checksum) VALUES (99, 'x', 'x')"))
    with pytest.raises(SchemaError, match="upgrade flux-memory"):
        move(path, target)


def test_a_read_only_target_is_refused_and_can_still_be_read_back(path: Path, target: str) -> None:
    """A replica is refused as a target, and accepted as a source."""
    make_file_with_data(path)
    move(path, target)
    name = target.rpartition("/")[2].partition("?")[0]
    asyncio.run(execute(target, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
    with pytest.raises(MigrationError, match="read-only"):
        move(path, target)
    assert asyncio.run(migrate_back(target, path.with_name("back.db"))).status is Status.IDENTICAL


def test_an_unreachable_target_says_so_and_shows_no_password(path: Path) -> None:
    """An unreachable server or an invalid DSN is an error that does not show the password."""
    make_file_with_data(path)
    with pytest.raises(BackendUnavailableError, match="nothing listens") as caught:
        move(path, "postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="scheme"):
        move(path, "mysql://127.0.0.1/none")


def test_the_way_back_overwrites_nothing_and_leaves_nothing(path: Path, target: str) -> None:
    """An existing file is kept, a missing directory is named, and no partial file is left."""
    make_file_with_data(path)
    move(path, target)
    before = path.read_bytes()
    with pytest.raises(MigrationError, match="not overwritten"):
        asyncio.run(migrate_back(target, path))
    assert path.read_bytes() == before
    with pytest.raises(MigrationError, match="check the directory"):
        asyncio.run(migrate_back(target, path.parent / "nowhere" / "back.db"))
    assert [file.name for file in path.parent.iterdir()] == ["chat.db"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE messages SET created_at = 'infinity'", "a time outside the years 1 to 9999"),
        ("UPDATE sessions SET updated_at = '0044-03-15 BC'", "a time outside the years 1 to 9999"),
        ("UPDATE messages SET metadata = NULL", "session one of .* has a NULL"),
        ("UPDATE sessions SET title = NULL", "session one of .* has a NULL"),
    ],
)
def test_the_way_back_ends_at_once_over_what_no_file_can_hold(path: Path, target: str, damage: str, says: str) -> None:
    """An invalid row ends the export at once, although the driver waits for an end of COPY that it has already seen."""
    make_file_with_data(path)
    move(path, target)
    asyncio.run(execute(target, damage))
    back = path.with_name("back.db")

    async def work() -> None:
        await asyncio.wait_for(migrate_back(target, back), 20)

    with pytest.raises(MigrationError, match=says):
        asyncio.run(work())
    assert not back.exists()


def test_the_way_back_needs_a_memory(target: str, tmp_path: Path) -> None:
    """A database without a memory is refused, not exported as an empty file."""
    with pytest.raises(SchemaError, match="no conversation memory"):
        asyncio.run(migrate_back(target, tmp_path / "back.db"))
    assert list(tmp_path.iterdir()) == []
