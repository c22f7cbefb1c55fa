"""A store of either engine, and what the tests of the operator's commands do with it beside the library."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raw_postgres import fetch_rows

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory


@dataclass(frozen=True)
class PlainStore:
    """The store of one test."""

    place: str
    """The file or the DSN."""

    @property
    def is_server(self) -> bool:
        """Whether it is on PostgreSQL."""
        return "://" in self.place

    @property
    def options(self) -> tuple[str, str]:
        """The options by which a command takes it."""
        return ("--postgres-dsn" if self.is_server else "--sqlite-path", self.place)

    def open(self) -> Memory:
        """Return a memory on it."""
        return PostgresConversationMemory(self.place) if self.is_server else ConversationMemory(self.place)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement without the library, and return its rows."""
        if self.is_server:
            return asyncio.run(fetch_rows(self.place, sql))
        with closing(sqlite3.connect(Path(self.place), isolation_level=None)) as db:
            db.execute("PRAGMA foreign_keys = ON")
            return db.execute(sql).fetchall()

    def count(self) -> tuple[int, int]:
        """Return the numbers of rows of sessions and of messages."""
        (row,) = self.execute("SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM messages)")
        return row[0], row[1]

    def fill(self, sessions: int, *, messages: int = 3, user: str = "", prefix: str = "s", last: str = "") -> None:
        """Store sessions of a user; their last changes are `last`, in UTC, and the microseconds after it."""

        async def add() -> None:
            batch: Any = [{"role": "user", "content": f"text {number}"} for number in range(messages)]
            async with self.open() as memory:
                await asyncio.gather(
                    *(
                        memory.add_messages(f"{prefix}{number}", batch, create=True, user_id=user)
                        for number in range(sessions)
                    )
                )

        asyncio.run(add())
        if last:
            number = f"CAST(substr(id, {len(prefix) + 1}) AS INTEGER)"
            moment = (
                f"TIMESTAMP '{last}' + {number} * INTERVAL '1 microsecond'"
                if self.is_server
                else f"'{last}.' || printf('%06d', {number}) || '+00:00'"
            )
            self.execute(f"UPDATE sessions SET updated_at = {moment} WHERE id LIKE '{prefix}%'")
