"""Reads the plans of statements from the server, without any value and without running them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import asyncpg

GENERIC_PLANS: Final = "SET LOCAL plan_cache_mode = force_generic_plan"
PREPARE: Final = "PREPARE flux_memory_plan AS "
# In a generic plan the parameters keep their numbers, so that no value can show.
EXPLAIN: Final = "EXPLAIN EXECUTE flux_memory_plan"
FORGET: Final = "DEALLOCATE flux_memory_plan"

_PARAMETER: Final = re.compile(r"\$(\d+)")


async def explain(statements: Iterable[str], connection: Any) -> list[str]:
    """Return the generic plan of each statement. None of them is executed.

    Args:
        statements: The texts, with parameters as `$1`.
        connection: An asyncpg connection.
    """
    return [await _explain_one(sql, connection) for sql in statements]


async def _explain_one(sql: str, connection: Any) -> str:
    parameters = max(map(int, _PARAMETER.findall(sql)), default=0)
    arguments = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
    prepared = False
    # In one transaction, which a pooler sends to one server.
    await connection.execute("BEGIN READ ONLY")
    try:
        await connection.execute(GENERIC_PLANS)
        await connection.execute(PREPARE + sql)
        prepared = True
        rows = await connection.fetch(EXPLAIN + arguments)
        await connection.execute(FORGET)
        await connection.execute("COMMIT")
    except asyncpg.PostgresError:
        await connection.execute("ROLLBACK")
        if prepared:
            # It outlives the transaction.
            await connection.execute(FORGET)
        raise
    return "\n".join(line for (line,) in rows)
