"""Counts, dates and vacuums the sessions of a PostgreSQL database for `flux-memory prune`."""

from __future__ import annotations

from datetime import UTC, datetime
from operator import methodcaller
from typing import Any, Final

from flux_memory.health import ROW_SECURITY
from flux_memory.operations.prune.steps import Doomed, PruneCriteria, Vacuumed
from flux_memory.operations.server_connection import ServerConnection
from flux_memory.operations.server_tables import check_server_tables
from flux_memory.records import check_deletion
from flux_memory.schema.postgres.tables import IS_MEMORY

COUNT_DOOMED: Final = "SELECT count(*), coalesce(sum(message_count), 0)::bigint FROM sessions WHERE {criteria}"
COUNT_FEEDBACK: Final = "SELECT count(*) FROM feedback WHERE user_id = $1"
SELECT_CUT: Final = """
SELECT updated_at
FROM sessions
WHERE {criteria}
ORDER BY updated_at, id COLLATE "C"
OFFSET $1::int
LIMIT 1
"""
OF_USER: Final = "user_id = ${}"
INACTIVE: Final = "updated_at < ${}::text::timestamp"
SELECT_CLOCK: Final = "SELECT clock_timestamp()"
SELECT_TABLES: Final = f"""
SELECT
    oid::regclass::text,
    pg_has_role(relowner, 'USAGE')
        OR (current_setting('server_version_num')::int >= 170000 AND has_table_privilege(oid, $1)),
    pg_total_relation_size(oid)
FROM pg_class
WHERE {IS_MEMORY}
ORDER BY relname DESC
"""  # noqa: S608 - constants of ours
# Only transactions of roles that this one may see. Counts of dead rows do not help: a connection reports its own up to
# seconds after the vacuum has removed them.
COUNT_HOLDERS: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_xmin IS NOT NULL AND xact_start < $1 AND pid <> pg_backend_pid()
"""
VACUUM: Final = "VACUUM (ANALYZE) {}"

_VACUUM_SECONDS: Final = 86_400.0
_IN_PAGES: Final = (
    "The free space of pages may hold bytes of deleted rows until new rows overwrite them; VACUUM FULL writes the "
    "tables anew, and blocks them meanwhile."
)
_ELSEWHERE: Final = (
    "The write-ahead log, its archive, backups and replicas keep what they have until they are recycled or expire."
)


class PrunedServer:
    """A PostgreSQL database, on a connection of its own."""

    remains = (
        f"Deleted rows remain in the tables until VACUUM; autovacuum runs it later, and --vacuum at once. {_ELSEWHERE}"
    )

    def __init__(self, server: ServerConnection) -> None:
        self.shown = server.shown
        self._server = server

    async def check_schema(self) -> None:
        """Check that the tables are there and current: the command upgrades none.

        Raises:
            SchemaError: The tables are missing, of an earlier version, or cannot be used.
        """
        await check_server_tables(self._server)

    async def count(self, criteria: PruneCriteria) -> Doomed:
        """Count the sessions that meet the criteria, and their messages."""

        async def work(connection: Any) -> Doomed:
            async with connection.transaction(readonly=True, isolation="repeatable_read"):
                policies = await connection.fetch(ROW_SECURITY)
                sql, values = _with_criteria(COUNT_DOOMED, criteria, 1)
                sessions, messages = await connection.fetchrow(sql, *values)
                feedback = 0
                if criteria.erases_feedback:
                    feedback = await connection.fetchval(COUNT_FEEDBACK, criteria.user_id)
            return Doomed(sessions, messages, feedback, tuple(name for name, _ in policies))

        return await self._server.run(work)

    async def find_cut(self, criteria: PruneCriteria, sessions: int) -> datetime | None:
        """Return the last change of the session with this many older ones that meet the criteria."""
        sql, values = _with_criteria(SELECT_CUT, criteria, 2)
        found = await self._server.run(methodcaller("fetchval", sql, sessions - 1, *values))
        return None if found is None else found.replace(tzinfo=UTC)

    async def read_clock(self) -> datetime:
        """Return the time, by the clock that dates the sessions."""
        now: datetime = await self._server.run(methodcaller("fetchval", SELECT_CLOCK))
        return now

    async def vacuum(self) -> Vacuumed:
        """Run VACUUM on each table that the role may vacuum.

        It removes dead rows and their index entries, so that new rows use their space; it shrinks a file only at its
        end, and does not overwrite the bytes.
        """
        began = await self.read_clock()
        before = await self._server.run(_read_tables)
        done, left = [], []
        for name, may_vacuum, _ in before:
            if may_vacuum:
                await self._server.run(methodcaller("execute", VACUUM.format(name)), seconds=_VACUUM_SECONDS)
                done.append(name)
            else:
                left.append(
                    f"{name} was not vacuumed: the role does not own it; run VACUUM as its owner, or wait for "
                    "autovacuum"
                )
        if holders := await self._server.run(methodcaller("fetchval", COUNT_HOLDERS, began)):
            transactions = "1 open transaction" if holders == 1 else f"{holders} open transactions"
            left.append(
                f"dead rows that {transactions} may still see stay in the tables; run --vacuum again when they have "
                "ended"
            )
        after = await self._server.run(_read_tables)
        sentences = [f"vacuumed {', '.join(done)}: dead rows are gone, and new rows use their space"] if done else []
        sizes = [sum(size for _, _, size in rows) for rows in (before, after)]
        return Vacuumed(sizes[0], sizes[1], tuple(sentences), (*left, _IN_PAGES, _ELSEWHERE))


def _with_criteria(sql: str, criteria: PruneCriteria, first: int) -> tuple[str, list[str]]:
    """Return a statement with the criteria that are given, numbered from `first`, and their values."""
    values = check_deletion(criteria.user_id, criteria.inactive_since)
    given = [
        (condition, value) for condition, value in zip((OF_USER, INACTIVE), values, strict=True) if value is not None
    ]
    numbered = [condition.format(number) for number, (condition, _) in enumerate(given, first)]
    return sql.format(criteria=" AND ".join(numbered)), [value for _, value in given]


async def _read_tables(connection: Any) -> list[tuple[str, bool, int]]:
    # The name of the privilege is a parameter: servers before 17 refuse it where it is written out.
    return [tuple(row) for row in await connection.fetch(SELECT_TABLES, "MAINTAIN")]
