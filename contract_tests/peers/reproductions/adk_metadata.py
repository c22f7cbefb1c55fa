"""1e22 in `custom_metadata` becomes an int, a mapping that is not a dict fails, and 17 MiB of state are stored."""

import asyncio
import sys
from types import MappingProxyType

from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService
from google.genai import types

OWNER = {"app_name": "app", "user_id": "user"}


def event(text, author="user", **given):
    return Event(author=author, content=types.Content(role="user", parts=[types.Part(text=text)]), **given)


async def main(url):
    service = DatabaseSessionService(url)
    session = await service.create_session(**OWNER)
    await service.append_event(session, event("", custom_metadata={"score": 1e22}))
    session = await service.get_session(**OWNER, session_id=session.id)
    print(session.events[0].custom_metadata)
    try:
        await service.append_event(session, event("", custom_metadata={"k": MappingProxyType({})}))
    except Exception as error:  # noqa: BLE001 - the example shows its type
        print(type(error).__name__)
    session = await service.create_session(**OWNER, state={"k": "x" * (17 * 1024 * 1024)})
    print(len(session.state["k"]))
    await service.close()


asyncio.run(main(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")))
