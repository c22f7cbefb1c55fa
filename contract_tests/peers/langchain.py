"""langchain-postgres: a history object for each call, on one psycopg connection for each handle, as documented."""

from __future__ import annotations

import asyncio
from typing import Any

from adapting import Adapter, checked_count, message, refuse_given, translating
from langchain_core.messages import ChatMessage
from langchain_postgres import PostgresChatMessageHistory
from psycopg import AsyncConnection

from flux_memory import InvalidInputError
from flux_memory.records import make_id
from flux_memory.testkit import Capability

CAPABILITIES = (
    Capability.BATCH
    | Capability.MESSAGE_IDS
    | Capability.MESSAGE_METADATA
    | Capability.DURABLE
    | Capability.SEVERAL_HANDLES
    | Capability.SEVERAL_PROCESSES
)
TABLE = "chat_history"


class LangChain(Adapter):
    """Messages are `ChatMessage`s, which take any role. The adapter applies `limit`, because the peer reads all."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.opening = asyncio.Lock()
        self.connection: AsyncConnection[Any] | None = None

    async def history(self, session_id: str) -> PostgresChatMessageHistory:
        """Return the history object of a conversation; session ids are UUIDs as text."""
        self.check_open()
        async with self.opening:
            if self.connection is None:
                self.connection = await AsyncConnection.connect(self.dsn)
                await PostgresChatMessageHistory.acreate_tables(self.connection, TABLE)
        with translating({ValueError: InvalidInputError}):
            return PostgresChatMessageHistory(TABLE, session_id, async_connection=self.connection)

    async def create_session(
        self, title: str = "", metadata: Any = None, *, session_id: str | None = None, user_id: str = ""
    ) -> str:
        self.check_open()
        refuse_given(title=title, metadata=metadata, session_id=session_id, user_id=user_id)
        made = make_id()
        await self.history(made)
        return made

    async def add_message(
        self, session_id: str, role: str, content: str, metadata: Any = None, *, message_id: str | None = None
    ) -> str:
        self.check_open()
        refuse_given(message_id=message_id)
        one = {"role": role, "content": content, "metadata": metadata}
        return (await self.add_messages(session_id, [one]))[0]

    async def add_messages(self, session_id: str, messages: Any) -> list[str]:
        self.check_open()
        made = []
        for one in messages:
            refuse_given(message_id=one.get("message_id"))
            with translating({ValueError: InvalidInputError}):
                made.append(_message(one))
        history = await self.history(session_id)
        await history.aadd_messages(made)
        return [str(one.id) for one in made]

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None
    ) -> list[dict[str, Any]]:
        refuse_given(before=before)
        found = await (await self.history(session_id)).aget_messages()
        newest = found if limit is None else found[max(len(found) - checked_count("limit", limit), 0) :]
        return [message(one.role, one.content, one.additional_kwargs, one.id) for one in newest]

    async def delete_session(self, session_id: str) -> None:
        await (await self.history(session_id)).aclear()

    async def close(self) -> None:
        self.closed = True
        if self.connection is not None:
            await self.connection.close()


def _message(one: Any) -> ChatMessage:
    # The peer's validation raises a ValueError for values that are not text.
    return ChatMessage(
        content=one["content"], role=one["role"], additional_kwargs=one.get("metadata") or {}, id=make_id()
    )
