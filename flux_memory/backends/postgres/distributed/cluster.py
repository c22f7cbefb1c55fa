"""The statements of a distributed store, and the adds: one function for the calls of one session."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, Final

import asyncpg
import orjson

from flux_memory.backends.postgres import creating, deleting, updating
from flux_memory.backends.postgres.adds import Add, AddOutcome, tell_outcome
from flux_memory.backends.postgres.arrays import write_numbers, write_texts
from flux_memory.backends.postgres.distributed.bulk_deletion import delete_batch
from flux_memory.backends.postgres.distributed.functions import functions
from flux_memory.backends.postgres.distributed.listing import select_page
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


@cache
def make_path(schema: str) -> WritePath:
    """Return the statements of a store whose tables are in a schema; its name is quoted."""
    calls = {name: function.call(schema) for name, function in functions().items()}
    return WritePath(
        statement=cache(partial(_translate, {sql: calls[name] for sql, name in REPLACED.items()})),
        add=partial(_add, calls["add_message"], calls["add_messages"]),
        delete_batch=partial(delete_batch, calls["delete_matching"]),
        select_page=select_page,
        has_shortcuts=False,
        shares_statements=False,
        remote_failures=REMOTE_FAILURES,
    )


def _translate(replaced: Mapping[str, str], sql: str) -> str:
    """Return the function's call in place of a statement, or the statement with keys by which one server is found."""
    return replaced.get(sql) or CAST_KEY.sub(r"\1 OPERATOR(pg_catalog.=) ", sql).replace(
        " id::text\n", " sessions.id\n"
    )


async def _add(
    add_one: str, add_many: str, connection: Any, calls: Sequence[Add], *, wait: bool
) -> list[AddOutcome | FluxMemoryError]:
    """Store calls of one session; see `adds.add`."""
    session_id = calls[0].session_id
    try:
        if wait and len(calls) == len(calls[0].rows) == 1:
            values = (session_id, *calls[0].rows[0], make_revision(), calls[0].user_id)
            ((same, is_foreign),) = await connection.fetch(add_one, *values)
            taken = calls[0].rows[0].id if same is False else None
            return [tell_outcome(session_id, found=same is not None, is_foreign=is_foreign, taken=taken)]
        return await _add_many(add_many, connection, calls, wait=wait)
    except asyncpg.StringDataRightTruncationError:
        # The id is longer than the column, to whose type it is cast to find the server.
        return [AddOutcome.MISSING for _ in calls]


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
