"""openai-agents: a session object for each conversation, as in its documentation; all share one engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from harness.contenders import Partial, Reply, installed
from harness.samples import Sample


class _OpenAI(Partial, ABC):
    def __init__(self) -> None:
        # Cached: a web application that creates one per request pays for that as well.
        self.sessions: dict[str, Any] = {}

    @abstractmethod
    def of(self, session: str) -> Any:
        """Return the object of a conversation."""

    def session(self, session: str) -> Any:
        if session not in self.sessions:
            self.sessions[session] = self.of(session)
        return self.sessions[session]

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        # Without items it does not even store the session.
        items = [_item(each) for each in samples] or [{"role": "system", "content": ""}]
        await self.session(session).add_items(items)

    def add(self, session: str, sample: Sample) -> Reply:
        return self.session(session).add_items([_item(sample)])

    def history(self, session: str, limit: int) -> Reply:
        return self.session(session).get_items(limit=limit)

    async def close(self) -> None:
        """Leave the files open until the process ends."""

    def versions(self) -> dict[str, str]:
        return installed("openai-agents")


class SQLAlchemy(_OpenAI):
    """`SQLAlchemySession` on asyncpg, with a fixed pool."""

    async def open(self, target: str, connections: int) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - not for the SQLite sessions

        url = target.replace("postgresql://", "postgresql+asyncpg://", 1)
        self.engine = create_async_engine(url, pool_size=connections, max_overflow=0)

    def of(self, session: str) -> Any:
        from agents.extensions.memory import SQLAlchemySession  # noqa: PLC0415 - needs SQLAlchemy

        return SQLAlchemySession(session, engine=self.engine, create_tables=True)

    async def close(self) -> None:
        await self.engine.dispose()

    def versions(self) -> dict[str, str]:
        return installed("openai-agents", "SQLAlchemy", "asyncpg")


class SessionsSQLite(_OpenAI):
    """`SQLiteSession` on a file: calls go to a thread."""

    async def open(self, target: str, connections: int) -> None:
        self.target = target

    def of(self, session: str) -> Any:
        from agents import SQLiteSession  # noqa: PLC0415 - one class a process

        return SQLiteSession(session, self.target)


class AsyncSQLite(SessionsSQLite):
    """`AsyncSQLiteSession` on a file: aiosqlite."""

    def of(self, session: str) -> Any:
        from agents.extensions.memory import AsyncSQLiteSession  # noqa: PLC0415 - needs aiosqlite

        return AsyncSQLiteSession(session, self.target)


def _item(sample: Sample) -> dict[str, str]:
    return {"role": sample.role, "content": sample.content}
