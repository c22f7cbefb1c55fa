"""This library, through its public names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import asyncpg

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory
from harness.contenders import Partial, Reply, installed
from harness.samples import Sample

_BATCH_ROWS = 500


class _Flux(Partial):
    memory: Memory

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        await self.memory.create_session(session_id=session, user_id="bench", metadata={"lang": "en"})
        for at in range(0, len(samples), _BATCH_ROWS):
            await self.memory.add_messages(
                session,
                [
                    {"role": each.role, "content": each.content, "metadata": each.metadata}
                    for each in samples[at : at + _BATCH_ROWS]
                ],
            )

    def add(self, session: str, sample: Sample) -> Reply:
        return self.memory.add_message(session, sample.role, sample.content, sample.metadata)

    def history(self, session: str, limit: int) -> Reply:
        return self.memory.get_history(session, limit)

    def listing(self, limit: int) -> Reply:
        return self.memory.get_sessions(limit)

    async def close(self) -> None:
        await self.memory.close()


class FluxPostgres(_Flux):
    """`PostgresConversationMemory`, with a fixed pool that is open from the start."""

    async def open(self, target: str, connections: int) -> None:
        self.memory = PostgresConversationMemory(target, min_size=connections, max_size=connections)

    def versions(self) -> dict[str, str]:
        return installed("flux-memory", "asyncpg")


class FluxPostgresUnflushed(FluxPostgres):
    """The same with `synchronous_commit=off`, which loses acknowledged messages when the server crashes."""

    async def open(self, target: str, connections: int) -> None:
        connection = await asyncpg.connect(target)
        name = await connection.fetchval("SELECT quote_ident(current_database())")
        await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        await connection.close()
        await super().open(target, connections)


class FluxSQLite(_Flux):
    """`ConversationMemory` with its defaults: WAL and synchronous=FULL."""

    async def open(self, target: str, connections: int) -> None:
        self.memory = ConversationMemory(Path(target))

    def versions(self) -> dict[str, str]:
        return installed("flux-memory", "aiosqlite")
