"""google-adk: a `DatabaseSessionService` for each handle; the session is reloaded for each event, as documented."""

from __future__ import annotations

from typing import Any

from adapting import Adapter, checked_count, message, refuse_given, translating
from google.adk.errors import already_exists_error, session_not_found_error
from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types
from pydantic import ValidationError

from flux_memory import ConflictError, InvalidInputError, SessionNotFoundError
from flux_memory.testkit import Capability

CAPABILITIES = (
    Capability.MESSAGE_IDS
    | Capability.MESSAGE_METADATA
    | Capability.SESSIONS
    | Capability.SESSION_IDS
    | Capability.SESSION_METADATA
    | Capability.DURABLE
    | Capability.SEVERAL_HANDLES
    | Capability.SEVERAL_PROCESSES
)
OWNER = {"app_name": "contract", "user_id": "user"}
ERRORS = {
    already_exists_error.AlreadyExistsError: ConflictError,
    session_not_found_error.SessionNotFoundError: SessionNotFoundError,
    ValidationError: InvalidInputError,
}


class ADK(Adapter):
    """Messages are events, metadata is `state` and `custom_metadata`. One user owns all: ids belong to a user."""

    def __init__(self, dsn: str) -> None:
        self.service = DatabaseSessionService(dsn.replace("postgresql://", "postgresql+asyncpg://", 1))

    async def create_session(
        self, title: str = "", metadata: Any = None, *, session_id: str | None = None, user_id: str = ""
    ) -> str:
        refuse_given(title=title, user_id=user_id)
        with translating(ERRORS):
            made = await self.service.create_session(**OWNER, state=metadata, session_id=session_id)
        return str(made.id)

    async def add_message(
        self, session_id: str, role: str, content: str, metadata: Any = None, *, message_id: str | None = None
    ) -> str:
        refuse_given(message_id=message_id)
        with translating(ERRORS):
            event = Event(
                author=role,
                content=types.Content(role=role, parts=[types.Part(text=content)]),
                custom_metadata=metadata,
            )
        session = await self.loaded(session_id, 0)
        if session is None:
            raise SessionNotFoundError(f"session {session_id!r} does not exist")
        with translating(ERRORS):
            return str((await self.service.append_event(session, event)).id)

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None
    ) -> list[dict[str, Any]]:
        refuse_given(before=before)
        session = await self.loaded(session_id, limit)
        events = [] if session is None else session.events
        return [message(event.author, event.content.parts[0].text, event.custom_metadata, event.id) for event in events]

    async def loaded(self, session_id: str, limit: int | None) -> Any:
        """Load a session with its newest events."""
        return await self.service.get_session(
            **OWNER, session_id=session_id, config=GetSessionConfig(num_recent_events=limit)
        )

    async def get_session(self, session_id: str) -> dict[str, Any] | None:
        session = await self.loaded(session_id, None)
        if session is None:
            return None
        # The peer has no title and no creation time.
        blank = {"user_id": "", "title": "", "created_at": "", "updated_at": ""}
        return {"id": session.id, **blank, "metadata": session.state, "message_count": len(session.events)}

    async def get_sessions(
        self, limit: int | None = 50, offset: int = 0, *, user_id: str | None = None, metadata: Any = None
    ) -> list[dict[str, Any]]:
        refuse_given(user_id=user_id, metadata=metadata)
        # The peer lists all sessions, oldest activity first, without events.
        listed = (await self.service.list_sessions(**OWNER)).sessions[::-1][checked_count("offset", offset) :]
        page = listed if limit is None else listed[: checked_count("limit", limit)]
        rows = [await self.get_session(each.id) for each in page]
        return [row for row in rows if row is not None]

    async def count_sessions(self) -> int:
        return len((await self.service.list_sessions(**OWNER)).sessions)

    async def delete_session(self, session_id: str) -> None:
        await self.service.delete_session(**OWNER, session_id=session_id)

    async def close(self) -> None:
        # The adapter refuses closed calls of missing features; the peer answers for its own.
        self.closed = True
        await self.service.close()
