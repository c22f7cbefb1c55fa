"""llama-index: `SQLAlchemyChatStore`, which its documentation recommends over all other chat stores."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from sqlalchemy.ext.asyncio import create_async_engine

from harness.contenders import Partial, installed
from harness.samples import Sample


class ChatStore(Partial):
    """One store with a fixed pool."""

    async def open(self, target: str, connections: int) -> None:
        url = target.replace("postgresql://", "postgresql+asyncpg://", 1)
        self.engine = create_async_engine(url, pool_size=connections, max_overflow=0)
        self.store = SQLAlchemyChatStore(table_name="chat", async_database_uri=url, async_engine=self.engine)
        # Creates the table; eight concurrent first calls would race for it.
        await self.store.get_messages("none")

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        if samples:
            await self.store.add_messages(session, [_message(each) for each in samples])

    async def add(self, session: str, sample: Sample) -> None:
        await self.store.add_message(session, _message(sample))

    async def history(self, session: str, limit: int) -> Sequence[object]:
        # Its own limit returns the oldest messages.
        found: list[object] = await self.store.get_messages(session)
        return found[-limit:]

    def versions(self) -> dict[str, str]:
        return installed("llama-index-core", "SQLAlchemy", "asyncpg")

    async def close(self) -> None:
        await self.engine.dispose()


def _message(sample: Sample) -> ChatMessage:
    return ChatMessage(role=sample.role, content=sample.content, additional_kwargs=sample.metadata)
