"""Content with a NUL or a lone surrogate, content that is not text, and an empty role are stored and returned."""

import asyncio
import sys

from agents.extensions.memory import SQLAlchemySession


async def main(url: str) -> None:
    session = SQLAlchemySession.from_url("s", url=url, create_tables=True)
    for item in (
        {"role": "user", "content": "\x00"},
        {"role": "user", "content": "\ud800"},
        {"role": "", "content": 7},
    ):
        await session.add_items([item])
    print(ascii(await session.get_items()))
    await session.engine.dispose()


asyncio.run(main(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")))
