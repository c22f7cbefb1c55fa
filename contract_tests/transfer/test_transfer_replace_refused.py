"""What --replace refuses: wrong usage, quarantine files, other owners, and rows of other tables."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from original_application import make_file_with_data
from raw_postgres import create_role, execute, fetch_rows
from transfer_memories import move, read_target
from transfer_processes import invoke_migrate, name_sides

from flux_memory.errors import MigrationError, SchemaError
from flux_memory.transfer import Mode, Status

THERE: Final = "INSERT INTO sessions (id, created_at, updated_at) VALUES ('there', now(), now())"


def test_without_a_terminal_replace_needs_yes(path: Path, target: str) -> None:
    """A script that deletes by --replace says --yes; the refusal says how to look first."""
    make_file_with_data(path)
    refused = invoke_migrate(*name_sides(path, target), "--replace")
    assert refused.exit_code == 2
    told = " ".join(refused.output.split())
    assert "--replace deletes what only PostgreSQL has; look first with --dry-run, then run with --yes" in told
    assert read_target(target) == ([], [])
    assert invoke_migrate(*name_sides(path, target), "--replace", "--yes").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--replace", "--verify"),
        ("--replace", "--to-sqlite", "x"),
        ("--replace", "--retry", "x"),
        ("--replace", "--restore-deleted"),
        ("--restore-deleted", "--verify"),
        ("--restore-deleted", "--to-sqlite", "x"),
    ],
)
def test_options_that_exclude_each_other_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Options that exclude each other are refused before any connection is opened."""
    result = invoke_migrate("--postgres-dsn", "postgresql://127.0.0.1:1/none", "--yes", *arguments)
    assert result.exit_code == 2
    assert "exclude" in result.output


def test_a_quarantine_file_replaces_nothing(path: Path, target: str) -> None:
    """The few rows of a quarantine file never take the place of all others, from a program either."""
    with pytest.raises(MigrationError, match="only some of the rows"):
        move(path, target, replace=True, retry=True)


def test_only_the_owner_replaces(path: Path, target: str) -> None:
    """Another role is refused before the file is read, in a dry run, too."""
    make_file_with_data(path)
    move(path, target)

    async def run() -> None:
        grants = ("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",)
        async with create_role(target, grants=grants) as other:
            for mode in (Mode.PREFLIGHT, Mode.MOVE):
                with pytest.raises(SchemaError, match="does not own the target's tables"):
                    await asyncio.to_thread(move, path, other, replace=True, mode=mode)

    asyncio.run(run())


def test_rows_of_other_tables_are_not_deleted(path: Path, target: str) -> None:
    """A table of the user's that refers to sessions is named, and keeps its rows."""
    make_file_with_data(path)
    move(path, target)
    asyncio.run(
        execute(
            target,
            "CREATE TABLE ratings (session_id VARCHAR(36) REFERENCES sessions ON DELETE CASCADE)",
            "INSERT INTO ratings VALUES ('one')",
        )
    )
    for mode in (Mode.PREFLIGHT, Mode.MOVE):
        with pytest.raises(SchemaError, match=r"other tables refer .* \(ratings\)"):
            move(path, target, replace=True, mode=mode)
    assert asyncio.run(fetch_rows(target, "SELECT session_id FROM ratings")) == [("one",)]


def test_an_owner_without_temporary_tables_replaces(path: Path, target: str) -> None:
    """Only rows that join others are staged in temporary tables; the rows of a replacement are not."""
    make_file_with_data(path)

    async def run() -> None:
        grants = (
            f'REVOKE TEMPORARY ON DATABASE "{urlsplit(target).path[1:]}" FROM PUBLIC',
            "GRANT CREATE ON SCHEMA public TO {role}",
        )
        async with create_role(target, grants=grants) as owner:
            for mode in (Mode.MOVE, Mode.PREFLIGHT, Mode.MOVE):
                report = await asyncio.to_thread(move, path, owner, replace=True, mode=mode)
                assert report.exit_code == 0

    asyncio.run(run())


# What a trigger of the user's does when a row is deleted; `{kept}` is the session that it keeps.
KEEPER: Final = """
CREATE TABLE deleted (name text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
INSERT INTO deleted VALUES (OLD.id); RETURN CASE WHEN OLD.id <> '{kept}' THEN OLD END; END$$;
CREATE TRIGGER note BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION note()
"""


@pytest.mark.parametrize(("table", "noted"), [("sessions", ["one", "two"]), ("messages", ["m1", "m3", "m4", "m6"])])
def test_triggers_see_the_rows_that_are_replaced(path: Path, target: str, table: str, noted: list[str]) -> None:
    """A trigger that keeps a log of deleted rows is not passed by with TRUNCATE."""
    make_file_with_data(path)
    move(path, target)
    asyncio.run(execute(target, KEEPER.format(kept="none", table=table)))
    assert move(path, target, replace=True).status is Status.IDENTICAL
    seen = [name for (name,) in asyncio.run(fetch_rows(target, "SELECT name FROM deleted ORDER BY name"))]
    assert set(noted) <= set(seen)


def test_a_row_that_cannot_be_deleted_undoes_the_replacement(path: Path, target: str) -> None:
    """A trigger keeps a session that the file does not have, so PostgreSQL would have more than the file."""
    make_file_with_data(path)
    move(path, target)
    asyncio.run(execute(target, THERE, KEEPER.format(kept="there", table="sessions")))
    before = read_target(target)
    rehearsed = invoke_migrate(*name_sides(path, target), "--replace", "--dry-run")
    looked = invoke_migrate(*name_sides(path, target), "--replace", "--yes")
    assert (rehearsed.exit_code, looked.exit_code) == (1, 1), rehearsed.output
    assert "Only in PostgreSQL: 1 session" in looked.output
    assert looked.output.endswith("change or drop the triggers that change or keep rows, then run again.\n")
    assert read_target(target) == before
