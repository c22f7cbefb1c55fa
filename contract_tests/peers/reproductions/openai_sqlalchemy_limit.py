"""A limit of -1 raises the driver's error, and `True` counts as 1."""

import asyncio
import sys

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.exc import DBAPIError


async def main(url: str) -> None:
    session = SQLAlchemySession.from_url("s", url=url, create_tables=True)
    await session.add_items([{"role": "user", "content": "1"}, {"role": "user", "content": "2"}])
    print(len(await session.get_items(True)))
    try:
        await session.get_items(-1)
    except DBAPIError as error:
        print(type(error).__name__, str(error.orig).splitlines()[0])
    await session.engine.dispose()


asyncio.run(main(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")))
