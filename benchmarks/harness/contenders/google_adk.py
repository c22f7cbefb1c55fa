"""google-adk: `DatabaseSessionService`, a session object kept for each conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types

from harness.contenders import Partial, Reply, installed
from harness.samples import Sample

_APP = "bench"
_USER = "user"


class ADK(Partial):
    """One service with a fixed pool."""

    async def open(self, target: str, connections: int) -> None:
        url = target.replace("postgresql://", "postgresql+asyncpg://", 1)
        self.service = DatabaseSessionService(url, pool_size=connections, max_overflow=0)
        self.sessions: dict[str, Any] = {}
        # Creates the user's row; eight concurrent first sessions would race for it.
        await self.service.create_session(app_name=_APP, user_id=_USER, session_id="first")

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        made = await self.service.create_session(app_name=_APP, user_id=_USER, session_id=session)
        self.sessions[session] = made
        for sample in samples:
            await self.add(session, sample)

    async def add(self, session: str, sample: Sample) -> None:
        event = Event(
            author=sample.role,
            content=types.Content(role=sample.role, parts=[types.Part(text=sample.content)]),
            custom_metadata=sample.metadata,
        )
        kept = self.sessions[session]
        await self.service.append_event(kept, event)
        # The object also collects every event in memory, which a server would not allow to grow.
        kept.events.clear()

    async def history(self, session: str, limit: int) -> Sequence[object]:
        found = await self.service.get_session(
            app_name=_APP, user_id=_USER, session_id=session, config=GetSessionConfig(num_recent_events=limit)
        )
        return list(found.events) if found else []

    def listing(self, limit: int) -> Reply:
        return self.service.list_sessions(app_name=_APP, user_id=_USER)

    def versions(self) -> dict[str, str]:
        return installed("google-adk", "SQLAlchemy", "asyncpg")

    async def close(self) -> None:
        await self.service.close()
