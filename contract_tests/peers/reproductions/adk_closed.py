"""A service keeps working after `close()`."""

import asyncio
import sys

from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService
from google.genai import types

OWNER = {"app_name": "app", "user_id": "user"}


def event(text, author="user", **given):
    return Event(author=author, content=types.Content(role="user", parts=[types.Part(text=text)]), **given)


async def main(url):
    service = DatabaseSessionService(url)
    session = await service.create_session(**OWNER)
    await service.close()
    await service.append_event(session, event("after"))
    found = await service.get_session(**OWNER, session_id=session.id)
    print([each.content.parts[0].text for each in found.events])
    await service.close()


asyncio.run(main(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")))
