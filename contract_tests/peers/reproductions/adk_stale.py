"""Writers that each load the session and append at the same time: some get a `StaleSessionError`."""

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
    loaded = [await service.get_session(**OWNER, session_id=session.id) for _ in range(4)]
    outcomes = await asyncio.gather(
        *(service.append_event(each, event(str(number))) for number, each in enumerate(loaded)), return_exceptions=True
    )
    print([type(outcome).__name__ for outcome in outcomes].count("StaleSessionError"), "of 4")
    await service.close()


asyncio.run(main(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")))
