"""Roles that share a schema in which each may create objects, and what must refuse the other's objects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from original_application import make_file_with_data

from flux_memory import PostgresConversationMemory, SchemaError
from flux_memory.health import check_postgres
from flux_memory.transfer import Mode, Plan, migrate, migrate_back


class Roles(NamedTuple):
    """DSNs of one database."""

    admin: str
    library: str
    stranger: str

    def name(self, which: str) -> str:
        """The name of a role."""
        return str(urlsplit(getattr(self, which)).username)


async def open_memory(dsn: str) -> None:
    async with PostgresConversationMemory(dsn, min_size=0) as memory:
        await memory.add_message(await memory.create_session(), "user", "x")


async def refuse(roles: Roles, path: Path, says: str) -> None:
    """Expect the same refusal from everything that opens the memory."""
    make_file_with_data(path)
    openings: list[Callable[[], Awaitable[object]]] = [
        lambda: open_memory(roles.library),
        lambda: check_postgres(roles.library, 10),
        *(
            lambda mode=mode: migrate(Plan(sqlite_path=path, postgres_dsn=roles.library, mode=mode))  # type: ignore[misc]
            for mode in Mode
        ),
        lambda: migrate_back(roles.library, path.with_name("back.db")),
    ]
    for opening in openings:
        with pytest.raises(SchemaError, match=says):
            await opening()
