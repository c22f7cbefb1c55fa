"""A dry run and the move that follows agree in each world, and the dry run leaves the world as it was."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dry_run_obstacles import OBSTACLES
from dry_run_worlds import MOVES, World
from original_application import make_file_with_data
from raw_postgres import create_role, dump_database, execute, make_original
from transfer_memories import Trigger

from flux_memory import PostgresConversationMemory
from flux_memory.errors import FluxMemoryError
from flux_memory.transfer import Mode, Plan, Status, migrate

WORLDS = MOVES | OBSTACLES


@contextmanager
def made(dsn: str, world: World) -> Iterator[str]:
    """The DSN to move with."""

    async def use() -> None:
        async with PostgresConversationMemory(dsn, min_size=1) as memory:
            await memory.count_sessions()

    if world.tables != "none":
        asyncio.run(make_original(dsn, generation=2) if world.tables == "original" else use())
    with asyncio.Runner() as runner:
        if not world.as_role:
            runner.run(execute(dsn, *world.setup))
            yield dsn
            return
        mover = create_role(dsn)
        own = runner.run(mover.__aenter__())
        try:
            name = own.partition("://")[2].partition(":")[0]
            runner.run(execute(dsn, *(one.format(role=name) for one in world.setup)))
            yield own
        finally:
            runner.run(mover.__aexit__(None, None, None))


def outcome(path: Path, dsn: str, mode: Mode, *, replace: bool) -> tuple[Status | str, str]:
    """How a run ends, an error as its text; and the lines that it said."""
    watcher = Trigger("none", lambda: None)
    try:
        report = asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=dsn, mode=mode, replace=replace), watcher))
    except FluxMemoryError as error:
        return str(error), str(error)
    return report.status, "\n".join(watcher.said)


@pytest.mark.parametrize("world", WORLDS)
def test_a_dry_run_says_what_the_move_does(path: Path, flux_empty_database: str, world: str) -> None:
    """Both end alike and give the same reasons; the dry run changes nothing."""
    make_file_with_data(path)
    there = WORLDS[world]
    with made(flux_empty_database, there) as dsn:
        before = asyncio.run(dump_database(flux_empty_database))
        rehearsed, said = outcome(path, dsn, Mode.PREFLIGHT, replace=there.replace)
        assert asyncio.run(dump_database(flux_empty_database)) == before
        moved, said_again = outcome(path, dsn, Mode.MOVE, replace=there.replace)
    assert rehearsed == (Status.READY if moved is Status.IDENTICAL else moved)
    assert (moved if isinstance(moved, Status) else None) == there.status
    for lines in (said, said_again):
        assert re.search(there.says, lines)
