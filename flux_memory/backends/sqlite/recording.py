"""Records the statements of slow calls on a SQLite connection, and reads their plans, without any value."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from flux_memory.backends.slow_calls import Statements, has_plan


class RecordingConnection(sqlite3.Connection):
    """A connection that keeps the texts of the statements that run, and the shapes of their parameters."""

    statements: dict[str, Any] | None = None
    """The statements of the call that runs; `None` before the first call."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run a statement."""
        self._note(sql, parameters)
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """Run a statement for each of the parameters."""
        rows = list(parameters)
        if rows:
            self._note(sql, rows[0])
        return super().executemany(sql, rows)

    def _note(self, sql: str, parameters: Any) -> None:
        if self.statements is not None and has_plan(sql):
            self.statements[sql] = _without_values(parameters)


def _without_values(parameters: Any) -> Any:
    """Return parameters of the same number, or with the same names, each of which is NULL."""
    return dict.fromkeys(parameters) if isinstance(parameters, dict) else (None,) * len(parameters)


def explain(statements: Statements, db: sqlite3.Connection) -> list[str]:
    """Return the plan of each statement. None of them runs."""
    return [
        "\n".join(str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", parameters))
        for sql, parameters in statements.items()
    ]
