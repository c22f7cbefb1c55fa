"""The ceiling of SQLite: `sqlite3` called synchronously, with the minimum of code for the same result."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from harness.contenders import Partial, Reply
from harness.samples import Sample, as_json

SCHEMA = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, user_id TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    message_count INTEGER NOT NULL DEFAULT 0, revision TEXT NOT NULL
);
CREATE TABLE session_details (
    session_id TEXT NOT NULL PRIMARY KEY REFERENCES sessions(id) ON DELETE CASCADE, title TEXT NOT NULL,
    metadata TEXT NOT NULL
);
CREATE TABLE messages (
    session_id TEXT NOT NULL REFERENCES sessions(id) ON DELETE CASCADE, id TEXT NOT NULL, seq INTEGER NOT NULL,
    role TEXT NOT NULL, content TEXT NOT NULL, metadata TEXT, created_at TEXT NOT NULL,
    PRIMARY KEY (session_id, seq), UNIQUE (session_id, id)
);
CREATE INDEX sessions_by_activity ON sessions(updated_at, id);
CREATE INDEX sessions_of_user_by_activity ON sessions(user_id, updated_at, id);
"""
BUMP = """
UPDATE sessions SET message_count = message_count + 1, updated_at = ?, revision = ? WHERE id = ?
RETURNING message_count
"""
INSERT = "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)"
HISTORY = """
SELECT id, role, content, metadata, created_at FROM messages WHERE session_id = ? ORDER BY seq DESC LIMIT ?
"""


class RawSQLite(Partial):
    """The library's tables and promises, one transaction per add, one caller at a time."""

    synchronous = True

    async def open(self, target: str, connections: int) -> None:
        self.db = sqlite3.connect(target, isolation_level=None)
        self.db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; {SCHEMA}")

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        now = _now()
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute(
            "INSERT INTO sessions VALUES (?, 'bench', ?, ?, ?, ?)", (session, now, now, len(samples), str(uuid4()))
        )
        self.db.execute("INSERT INTO session_details VALUES (?, '', '{}')", (session,))
        self.db.executemany(
            INSERT,
            [
                (session, str(uuid4()), seq, each.role, each.content, as_json(each), now)
                for seq, each in enumerate(samples, 1)
            ],
        )
        self.db.execute("COMMIT")

    def add(self, session: str, sample: Sample) -> str:
        now, id_ = _now(), str(uuid4())
        self.db.execute("BEGIN IMMEDIATE")
        ((seq,),) = self.db.execute(BUMP, (now, str(uuid4()), session)).fetchall()
        self.db.execute(INSERT, (session, id_, seq, sample.role, sample.content, json.dumps(sample.metadata), now))
        self.db.execute("COMMIT")
        return id_

    def history(self, session: str, limit: int) -> list[dict[str, object]]:
        rows = self.db.execute(HISTORY, (session, limit)).fetchall()
        return [
            {"id": id_, "role": role, "content": content, "metadata": json.loads(metadata), "created_at": created_at}
            for id_, role, content, metadata, created_at in reversed(rows)
        ]

    def versions(self) -> dict[str, str]:
        return {"sqlite": sqlite3.sqlite_version}

    async def close(self) -> None:
        self.db.close()


class SQLiteOnAThread(Partial):
    """The same on its own thread, one call at a time: measures the cost of not blocking the event loop."""

    async def open(self, target: str, connections: int) -> None:
        self.raw = RawSQLite()
        self.loop = asyncio.get_running_loop()
        self.calls: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        # The connection belongs to the thread.
        await self._call(lambda: asyncio.run(self.raw.open(target, connections)))

    def _serve(self) -> None:
        while (call := self.calls.get()) is not None:
            future, work = call
            self.loop.call_soon_threadsafe(future.set_result, work())

    def _call(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.loop.create_future()
        self.calls.put((future, work))
        return future

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        await self._call(lambda: asyncio.run(self.raw.fill(session, samples)))

    def add(self, session: str, sample: Sample) -> Reply:
        return self._call(partial(self.raw.add, session, sample))

    def history(self, session: str, limit: int) -> Reply:
        return self._call(partial(self.raw.history, session, limit))

    def versions(self) -> dict[str, str]:
        return self.raw.versions()

    async def close(self) -> None:
        await self._call(lambda: asyncio.run(self.raw.close()))
        self.calls.put(None)
        self.thread.join()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
