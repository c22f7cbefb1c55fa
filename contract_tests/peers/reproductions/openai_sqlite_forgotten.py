"""A session that is dropped without `close()` gives no `ResourceWarning` (before Python 3.13)."""

import asyncio
import gc
import sys
import warnings

from agents import SQLiteSession


async def use(path: str) -> None:
    await SQLiteSession("s", path).add_items([{"role": "user", "content": "text"}])


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    asyncio.run(use(sys.argv[1]))
    gc.collect()
print([str(each.message) for each in caught if issubclass(each.category, ResourceWarning)])
