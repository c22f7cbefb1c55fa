"""Content has no limit of its own: 64 MiB and one more byte are stored completely."""

import asyncio
import sys

from agents.extensions.memory import SQLAlchemySession


async def main(url: str) -> None:
    session = SQLAlchemySession.from_url("s", url=url, create_tables=True)
    await session.add_items([{"role": "user", "content": "x" * (64 * 1024 * 1024 + 1)}])
    (item,) = await session.get_items()
    print(len(item["content"]))
    await session.engine.dispose()


asyncio.run(main(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")))
