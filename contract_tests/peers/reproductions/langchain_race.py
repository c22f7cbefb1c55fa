"""`acreate_tables` called at the same time on an empty database raises for some of the callers."""

import asyncio
import sys

from langchain_postgres import PostgresChatMessageHistory
from psycopg import AsyncConnection


async def main(dsn: str) -> None:
    connections = [await AsyncConnection.connect(dsn) for _ in range(8)]
    outcomes = await asyncio.gather(
        *(PostgresChatMessageHistory.acreate_tables(each, "history") for each in connections), return_exceptions=True
    )
    print(sorted({type(each).__name__ for each in outcomes if each is not None}))
    for each in connections:
        await each.close()


asyncio.run(main(sys.argv[1]))
