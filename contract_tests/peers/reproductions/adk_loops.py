"""A service used from a second event loop, or after its first one has ended, raises asyncio's `RuntimeError`."""

import asyncio
import sys

from google.adk.sessions import DatabaseSessionService

OWNER = {"app_name": "app", "user_id": "user"}
for state in ("open", "closed"):
    service = DatabaseSessionService(sys.argv[1].replace("postgresql:", "postgresql+asyncpg:"))
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    first.run_until_complete(service.create_session(**OWNER))
    if state == "closed":
        first.close()
    try:
        second.run_until_complete(service.create_session(**OWNER))
        print(state, "works")
    except Exception as error:  # noqa: BLE001 - the example shows its type
        print(state, type(error).__name__)
