"""Terminates a connection to a server that is gone, without limiting the time of a statement.

A statement of a migration can run for hours, so a deadline cannot distinguish a lost server from a busy one. A new
connection can: a server that accepts one is alive.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

PROBE_INTERVAL_SECONDS: Final = 10.0
"""Pause between two probes; a probe is a new connection."""
PROBE_TIMEOUT_SECONDS: Final = 20.0
"""Timeout of a probe."""
MAX_SILENT_PROBES: Final = 3
"""Consecutive unanswered probes after which the server counts as lost."""
GRACE_SECONDS: Final = 1.0
"""Time for the driver to end a cancelled call, or a call on a lost connection, by itself."""
_UNREACHABLE: Final = frozenset((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN))

Connect = Callable[[float], Awaitable[Any]]


@asynccontextmanager
async def guard(connection: Any, connect: Connect) -> AsyncIterator[None]:
    """Terminate a connection if it is lost, if its server is silent, or if it delays a cancellation.

    The driver waits without a limit for an answer, also to the ROLLBACK after a cancellation, and for room to send more
    rows, even on a connection that was reset.

    Args:
        connection: A connection of asyncpg.
        connect: Opens another connection to the same server, given a timeout in seconds.

    Raises:
        ConnectionError: The connection was lost, and the block was interrupted; the message says why.
        CancelledError: The task was cancelled; this error wins over those that follow from it.
    """
    watch = _Watchdog(connection, connect)
    try:
        async with watch.block:
            yield
    except Exception as error:
        if watch.cancelled:
            # The driver raises other errors: connection dropped, or another operation in progress.
            raise asyncio.CancelledError from error
        if watch.lost is not None:
            raise watch.lost from error
        raise
    finally:
        await watch.end()


class _Watchdog:
    """Acts from timers: an application that shuts down cancels all tasks of its loop, while the driver may hang."""

    def __init__(self, connection: Any, connect: Connect) -> None:
        self.lost: ConnectionError | None = None
        """Why the connection was lost."""
        self.block: Final = asyncio.timeout(None)
        self._connection = connection
        self._connect = connect
        self._owner: Final = asyncio.current_task()
        self._before: Final = self._cancellations()
        self._loop: Final = asyncio.get_running_loop()
        self._ended = False
        self._timer: asyncio.Handle = self._loop.call_soon(self._check_cancelled)
        connection.add_termination_listener(lambda _: self._terminate())
        self._start_probing()

    async def end(self) -> None:
        """Stop watching."""
        self._ended = True
        self._timer.cancel()
        self._probing.cancel()
        await asyncio.gather(self._probing, return_exceptions=True)

    def _start_probing(self) -> None:
        self._probing = asyncio.create_task(self._wait_for_silence())
        self._probing.add_done_callback(self._on_probing_ended)

    def _on_probing_ended(self, probing: asyncio.Task[None]) -> None:
        if self._ended:
            return
        if probing.cancelled():
            self._start_probing()
        else:
            self.lost = ConnectionError(
                f"nothing has come back for {MAX_SILENT_PROBES * PROBE_TIMEOUT_SECONDS:g} s, not on new connections "
                "either; nothing is half done, run the same command again when it does"
            )
            self._terminate()

    def _check_cancelled(self) -> None:
        """Terminate the connection if its task was cancelled but continues."""
        if self.cancelled:
            self._after(GRACE_SECONDS, self._terminate)
        else:
            self._after(GRACE_SECONDS / 2, self._check_cancelled)

    def _terminate(self) -> None:
        self._connection.terminate()
        self._after(GRACE_SECONDS, self._abandon)

    def _abandon(self) -> None:
        # The driver has not raised its own, more precise error.
        self.lost = self.lost or ConnectionError("the connection was lost")
        self.block.reschedule(self._loop.time())

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer.cancel()
        if not self._ended:
            self._timer = self._loop.call_later(seconds, act)

    @property
    def cancelled(self) -> bool:
        """Whether the task that owns the connection was cancelled since the block began."""
        return self._cancellations() > self._before

    def _cancellations(self) -> int:
        return self._owner.cancelling() if self._owner is not None else 0

    async def _wait_for_silence(self) -> None:
        """Return after `MAX_SILENT_PROBES` unanswered probes in a row."""
        unanswered = 0
        while unanswered < MAX_SILENT_PROBES:
            await asyncio.sleep(PROBE_INTERVAL_SECONDS)
            unanswered = 0 if await self._answers() else unanswered + 1

    async def _answers(self) -> bool:
        """Return whether a new connection gets any answer; a refusal is one, too."""
        try:
            another = await self._connect(PROBE_TIMEOUT_SECONDS)
        except TimeoutError:
            return False
        except OSError as error:
            return error.errno not in _UNREACHABLE
        except Exception:  # noqa: BLE001 - any answer counts
            return True
        another.terminate()
        return True
