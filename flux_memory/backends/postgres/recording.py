"""Records the texts of the statements that run on a connection, for the log of slow calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flux_memory.backends.slow_calls import has_plan


class StatementRecorder:
    """A connection that notes the text of each statement with a plan before it is sent.

    Args:
        connection: An asyncpg connection.
        note: Called with the text.
    """

    def __init__(self, connection: Any, note: Callable[[str], None]) -> None:
        self._connection = connection
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetch(self, sql: str, *values: object) -> Any:
        """Run a statement and return its rows."""
        self._note_planned(sql)
        return await self._connection.fetch(sql, *values)

    async def fetchval(self, sql: str, *values: object) -> Any:
        """Run a statement and return the first value of its first row."""
        self._note_planned(sql)
        return await self._connection.fetchval(sql, *values)

    def _note_planned(self, sql: str) -> None:
        if has_plan(sql):
            self._note(sql)
