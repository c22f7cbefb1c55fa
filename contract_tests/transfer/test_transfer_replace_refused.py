"""What --replace refuses: wrong usage, quarantine files, other owners, and rows of other tables."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from original_application import make_file_with_data
from raw_postgres import create_role, execute, fetch_rows
from transfer_memories import move, read_target
from transfer_processes import invoke_migrate, name_sides

from flux_memory.errors import MigrationError, SchemaError
from flux_memory.transfer import Mode

# Kills itself at the beginning of a phase, or in it after some rows.


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
