"""Content has no limit of its own: 64 MiB and one more byte are stored completely."""

import asyncio
import sys

from agents import SQLiteSession


async def main(path: str) -> None:
    session = SQLiteSession("s", path)
    await session.add_items([{"role": "user", "content": "x" * (64 * 1024 * 1024 + 1)}])
    (item,) = await session.get_items()
    print(len(item["content"]))
    session.close()


asyncio.run(main(sys.argv[1]))
