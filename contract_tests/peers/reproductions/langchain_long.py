"""Content has no limit of its own: 64 MiB and one more byte are stored completely."""

import asyncio
import sys
from uuid import uuid4

from langchain_core.messages import ChatMessage
from langchain_postgres import PostgresChatMessageHistory
from psycopg import AsyncConnection


async def main(dsn: str) -> None:
    async with await AsyncConnection.connect(dsn) as connection:
        await PostgresChatMessageHistory.acreate_tables(connection, "history")
        history = PostgresChatMessageHistory("history", str(uuid4()), async_connection=connection)
        await history.aadd_messages([ChatMessage(role="user", content="x" * (64 * 1024 * 1024 + 1))])
        (message,) = await history.aget_messages()
        print(len(message.content))


asyncio.run(main(sys.argv[1]))
