"""A limit of -1 returns all items, and `True` counts as 1."""

import asyncio
import sys

from agents import SQLiteSession


async def main(path: str) -> None:
    session = SQLiteSession("s", path)
    await session.add_items([{"role": "user", "content": "1"}, {"role": "user", "content": "2"}])
    for limit in (-1, True):
        print(limit, [item["content"] for item in await session.get_items(limit)])
    session.close()


asyncio.run(main(sys.argv[1]))
