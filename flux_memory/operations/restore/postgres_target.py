"""Restores rows into a PostgreSQL memory: a dump as it is, all rows of a file, or those of a user."""

from __future__ import annotations

from typing import Any, Final

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.dsn import mask_dsn, parse_dsn
from flux_memory.errors import BackupError
from flux_memory.operations.backup.dumping import refuse_pooler, restore_dump
from flux_memory.operations.backup.postgres_reading import read_contents
from flux_memory.operations.backup.programs import find_program
from flux_memory.operations.backup.proving import compare_database
from flux_memory.operations.backup.sqlite_copy import reading_copy
from flux_memory.operations.restore.populated import Populated
from flux_memory.operations.restore.recognizing import Backup
from flux_memory.operations.restore.unpacking import Unpacked
from flux_memory.schema import WITH_FEEDBACK
from flux_memory.schema import postgres as schema
from flux_memory.schema.postgres.tables import WITH_RECORD
from flux_memory.transfer import Plan, Status, migrate
from flux_memory.transfer.progress import Watcher
from flux_memory.transfer.rows.ratings import FeedbackSpool
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.preflight import preflight
from flux_memory.transfer.source.ratings import read_feedback
from flux_memory.transfer.source.reader import EVERYTHING, Source, inspect_source
from flux_memory.transfer.target.load import copy_in_batches
from flux_memory.transfer.target.moves import LOCK_MIGRATIONS
from flux_memory.transfer.target.ratings import COUNT_FEEDBACK, load_feedback
from flux_memory.transfer.target.server import (
    inspect_target,
    open_connection,
    prepare_schema,
    refuse_distributed,
    write_transaction,
)
from flux_memory.transfer.threads import run_stoppable

COUNT_USER: Final = """
SELECT count(*), coalesce(sum((SELECT count(*) FROM messages WHERE session_id::text = sessions.id::text)), 0)::bigint
FROM sessions
WHERE user_id::text = $1
"""
# New messages of these sessions wait, so that what was counted is what is replaced.
LOCK_USER: Final = "SELECT id FROM sessions WHERE user_id::text = $1 ORDER BY id FOR UPDATE"
# Details and messages go with their sessions.
DELETE_USER: Final = (
    "DELETE FROM sessions WHERE user_id::text = $1",
    "DELETE FROM feedback WHERE user_id::text = $1",
)
COUNT_FEEDBACK_OF_USER: Final = "SELECT count(*) FROM feedback WHERE user_id::text = $1"
SELECT_TAKEN: Final = (
    "SELECT id::text FROM sessions WHERE id::text = ANY($1::text::text[]) AND user_id::text <> $2 LIMIT 3"
)
HAS_USERS: Final = """
SELECT count(*) > 0
FROM pg_attribute
JOIN pg_class ON pg_class.oid = attrelid
WHERE relname = 'sessions' AND pg_table_is_visible(pg_class.oid) AND attname = 'user_id' AND NOT attisdropped
"""
SELECT_SCHEMA: Final = "SELECT current_schema()::text"
_IDS: Final = 1000


async def inspect_database(dsn: str, user: str | None) -> tuple[Populated, str | None]:
    """Return what a restore would replace in a database, and the schema in which it would create tables.

    Raises:
        FluxMemoryError: The server cannot be reached, or the role may not write.
    """
    async with open_connection(dsn) as connection:
        target = await inspect_target(connection, replaces=True)
        refuse_distributed(target)
        name = await connection.fetchval(SELECT_SCHEMA)
        has_feedback = (await schema.inspect(connection, WITH_RECORD)).version >= WITH_FEEDBACK
        if user is None:
            feedback = await connection.fetchval(COUNT_FEEDBACK) if has_feedback else 0
            return Populated(target.sessions, target.messages, feedback, exists=target.has_tables), name
        counts, feedback = (0, 0), 0
        if target.has_tables and await connection.fetchval(HAS_USERS):
            counts = await connection.fetchrow(COUNT_USER, user)
        if has_feedback:
            feedback = await connection.fetchval(COUNT_FEEDBACK_OF_USER, user)
        return Populated(counts[0], counts[1], feedback, exists=target.has_tables), name


async def restore_dump_as_it_is(backup: Backup, dsn: str, watcher: Watcher) -> None:
    """Restore a dump into a database without a memory, in one transaction, and prove it.

    Raises:
        FluxMemoryError: pg_restore is missing or failed, and nothing was changed; or the result differs.
    """
    async with open_connection(dsn) as connection:
        await refuse_pooler(connection)
        major = connection.get_server_version().major
    oldest = 0 if backup.manifest is None else int(backup.manifest.engine.rpartition(" ")[2])
    program = find_program("pg_restore", major, oldest_major=oldest)
    watcher.say(f"Restore by {program.path}, version {program.major}; the server has version {major}")
    watcher.phase("Load", None)
    await restore_dump(program, parse_dsn(dsn), backup.path)
    if backup.manifest is not None:
        watcher.phase("Verify", None)
        _refuse(dsn, await compare_database(dsn, backup.manifest))


async def load_all(unpacked: Unpacked, dsn: str, watcher: Watcher, *, replace: bool) -> None:
    """Put all rows of a file into a database, in place of its own if `replace` is set, and prove it.

    Raises:
        FluxMemoryError: The rows cannot be moved, or differ afterwards.
    """
    plan = Plan(
        sqlite_path=unpacked.path,
        postgres_dsn=dsn,
        leave_behind=frozenset(unpacked.unknown),
        replace=replace,
        restore_deleted=not replace,
    )
    report = await migrate(plan, watcher)
    if report.status is Status.REFUSED:
        first = "; ".join(f"{tally.kind}: {tally.first[0]}" for tally in report.preflight.tallies.values())
        raise BackupError(
            f"the backup has {report.preflight.refused:,} rows that PostgreSQL cannot hold ({first}); restore it as a "
            "SQLite file, then move the rest with: flux-memory migrate --on-invalid=quarantine"
        )
    if report.status is not Status.IDENTICAL:
        found = report.verification
        _refuse(dsn, [] if found is None else [*found.first_differences[:5], f"{found.only_in_target:,} sessions more"])


async def replace_user(unpacked: Unpacked, dsn: str, user: str, watcher: Watcher, *, replace: bool) -> None:
    """Give a database the rows of one user in place of that user's, in one transaction that is proven first.

    Args:
        unpacked: The file with the rows.
        dsn: The database.
        user: The user.
        watcher: Receives the progress.
        replace: Whether the user may have rows.

    Raises:
        FluxMemoryError: Nothing was changed; the message says why.
    """
    with reading_copy(unpacked.path) as db, Spool() as spool, FeedbackSpool() as entries:
        source = Source(db, inspect_source(db))

        def read() -> None:
            validator = RowValidator(source.naive)
            found = preflight(source, validator, spool, lambda _: None, EVERYTHING)
            read_feedback(source, validator, entries, spool, found)

        await run_stoppable(lambda _: read())
        async with open_connection(dsn) as connection:
            await prepare_schema(connection)
            watcher.phase("Load", unpacked.contents.rows)
            async with write_transaction(connection):
                await connection.execute(LOCK_MIGRATIONS)
                if await connection.fetch(LOCK_USER, user) and not replace:
                    raise BackupError(
                        "the user has sessions in the target by now; nothing was changed. Look with --dry-run, then "
                        "run with --replace"
                    )
                for sql in DELETE_USER:
                    await connection.execute(sql, user)
                await _refuse_taken(connection, spool, user, dsn)
                await copy_in_batches(connection, [spool], watcher.advance)
                await load_feedback(connection, entries, recorded=False, restores_deleted=True)
                watcher.phase("Verify", None)
                found, _ = await read_contents(connection, user=user)
                _refuse(dsn, unpacked.contents.differences(found))


async def _refuse_taken(connection: Any, spool: Spool, user: str, dsn: str) -> None:
    ids: list[str] = []
    taken: list[str] = []
    for digest in spool.digests():
        ids.append(digest.id.decode())
        if len(ids) == _IDS:
            taken += [id_ for (id_,) in await connection.fetch(SELECT_TAKEN, write_texts(ids), user)]
            ids = []
    taken += [id_ for (id_,) in await connection.fetch(SELECT_TAKEN, write_texts(ids), user)]
    if taken:
        raise BackupError(
            f"sessions of the backup belong to another user in {mask_dsn(dsn)}: {', '.join(taken[:3])}; nothing was "
            "changed. Restore into another database"
        )


def _refuse(dsn: str, differences: list[str]) -> None:
    if differences:
        raise BackupError(
            f"DIFFERENT: {mask_dsn(dsn)} does not hold what the backup holds: {'; '.join(differences)}. Stop the "
            "applications that write to it, drop triggers that change rows, and run again"
        )
