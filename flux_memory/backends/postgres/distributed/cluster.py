"""The statements of a distributed store, and its adds: functions for the calls of a session and of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, Final, NamedTuple

import asyncpg
import orjson

from flux_memory.backends.postgres import creating, deleting, queries, updating
from flux_memory.backends.postgres.adds import Add, AddOutcome, tell_outcome
from flux_memory.backends.postgres.arrays import write_numbers, write_texts
from flux_memory.backends.postgres.distributed.bulk_deletion import delete_batch
from flux_memory.backends.postgres.distributed.functions import functions
from flux_memory.backends.postgres.distributed.listing import select_page
from flux_memory.backends.postgres.distributed.placement import Placement
from flux_memory.backends.postgres.locking import SKIPPING
from flux_memory.backends.postgres.write_path import WritePath
from flux_memory.errors import FluxMemoryError
from flux_memory.records import make_revision

REPLACED: Final = {
    creating.INSERT_SESSION: "create_session",
    creating.INSERT_SESSION_WITH_MESSAGES: "create_with_messages",
    creating.FORK_SESSION: "fork_session",
    updating.UPDATE_TITLE: "update_title",
    updating.POP_MESSAGE: "pop_message",
    updating.UPDATE_SESSION: "update_session",
    deleting.DELETE_SESSION: "delete_session",
}
"""The function that replaces a statement."""
# With the key in a subquery, Citus plans each execution. Otherwise a server that holds the session keeps 30 kB of
# memory with each execution of a generic plan, as the functions say. Through another server it would only cost more.
HISTORY_IN_SUBQUERY: Final = queries.SELECT_HISTORY.replace(
    "FROM messages\nWHERE session_id::text = $1\n",
    "FROM (SELECT * FROM messages WHERE session_id::text = $1) AS messages\n",
)
# Citus looks for the key without a cast. The cast keeps an operator of another schema from being a better match, and so
# does the name of the operator.
CAST_KEY: Final = re.compile(r"\b((?:messages\.)?(?:session_id|id)(?=::text = (?:\$|id::text)))::text = ")
REMOTE_FAILURES: Final = (
    asyncpg.ConnectionFailureError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.ClientCannotConnectError,
    asyncpg.ConnectionRejectionError,
    asyncpg.TransactionResolutionUnknownError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)
"""Errors of the connection between two servers. The answer to a COMMIT may be what was lost."""
REFUSALS: Final = (asyncpg.UniqueViolationError, asyncpg.LockNotAvailableError)
"""Errors of one session that refuse the adds of all sessions in a statement."""


class AddFunctions(NamedTuple):
    """The statements that call the functions of the adds."""

    one: str
    """Adds a message to a session."""
    many: str
    """Adds the messages of several calls to a session."""
    to_sessions: str
    """Adds messages to several sessions on one server."""


async def make_path(connection: Any, schema: str) -> WritePath:
    """Return the statements of a store whose tables are in a schema; its name is quoted."""
    placement = Placement(schema)
    await placement.read(connection)
    calls = {name: function.call(schema) for name, function in functions().items()}
    replaced = {sql: calls[name] for sql, name in REPLACED.items()}
    if placement.is_here:
        replaced[queries.SELECT_HISTORY] = _translate({}, HISTORY_IN_SUBQUERY)
    adds = AddFunctions(calls["add_message"], calls["add_messages"], calls["add_to_sessions"])
    return WritePath(
        statement=cache(partial(_translate, replaced)),
        add=partial(_add, adds, placement),
        delete_batch=partial(delete_batch, calls["delete_matching"]),
        select_page=select_page,
        has_shortcuts=False,
        tables=schema,
        find_server=placement.find_server,
        remote_failures=REMOTE_FAILURES,
    )


def _translate(replaced: Mapping[str, str], sql: str) -> str:
    """Return the function's call in place of a statement, or the statement with keys by which one server is found."""
    return replaced.get(sql) or CAST_KEY.sub(r"\1 OPERATOR(pg_catalog.=) ", sql).replace(
        " id::text\n", " sessions.id\n"
    )


async def _add(
    functions: AddFunctions, placement: Placement, connection: Any, calls: Sequence[Add], *, wait: bool
) -> list[AddOutcome | FluxMemoryError]:
    """Store calls; see `adds.add`. Those of several sessions are stored if the sessions are on one server."""
    session_id = calls[0].session_id
    if any(call.session_id != session_id for call in calls):
        return await _add_to_sessions(functions.to_sessions, placement, connection, calls)
    try:
        if wait and len(calls) == len(calls[0].rows) == 1 and await _add_one(functions.one, connection, calls[0]):
            return [AddOutcome.STORED]
        return await _add_many(functions.many, connection, calls, wait=wait)
    except asyncpg.StringDataRightTruncationError:
        # The id is longer than the column, to whose type it is cast to find the server.
        return [AddOutcome.MISSING for _ in calls]


async def _add_one(sql: str, connection: Any, call: Add) -> bool:
    """Store a call of one message, and return whether it is stored."""
    try:
        ((is_stored,),) = await connection.fetch(sql, call.session_id, *call.rows[0], make_revision(), call.user_id)
    except asyncpg.UniqueViolationError:
        return False
    return bool(is_stored)


async def _add_many(
    sql: str, connection: Any, calls: Sequence[Add], *, wait: bool
) -> list[AddOutcome | FluxMemoryError]:
    session_id = calls[0].session_id
    items = [(number, *row) for number, call in enumerate(calls) for row in call.rows]
    numbers, *texts = zip(*items, strict=True) if items else [()] * 5
    claims = [(number, call.user_id) for number, call in enumerate(calls) if call.user_id]
    claiming, claimed = zip(*claims, strict=True) if claims else ((), ())
    values = (
        *(session_id, write_numbers(numbers), *map(write_texts, texts), make_revision()),
        *(write_numbers(claiming), write_texts(claimed)),
    )
    if wait:
        sql = sql.replace(SKIPPING, "")
    ((is_found, is_locked, refused),) = await connection.fetch(sql, *values)
    foreign, taken = orjson.loads(refused)
    return [
        AddOutcome.LOCKED
        if is_locked
        else tell_outcome(session_id, found=is_found, is_foreign=number in foreign, taken=taken.get(str(number)))
        for number in range(len(calls))
    ]


async def _add_to_sessions(
    sql: str, placement: Placement, connection: Any, calls: Sequence[Add]
) -> list[AddOutcome | FluxMemoryError]:
    """Store calls of several sessions, all or none, without a wait for locks."""
    refused: list[AddOutcome | FluxMemoryError] = [AddOutcome.REFUSED] * len(calls)
    sessions = dict.fromkeys(call.session_id for call in calls)
    shards = {placement.find_shard(session_id) for session_id in sessions}
    owners = {call.session_id: call.user_id for call in calls if call.user_id}
    if len({shard and shard.server for shard in shards}) > 1 or None in shards:
        return refused
    if any(not call.rows or call.user_id not in ("", owners.get(call.session_id)) for call in calls):
        return refused
    counts = dict.fromkeys(sessions, 0)
    revisions = {session_id: make_revision() for session_id in sessions}
    for call in calls:
        counts[call.session_id] += len(call.rows)
    columns = zip(*((call.session_id, *row) for call in calls for row in call.rows), strict=True)
    values = (
        *(calls[0].session_id, write_numbers(shard.id for shard in shards if shard)),
        *(orjson.dumps(by_session).decode() for by_session in (counts, revisions, owners)),
        *map(write_texts, columns),
    )
    try:
        ((found,),) = await connection.fetch(sql, *values)
    except REFUSALS:
        return refused
    if found is None:
        # A shard was moved since they were read.
        await placement.read(connection)
        return refused
    known = {*orjson.loads(found)}
    return [_tell_shared_outcome(call, known, owners) for call in calls]


def _tell_shared_outcome(call: Add, known: set[str], owners: Mapping[str, str]) -> AddOutcome:
    if call.session_id in known:
        return AddOutcome.STORED
    # It does not exist, or has another owner.
    return AddOutcome.REFUSED if call.session_id in owners else AddOutcome.MISSING
