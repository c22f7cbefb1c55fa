"""Names what differs between a migration of one server's tables and of a cluster's; chosen once the target is known."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, NamedTuple, Protocol

from flux_memory.transfer.progress import Advance
from flux_memory.transfer.rows.spool import Batch
from flux_memory.transfer.target.merge import merge
from flux_memory.transfer.target.merge_result import MergeResult
from flux_memory.transfer.target.moves import MoveRecord
from flux_memory.transfer.target.server import make_durable, read_transaction


class MergeBatches(Protocol):
    """Adds the missing rows of batches to a target that has rows; see `merge.merge`."""

    async def __call__(
        self,
        connection: Any,
        batches: Iterable[Batch],
        record: MoveRecord | None,
        *,
        restores_deleted: bool,
        advance: Advance,
    ) -> MergeResult:
        """Add the rows in committed batches, and return how many."""
        ...


class TransferPath(NamedTuple):
    """The statements of a migration, and how it loads, reads and flushes a target."""

    statement: Callable[[str], str]
    """Returns the statement that runs in place of one for a single server: with the same parameters and result."""
    merge: MergeBatches
    drops_keys: bool
    """Whether a load drops the keys, and builds them again from all rows."""
    read: Callable[[Any, str], AbstractAsyncContextManager[bool]]
    """Runs a transaction in which a session is read at one moment; returns whether all sessions are at the same.

    The arguments are the connection and the DSN, for another connection.
    """
    flush: Callable[[Any], Awaitable[None]]
    """Waits until everything committed so far is on disk; see `server.make_durable`."""


@asynccontextmanager
async def read_one_server(connection: Any, _: str) -> AsyncIterator[bool]:
    """Run a transaction that reads one snapshot."""
    async with read_transaction(connection):
        yield True


ONE_SERVER_TRANSFER: Final = TransferPath(
    statement=str, merge=merge, drops_keys=True, read=read_one_server, flush=make_durable
)
