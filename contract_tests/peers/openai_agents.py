"""openai-agents: a session object for each conversation, created at its first use and kept."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from adapting import Adapter, message, refuse_given, translating
from agents import SQLiteSession
from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import create_async_engine

from flux_memory import MemoryClosedError
from flux_memory.testkit import Capability

CAPABILITIES = (
    Capability.BATCH
    | Capability.SESSION_IDS
    | Capability.DURABLE
    | Capability.SEVERAL_HANDLES
    | Capability.SEVERAL_PROCESSES
)


class OpenAIAgents(Adapter):
    """Items are `{"role": ..., "content": ...}`. They have no ids, and a session exists once it has an item."""

    errors: ClassVar[dict[type[Exception], type[Exception]]] = {}

    def __init__(self) -> None:
        self.sessions: dict[str, Any] = {}

    @abstractmethod
    def made(self, session_id: str) -> Any:
        """Return a new session object."""

    def session(self, session_id: str) -> Any:
        """Return the session object of a conversation."""
        self.check_open()
        if session_id not in self.sessions:
            self.sessions[session_id] = self.made(session_id)
        return self.sessions[session_id]

    async def create_session(
        self, title: str = "", metadata: Any = None, *, session_id: str | None = None, user_id: str = ""
    ) -> str:
        self.check_open()
        refuse_given(title=title, metadata=metadata, user_id=user_id)
        given = str(uuid4()) if session_id is None else session_id
        # Opens the store, as a new handle would.
        await self.session(given).get_items(1)
        return given

    async def add_message(
        self, session_id: str, role: str, content: str, metadata: Any = None, *, message_id: str | None = None
    ) -> str:
        self.check_open()
        refuse_given(metadata=metadata, message_id=message_id)
        await self.add_messages(session_id, [{"role": role, "content": content}])
        return ""

    async def add_messages(self, session_id: str, messages: Any) -> list[str]:
        self.check_open()
        items = list(messages)
        for item in items:
            refuse_given(metadata=item.get("metadata"), message_id=item.get("message_id"))
        with translating(self.errors):
            await self.session(session_id).add_items(items)
        return [""] * len(items)

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None
    ) -> list[dict[str, Any]]:
        refuse_given(before=before)
        items = await self.session(session_id).get_items(limit)
        return [message(item["role"], item["content"]) for item in items]

    async def delete_session(self, session_id: str) -> None:
        await self.session(session_id).clear_session()


class SQLite(OpenAIAgents):
    """`SQLiteSession` on a file. After `close()` its calls raise a `RuntimeError`."""

    errors: ClassVar[dict[type[Exception], type[Exception]]] = {RuntimeError: MemoryClosedError}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def made(self, session_id: str) -> SQLiteSession:
        return SQLiteSession(session_id, self.path)

    async def close(self) -> None:
        self.closed = True
        for session in self.sessions.values():
            await asyncio.to_thread(session.close)


class SQLAlchemy(OpenAIAgents):
    """`SQLAlchemySession` on asyncpg, with an engine for each handle."""

    def __init__(self, dsn: str) -> None:
        super().__init__()
        self.engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://", 1))

    def made(self, session_id: str) -> SQLAlchemySession:
        return SQLAlchemySession(session_id, engine=self.engine, create_tables=True)

    async def close(self) -> None:
        self.closed = True
        await self.engine.dispose()
