"""The check of a binding before its first clause: its fixtures, a handle, and a store that is there and empty."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

import pytest

from flux_memory import BackendUnavailableError, FluxMemoryError, Memory
from flux_memory.testkit.recorder import awaitable
from flux_memory.testkit.verdicts import BindingFault

_CHECKS: Final = 2
"""The second check finds a binding that gives the first clause's store to the next one."""
_PROBE_SECONDS: Final = 45.0
"""Seconds after which the first calls are left to the clauses, which report that they hang.

A backend that waits for its service usually reports the cause after half a minute. A shorter deadline would take a
distant service, or one that has to start, for one that is down.
"""
_METHODS: Final = tuple(name for name in vars(Memory) if not name.startswith("_"))
_EMPTY_STORE: Final = (
    "give each clause an empty store of its own, such as a file in tmp_path, or a schema that the fixture drops after "
    "its yield"
)

_PREFLIGHTS: Final = pytest.StashKey[dict[type, "Preflight"]]()


class Preflight:
    """The checks of one binding in this process. A fault ends each of its clauses without a verdict.

    A memory is broken, and its clauses fail, if its calls raise or return something wrong. The binding is at fault if
    there is no memory, no service or no empty store to test.

    Args:
        binding: The name of the class.
    """

    def __init__(self, binding: str) -> None:
        self._binding = binding
        self._checks_due = _CHECKS
        self._worked = False
        self._fault: str | None = None
        """Why no clause can run; None if one can."""
        self._left: str | None = None
        """Which session the last check found in the store; None if the store was empty."""
        self._shown_at: str | None = None
        """The test whose error has the whole message."""
        self._test = ""

    def begin(self, test: str) -> None:
        """Begin a clause's test, given its node id; refuse a binding that is known to be at fault."""
        self._test = test
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
        return f"{self._binding}: {reason}"

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

    async def check_store(self, factory: Callable[[], Any], *, lists: bool) -> None:
        """Open a handle and read from the store, on the clause's event loop.

        Args:
            factory: The binding's `memory_factory`.
            lists: The backend claims to list its sessions.
        """
        __tracebackhide__ = True
        if not self._checks_due:
            return
        memory = self._open(factory)
        try:
            sessions = await self._read(memory, lists=lists)
        finally:
            await _close(memory)
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

    async def _read(self, memory: Any, *, lists: bool) -> list[Any]:
        """Return sessions that are in the store; refuse a store that cannot be reached before anything has worked."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS) as probe:
                if not lists:
                    await awaitable("get_history", memory.get_history("preflight"))
                    return []
                sessions = await awaitable("get_sessions", memory.get_sessions(1))
                counted = await awaitable("count_sessions", memory.count_sessions())
        except Exception as error:  # noqa: BLE001 - the clauses report any other error
            if not self._worked and any(map(_is_out_of_reach, _chain(error))):
                self._fault = (
                    f"the store cannot be reached, {type(error).__name__}: {error!s:.300}; start its service, or "
                    "correct the address in memory_factory"
                )
                self._refuse(self._fault)
            if probe.expired():
                # The next checks would take as long.
                self._checks_due = 1
            return []
        # A memory that lists or counts what is not there is broken; a store that has sessions does both.
        return sessions if isinstance(sessions, list) and counted else []

    def _refuse(self, reason: str, cause: Exception | None = None) -> NoReturn:
        __tracebackhide__ = True
        if self._shown_at in {None, self._test}:
            self._shown_at = self._test
            raise BindingFault(f"{self._binding}: {reason}", trace=cause is not None) from cause
        short = f"{self._binding} cannot be used; the error of {self._shown_at} says why"
        raise BindingFault(short, reason=f"{self._binding}: {reason}")


def preflight_of(config: pytest.Config, binding: type) -> Preflight:
    """Return the check of this binding in this process."""
    return config.stash.setdefault(_PREFLIGHTS, {}).setdefault(binding, Preflight(binding.__name__))


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
