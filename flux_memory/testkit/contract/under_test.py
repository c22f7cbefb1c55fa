"""The store that a clause tests: opens recorded handles, closes them, starts processes, sets clocks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, Unpack, cast

import pytest

from flux_memory import MAX_CONTENT_BYTES, MAX_ID_LENGTH, Memory, Message
from flux_memory.testkit.capabilities import ALL, MEANING, Capability
from flux_memory.testkit.contract.hooks import Hooks, StoreHooks
from flux_memory.testkit.contract.outages import Outage
from flux_memory.testkit.contract.preflight import Preflight
from flux_memory.testkit.contract.processes import Child, Work
from flux_memory.testkit.contract.routes import Route, Routes
from flux_memory.testkit.recorder import Transcript, awaitable
from flux_memory.testkit.timeouts import CLAUSE_SECONDS, BlockedError, Limit, Timeouts, limited, unblocked
from flux_memory.testkit.verdicts import unverified

Result = TypeVar("Result")
Factory = Callable[[], Memory]

SEPARATORS: Final = (":", "/", "|", "#", "-", "_", ".", ",", " ", "\x1f")
"""Separators that stores put between the parts of a key, and that ids may contain."""

MANY: Final = 3_000
"""More messages than fit a hidden limit of a store, such as a page or the arguments of a script."""
_MANY_ONE_BY_ONE: Final = 120


class StoreUnderTest(StoreHooks):
    """One store, empty at first, and the operations of a clause that go past its handles.

    Args:
        factory: Each call opens another handle on the store.
        fresh_factory: The same for a store on which no handle has ever been opened.
        outages: The ways in which the store can be unreachable.
        routes: The kit's proxies in front of the store's server.
        capabilities: What the backend claims.
        max_content_bytes: The size in bytes of the longest content, role or title that the backend accepts.
        max_id_length: The length in characters of the longest id of a session or a message that the backend accepts.
        thorough: Explore the model for ten minutes instead of seconds, and take the time that large amounts need.
        seed: The random seed of the model.
        timeouts: How long a call may take in this run.
        preflight: The check of the binding before a clause; None for a store without a binding.
        hooks: What the binding does to the store past the backend, by the names of `Hooks`.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        fresh_factory: Factory | None = None,
        outages: Sequence[Outage] = (),
        routes: Routes | None = None,
        capabilities: Capability = ALL,
        max_content_bytes: int = MAX_CONTENT_BYTES,
        max_id_length: int = MAX_ID_LENGTH,
        thorough: bool = False,
        seed: int | None = None,
        timeouts: Timeouts | None = None,
        preflight: Preflight | None = None,
        **hooks: Unpack[Hooks],
    ) -> None:
        super().__init__(**hooks)
        self.factory = factory
        self.fresh_factory = fresh_factory or factory
        self.capabilities = capabilities
        self.max_content_bytes = max_content_bytes
        self.max_id_length = max_id_length
        self.claims: list[dict[str, Any]] = []
        """The finding on each capability: its `name`, whether it is `claimed`, the `outcome`."""
        self.seed = seed
        self.timeouts = timeouts or Timeouts()
        self.seeds: dict[str, int] = {}
        """The random seed that was used, to repeat the run."""
        self.clause_id = "a clause"
        """The clause that runs on this store."""
        self.finished = False
        """Whether a clause ran on this store to its end."""
        self.left_out: list[str] = []
        """Parts of the clause that only the thorough profile runs."""
        self.transcript = Transcript()
        self._thorough = thorough
        self._preflight = preflight
        self._outages = outages
        self._routes = routes
        self._opened: list[Memory] = []
        self._false_claims: list[str] = []

    def includes(self, part: str) -> bool:
        """Return whether the run's profile includes a part of the clause that takes long; if not, reports name it."""
        if not self._thorough and part not in self.left_out:
            self.left_out.append(part)
        return self._thorough

    async def check_binding(self) -> None:
        """Check that the binding gives an empty store that can be reached, unless it was checked often enough."""
        __tracebackhide__ = True
        if self._preflight is not None:
            await self._preflight.check_store(self.factory, claimed=self.capabilities)

    def open(self) -> Memory:
        """Open another handle; it is closed when the clause ends."""
        return self._record(self.factory())

    def open_fresh(self) -> Memory:
        """Open another handle on the store that was never used before."""
        return self._record(self.fresh_factory())

    def open_both(self) -> tuple[Memory, Memory]:
        """Open another handle; return it with a recorder, which calls a method when the call is awaited, and without.

        Only recorded calls postpone the clause's limit.
        """
        memory = self.factory()
        return self._record(memory), memory

    def open_through(self, outage: Outage) -> Memory:
        """Open another handle on the store, over a path that the outage interrupts."""
        return self._record(outage.open())

    @property
    def has_outages(self) -> bool:
        """Whether the binding can make the store unreachable."""
        return bool(self._outages)

    def outages(self, *, lossy: bool = True) -> Sequence[Outage]:
        """Return the ways in which the store can be unreachable; without any, the clause is unverified.

        Args:
            lossy: Include outages that lose connections: a handle needs a second to notice and another to close.
        """
        found = [outage for outage in self._outages if lossy or not outage.loses_connections]
        if not found:
            unverified("override the fixture outages to make the store unreachable, or remove OUTAGES from the claims")
        return found

    @property
    def has_routes(self) -> bool:
        """Whether the binding can put a proxy in front of the store's server."""
        return self._routes is not None

    def add_route(self) -> Route:
        """Return another way to the store's server; without one, the clause is unverified."""
        if self._routes is None:
            unverified(
                "override the fixture proxied_memory_factory to put a proxy in front of the server, or remove "
                "NETWORKED from the claims"
            )
        return self._routes.add()

    def open_over(self, route: Route) -> Memory:
        """Open another handle on the store, over a route that can break."""
        return self._record(route.open())

    def _record(self, memory: Memory) -> Memory:
        if inspect.iscoroutine(memory):
            memory.close()
            raise TypeError(
                "memory_factory returned a coroutine, not a memory: make it a plain function; connect on first use"
            )
        self._opened.append(memory)
        return cast("Memory", self.transcript.record(memory))

    def agrees(self, capability: Capability, outcome: str) -> bool:
        """Return whether the outcome for a capability agrees with the claim."""
        return outcome in ({"works"} if capability in self.capabilities else {"refused", "is not there"})

    def found(self, capability: Capability, outcome: str) -> bool:
        """Note the outcome for a capability: `works`, `refused`, `is not there`, or an error.

        Return whether it agrees with the claim.
        """
        claimed = capability in self.capabilities
        self.claims.append({"name": capability.words, "claimed": claimed, "outcome": outcome})
        if self.agrees(capability, outcome):
            return True
        self._false_claims.append(
            f"{capability.name} is {'' if claimed else 'not '}claimed, and {outcome}: {MEANING[capability]}"
        )
        return False

    def check_claims(self) -> None:
        """Fail if a finding disagrees with the claims."""
        if self._false_claims:
            pytest.fail("\n".join(self._false_claims))

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """Fail if a call in this block does not end, or if the block as a whole takes too long."""
        limit, cut = Limit(self.transcript.waiting, self.timeouts.call_seconds), self.timeouts.call_cut
        try:
            async with limited(limit) as timeout:
                yield
        except BlockedError:
            self.timeouts.shorten(self.clause_id)
            raise
        except TimeoutError:
            if not timeout.expired():
                raise
            if limit.spent:
                pytest.fail(f"the clause was not done within {CLAUSE_SECONDS:g} s, although its calls ended")
            self.timeouts.shorten(self.clause_id)
            call = f"{limit.hanging}()" if limit.hanging else "an unrecorded one"
            pytest.fail(f"a call hangs: {call} did not end within {limit.call_seconds:g} s{cut}")

    async def close(self, *, quietly: bool = False) -> None:
        """Close every open handle, all of them within a bounded time."""
        problems: list[str] = []
        if quietly:
            _hush()
        seconds, cut = self.timeouts.close_seconds, self.timeouts.close_cut
        closing: set[asyncio.Future[Any]] = set()
        try:
            with unblocked(seconds):
                while self._opened:
                    try:
                        closing.add(asyncio.ensure_future(awaitable("close", self._opened.pop().close())))
                    except Exception as error:  # noqa: BLE001 - for example, close() is not a coroutine; an earlier failure takes precedence
                        problems.append(f"close() raised {error!r}")
                done, late = await asyncio.wait(closing, timeout=seconds) if closing else (closing, closing)
        except BlockedError as error:
            self.timeouts.shorten_close(self.clause_id)
            _hush()
            problems.append(f"close() does not end: {error}{cut}")
        else:
            if late:
                self.timeouts.shorten_close(self.clause_id)
                problems.append(f"close() did not end within {seconds:g} s{cut}")
            outcomes = await asyncio.gather(*done, return_exceptions=True)
            problems += [f"close() raised {raised!r}" for raised in outcomes if isinstance(raised, BaseException)]
        if problems and not quietly:
            pytest.fail("; ".join(problems))

    def run(self, main: Callable[[], Awaitable[Result]]) -> Result:
        """Run part of a synchronous clause on a new event loop, and close the handles it opened."""

        async def bounded() -> Result:
            try:
                async with self.limited():
                    result = await main()
            except BaseException:
                await self.close(quietly=True)
                raise
            await self.close()
            return result

        # With its own factory, the runner does not touch the loop that pytest-asyncio may have set.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(bounded())

    def fork(self, work: Work, *, fresh: bool = False) -> Child:
        """Start a process that waits for `go()`, then does this work with its own handle.

        No handle of this process may be open: the child must not inherit file locks and server connections.
        """
        if self._opened:
            raise RuntimeError("a clause forked while it held a handle")
        return Child(self.fresh_factory if fresh else self.factory, work, self.timeouts, self.clause_id)


def _hush() -> None:
    """Stop the running loop from reporting abandoned tasks: the first failure is already reported.

    The reports would appear during later tests, when the tasks are collected.
    """
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)


async def add_numbered(memory: Memory, session_id: str, numbers: Iterable[int]) -> list[str]:
    """Add a message for each number, one after the other, and return their ids."""
    return [await memory.add_message(session_id, "user", str(number)) for number in numbers]


async def add_many(store: StoreUnderTest, memory: Memory, session_id: str, start: int, stop: int = MANY) -> list[str]:
    """Add more numbered messages than a store with a limit of its own holds or returns at once; return their ids."""
    if Capability.BATCH in store.capabilities:
        return await memory.add_messages(
            session_id, [{"role": "user", "content": str(number)} for number in range(start, stop)]
        )
    return await add_numbered(memory, session_id, range(start, min(stop, _MANY_ONE_BY_ONE)))


def another_handle(store: StoreUnderTest, memory: Memory) -> Memory:
    """Open another handle on the store; return this one if the backend does not claim several handles."""
    return store.open() if Capability.SEVERAL_HANDLES in store.capabilities else memory


def contents(history: list[Message]) -> list[str]:
    """Return the contents of the messages."""
    return [message["content"] for message in history]


async def gather_outcomes(*calls: Awaitable[Any]) -> list[Any]:
    """Run calls concurrently; return their results and exceptions in order."""
    return await asyncio.gather(*calls, return_exceptions=True)
