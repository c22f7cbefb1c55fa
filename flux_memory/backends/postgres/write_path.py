"""Names what differs between the writes on one server and those on a cluster; a handle chooses when it opens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from flux_memory.backends.postgres.adds import Add, AddOutcome
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.errors import FluxMemoryError

if TYPE_CHECKING:
    from flux_memory.backends.postgres.deleting import DeletionCriteria
    from flux_memory.backends.postgres.retry import RetryingExecutor

DeleteBatch = Callable[
    ["RetryingExecutor", CallState, "DeletionCriteria", Sequence[str]],
    Awaitable[tuple[int, int, Sequence[str] | None]],
]
"""Deletes a batch of the sessions that meet criteria; see `deleting.delete_batch`."""
SelectPage = Callable[..., tuple[str, list[object]]]
"""Returns the statement that reads a page of sessions; see `queries.select_page`."""


class AddCalls(Protocol):
    """Stores calls on a connection, and waits for locked sessions or skips them; see `adds.add`."""

    async def __call__(
        self, connection: Any, calls: Sequence[Add], *, wait: bool
    ) -> list[AddOutcome | FluxMemoryError]: ...


class WritePath(NamedTuple):
    """The statements of a store, and how its adds are shared out.

    A statement and what replaces it have the same parameters and the same result. If the one skips a locked session,
    both contain `locking.SKIPPING`, and wait without it.
    """

    statement: Callable[[str], str]
    """Returns the statement that runs in place of one for a single server."""
    add: AddCalls
    delete_batch: DeleteBatch
    select_page: SelectPage
    has_shortcuts: bool
    """Whether a change may try a cheaper statement first."""
    tables: str
    """The quoted schema of the distributed tables; empty if the tables are on one server."""
    find_server: Callable[[str], Hashable]
    """Returns the server of a session; calls to sessions on one server may share a statement."""
    remote_failures: tuple[type[Exception], ...]
    """Errors over an open connection which mean that the server lost another one: the statement may have had effect."""
