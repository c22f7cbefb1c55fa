"""Batches adds to PostgreSQL: calls that wait while others are in flight share the next statement."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import partial
from itertools import islice
from math import ceil
from typing import Any, Final

from flux_memory import records
from flux_memory.backends.postgres.adds import Add, AddOutcome
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.creating import INSERT_SESSION_WITH_MESSAGES, create_with_messages, hides_sessions
from flux_memory.backends.postgres.queue import AddStatement, QueuedCall, SessionQueue
from flux_memory.backends.postgres.retry import LOCKED_SECONDS, RetryingExecutor
from flux_memory.backends.shared_timer import SharedTimer

MAX_IN_FLIGHT: Final = 2
"""Statements in flight: the server works on one while the callers of the other are answered and call again."""
MIN_BATCH: Final = 16
"""Calls up to which one shared statement costs less than two in parallel."""
BATCH_ROWS: Final = 256
"""Rows of one statement; more would delay readers and other handles."""
BATCH_CHARACTERS: Final = 1_000_000
"""Characters of one statement; more would delay readers and other handles."""
SLOT_SECONDS: Final = 0.02
"""Seconds after which a statement no longer counts as in flight: it waits for a lock or for a slow network."""


class MessageWriter:
    """Sends a call at once if none is in flight, and otherwise in a batch with the calls that gather meanwhile.

    A session's messages are stored in the order of the calls. A call whose caller is cancelled before it is sent is not
    stored; one that was sent is stored as a whole or not at all. A statement is cancelled once all its callers are
    gone, and one that waits for a lock once the first of them is. A session's next calls are sent as soon as its
    callers in the statement before are answered or gone.

    A shared statement skips locked sessions. Each of these gets a statement of its own that waits for the lock with all
    calls that fit, or is tried again after `LOCKED_SECONDS` if too many statements wait for locks.

    Args:
        executor: Runs the statements.
    """

    def __init__(self, executor: RetryingExecutor) -> None:
        self._executor = executor
        self._observers = executor.meter.observers
        self._timer = SharedTimer(asyncio.get_running_loop())
        self._queues: dict[str, SessionQueue] = {}
        self._ready: OrderedDict[SessionQueue, None] = OrderedDict()
        """Sessions whose waiting calls can be sent, the one that has waited longest first."""
        self._locked: dict[SessionQueue, None] = {}
        """Sessions that were locked, until they are tried again."""
        self._waiting = 0
        self._gathered = 0
        """Calls in flight that came from the queues."""
        self._slots: set[AddStatement] = set()
        """Statements that count as in flight."""
        self._sent: set[AddStatement] = set()
        """Statements that have a connection, or wait for one."""
        self._next: AddStatement | None = None
        """The statement that waits for a connection, and then takes the ready calls."""
        self._expecting_refill = False
        """A shared statement has just ended: its callers may call again at once, and share the next one."""

    def has_calls(self, session_id: str) -> bool:
        """Return whether calls to a session are not answered yet."""
        return session_id in self._queues

    async def add(self, added: Add, state: CallState, *, creates: bool = False) -> None:
        """Store the rows of one call at the end of a session's history.

        Args:
            added: The session and the rows.
            state: Notes how far the call has got.
            creates: Whether to create the session if it does not exist; then there are rows.

        Raises:
            SessionNotFoundError: The session does not exist.
            ConflictError: The session has a message with the id of a row and other content, or another owner.
        """
        session_id = added.session_id
        queue = self._queues.get(session_id)
        # A caller that calls again at once must not overtake the calls that wait.
        idle = not (queue or self._slots or self._ready or self._expecting_refill)
        if queue is None:
            queue = self._queues[session_id] = SessionQueue(session_id)
        call = QueuedCall(queue, added, state, self._timer.loop.create_future(), creates=creates)
        if idle and self._executor.may_wait_for_lock() and self._has_room():
            await self._send_at_once(call)
            return
        state.blocked = queue.statement is not None or queue in self._locked
        queue.waiting[call] = None
        self._waiting += 1
        self._line_up(queue)
        self._send_next()
        try:
            await call.future
        finally:
            self._forget(call)

    async def _send_at_once(self, call: QueuedCall) -> None:
        """Send a call from its caller's task, which is cheaper than a new one."""
        statement = AddStatement(self._free_slot)
        self._sent.add(statement)
        self._put_in_flight(statement, call)
        self._occupy_slot(statement)
        self._executor.on_lock.add(statement)
        try:
            # A call whose session another client has just created is sent again.
            while not call.future.done():
                await self._executor.run(statement, partial(self._send, statement))
        finally:
            call.queue.in_flight.clear()
            self._finish(statement)
        call.future.result()

    def _forget(self, call: QueuedCall) -> None:
        """Forget a call whose caller has stopped waiting; cancel its statement if it has no others or is locked."""
        queue = call.queue
        if call in queue.waiting:
            del queue.waiting[call]
            self._waiting -= 1
            self._line_up(queue)
            if not self._ready and self._next is not None:
                self._next.task.cancel()
        elif call in queue.in_flight:
            del queue.in_flight[call]
            if (statement := queue.statement) is None:
                return
            if not queue.in_flight:
                self._release(statement, queue)
                self._send_next()
                if not statement.queues:
                    statement.task.cancel()
            elif statement in self._executor.on_lock and not statement.task.cancelling():
                # Nothing is stored yet, and the call must not be once the lock is free. The others are sent again, each
                # alone, so that the next caller who leaves does not take their place in the lock's queue from them.
                for other in queue.in_flight:
                    other.alone = True
                statement.task.cancel()

    def _line_up(self, queue: SessionQueue) -> None:
        """Add a session with waiting calls to the ready ones; forget one without calls."""
        if queue.statement is not None:
            return
        if not queue.waiting:
            self._ready.pop(queue, None)
            self._locked.pop(queue, None)
            self._queues.pop(queue.session_id, None)
        elif queue not in self._locked:
            self._ready[queue] = None

    def _send_next(self) -> None:
        """Start the next statement if calls are ready and there is room for it."""
        if self._ready and self._next is None and self._has_room():
            self._next = statement = AddStatement(self._free_slot, self._fill)
            self._slots.add(statement)
            self._start(statement)

    def _has_room(self) -> bool:
        if self._executor.path.tables and len(self._sent) >= self._executor.max_on_server:
            return False
        calls = self._waiting + self._gathered
        return len(self._slots) < (MAX_IN_FLIGHT if calls > MIN_BATCH else 1)

    def _start(self, statement: AddStatement) -> None:
        self._sent.add(statement)
        sending = self._executor.run(statement, partial(self._send, statement))
        statement.task = self._timer.loop.create_task(sending)
        # Cleanup is in a callback: a task that is cancelled before its first step runs no `finally`.
        statement.task.add_done_callback(partial(self._ended, statement))

    def _occupy_slot(self, statement: AddStatement) -> None:
        self._slots.add(statement)
        self._timer.add(statement, SLOT_SECONDS)

    def _free_slot(self, statement: AddStatement) -> None:
        self._slots.discard(statement)
        self._send_next()

    def _fill(self, statement: AddStatement) -> None:
        """Take ready calls into the next statement, which has a connection now."""
        self._next = None
        self._expecting_refill = False
        self._occupy_slot(statement)
        room = [max(MIN_BATCH, ceil((self._waiting + self._gathered) / MAX_IN_FLIGHT)), BATCH_ROWS, BATCH_CHARACTERS]
        while self._ready and min(room) > 0:
            queue = next(iter(self._ready))
            if statement.queues and next(iter(queue.waiting)).alone:
                break
            self._take(statement, queue, room)
        self._gathered += statement.gathered
        if statement.gathered == 1 and self._executor.may_wait_for_lock():
            self._executor.on_lock.add(statement)
        self._send_next()

    def _take(self, statement: AddStatement, queue: SessionQueue, room: list[int]) -> None:
        """Take a session's first waiting calls into a statement: at least one, and more while there is room.

        Args:
            statement: The statement.
            queue: The session, which has waiting calls and is in no statement.
            room: The calls, rows and characters that are left; is lowered.
        """
        ids: set[str] = set()
        for call in list(islice(queue.waiting, BATCH_ROWS)):
            own = {row.id for row in call.added.rows}
            # A retry of a message in this statement must find the message stored.
            if queue.in_flight and (call.alone or min(room) <= 0 or not ids.isdisjoint(own)):
                break
            ids |= own
            room[0] = 0 if call.alone else room[0] - 1
            room[1] -= len(call.added.rows)
            room[2] -= sum(len(part) for row in call.added.rows for part in row)
            del queue.waiting[call]
            self._waiting -= 1
            self._put_in_flight(statement, call)
            statement.gathered += 1
        self._ready.pop(queue, None)

    def _put_in_flight(self, statement: AddStatement, call: QueuedCall) -> None:
        call.queue.in_flight[call] = None
        call.queue.statement = statement
        statement.queues[call.queue] = None

    def _release(self, statement: AddStatement, queue: SessionQueue) -> None:
        """Take a session out of a statement; its unanswered calls wait again, before later ones."""
        if queue.in_flight:
            self._waiting += len(queue.in_flight)
            queue.waiting = {**queue.in_flight, **queue.waiting}
            queue.in_flight = {}
        queue.statement = None
        del statement.queues[queue]
        self._line_up(queue)

    async def _send(self, statement: AddStatement, connection: Any) -> None:
        calls = statement.calls()
        if not calls:
            return
        if self._observers.active is not None:
            self._executor.meter.note_batch(len(calls))
        wait = statement in self._executor.on_lock
        locked: dict[SessionQueue, None] = {}
        missing: dict[SessionQueue, QueuedCall] = {}
        outcomes = await self._executor.path.add(connection, [call.added for call in calls], wait=wait)
        for call, outcome in zip(calls, outcomes, strict=True):
            if outcome is AddOutcome.LOCKED:
                locked[call.queue] = None
            elif outcome is AddOutcome.MISSING and call.creates:
                call.state.sent = False
                missing.setdefault(call.queue, call)
            else:
                call.take_outcome(outcome)
        for queue in locked.keys() & statement.queues.keys():
            self._wait_for_lock(statement, queue)
        # The other calls to these sessions are sent again, in order, and so are those whose session now exists.
        for call in missing.values():
            if not call.future.done():
                await self._create(call, connection)

    async def _create(self, call: QueuedCall, connection: Any) -> None:
        """Create the session of a call, with the call's messages, unless it exists by now.

        A session that exists and is missing for the add that follows is hidden by a policy.
        """
        call.state.sending()
        sql = self._executor.path.statement(INSERT_SESSION_WITH_MESSAGES)
        if await create_with_messages(sql, connection, call.added):
            call.settle(None)
        elif call.is_taken and await hides_sessions(connection):
            call.settle(records.session_id_taken(call.queue.session_id))
        else:
            call.is_taken = True
            call.state.sent = False

    def _wait_for_lock(self, skipped_by: AddStatement, queue: SessionQueue) -> None:
        """Send a call to a locked session by a statement that waits for the lock, or try again later."""
        for call in queue.in_flight:
            call.state.sent = False
            call.state.blocked = True
        self._release(skipped_by, queue)
        if self._executor.may_wait_for_lock():
            statement = AddStatement(self._free_slot)
            self._executor.on_lock.add(statement)
            # As many calls as an unlocked session gets: with one, the process that finds the session unlocked by chance
            # stores a batch for each call of the others.
            self._take(statement, queue, [MIN_BATCH, BATCH_ROWS, BATCH_CHARACTERS])
            self._gathered += statement.gathered
            self._start(statement)
            return
        if not self._locked:
            self._timer.loop.call_later(LOCKED_SECONDS, self._try_locked)
        self._ready.pop(queue, None)
        self._locked[queue] = None

    def _try_locked(self) -> None:
        self._ready.update(self._locked)
        self._locked.clear()
        self._send_next()

    def _ended(self, statement: AddStatement, task: asyncio.Task[None]) -> None:
        """Settle the calls that a statement left unanswered, or queue them again."""
        error = None if task.cancelled() else task.exception()
        calls = statement.calls()
        if statement is self._next:
            # It got no connection, so that all ready calls fail with it.
            calls = [call for queue in self._ready for call in queue.waiting]
        for call in calls:
            call.state.lost = call.state.unknown
            if isinstance(error, Exception):
                # Of a shared statement, the error does not say which call the server refused: each is sent again alone.
                # The refused one may have left meanwhile.
                if statement.gathered <= 1:
                    call.settle(error)
                call.alone = True
        self._finish(statement)

    def _finish(self, statement: AddStatement) -> None:
        if statement is self._next:
            self._next = None
        self._timer.remove(statement)
        self._slots.discard(statement)
        self._sent.discard(statement)
        self._executor.on_lock.discard(statement)
        self._gathered -= statement.gathered
        self._expecting_refill = statement.gathered > 1
        for queue in [*statement.queues]:
            self._release(statement, queue)
        self._send_next()
