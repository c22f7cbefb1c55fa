"""`num_recent_events` of True counts as 1; of -1 it raises the error shown."""

import asyncio
import sys

from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types

OWNER = {"app_name": "app", "user_id": "user"}


def event(text, author="user", **given):
    return Event(author=author, content=types.Content(role="user", parts=[types.Part(text=text)]), **given)


async def main(url):
    service = DatabaseSessionService(url)
    session = await service.create_session(**OWNER)
    for text in "12":
        await service.append_event(session, event(text))
    for limit in (True, -1):
        try:
            config = GetSessionConfig(num_recent_events=limit)
            found = await service.get_session(**OWNER, session_id=session.id, config=config)
            print(limit, len(found.events))
        except Exception as error:  # noqa: BLE001 - the example shows its type
            print(limit, type(error).__name__)
    await service.close()


asyncio.run(main(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")))
