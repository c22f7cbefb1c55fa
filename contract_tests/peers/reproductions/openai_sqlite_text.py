"""Content with a NUL or a lone surrogate, content that is not text, and an empty role are stored and returned."""

import asyncio
import sys

from agents import SQLiteSession


async def main(path: str) -> None:
    session = SQLiteSession("s", path)
    for item in (
        {"role": "user", "content": "\x00"},
        {"role": "user", "content": "\ud800"},
        {"role": "", "content": 7},
    ):
        await session.add_items([item])
    print(ascii(await session.get_items()))
    session.close()


asyncio.run(main(sys.argv[1]))
