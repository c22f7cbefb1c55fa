"""Lets go of a connection that leads nowhere any more, however long a statement may rightly take.

A statement of a migration can run for hours, so that no deadline tells a server that is gone from one at work. A new
connection does: a server that still takes one is there.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

PROBE_INTERVAL_SECONDS: Final = 10.0
"""Seconds between two attempts to get another connection."""
PROBE_TIMEOUT_SECONDS: Final = 20.0
"""Seconds that one may take."""
MAX_SILENT_PROBES: Final = 3
"""So many attempts in a row without an answer are silence."""
GRACE_SECONDS: Final = 1.0
"""Seconds for the driver to end by itself what was cancelled, or whose connection is lost."""
_UNREACHABLE: Final = frozenset((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN))

Connect = Callable[[float], Awaitable[Any]]


@asynccontextmanager
async def guard(connection: Any, connect: Connect) -> AsyncIterator[None]:
    """Let go of a connection if it is lost, if its server is silent, or if it holds up a cancellation.

    The driver waits for ever for an answer, to a ROLLBACK after a cancellation too, and for room to send more rows
    even on a connection that was reset.

    Args:
        connection: asyncpg's.
        connect: Makes another one to the same server, within so many seconds.

    Raises:
        ConnectionError: The block was left, wherever it was; the message says why.
        CancelledError: It was cancelled, whatever came of that.
    """
    watch = _Watchdog(connection, connect)
    try:
        async with watch.block:
            yield
    except Exception as error:
        if watch.cancelled:
            # What the driver makes of it: the connection was dropped, or is in the middle of something.
            raise asyncio.CancelledError from error
        if watch.lost is not None:
            raise watch.lost from error
        raise
    finally:
        await watch.end()


class _Watchdog:
    """Acts from timers: an application that shuts down cancels every task of its loop, and the driver may hang then."""

    def __init__(self, connection: Any, connect: Connect) -> None:
        self.lost: ConnectionError | None = None
        """What became of the connection."""
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
        """Watch no longer."""
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
        """Terminate the connection when its task was cancelled, and goes on all the same."""
        if self.cancelled:
            self._after(GRACE_SECONDS, self._terminate)
        else:
            self._after(GRACE_SECONDS / 2, self._check_cancelled)

    def _terminate(self) -> None:
        self._connection.terminate()
        self._after(GRACE_SECONDS, self._abandon)

    def _abandon(self) -> None:
        # The driver has not ended it by itself; what it says is more to the point.
        self.lost = self.lost or ConnectionError("the connection was lost")
        self.block.reschedule(self._loop.time())

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer.cancel()
        if not self._ended:
            self._timer = self._loop.call_later(seconds, act)

    @property
    def cancelled(self) -> bool:
        """Whether the task that has the connection was cancelled since."""
        return self._cancellations() > self._before

    def _cancellations(self) -> int:
        return self._owner.cancelling() if self._owner is not None else 0

    async def _wait_for_silence(self) -> None:
        """Return when the server has been silent."""
        unanswered = 0
        while unanswered < MAX_SILENT_PROBES:
            await asyncio.sleep(PROBE_INTERVAL_SECONDS)
            unanswered = 0 if await self._answers() else unanswered + 1

    async def _answers(self) -> bool:
        """Ask the server for another connection. That it refuses is an answer, too: something came back."""
        try:
            another = await self._connect(PROBE_TIMEOUT_SECONDS)
        except TimeoutError:
            return False
        except OSError as error:
            return error.errno not in _UNREACHABLE
        except Exception:  # noqa: BLE001 - whatever it says
            return True
        another.terminate()
        return True
