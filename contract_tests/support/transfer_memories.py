"""Sources and targets of transfers, created and read without the code under test."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

from original_application import INSERT_MESSAGE, INSERT_SESSION, make_file
from raw_postgres import fetch_rows

from flux_memory import PostgresConversationMemory
from flux_memory.transfer import Plan, Report, Watcher, migrate

OTHER = "INSERT INTO sessions (id, created_at, updated_at) VALUES ('kept', '2026-01-01', '2026-01-01')"
HISTORIES = """
SELECT session_id, id, role, content, metadata::text, created_at::text
FROM messages
ORDER BY session_id COLLATE "C", seq
"""
SESSIONS = """
SELECT id, user_id, title, created_at::text, updated_at::text, metadata::text, message_count
FROM sessions LEFT JOIN session_details ON session_id = id
ORDER BY id COLLATE "C"
"""

FORGET = "DROP TABLE IF EXISTS flux_memory_moves, flux_memory_moved_sessions, flux_memory_moved_feedback"
"""Make a target one that no run moved anything into, so that what was deleted there is moved again."""
EMPTY = ("DELETE FROM sessions", FORGET)


def move(path: Path, dsn: str, watcher: Watcher | None = None, **plan: Any) -> Report:
    """Migrate on a new event loop."""
    return asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=dsn, **plan), watcher))


def complete_migration(path: Path, dsn: str, *, kept: int) -> None:
    """Run an interrupted migration of 6,000 messages again; each row is stored once, beside `kept` other sessions."""
    assert move(path, dsn).exit_code == 0
    sessions, messages = read_target(dsn)
    assert (len(sessions), len(messages)) == (3000 + kept, 6000)
    assert len({row[1] for row in messages}) == 6000


def read_target(dsn: str) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return all rows of a target, messages in order; empty lists if it has no tables."""

    async def read() -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        if await fetch_rows(dsn, "SELECT WHERE to_regclass('sessions') IS NULL"):
            return [], []
        return await fetch_rows(dsn, SESSIONS), await fetch_rows(dsn, HISTORIES)

    return asyncio.run(read())


def run_concurrently(*work: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run coroutines concurrently."""

    async def together() -> list[Any]:
        return await asyncio.gather(*(one() for one in work))

    return asyncio.run(together())


def make_random_file(path: Path, *, sessions: int, messages: int, seed: int = 1) -> None:
    """Create a file of the original application, with random order of ids and times."""
    rng = random.Random(seed)
    with closing(make_file(path, generation=2)) as db:
        db.execute("BEGIN")
        ids = [f"s-{rng.getrandbits(48):012x}" for _ in range(sessions)]
        for id_ in ids:
            insert_session(db, id_, title=f"about {id_} 한국어")
        for number in range(messages):
            when = f"2026-02-05T{rng.randrange(24):02}:00:{rng.randrange(60):02}.{rng.randrange(1_000_000):06}"
            metadata = json.dumps({"n": number, "score": rng.random(), "text": "é\u2028\n"})
            insert_message(db, f"m-{number}", rng.choice(ids), when=when, metadata=metadata)
        db.execute("COMMIT")


def insert_session(db: sqlite3.Connection, id_: object, **columns: Any) -> None:
    """Store a session with valid or invalid values."""
    when = columns.get("when", "2026-02-05T15:17:45.407069")
    metadata = columns.get("metadata", "{}")
    db.execute(INSERT_SESSION, (id_, columns.get("title", "title"), when, columns.get("updated", when), metadata))


def insert_message(db: sqlite3.Connection, id_: object, session: object, **columns: Any) -> None:
    """Store a message with valid or invalid values."""
    db.execute(
        INSERT_MESSAGE,
        (
            id_,
            session,
            columns.get("role", "user"),
            columns.get("content", f"content of {id_!r}"),
            columns.get("metadata", "{}"),
            columns.get("when", "2026-02-05T15:17:45.407069"),
        ),
    )


def make_old(path: Path) -> None:
    """Set a file's mtime to a time long ago."""
    os.utime(path, (1_000_000_000, 1_000_000_000))


class Trigger:
    """A watcher that acts at the start of a phase, or after some of its rows."""

    def __init__(self, name: str, act: Callable[[], object], *, after_rows: int = 0) -> None:
        self._name = name
        self._act = act
        self._left = after_rows
        self._phase = ""
        self.acted = False
        self.said: list[str] = []
        self.rows = 0
        """Number of rows reported in all phases."""

    def phase(self, name: str, rows: int | None) -> None:
        self._phase = name
        self.advance(0)

    def advance(self, rows: int) -> None:
        self.rows += rows
        if self._phase == self._name and not self.acted:
            self._left -= rows
            if self._left <= 0:
                self.acted = True
                self._act()

    def say(self, line: str) -> None:
        self.said.append(line)


def make_tables(dsn: str) -> None:
    """Let the library create the tables."""

    async def work() -> None:
        async with PostgresConversationMemory(dsn, min_size=1) as memory:
            await memory.count_sessions()

    asyncio.run(work())
