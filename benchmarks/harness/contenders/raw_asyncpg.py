"""The ceiling of one Python process on PostgreSQL: asyncpg connections kept with their prepared statements."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import asyncpg

from flux_memory import PostgresConversationMemory
from flux_memory.backends.postgres.adds import ADD_MESSAGE
from flux_memory.backends.postgres.queries import SELECT_HISTORY, select_page
from harness.contenders import Partial, Reply, installed
from harness.samples import Sample, as_json

SELECT_PAGE, _ = select_page(1, 0)


class RawAsyncpg(Partial):
    """The library's tables and statements, one statement per call, without conversion of rows to records."""

    async def open(self, target: str, connections: int) -> None:
        async with PostgresConversationMemory(target) as memory:
            await memory.count_sessions()
        self.filling = asyncio.Lock()
        self.free: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.connections = [await asyncpg.connect(target) for _ in range(connections)]
        for connection in self.connections:
            self.free.put_nowait(
                {sql: await connection.prepare(sql) for sql in (ADD_MESSAGE, SELECT_HISTORY, SELECT_PAGE)}
            )

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        async with self.filling:
            await self._fill(self.connections[0], session, samples)

    @staticmethod
    async def _fill(connection: Any, session: str, samples: Sequence[Sample]) -> None:
        await connection.execute(
            "WITH session AS (INSERT INTO sessions (id, user_id, created_at, updated_at, message_count) "
            "VALUES ($1, 'bench', now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', $2)) "
            """INSERT INTO session_details (session_id, metadata) VALUES ($1, '{"lang": "en"}')""",
            session,
            len(samples),
        )
        await connection.executemany(
            "INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at) "
            "VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, now() AT TIME ZONE 'UTC')",
            [
                (session, str(uuid4()), seq, each.role, each.content, as_json(each))
                for seq, each in enumerate(samples, 1)
            ],
        )

    def add(self, session: str, sample: Sample) -> Reply:
        values = (session, str(uuid4()), sample.role, sample.content, json.dumps(sample.metadata), str(uuid4()))
        return self._fetch(ADD_MESSAGE, values)

    def history(self, session: str, limit: int) -> Reply:
        return self._fetch(SELECT_HISTORY, (session, limit))

    def listing(self, limit: int) -> Reply:
        return self._fetch(SELECT_PAGE, (limit, 0))

    async def _fetch(self, sql: str, values: tuple[object, ...]) -> Any:
        prepared = await self.free.get()
        try:
            return await prepared[sql].fetch(*values)
        finally:
            self.free.put_nowait(prepared)

    def versions(self) -> dict[str, str]:
        return installed("asyncpg")

    async def close(self) -> None:
        for connection in self.connections:
            await connection.close()
