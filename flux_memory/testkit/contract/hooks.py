"""What a binding does to its store past the backend: it sets the clock, and damages, reads and locks records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, TypedDict, Unpack

import pytest

from flux_memory.testkit.contract.clock import python_clock_at
from flux_memory.testkit.contract.preflight import awaitable_of_binding, context_of_binding
from flux_memory.testkit.verdicts import BindingFault, unverified

Record = tuple[str, str | None]
"""The id of a session, and that of one of its messages; None for the session itself."""
ClockAt = Callable[[datetime], AbstractAsyncContextManager[None]]
CorruptMessage = Callable[[str, str], Awaitable[None]]
ReadRaw = Callable[[str, str], Awaitable[Mapping[str, Any] | None]]
HoldLocks = Callable[[Sequence[Record]], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def clock_of_this_process(moment: datetime) -> AsyncIterator[None]:
    """Set the clock of this process's Python code to this moment."""
    with python_clock_at(moment):
        yield


class Hooks(TypedDict, total=False):
    """The functions of a binding; without one of them, clauses that need it are unverified."""

    clock_at: ClockAt
    """A context that sets the time of writes to the given moment; by default the clock of this process."""
    corrupt_message: CorruptMessage | None
    """Makes one stored message unreadable; takes its session's id and its own."""
    read_raw: ReadRaw | None
    """Reads one stored message; takes its session's id and its own."""
    hold_locks: HoldLocks | None
    """A context in which another client holds the locks of the given records."""


class StoreHooks:
    """The operations of a clause that go past the backend."""

    def __init__(self, **hooks: Unpack[Hooks]) -> None:
        self._hooks = hooks

    def clock_at(self, moment: datetime) -> AbstractAsyncContextManager[None]:
        """Return a context that sets the time of writes to this moment."""
        context: AbstractAsyncContextManager[None] = context_of_binding(
            "the function that clock_at returns", self._hooks.get("clock_at", clock_of_this_process)(moment)
        )
        return context

    async def corrupt_message(self, session_id: str, message_id: str) -> None:
        """Make one stored message unreadable."""
        if (corrupt := self._hooks.get("corrupt_message")) is None:
            unverified("override the fixture corrupt_message to damage a row without the backend")
        await awaitable_of_binding("corrupt_message", corrupt(session_id, message_id))

    async def read_raw(self, session_id: str, message_id: str, *, needed: str) -> Mapping[str, Any]:
        """Return one message as it is stored, decoded; fail if the store does not have it.

        The clause is unverified without the key `needed`.
        """
        if (read := self._hooks.get("read_raw")) is None:
            unverified("override the fixture read_raw to read a message without the backend")
        stored = await awaitable_of_binding("read_raw", read(session_id, message_id))
        if stored is None:
            pytest.fail(f"read_raw does not find the message {message_id!r}, which was acknowledged")
        if not isinstance(stored, Mapping):
            raise BindingFault(f"read_raw returned a {type(stored).__name__}, not a mapping of its keys")
        if needed not in stored:
            found = ", ".join(map(repr, stored)) or "nothing"
            unverified(f"read_raw returned {found} of a message; return its {needed!r}, too, decoded from the store")
        return stored

    def hold_locks(self, records: Sequence[Record]) -> AbstractAsyncContextManager[None]:
        """Return a context in which another client holds the locks of these records, all of them at once."""
        if (hold := self._hooks.get("hold_locks")) is None:
            unverified("override the fixture hold_locks to lock records without the backend")
        context: AbstractAsyncContextManager[None] = context_of_binding(
            "the function that hold_locks returns", hold(records)
        )
        return context
