"""Reads the catalogue in one exchange with the server, where a prepared statement takes two."""

from __future__ import annotations

import json
import re
import struct
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

Query = tuple[str, int | str | None]
"""A query of ours, and the constant that is its only value; None if it has none."""
Row = tuple[Any, ...]

_HEADER: Final = struct.Struct("!11s4x4xhi")
"""What precedes the only value of a binary copy: the signature, flags, an extension, numbers of columns and bytes."""
_NAMES: Final = re.compile(r"\{[a-z_,]*\}")


class CatalogueReader:
    """A connection whose `fetch` takes one exchange, also within a transaction.

    The driver prepares a statement in one exchange and runs it in the next. A copy of a query's rows takes one, works
    through every pooler, and leaves no prepared statement behind.

    Args:
        connection: An asyncpg connection.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._ahead: dict[Query, list[Row]] = {}

    async def fetch(self, sql: str, constant: int | str | None = None) -> list[Row]:
        """Run a query of ours and return its rows, or those that `read_ahead` has read for this call."""
        if (rows := self._ahead.pop((sql, constant), None)) is not None:
            return rows
        (rows,) = await self._read([(sql, constant)])
        return rows

    async def fetchval(self, sql: str) -> Any:
        """Run a query of ours and return the first value of its first row."""
        return (await self.fetch(sql))[0][0]

    async def read_ahead(self, *queries: Query) -> None:
        """Run queries in one exchange, of one snapshot; the next `fetch` of each returns its rows."""
        self._ahead = dict(zip(queries, await self._read(queries), strict=True))

    def forget(self) -> None:
        """Drop what was read ahead: the tables may have changed."""
        self._ahead = {}

    async def execute(self, sql: str) -> None:
        """Run statements without values."""
        await self._connection.execute(sql)

    def transaction(self, **options: Any) -> AbstractAsyncContextManager[None]:
        """Return a transaction of the connection."""
        transaction: AbstractAsyncContextManager[None] = self._connection.transaction(**options)
        return transaction

    async def _read(self, queries: Any) -> list[list[Row]]:
        parts: list[bytes] = []

        async def keep(part: bytes) -> None:
            parts.append(part)

        await self._connection.copy_from_query(_as_json(queries), output=keep, format="binary")
        copy = b"".join(parts)
        size = _HEADER.unpack_from(copy)[2]
        text = copy[_HEADER.size : _HEADER.size + size]
        # A row is an object, whose names may occur twice.
        answers: list[list[Row]] = json.loads(text, object_pairs_hook=lambda pairs: tuple(value for _, value in pairs))
        return [rows or [] for rows in answers]


def _as_json(queries: Any) -> str:
    """Return the query whose only value is a JSON array with the rows of each query."""
    rows = (
        f"(SELECT pg_catalog.json_agg(pg_catalog.row_to_json(one)) FROM ({_fill_in(*query)}) AS one)"  # noqa: S608 - constants of ours
        for query in queries
    )
    return f"SELECT pg_catalog.json_build_array({', '.join(rows)})::pg_catalog.text"


def _fill_in(sql: str, constant: int | str | None) -> str:
    """Return a query with its constant in the place of `$1`: a copy takes no values."""
    if isinstance(constant, str):
        if not _NAMES.fullmatch(constant):
            raise ValueError(f"{constant!r:.60} is not an array of the library's names; pass it to asyncpg as a value")
        return sql.replace("$1", f"'{constant}'")
    return sql if constant is None else sql.replace("$1", str(int(constant)))
