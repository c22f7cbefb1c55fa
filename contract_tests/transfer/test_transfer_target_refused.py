"""Tests the targets that a migration refuses: missing rights, foreign or newer tables, unreachable servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from original_application import make_file_with_data
from raw_postgres import execute
from transfer_memories import make_tables, move, read_target

from flux_memory.errors import BackendUnavailableError, FluxMemoryError, InvalidInputError, MigrationError, SchemaError
from flux_memory.transfer import Mode, OnInvalid, Status, migrate_back


@contextmanager
def temporary_role(dsn: str) -> Iterator[tuple[str, str]]:
    """Create a role, shared by all databases of the server; return its name and its DSN."""
    name = f"role_{uuid4().hex}"
    asyncio.run(execute(dsn, f"CREATE ROLE {name} LOGIN PASSWORD 'word'"))
    scheme, _, rest = dsn.partition("://")
    try:
        yield name, f"{scheme}://{name}:word@{rest.rpartition('@')[2]}"
    finally:
        asyncio.run(execute(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}"))


def test_a_role_that_does_not_own_the_tables_can_load(path: Path, target: str) -> None:
    """Without the right to rebuild keys, rows are merged in batches."""
    make_file_with_data(path)
    make_tables(target)
    with temporary_role(target) as (name, dsn):
        asyncio.run(
            execute(
                target,
                f"GRANT SELECT, INSERT ON sessions, session_details, messages, feedback TO {name}",
                f"GRANT UPDATE ON sessions TO {name}",
                f"GRANT SELECT ON flux_memory_schema TO {name}",
            )
        )
        assert move(path, dsn).status is Status.IDENTICAL


@pytest.mark.parametrize("mode", [Mode.PREFLIGHT, Mode.MOVE])
@pytest.mark.parametrize(
    ("lacking", "says"),
    [
        ("REVOKE INSERT ON messages FROM {role}", "GRANT INSERT ON sessions, session_details, messages, feedback"),
        (
            "REVOKE INSERT ON session_details FROM {role}",
            "GRANT INSERT ON sessions, session_details, messages, feedback",
        ),
        ("REVOKE UPDATE ON sessions FROM {role}", "UPDATE ON sessions"),
        ("REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC", "GRANT TEMPORARY ON DATABASE {database}"),
    ],
)
def test_a_missing_right_is_found_before_rows_are_moved(
    path: Path, target: str, lacking: str, says: str, mode: Mode
) -> None:
    """A dry run finds missing rights that the move needs."""
    make_file_with_data(path)
    make_tables(target)
    database = target.rpartition("/")[2].partition("?")[0]
    with temporary_role(target) as (name, dsn):
        asyncio.run(
            execute(
                target,
                f"GRANT SELECT, INSERT, UPDATE ON sessions, session_details, messages, feedback TO {name}",
                f"GRANT SELECT ON flux_memory_schema TO {name}",
                lacking.format(role=name, database=database),
            )
        )
        with pytest.raises(SchemaError, match=says.format(database=database)):
            move(path, dsn, mode=mode)
    assert read_target(target) == ([], [])


def test_a_reader_can_compare(path: Path, target: str) -> None:
    """`--verify` needs no right to write, and ignores an existing quarantine file."""
    make_file_with_data(path)
    assert move(path, target).status is Status.IDENTICAL
    held = path.with_name("held.jsonl")
    held.write_text("of the migration")
    comparison = {"mode": Mode.VERIFY, "on_invalid": OnInvalid.QUARANTINE, "quarantine_file": held}
    with temporary_role(target) as (name, dsn):
        asyncio.run(execute(target, f"GRANT SELECT ON flux_memory_schema TO {name}"))
        with pytest.raises(SchemaError, match="GRANT SELECT ON sessions, session_details, messages, feedback"):
            move(path, dsn, **comparison)
        asyncio.run(execute(target, f"GRANT SELECT ON sessions, session_details, messages, feedback TO {name}"))
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
    with temporary_role(target) as (_, guest), pytest.raises(kind, match=says):
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
