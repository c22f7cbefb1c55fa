"""A NUL and a lone surrogate raise psycopg's errors; an empty role is stored; a role of 7 raises no `TypeError`."""

import asyncio
import sys
from uuid import uuid4

from langchain_core.messages import ChatMessage
from langchain_postgres import PostgresChatMessageHistory
from psycopg import AsyncConnection, Error


async def main(dsn: str) -> None:
    async with await AsyncConnection.connect(dsn) as connection:
        await PostgresChatMessageHistory.acreate_tables(connection, "history")
        history = PostgresChatMessageHistory("history", str(uuid4()), async_connection=connection)
        for content in ("\x00", "\ud800"):
            try:
                await history.aadd_messages([ChatMessage(role="user", content=content)])
            except Error as error:
                print(type(error).__name__)
                await connection.rollback()
        await history.aadd_messages([ChatMessage(role="", content="stored")])
        print([message.content for message in await history.aget_messages()])
        try:
            ChatMessage(role=7, content="x")
        except Exception as error:  # noqa: BLE001 - the example shows its type
            print(type(error).__name__, isinstance(error, TypeError))


asyncio.run(main(sys.argv[1]))
