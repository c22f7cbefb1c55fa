"""Services that are first used at the same time on an empty database: some of them raise."""

import asyncio
import sys

from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService
from google.genai import types

OWNER = {"app_name": "app", "user_id": "user"}


def event(text, author="user", **given):
    return Event(author=author, content=types.Content(role="user", parts=[types.Part(text=text)]), **given)


async def main(url):
    services = [DatabaseSessionService(url) for _ in range(8)]
    outcomes = await asyncio.gather(*(each.create_session(**OWNER) for each in services), return_exceptions=True)
    print(sorted({type(each).__name__ for each in outcomes if isinstance(each, Exception)}))
    for service in services:
        await service.close()


asyncio.run(main(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")))
