"""A float of 1e16 and up comes back as an int, since the message is `jsonb`."""

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
        await history.aadd_messages([ChatMessage(role="user", content="", additional_kwargs={"score": 1e22})])
        (message,) = await history.aget_messages()
        print(message.additional_kwargs)


asyncio.run(main(sys.argv[1]))
