"""One replica: its connections, how far it has replayed the log, and whether reads may use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from weakref import WeakSet

import asyncpg

from flux_memory.backends.observation import Observers, name_server
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.connecting import DRIVER_ERRORS, fatal_error, message_of
from flux_memory.backends.postgres.one_server import ONE_SERVER
from flux_memory.backends.postgres.pool import OwnPool
from flux_memory.backends.postgres.replicas.log import IDENTITY, Sample
from flux_memory.backends.postgres.retry import RetryingExecutor
from flux_memory.dsn import Dsn
from flux_memory.errors import FluxMemoryError

_LOOK_SECONDS: Final = 1.0
"""Seconds that a replica has to answer a look; then it is left, and the reads that wait for it go to the primary."""
_CONNECT_SECONDS: Final = 1.0
_CATCH_UP_SECONDS: Final = 0.02
"""Seconds that a read waits for a replica that has not replayed what the read must show."""
_IMPATIENT_SECONDS: Final = 0.25
"""Seconds for which reads do not wait for a replica after one has waited in vain."""
_FIRST_PAUSE_SECONDS: Final = 0.001
_FIRST_ABSENCE_SECONDS: Final = 0.25
_MAX_ABSENCE_SECONDS: Final = 5.0
"""Seconds after which a replica that was left is looked at again, at the latest."""

_PROMOTED: Final = "it accepts writes: it was promoted, or never was a replica"

SELECT_REPLAYED: Final = """
SELECT CASE
    WHEN pg_catalog.pg_is_in_recovery() THEN (pg_catalog.pg_last_wal_replay_lsn() - '0/0')::bigint ELSE -1
END
"""
# A role without pg_read_all_stats sees no timeline.
SELECT_REPLICA: Final = (
    f"SELECT pg_catalog.pg_is_in_recovery(), coalesce(pg_catalog.pg_last_wal_replay_lsn(), '0/0'), {IDENTITY}, "  # noqa: S608 - constants of ours
    "(SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver), "
    "(SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()), "
    "(SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery())"
)


class _PromotedError(Exception):
    """The server is not a replica any more."""


class _ReplicaPool(OwnPool):
    """Connections to one replica. An attempt to connect that fails ends the call, which then goes to the primary."""

    def __init__(self, target: Dsn, max_size: int, observers: Observers) -> None:
        super().__init__(target, 0, max_size, _CONNECT_SECONDS, observers)
        self._tries_again = False

    def abort(self) -> None:
        """Drop every connection, also one that a statement uses; later calls open new ones."""
        for connection in [*self._open]:
            self._drop(connection)


class Replica:
    """A host of the replicas' DSN.

    The position that a statement reports is evaluated after the statement's snapshot, so it says what the next
    statement will see, not what this one saw.

    Args:
        target: The DSN, with this host alone.
        max_size: The largest number of connections for reads.
        observers: The observers of its connections; `None` for a look of its own.
    """

    def __init__(self, target: Dsn, max_size: int, observers: Observers | None = None) -> None:
        # Each host is judged by its own answers.
        arguments = {"timeout": _CONNECT_SECONDS, **target.arguments, "target_session_attrs": "any"}
        target = target._replace(arguments=arguments)
        (address,) = target.addresses
        self.shown: Final = show_address(address)
        observers = observers or Observers(name_server(target))
        self._pool = _ReplicaPool(target, max_size, observers)
        self._looking = _ReplicaPool(target, 1, observers)
        """Its connection is always free to find out that those of the pool hang."""
        self._reads = RetryingExecutor(self._pool, ONE_SERVER, retries=False)
        self._looks = RetryingExecutor(self._looking, ONE_SERVER, retries=False)
        self.in_use = False
        self.trouble = "it has not been looked at yet"
        """Why it is not in use."""
        self.replayed = 0
        """The position that each statement sent from now on sees."""
        self._known: WeakSet[Any] = WeakSet()
        """Connections whose server has replayed at least `replayed`."""
        self._look_at = 0.0
        self._absence = _FIRST_ABSENCE_SECONDS
        self._must_pass: int | None = None
        """The position to pass before it is used, unless it has replayed the primary's timeline: it may follow another
        primary. `None` until the next look."""
        self._impatient_until = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time to look at it."""
        return self.in_use or time.monotonic() >= self._look_at

    async def read(self, state: CallState, sql: str, values: Sequence[object], position: int) -> list[Any] | None:
        """Run a read that shows everything before a position; return `None` if the primary must answer instead.

        Args:
            state: The state of the call.
            sql: A statement whose rows begin with the position of the server, which is negative on a primary.
            values: The values of its parameters.
            position: A position in the primary's log.
        """
        try:
            return await self._reads.run(state, partial(self._read, sql, values, position))
        except _PromotedError:
            self.leave(_PROMOTED)
        except (*DRIVER_ERRORS, FluxMemoryError) as error:
            # Reads that fail together leave it once. A read that conflicts with the replay does not.
            if self.in_use and not _is_refusal(error):
                # Where only a new connection fails, the others may be well.
                self.leave(message_of(error), aborts=not isinstance(error, FluxMemoryError))
        return None

    async def look(self, primary: Sample) -> None:
        """Ask the replica how far it is; use it if it follows the primary, and leave it otherwise."""
        before = self.replayed
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                is_replica, position, identity, *timelines = await self._looks.run(CallState(writes=False), _select)
        except (*DRIVER_ERRORS, FluxMemoryError) as error:
            reason = "it does not answer" if isinstance(error, TimeoutError) else message_of(error)
            self.leave(reason)
            return
        followed = timelines[0]
        if self._must_pass is None:
            self._must_pass = position
        if not is_replica:
            self.leave(_PROMOTED)
        elif identity != primary.identity:
            self.leave(
                "it is not a replica of the primary, or its role sees other tables or rows; give it the database, the "
                "user and the search_path of the primary"
            )
        elif followed not in {None, primary.timeline}:
            self.leave(f"it follows timeline {followed}, and the primary has {primary.timeline}")
        elif position < before:
            self.leave("it was restarted")
        elif primary.timeline not in timelines and position <= self._must_pass:
            self.leave(f"it has replayed nothing yet that shows that it follows timeline {primary.timeline}")
        else:
            self.in_use, self.trouble = True, ""
            self.replayed = max(self.replayed, position)
            self._absence = _FIRST_ABSENCE_SECONDS

    def distrust(self) -> None:
        """Leave the replica until it has replayed something more: another server was promoted to the primary."""
        self.leave("another primary was promoted")
        self._must_pass = None
        self._look_at = 0.0

    def leave(self, reason: str, *, aborts: bool = True) -> None:
        """Stop using the replica until a look finds it well.

        Args:
            reason: Why.
            aborts: Whether to drop its connections, so that the reads that wait for it go to the primary.
        """
        self.in_use, self.trouble = False, reason
        self.replayed = 0
        self._look_at = time.monotonic() + self._absence
        self._absence = min(self._absence * 2, _MAX_ABSENCE_SECONDS)
        if aborts:
            self._pool.abort()

    async def close(self, seconds: float) -> None:
        """Close its connections, by force after a number of seconds."""
        await asyncio.gather(self._pool.close(seconds), self._looking.close(seconds))

    def terminate(self) -> None:
        """Drop its connections."""
        self._pool.terminate()
        self._looking.terminate()

    async def _read(self, sql: str, values: Sequence[object], position: int, connection: Any) -> list[Any] | None:
        if not self.in_use:
            return None
        # A new connection may lead to a server that was restarted, and has replayed less than before.
        is_new = connection not in self._known
        if (is_new or self.replayed < position) and not await self._catches_up(connection, position):
            return None
        rows: list[Any] = await connection.fetch(sql, *values)
        self._note(rows[0][0])
        return rows

    async def _catches_up(self, connection: Any, position: int) -> bool:
        """Return whether the replica has replayed up to a position, or does so shortly."""
        end, pause = time.monotonic() + _CATCH_UP_SECONDS, _FIRST_PAUSE_SECONDS
        while True:
            before = self.replayed
            ((replayed,),) = await connection.fetch(SELECT_REPLAYED)
            self._note(replayed)
            if connection not in self._known and replayed < before:
                self.leave("it was restarted")
                return False
            self._known.add(connection)
            if self.replayed >= position:
                return True
            now = time.monotonic()
            if now >= end:
                self._impatient_until = now + _IMPATIENT_SECONDS
            if now < self._impatient_until:
                return False
            await asyncio.sleep(pause)
            pause *= 2

    def _note(self, replayed: int | None) -> None:
        if replayed is None or replayed < 0:
            raise _PromotedError
        self.replayed = max(self.replayed, replayed)


def show_address(address: tuple[str, int]) -> str:
    """Return the name of a replica: its host and port."""
    host, port = address
    return f"{host}:{port}"


def _is_refusal(error: Exception) -> bool:
    """Return whether a server that is well refused a statement."""
    lost = isinstance(error, asyncpg.PostgresConnectionError) or fatal_error(error) is not None
    return isinstance(error, asyncpg.PostgresError) and not lost


async def _select(connection: Any) -> tuple[Any, ...]:
    (row,) = await connection.fetch(SELECT_REPLICA)
    return tuple(row)
