"""The check of a binding before its first clause: its fixtures, a handle, and a store that is there and empty."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NoReturn

import pytest

from flux_memory import BackendUnavailableError, FluxMemoryError, Memory, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.contract.missing_calls import Missing, find_missing
from flux_memory.testkit.evidence.properties import CLAUSE
from flux_memory.testkit.recorder import awaitable
from flux_memory.testkit.verdicts import BindingFault

_CHECKS: Final = 2
"""The second check finds a binding that gives the first clause's store to the next one."""
_DEADLINE_SECONDS: Final = 3.0
"""The deadline of the first call: a backend that waits for its service reports the cause by then."""
_COLD_START_SECONDS: Final = 30.0
"""The deadline of the second call, if nothing refused the first: a store that sleeps may take seconds to start."""
_PROBE_SECONDS: Final = 10.0
"""Seconds after its deadline at which a call is left to the clauses, which report that it hangs."""
_NEAR_SECONDS: Final = 0.05
"""Seconds that a call on a near store takes at most: the clauses make thousands of calls."""
_METHODS: Final = tuple(name for name, value in vars(Memory).items() if callable(value) and not name.startswith("_"))
_EMPTY_STORE: Final = (
    "give each clause an empty store of its own, such as a file in tmp_path, or a schema that the fixture drops after "
    "its yield"
)

_PREFLIGHTS: Final = pytest.StashKey[dict[object, "Preflight"]]()


class Preflight:
    """The checks of one binding in this process. A fault ends each of its clauses without a verdict.

    A memory is broken, and its clauses fail, if its calls raise or return something wrong. The binding is at fault if
    the memory, its service or an empty store is missing.

    Args:
        binding: The name of the class.
    """

    def __init__(self, binding: str) -> None:
        self.binding: Final = binding
        self._checks_due = _CHECKS
        self._worked = False
        self._fault: str | None = None
        """Why no clause can run; None if one can."""
        self._left: str | None = None
        """Which session the last check found in the store; None if the store was empty."""
        self._shown_at: str | None = None
        """The test whose error has the whole message."""
        self._test = ""
        self.has_memory_factory = False
        """Whether the fixtures of this test gave a function that opens handles."""
        self.call_seconds: float | None = None
        """How long a call on an open handle took; None if none has answered."""
        self.missing: Missing = {}
        """What the memory lacks of its claims, for advice beside the failures of clauses."""

    def begin(self, test: str) -> None:
        """Begin a clause's test, given its node id; refuse a binding that is known to be at fault."""
        self._test = test
        self.has_memory_factory = False
        if self._fault is not None:
            self._refuse(self._fault)

    def blame(self, error: BaseException) -> str:
        """Return why a clause has no memory, given the error that ended the fixture `memory_factory` or one before it.

        If it never worked, the next clauses do not try it again.
        """
        reason = (
            f"the fixture memory_factory could not be set up, {type(error).__name__}: {error!s:.300}; it is a plain "
            "`def` and returns a function, which opens a handle"
        )
        if isinstance(error, pytest.FixtureLookupError):
            reason = f"there is no fixture {error.argname}: define it, or correct the name where it is used"
        if not self._worked:
            self._fault, self._shown_at = reason, self._test
        return f"{self.binding}: {reason}"

    def end(self, *, finished: bool) -> None:
        """End a clause's test. After one that did not run to its end, the next one has to find an empty store again."""
        if not finished:
            self._checks_due = max(self._checks_due, 1)

    def refuse_unchecked(self) -> None:
        """Refuse a clause whose store cannot be checked before it runs, if the last store was not empty."""
        if self._left is not None:
            self._refuse(self._left)

    def check_fixtures(self, **fixtures: object) -> None:
        """Check that each of these fixtures returned a function, as the clauses expect."""
        for name, value in fixtures.items():
            if reason := _not_a_function(name, value):
                self._fault = reason
                self._refuse(reason)
        self.has_memory_factory = True

    async def check_store(self, factory: Callable[[], Any], *, claimed: Capability) -> None:
        """Open a handle and read from the store, on the clause's event loop.

        Args:
            factory: The binding's `memory_factory`.
            claimed: The capabilities that the binding claims.
        """
        __tracebackhide__ = True
        if not self._checks_due:
            return
        memory = self._open(factory)
        self.missing = find_missing(memory, claimed)
        try:
            sessions = await self._read(memory, lists=Capability.SESSIONS in claimed)
        finally:
            await _close(memory)
        if not self._worked:
            await self._check_handles(factory, memory)
        self._checks_due -= 1
        self._left = None
        if sessions:
            # Checked again until the store of a clause is empty.
            self._checks_due = max(self._checks_due, 1)
            earlier = "an earlier clause left" if self._worked else "it has"
            found = f"the store is not empty before the clause, {earlier} the session {_id_of(sessions[0])!r:.60}"
            self._left = f"{found}: {_EMPTY_STORE}"
            self._refuse(self._left)
        self._worked = True

    def _open(self, factory: Callable[[], Any]) -> Any:
        __tracebackhide__ = True
        try:
            memory = factory()
        except Exception as error:  # the binding's code may raise anything
            if self._worked:
                raise
            self._fault = (
                f"memory_factory() raised {type(error).__name__}: {error!s:.300}; the function that it returns opens a "
                "handle, and a handle connects at its first call"
            )
            self._refuse(self._fault, error)
        if inspect.iscoroutine(memory):
            memory.close()
            self._fault = (
                "the function that memory_factory returns is asynchronous: return a plain function, such as "
                "`lambda: MyMemory(...)`; a handle connects at its first call"
            )
        elif not any(hasattr(memory, name) for name in _METHODS):
            self._fault = (
                f"memory_factory() gave a {type(memory).__name__}, which has no method of flux_memory.Memory: return a "
                "function that opens a handle"
            )
        if self._fault is not None:
            self._refuse(self._fault)
        return memory

    async def _check_handles(self, factory: Callable[[], Any], first: Any) -> None:
        """Check that the factory opens another handle each time; the first one is closed."""
        __tracebackhide__ = True
        try:
            second = factory()
        except Exception:  # noqa: BLE001 - the clauses report it
            return
        if second is first:
            self._fault = (
                "memory_factory() returned the same handle twice: open another one at each call, such as "
                "`lambda: MyMemory(path)`; leave SEVERAL_HANDLES out of the capabilities if handles share no data"
            )
            self._refuse(self._fault)
        await _close(second)

    async def _read(self, memory: Any, *, lists: bool, seconds: float = _DEADLINE_SECONDS) -> list[Any]:
        """Return sessions that are in the store; refuse a store that cannot be reached before anything has worked."""
        __tracebackhide__ = True
        try:
            async with asyncio.timeout(seconds + _PROBE_SECONDS):
                with deadline(seconds):
                    if not lists:
                        await awaitable("get_history", memory.get_history("preflight"))
                        await self._time(awaitable("get_history", memory.get_history("preflight")))
                        return []
                    sessions = await awaitable("get_sessions", memory.get_sessions(1))
                    counted = await self._time(awaitable("count_sessions", memory.count_sessions()))
        except Exception as error:  # noqa: BLE001 - the clauses report any other error
            if not self._worked and any(map(_is_out_of_reach, _chain(error))):
                if seconds < _COLD_START_SECONDS and not _is_refused(error):
                    return await self._read(memory, lists=lists, seconds=_COLD_START_SECONDS)
                self._fault = (
                    f"the store cannot be reached, {type(error).__name__}: {error!s:.300}; start its service, or "
                    "correct the address in memory_factory"
                )
                self._refuse(self._fault)
            return []
        # A memory that lists or counts what is not there is broken; a store that has sessions does both.
        return sessions if isinstance(sessions, list) and counted else []

    async def _time(self, call: Awaitable[Any]) -> Any:
        """Await a call on an open handle, and note how long it took."""
        began = time.monotonic()
        answer = await call
        took = time.monotonic() - began
        self.call_seconds = took if self.call_seconds is None else min(self.call_seconds, took)
        return answer

    def _refuse(self, reason: str, cause: Exception | None = None) -> NoReturn:
        __tracebackhide__ = True
        if self._shown_at in {None, self._test}:
            self._shown_at = self._test
            raise BindingFault(f"{self.binding}: {reason}", trace=cause is not None) from cause
        short = f"{self.binding} cannot be used; the error of {self._shown_at} says why"
        raise BindingFault(short, reason=f"{self.binding}: {reason}")


def advise_on_distance(config: pytest.Config) -> Iterator[str]:
    """Yield advice on bindings whose store is far away, unless the run already has several processes."""
    if getattr(config.option, "numprocesses", None):
        return
    for preflight in config.stash.get(_PREFLIGHTS, {}).values():
        if (seconds := preflight.call_seconds or 0) > _NEAR_SECONDS:
            yield (
                f"a call of {preflight.binding} took {seconds * 1000:.0f} ms, so the run mostly waits: let several "
                "processes wait at once, with pip install pytest-xdist and pytest -n 8"
            )


def preflight_of(item: pytest.Item) -> Preflight:
    """Return the check of the binding of this test in this process.

    A parametrized fixture makes several bindings of one class: one store may be there while another is not.
    """
    binding: type = item.cls  # type: ignore[attr-defined]
    indices: dict[str, int] = getattr(getattr(item, "callspec", None), "indices", {})
    parameters = frozenset((name, index) for name, index in indices.items() if name != CLAUSE)
    return item.config.stash.setdefault(_PREFLIGHTS, {}).setdefault((binding, parameters), Preflight(binding.__name__))


def awaitable_of_binding(fixture: str, answer: Any) -> Any:
    """Return the awaitable that the function of a binding's fixture returned; anything else is the binding's fault."""
    if not inspect.isawaitable(answer):
        raise BindingFault(f"the function that {fixture} returns gave a {type(answer).__name__}: write `async def`")
    return answer


def context_of_binding(function: str, answer: Any) -> Any:
    """Return the context that a function of the binding returned; anything else is the binding's fault."""
    if not isinstance(answer, AbstractAsyncContextManager):
        raise BindingFault(
            f"{function} gave a {type(answer).__name__}: write `@asynccontextmanager` above an `async def` that yields"
        )
    return answer


def _not_a_function(name: str, value: object) -> str | None:
    if callable(value):
        return None
    if inspect.iscoroutine(value) or inspect.isasyncgen(value):
        if inspect.iscoroutine(value):
            value.close()
        return f"the fixture {name} is asynchronous: write `def {name}`, without async"
    if any(hasattr(value, method) for method in _METHODS):
        return (
            f"the fixture {name} returned a memory, not a function: return one that opens a handle, such as "
            "`lambda: MyMemory(...)`"
        )
    return f"the fixture {name} returned a {type(value).__name__}, not a function"


def _is_out_of_reach(error: BaseException) -> bool:
    return isinstance(error, BackendUnavailableError | ConnectionError | socket.gaierror)


def _is_refused(error: BaseException | None) -> bool:
    """Return whether nothing listens at the address, so that waiting is in vain."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError | socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes: a driver's error often hides that of the system."""
    while error is not None:
        yield error
        # A documented error means what it says; its causes do not change that.
        if isinstance(error, FluxMemoryError):
            return
        error = error.__cause__ or error.__context__


def _id_of(session: object) -> object:
    return session.get("id") if isinstance(session, dict) else session


async def _close(memory: Any) -> None:
    """Close the handle; the clauses report a `close()` that fails or hangs."""
    try:
        closing = asyncio.ensure_future(awaitable("close", memory.close()))
    except Exception:  # noqa: BLE001 - see above
        return
    done, _ = await asyncio.wait({closing}, timeout=_PROBE_SECONDS)
    if done and not closing.cancelled():
        closing.exception()
