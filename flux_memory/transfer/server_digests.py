"""The digests of a PostgreSQL memory's sessions, computed by the server and streamed in the order of their ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

from flux_memory.transfer.prepared import SessionDigest
from flux_memory.transfer.wire import MESSAGE_DIGEST, SESSION_DIGEST, CopyReader

# COPY, since a cursor would keep the server from using more than one process.
SELECT_DIGESTS: Final = f"""
SELECT
    convert_to(sessions.id::text, 'UTF8'),
    {SESSION_DIGEST},
    coalesce(proven.count, 0),
    sessions.message_count,
    proven.messages
FROM sessions
LEFT JOIN (
    SELECT
        session_id,
        count(*),
        bit_xor(('x' || encode({MESSAGE_DIGEST}, 'hex'))::bit(256)) AS messages
    FROM messages
    GROUP BY session_id
) AS proven ON proven.session_id = sessions.id
ORDER BY sessions.id::text COLLATE "C"
"""  # noqa: S608 - constants of ours

_AHEAD: Final = 1_000
_BITS: Final = 4
"""Bytes before the bits of a `bit(n)`: how many there are."""


async def server_digests(connection: Any) -> AsyncGenerator[tuple[SessionDigest, int], None]:
    """Return each session's digest with the message count its row claims."""
    queue: asyncio.Queue[tuple[SessionDigest, int] | Exception | None] = asyncio.Queue(_AHEAD)
    reader = CopyReader()

    async def receive(data: bytes) -> None:
        for row in reader.rows(data):
            await queue.put(_digest(row))

    async def run() -> None:
        # Where it is cancelled nobody takes anything out of the queue any more.
        try:
            await connection.copy_from_query(SELECT_DIGESTS, output=receive, format="binary")
        except Exception as error:  # noqa: BLE001 - raised where the digests are read
            await queue.put(error)
        else:
            await queue.put(None)

    task = asyncio.create_task(run())
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        task.cancel()
        await asyncio.wait([task])


def _digest(row: list[bytes | None]) -> tuple[SessionDigest, int]:
    id_, digest, count, counter, bits = row
    assert id_ is not None and digest is not None and count is not None and counter is not None  # noqa: PT018, S101 - never NULL
    messages = int.from_bytes(bits[_BITS:]) if bits is not None else 0
    return SessionDigest(id_, digest, int.from_bytes(count), messages), int.from_bytes(counter, signed=True)
