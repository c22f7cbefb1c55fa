"""The method of the application that this library replaces: a connection or a transaction for each call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import aiosqlite
import asyncpg

from harness.contenders import Partial, installed
from harness.samples import Sample, as_json

SCHEMA = """
CREATE TABLE sessions (
    id VARCHAR(36) PRIMARY KEY, title TEXT DEFAULT '', created_at {time} NOT NULL, updated_at {time} NOT NULL,
    metadata {json} DEFAULT '{{}}'
);
CREATE TABLE messages (
    id VARCHAR(36) PRIMARY KEY, session_id VARCHAR(36) NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
    role TEXT NOT NULL, content TEXT NOT NULL, metadata {json} DEFAULT '{{}}', created_at {time} NOT NULL
);
CREATE INDEX idx_messages_session ON messages(session_id, created_at);
"""


class OriginalSQLite(Partial):
    """aiosqlite with a new connection for each call, and SQLite's default journal."""

    async def open(self, target: str, connections: int) -> None:
        self.target = target
        async with aiosqlite.connect(target) as db:
            await db.executescript(SCHEMA.format(time="TEXT", json="TEXT"))

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        # The harness fills several sessions at once and SQLite has one writer: wait longer than the default 5 s.
        async with aiosqlite.connect(self.target, timeout=60) as db:
            now = _now().isoformat()
            await db.execute("INSERT INTO sessions VALUES (?, '', ?, ?, '{}')", (session, now, now))
            await db.executemany(
                "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)",
                [(str(uuid4()), session, s.role, s.content, as_json(s), _now().isoformat()) for s in samples],
            )
            await db.commit()

    async def add(self, session: str, sample: Sample) -> str:
        id_, now = str(uuid4()), _now().isoformat()
        async with aiosqlite.connect(self.target) as db:
            await db.execute(
                "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)",
                (id_, session, sample.role, sample.content, json.dumps(sample.metadata), now),
            )
            await db.execute("UPDATE sessions SET updated_at = ? WHERE id = ?", (now, session))
            await db.commit()
        return id_

    async def history(self, session: str, limit: int) -> list[dict[str, Any]]:
        async with aiosqlite.connect(self.target) as db:
            db.row_factory = aiosqlite.Row
            rows = await db.execute_fetchall(
                "SELECT * FROM messages WHERE session_id = ? ORDER BY created_at DESC LIMIT ?", (session, limit)
            )
        return [{**dict(row), "metadata": json.loads(row["metadata"])} for row in reversed(list(rows))]

    def versions(self) -> dict[str, str]:
        return installed("aiosqlite")

    async def close(self) -> None:
        """Do nothing: each call closes its connection."""


class Postgres(Partial):
    """asyncpg's pool, and an explicit transaction of two statements for each add."""

    async def open(self, target: str, connections: int) -> None:
        self.pool = await asyncpg.create_pool(target, min_size=connections, max_size=connections)
        await self.pool.execute(SCHEMA.format(time="TIMESTAMP", json="JSONB"))

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        now = _now()
        await self.pool.execute("INSERT INTO sessions VALUES ($1, '', $2, $2, '{}')", session, now)
        await self.pool.executemany(
            "INSERT INTO messages VALUES ($1, $2, $3, $4, $5, $6)",
            [(str(uuid4()), session, s.role, s.content, as_json(s), _now()) for s in samples],
        )

    async def add(self, session: str, sample: Sample) -> str:
        id_, now = str(uuid4()), _now()
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO messages VALUES ($1, $2, $3, $4, $5, $6)",
                id_,
                session,
                sample.role,
                sample.content,
                json.dumps(sample.metadata),
                now,
            )
            await connection.execute("UPDATE sessions SET updated_at = $2 WHERE id = $1", session, now)
        return id_

    async def history(self, session: str, limit: int) -> list[dict[str, Any]]:
        async with self.pool.acquire() as connection:
            rows = await connection.fetch(
                "SELECT * FROM messages WHERE session_id = $1 ORDER BY created_at DESC LIMIT $2", session, limit
            )
        return [{**dict(row), "metadata": json.loads(row["metadata"])} for row in reversed(rows)]

    def versions(self) -> dict[str, str]:
        return installed("asyncpg")

    async def close(self) -> None:
        await asyncio.wait_for(self.pool.close(), 10)


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
