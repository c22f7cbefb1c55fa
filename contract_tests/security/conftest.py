"""A database in which a stranger may create objects beside the library's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from raw_postgres import create_role, execute
from stranger_roles import Roles


@pytest_asyncio.fixture(loop_scope="function")
async def roles(flux_empty_database: str) -> AsyncIterator[Roles]:
    """A database in which every role may create objects in `public`, as before PostgreSQL 15."""
    await execute(flux_empty_database, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    async with create_role(flux_empty_database) as library, create_role(flux_empty_database) as stranger:
        yield Roles(flux_empty_database, library, stranger)
        await execute(flux_empty_database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
