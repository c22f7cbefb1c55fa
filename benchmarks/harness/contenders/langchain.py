"""langchain-postgres: `PostgresChatMessageHistory` on psycopg's pool, a history object for each call."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_postgres import PostgresChatMessageHistory
from psycopg_pool import AsyncConnectionPool

from harness.contenders import Partial, installed
from harness.samples import Sample

_TABLE = "chat_history"


class HistoryObjects(Partial):
    """Shares connections, not history objects: its documentation calls creating these fast."""

    async def open(self, target: str, connections: int) -> None:
        self.pool = AsyncConnectionPool(target, min_size=connections, max_size=connections, open=False)
        await self.pool.open(wait=True)
        async with self.pool.connection() as connection:
            await PostgresChatMessageHistory.acreate_tables(connection, _TABLE)

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        async with self.pool.connection() as connection:
            history = PostgresChatMessageHistory(_TABLE, _uuid(session), async_connection=connection)
            await history.aadd_messages([_message(each) for each in samples])

    async def add(self, session: str, sample: Sample) -> None:
        await self.fill(session, [sample])

    async def history(self, session: str, limit: int) -> Sequence[object]:
        async with self.pool.connection() as connection:
            history = PostgresChatMessageHistory(_TABLE, _uuid(session), async_connection=connection)
            found: list[object] = await history.aget_messages()
            return found[-limit:]

    def versions(self) -> dict[str, str]:
        return installed("langchain-postgres", "psycopg")

    async def close(self) -> None:
        await self.pool.close()


def _uuid(session: str) -> str:
    return str(UUID(int=int(session)))


def _message(sample: Sample) -> BaseMessage:
    kind = AIMessage if sample.role == "assistant" else HumanMessage
    return kind(content=sample.content, additional_kwargs=sample.metadata)
