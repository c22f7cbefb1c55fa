"""Adds to PostgreSQL: what gathers while others are in flight goes out as one statement."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from math import ceil
from typing import Any, Final

from flux_memory import records
from flux_memory.backends.postgres_errors import Progress
from flux_memory.backends.postgres_retry import Statements
from flux_memory.errors import ConflictError, SessionNotFoundError
from flux_memory.records import MessageRow

# The session's row lock puts concurrent adds in a line; the counter it guards gives each its number. A message that
# is already there stops the update, so that a retry changes nothing. Two retries at once: the second breaks the
# unique key, fails whole, and finds the message when it is run again.
ADD_MESSAGE: Final = """
WITH stored AS (
    SELECT role = $3 AND content = $4 AND coalesce(metadata, '{}') = $5::text::jsonb AS same
    FROM messages
    WHERE session_id = $1 AND id = $2
), bumped AS (
    UPDATE sessions
    SET message_count = message_count + 1,
        updated_at = greatest(updated_at, clock_timestamp() AT TIME ZONE 'UTC')
    WHERE id = $1 AND NOT EXISTS (SELECT FROM stored)
    RETURNING id, message_count, updated_at
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT id, $2, message_count, $3, $4, $5::text::jsonb, updated_at
    FROM bumped
)
SELECT coalesce((SELECT same FROM stored), (SELECT TRUE FROM bumped))
"""

# The same for several calls, each of which is refused by itself. It never waits for a session's lock: one session
# that somebody holds must not keep the others waiting, and statements that do not wait cannot deadlock.
#
# `(SELECT $n)` hides the arrays' lengths from the planner. It would find that a plan for just so many rows costs less
# than one for any number, and make a new one each time, which takes several times as long as the statement itself.
ADD_MESSAGES: Final = """
WITH item AS (
    SELECT *
    FROM unnest(
        (SELECT $2::int[]), (SELECT $3::text[]), (SELECT $4::text[]),
        (SELECT $5::text[]), (SELECT $6::text[]), (SELECT $7::text[])
    ) WITH ORDINALITY AS item (call, session_id, id, role, content, metadata, position)
), stored AS (
    SELECT
        item.call,
        item.position,
        item.id,
        messages.role = item.role
            AND messages.content = item.content
            AND coalesce(messages.metadata, '{}') = item.metadata::jsonb AS same
    FROM item
    JOIN messages ON messages.session_id = item.session_id AND messages.id = item.id
), fresh AS (
    SELECT *, row_number() OVER (PARTITION BY session_id ORDER BY position) AS number
    FROM item
    WHERE position NOT IN (SELECT position FROM stored)
        AND call NOT IN (SELECT call FROM stored WHERE NOT same)
), locked AS (
    SELECT id
    FROM sessions
    WHERE id = ANY ((SELECT $1::text[])::text[])
    FOR UPDATE SKIP LOCKED
), bumped AS (
    UPDATE sessions
    SET message_count = message_count + growth.messages,
        updated_at = greatest(updated_at, clock_timestamp() AT TIME ZONE 'UTC')
    FROM (SELECT session_id, count(*) AS messages FROM fresh GROUP BY session_id) AS growth
    JOIN locked ON locked.id = growth.session_id
    WHERE sessions.id = growth.session_id
    RETURNING sessions.id, message_count - growth.messages AS before, updated_at
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT
        fresh.session_id,
        fresh.id,
        bumped.before + fresh.number,
        fresh.role,
        fresh.content,
        fresh.metadata::jsonb,
        bumped.updated_at
    FROM fresh
    JOIN bumped ON bumped.id = fresh.session_id
)
SELECT
    ARRAY (SELECT id FROM locked),
    ARRAY (SELECT call FROM stored WHERE NOT same ORDER BY position),
    ARRAY (SELECT id FROM stored WHERE NOT same ORDER BY position)
"""

ADD_MESSAGES_WAITING: Final = ADD_MESSAGES.replace("FOR UPDATE SKIP LOCKED", "FOR UPDATE")

_LANES: Final = 2
"""Statements in flight at a time: the server is at one while the callers of the other are told, and come again."""
_FEW: Final = 16
"""So many calls go out as one statement, not as two: a second one costs more than it saves."""
_MOST_ROWS: Final = 256
_MOST_CHARACTERS: Final = 1_000_000
"""Bounds of one statement, so that readers and other handles get their turn."""
_PATIENCE: Final = 0.02
"""Seconds until a statement in flight makes room for another: it waits for a lock, or the server is far."""


class _Call:
    """One `add_message` or `add_messages`: all its rows or none."""

    __slots__ = ("deadline", "future", "progress", "rows", "session_id")

    def __init__(self, session_id: str, rows: Sequence[MessageRow], deadline: float, progress: Progress) -> None:
        self.session_id = session_id
        self.rows = rows
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.deadline = deadline
        self.progress = progress


class MessageWriter:
    """Sends a call at once or, while others are in flight, with those that gather meanwhile; none waits for company.

    A session's messages are stored in the order of the calls: while a statement for it is in flight, however long, its
    next calls wait. Each call has its own outcome; one that is cancelled before it was sent is not stored, and one
    that was sent is stored whole or not at all.

    Args:
        statements: What runs the statements.
    """

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self._waiting: deque[_Call] = deque()
        self._in_flight: set[str] = set()
        self._turns: set[asyncio.TimerHandle] = set()
        self._gathered = 0
        """Calls that are in flight after having waited."""
        self._coming_back = False
        """A shared statement has just ended: its callers may come again in a moment, and shall share the next one."""
        self._going_on = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, session_id: str, rows: Sequence[MessageRow], deadline: float, progress: Progress) -> None:
        """Store the rows at the end of a session's history.

        Args:
            session_id: Whose.
            rows: All of one call.
            deadline: The moment of the event loop's clock at which the caller is gone, and its statement given up.
            progress: Where is noted how far the call has got.

        Raises:
            SessionNotFoundError: There is no such session.
            ConflictError: An id is taken by another content.
        """
        call = _Call(session_id, rows, deadline, progress)
        if self._turns or self._waiting or self._coming_back or session_id in self._in_flight:
            # Behind those that wait already: a caller that comes again at once must not overtake them for ever.
            self._waiting.append(call)
            self._go_on()
            await call.future
            return
        # Nothing is in flight: no task is needed to send this at once.
        turn = self._take_turn()
        self._in_flight.add(session_id)
        try:
            await self._send_alone(call)
        finally:
            self._in_flight.remove(session_id)
            self._end_turn(turn)
        call.future.result()

    def _take_turn(self) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        turn: asyncio.TimerHandle = loop.call_later(_PATIENCE, lambda: self._end_turn(turn))
        self._turns.add(turn)
        return turn

    def _end_turn(self, turn: asyncio.TimerHandle) -> None:
        turn.cancel()
        self._turns.discard(turn)
        self._go_on()

    def _go_on(self) -> None:
        if self._waiting and not self._going_on and self._has_room():
            self._going_on = True
            self._start(self._send_waiting())

    def _has_room(self) -> bool:
        calls = len(self._waiting) + self._gathered
        return len(self._turns) < (_LANES if calls > _FEW else 1)

    def _start(self, sending: Coroutine[Any, Any, None]) -> None:
        # The event loop itself holds tasks only weakly.
        task = asyncio.get_running_loop().create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_waiting(self) -> None:
        self._going_on = self._coming_back = False
        if not self._has_room() or not (calls := self._next_calls()):
            return
        turn = self._take_turn()
        self._gathered += len(calls)
        self._go_on()
        try:
            if len(calls) == 1:
                await self._send_apart(calls)
            else:
                await self._send_together(calls)
        finally:
            self._gathered -= len(calls)
            self._coming_back = len(calls) > 1
            self._end_turn(turn)

    def _next_calls(self) -> list[_Call]:
        """Take calls off the queue, none whose session is in flight, and mark their sessions."""
        calls: list[_Call] = []
        left: deque[_Call] = deque()
        held_back = set(self._in_flight)
        ids: set[tuple[str, str]] = set()
        size = characters = 0
        share = max(_FEW, ceil((len(self._waiting) + self._gathered) / _LANES))
        while self._waiting:
            call = self._waiting.popleft()
            if call.future.done():
                continue
            if call.session_id in held_back:
                left.append(call)
                continue
            own = {(call.session_id, row.id) for row in call.rows}
            if not ids.isdisjoint(own):
                # A retry of what is in this statement has to see it stored.
                held_back.add(call.session_id)
                left.append(call)
                continue
            calls.append(call)
            ids |= own
            size += len(call.rows)
            characters += sum(len(part) for row in call.rows for part in row)
            if len(calls) >= share or size >= _MOST_ROWS or characters >= _MOST_CHARACTERS:
                break
        self._waiting.extendleft(reversed(left))
        self._in_flight.update(call.session_id for call in calls)
        return calls

    async def _send_together(self, calls: list[_Call]) -> None:
        shared = Progress(writes=True)
        for call in calls:
            call.progress.shared = shared
        try:
            async with asyncio.timeout_at(max(call.deadline for call in calls)):
                passed_over = await self._send(calls, shared)
        except Exception:  # noqa: BLE001 - the calls are sent one by one, and each caller gets its own error
            # A bad call fails alone.
            await self._send_apart(calls)
            return
        # What it passed over it has not done.
        shared.sent = False
        by_session: dict[str, list[_Call]] = {}
        for call in passed_over:
            by_session.setdefault(call.session_id, []).append(call)
        self._in_flight.difference_update({call.session_id for call in calls} - by_session.keys())
        for same_session in by_session.values():
            self._start(self._send_apart(same_session))

    async def _send_apart(self, calls: list[_Call]) -> None:
        """Send calls one after the other, and unmark their sessions."""
        try:
            for call in calls:
                if call.future.done():
                    continue
                try:
                    async with asyncio.timeout_at(call.deadline):
                        await self._send_alone(call)
                except Exception as error:  # noqa: BLE001 - the caller gets it
                    _fail(call, error)
        finally:
            self._in_flight.difference_update(call.session_id for call in calls)
            self._go_on()

    async def _send_alone(self, call: _Call) -> None:
        """Send one call, which waits for its session's lock."""
        if len(call.rows) == 1:
            ((same,),) = await self._statements.run(
                call.progress, lambda connection: connection.fetch(ADD_MESSAGE, call.session_id, *call.rows[0])
            )
            _settle(call, found=same is not None, taken=call.rows[0].id if same is False else None)
        else:
            await self._send([call], call.progress, wait=True)

    async def _send(self, calls: list[_Call], progress: Progress, *, wait: bool = False) -> list[_Call]:
        """Send calls together and return those whose session is not there or locked by others; none if told to wait."""
        items = [(number, call.session_id, *row) for number, call in enumerate(calls) for row in call.rows]
        columns = [list(column) for column in zip(*items, strict=True)] or [[] for _ in range(6)]
        sessions = list({call.session_id for call in calls})
        sql = ADD_MESSAGES_WAITING if wait else ADD_MESSAGES
        ((locked, refused, taken),) = await self._statements.run(
            progress, lambda connection: connection.fetch(sql, sessions, *columns)
        )
        first_taken = dict(zip(reversed(refused), reversed(taken), strict=True))
        found = set(locked)
        passed_over = []
        for number, call in enumerate(calls):
            if call.session_id in found or wait:
                _settle(call, found=call.session_id in found, taken=first_taken.get(number))
            else:
                passed_over.append(call)
        return passed_over


def _settle(call: _Call, *, found: bool, taken: str | None) -> None:
    if not found:
        _fail(call, SessionNotFoundError(records.no_session(call.session_id)))
    elif taken is not None:
        _fail(call, ConflictError(records.taken_id(call.session_id, taken)))
    elif not call.future.done():
        call.future.set_result(None)


def _fail(call: _Call, error: Exception) -> None:
    if not call.future.done():
        call.future.set_exception(error)
