"""The adds that wait for a statement, in order by session, and the statements that carry them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flux_memory import records
from flux_memory.backends.postgres.adds import Add, AddOutcome
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.shared_timer import Expiring
from flux_memory.errors import FluxMemoryError


class QueuedCall:
    """One `add_message` or `add_messages`: all its rows are stored, or none.

    Args:
        queue: The calls to the same session.
        added: The session and the rows.
        creates: Whether to create the session if it does not exist.
        state: Notes how far the call has got.
        answer: What the caller waits for.
    """

    __slots__ = ("added", "alone", "creates", "future", "is_taken", "queue", "state")

    def __init__(
        self, queue: SessionQueue, added: Add, state: CallState, answer: asyncio.Future[None], *, creates: bool
    ) -> None:
        self.queue = queue
        self.added = added
        self.creates = creates
        self.state = state
        self.future = answer
        self.alone = False
        """Whether it must not share its next statement: the server refused one that it shared, or a caller left it."""
        self.is_taken = False
        """Whether its session could not be created, since it existed."""

    def take_outcome(self, outcome: AddOutcome | FluxMemoryError) -> None:
        """Answer the caller, or note that the call is to be sent alone."""
        if outcome is AddOutcome.REFUSED:
            self.state.sent = False
            self.alone = True
        elif outcome is AddOutcome.MISSING:
            self.settle(records.session_not_found(self.queue.session_id))
        elif outcome is AddOutcome.STORED:
            self.settle(None)
        elif isinstance(outcome, FluxMemoryError):
            self.settle(outcome)

    def settle(self, error: Exception | None) -> None:
        """Answer the caller, if it still waits."""
        self.queue.in_flight.pop(self, None)
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)
            # Retrieved here, since asyncio would log it if the caller sends the statement itself and is cancelled.
            self.future.exception()


class SessionQueue:
    """The unanswered adds to one session, in order: those in flight, then those that wait."""

    __slots__ = ("in_flight", "session_id", "statement", "waiting")

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.waiting: dict[QueuedCall, None] = {}
        self.in_flight: dict[QueuedCall, None] = {}
        """Calls in `statement` whose callers still wait. Once there are none, the next calls can be sent."""
        self.statement: AddStatement | None = None


class AddStatement(Expiring):
    """One statement and the calls in it.

    Args:
        free_slot: Called when the statement counts as in flight no longer.
        fill: Takes the ready calls into the statement once it has a connection.
    """

    __slots__ = ("_fill", "_free_slot", "gathered", "queues", "task")

    task: asyncio.Task[None]
    """Runs the statement, unless its caller does so in `_send_at_once`."""

    def __init__(
        self, free_slot: Callable[[AddStatement], None], fill: Callable[[AddStatement], None] | None = None
    ) -> None:
        self._free_slot = free_slot
        self._fill = fill
        self.queues: dict[SessionQueue, None] = {}
        """Its sessions with callers that still wait."""
        self.gathered = 0
        """The number of calls that it took from the queues."""

    def expire(self) -> None:
        self._free_slot(self)

    def calls(self) -> list[QueuedCall]:
        """Return the calls whose callers still wait."""
        return [call for queue in self.queues for call in queue.in_flight if not call.future.done()]

    def sending(self) -> None:
        """Take the calls before the first attempt, and note in each that it is sent."""
        if (fill := self._fill) is not None:
            self._fill = None
            fill(self)
        for call in self.calls():
            call.state.sending()

    def note_statement(self, sql: str) -> None:
        """Keep the text of a statement in each call."""
        for call in self.calls():
            call.state.note_statement(sql)

    def failed(self, error: Exception, *, lost: bool) -> None:
        """Note in each call how the statement failed."""
        for call in self.calls():
            call.state.failed(error, lost=lost)
