"""The store a clause works on: opens recorded handles, closes them, starts processes, sets clocks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, Final, TypeVar, cast

import pytest

from flux_memory import Memory, Message
from flux_memory.testkit.capabilities import ALL, MEANING, Capability
from flux_memory.testkit.contract.clock import python_clock_at
from flux_memory.testkit.contract.outages import Outage
from flux_memory.testkit.contract.processes import Child, Work
from flux_memory.testkit.patience import CLOSE_SECONDS, BlockedError, Patience, unblocked
from flux_memory.testkit.recorder import Transcript, awaitable

Result = TypeVar("Result")
Factory = Callable[[], Memory]
ClockAt = Callable[[datetime], AbstractAsyncContextManager[None]]
CorruptMessage = Callable[[str, str], Awaitable[None]]

SEPARATORS: Final = (":", "/", "|", "#", "-", "_", ".", ",", " ", "\x1f")
"""What stores put between the parts of a key, and ids may contain."""

MANY: Final = 3_000
"""More messages than a store takes or gives at once that has a limit nobody thinks of: a page, a script's arguments."""


@asynccontextmanager
async def clock_of_this_process(moment: datetime) -> AsyncIterator[None]:
    """Show this moment to every Python code of this process that asks for the time."""
    with python_clock_at(moment):
        yield


class StoreUnderTest:
    """One store, empty at first, and everything a clause does to it from outside.

    Args:
        factory: Each call opens one more handle on the store.
        fresh_factory: The same for a store that no handle has ever been opened on.
        clock_at: What is written inside this context bears the moment it is given.
        corrupt_message: Makes one stored message unreadable, behind the backend's back; takes the ids of its session
            and of itself.
        outages: The ways in which the store can be out of reach.
        capabilities: What the backend claims.
        thorough: The model explores for ten minutes instead of seconds.
        seed: The model's chance begins with it.
        patience: How long a clause may take, in this run.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        fresh_factory: Factory | None = None,
        clock_at: ClockAt = clock_of_this_process,
        corrupt_message: CorruptMessage | None = None,
        outages: Sequence[Outage] = (),
        capabilities: Capability = ALL,
        thorough: bool = False,
        seed: int | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.factory = factory
        self.fresh_factory = fresh_factory or factory
        self.clock_at = clock_at
        self.capabilities = capabilities
        self.claims: list[dict[str, Any]] = []
        """What was found out of each capability: its `name`, whether `claimed`, the `outcome`."""
        self.thorough = thorough
        self.seed = seed
        self.patience = patience or Patience()
        self.seeds: dict[str, int] = {}
        """What chance began with, for whoever wants the same run again."""
        self.finished = False
        """Whether a clause ran on this store to its end."""
        self.transcript = Transcript()
        self._corrupt_message = corrupt_message
        self._outages = outages
        self._opened: list[Memory] = []
        self._false_claims: list[str] = []

    def open(self) -> Memory:
        """Open one more handle; it is closed when the clause ends."""
        return self._record(self.factory())

    def open_fresh(self) -> Memory:
        """Open one more handle on the store that nobody has used."""
        return self._record(self.fresh_factory())

    def open_plain(self) -> Memory:
        """Open one more handle without a recorder, which would call the method only when the call is awaited."""
        memory = self.factory()
        self._opened.append(memory)
        return memory

    def open_through(self, outage: Outage) -> Memory:
        """Open one more handle on the store, by a way that the outage interrupts."""
        return self._record(outage.open())

    @property
    def has_outages(self) -> bool:
        """Whether the binding can put the store out of reach."""
        return bool(self._outages)

    def outages(self, *, lossy: bool = True) -> Sequence[Outage]:
        """Return the ways in which the store can be out of reach; without any the clause is unverified.

        Args:
            lossy: Also those that lose connections: a handle takes a second to notice, and another one to close.
        """
        found = [outage for outage in self._outages if lossy or not outage.loses_connections]
        if not found:
            pytest.skip(
                "unverified: override the fixture outages to put the store out of reach, "
                "or leave OUTAGES out of what is claimed"
            )
        return found

    def _record(self, memory: Memory) -> Memory:
        if inspect.iscoroutine(memory):
            memory.close()
            raise TypeError(
                "memory_factory gave a coroutine, not a memory: it must be a plain function; connect at the first call"
            )
        self._opened.append(memory)
        return cast("Memory", self.transcript.record(memory))

    async def corrupt_message(self, session_id: str, message_id: str) -> None:
        """Make one stored message unreadable."""
        if self._corrupt_message is None:
            pytest.skip("unverified: override the fixture corrupt_message to write past the backend")
        await self._corrupt_message(session_id, message_id)

    def found(self, capability: Capability, outcome: str) -> bool:
        """Note what a capability was found to be: `works`, `refused`, `is not there`, or something worse.

        Return whether that is what is claimed.
        """
        claimed = capability in self.capabilities
        self.claims.append({"name": capability.words, "claimed": claimed, "outcome": outcome})
        if outcome in ({"works"} if claimed else {"refused", "is not there"}):
            return True
        self._false_claims.append(
            f"{capability.name} is {'' if claimed else 'not '}claimed, and {outcome}: {MEANING[capability]}"
        )
        return False

    def check_claims(self) -> None:
        """Fail if something was found to be other than claimed."""
        if self._false_claims:
            pytest.fail("\n".join(self._false_claims))

    async def close(self, *, quietly: bool = False) -> None:
        """Close every handle that was opened, each within a bounded time."""
        problems: list[str] = []
        if quietly:
            _hush()
        while self._opened:
            try:
                closing = asyncio.ensure_future(awaitable("close", self._opened.pop().close()))
            except Exception as error:  # noqa: BLE001 - as of a close() that is no coroutine; what failed before matters
                problems.append(f"close() raised {error!r}")
                continue
            seconds = self.patience.close_seconds
            try:
                with unblocked(seconds):
                    done, _ = await asyncio.wait({closing}, timeout=seconds)
            except BlockedError as error:
                self.patience.lose_at_close()
                _hush()
                problems.append(f"close() does not end: {error}")
                continue
            if not done:
                self.patience.lose_at_close()
                problems.append(f"close() was not done within {seconds:.0f} s")
            elif raised := closing.exception():
                problems.append(f"close() raised {raised!r}")
        if problems and not quietly:
            pytest.fail("; ".join(problems))

    def run(self, main: Callable[[], Awaitable[Result]]) -> Result:
        """Run a part of a synchronous clause on an event loop of its own, and close the handles it opened."""

        async def bounded() -> Result:
            try:
                with unblocked(CLOSE_SECONDS * 2):
                    async with asyncio.timeout(CLOSE_SECONDS * 2):
                        result = await main()
            except BaseException:
                await self.close(quietly=True)
                raise
            await self.close()
            return result

        # With a factory of its own the runner leaves alone the loop that pytest-asyncio may have set.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(bounded())

    def fork(self, work: Work, *, fresh: bool = False) -> Child:
        """Start a process that waits for its `go()`, then does this work with a handle of its own.

        Only while no handle of this process is open: a file's locks and a server's connections must not be inherited.
        """
        if self._opened:
            raise RuntimeError("a clause forked while it held a handle")
        return Child(self.fresh_factory if fresh else self.factory, work)


def _hush() -> None:
    """Let the running loop say nothing of tasks left behind: they fail, too, and what came first is reported.

    They would speak when they are collected, whatever runs then.
    """
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)


async def add_numbered(memory: Memory, session_id: str, numbers: Iterable[int]) -> list[str]:
    """Add one message for each number, one after the other, and return their ids."""
    return [await memory.add_message(session_id, "user", str(number)) for number in numbers]


def contents(history: list[Message]) -> list[str]:
    """Return what the messages say."""
    return [message["content"] for message in history]


async def gather_outcomes(*calls: Awaitable[Any]) -> list[Any]:
    """Run calls concurrently; return results, and exceptions in their places."""
    return await asyncio.gather(*calls, return_exceptions=True)
