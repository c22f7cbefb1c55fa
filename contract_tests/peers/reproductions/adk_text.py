"""A NUL, a lone surrogate or an id that is not text raises the driver's error; an empty author is stored."""

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
    for session_id in ("\x00", "\ud800", 7):
        try:
            await service.get_session(**OWNER, session_id=session_id)
        except Exception as error:  # noqa: BLE001 - the example shows its type
            print(type(error).__name__)
    for text in ("\x00", "\ud800"):
        try:
            await service.append_event(session, event(text))
        except Exception as error:  # noqa: BLE001 - the example shows its type
            print(type(error).__name__)
    session = await service.create_session(**OWNER)
    await service.append_event(session, event("stored", author=""))
    session = await service.get_session(**OWNER, session_id=session.id)
    print([(each.author, each.content.parts[0].text) for each in session.events])
    await service.close()


asyncio.run(main(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")))
