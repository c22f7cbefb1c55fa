"""A session used from a second event loop, while the first is open, raises a `RuntimeError` of asyncio."""

import asyncio
import sys

from agents.extensions.memory import SQLAlchemySession

url = sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")
item = {"role": "user", "content": "text"}
first = asyncio.new_event_loop()
session = SQLAlchemySession.from_url("s", url=url, create_tables=True)
first.run_until_complete(session.add_items([item]))
second = asyncio.new_event_loop()
try:
    second.run_until_complete(session.add_items([item]))
except RuntimeError as error:
    print("RuntimeError:", str(error)[-28:])
