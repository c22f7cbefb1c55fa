"""Records the calls made on handles, and prints them as code that reproduces a failure."""

from __future__ import annotations

import asyncio
import inspect
import re
import reprlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any, Final, Self

from flux_memory import FluxMemoryError

_SHOWN_LINES: Final = 24
"""Last lines of a reproduction; of earlier ones, those that define a variable of a shown line are shown too."""
_SHOWN_CALLS: Final = 4
"""Consecutive calls of one kind that are all shown; of more, the middle ones are only counted."""
_KINDS: Final = {
    "create_session": "session",
    "fork_session": "session",
    "add_message": "message",
    "add_messages": "messages",
    "get_session": "record",
    "get_sessions": "records",
    "update_session": "record",
}
"""The variables for what later calls may pass on: ids, records and their revisions."""


_RecordKey = tuple[Any, ...]
_VARIABLE: Final = re.compile(rf"\b(?:{'|'.join(sorted(set(_KINDS.values())))})_[0-9]+\b")


class _Short(reprlib.Repr):
    """A short `repr` of any value, including an int that is too long for `repr`."""

    def repr_datetime(self, x: datetime, level: int) -> str:
        del level
        return f"datetime.fromisoformat({x.isoformat()!r})"

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if abs(x) < 10**300 else f"<an int of {x.bit_length()} bits>"


_short = _Short()
_short.maxstring = _short.maxother = _short.maxlong = 72
_short.maxdict = _short.maxlist = _short.maxtuple = 6


@dataclass(slots=True)
class Call:
    """One call on one handle."""

    handle: str
    method: str
    arguments: str
    overlapped: bool
    began: float
    """On the monotonic clock."""
    elsewhere: bool = False
    name: str | None = None
    outcome: str | None = None
    failed: bool = False

    def code(self, *, named: bool) -> str:
        """Return the call as a line of code, its outcome as a comment."""
        target = f"{self.name} = " if named and self.name else ""
        remarks = ["concurrent"] if self.overlapped else []
        remarks += ["on another event loop"] if self.elsewhere else []
        remarks += [self.outcome] if self.outcome else ["did not return"] if self.outcome is None else []
        comment = f"  # {'; '.join(remarks)}" if remarks else ""
        return f"{target}await {self.handle}.{self.method}({self.arguments}){comment}"


@dataclass(slots=True)
class Transcript:
    """The calls of one test, ordered by their start."""

    calls: list[Call] = field(default_factory=list)
    on_end: Callable[[], None] = lambda: None
    """Called whenever a call ends."""
    _handles: int = 0
    _running: list[Call] = field(default_factory=list)
    _last: float = field(default_factory=time.monotonic)
    _names: dict[str, str] = field(default_factory=dict)
    """Code for each id and revision that a call returned."""
    _records: dict[_RecordKey | None, str] = field(default_factory=dict)
    _variables: int = 0
    _loops: dict[str, asyncio.AbstractEventLoop] = field(default_factory=dict)

    def record(self, memory: Any) -> RecordedMemory:
        """Return a handle that forwards to this one and records its calls."""
        self._handles += 1
        return RecordedMemory(memory, f"memory_{self._handles}", self)

    def begin(self, handle: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Record the start of a call."""
        arguments = [self._show(value) for value in args]
        arguments += [f"{name}={self._show(value)}" for name, value in kwargs.items()]
        loop = asyncio.get_running_loop()
        elsewhere = self._loops.setdefault(handle, loop) is not loop
        call = Call(handle, method, ", ".join(arguments), bool(self._running), time.monotonic(), elsewhere)
        self.calls.append(call)
        self._running.append(call)
        return call

    def end(self, call: Call, result: object = None, error: BaseException | None = None) -> None:
        """Record the result or the error of a call."""
        self._running = [other for other in self._running if other is not call]
        self._last = time.monotonic()
        self.on_end()
        if isinstance(error, asyncio.CancelledError):
            call.outcome, call.failed = "cancelled", True
        elif error is not None:
            call.outcome, call.failed = f"{type(error).__name__}: {error!s:.150}", True
        else:
            self._name(call, result)
            is_id = call.method in _KINDS and isinstance(result, str)
            call.outcome = "" if result is None or is_id else f"-> {_short.repr(result)}"

    def waiting(self) -> tuple[str | None, float]:
        """Return the oldest call in flight and when it began; without any, `None` and when the last one ended."""
        return (self._running[0].method, self._running[0].began) if self._running else (None, self._last)

    def text(self) -> str:
        """Return the calls, shortened, as code to paste into a test."""
        lines = list(self._lines())
        hidden, shown = lines[:-_SHOWN_LINES], lines[-_SHOWN_LINES:]
        needed = _choose_definitions(hidden, shown)
        if len(hidden) > len(needed):
            shown = [f"# ... {len(hidden) - len(needed)} more lines", *shown]
        lines = needed + shown
        handles = sorted({call.handle for call in self.calls}, key=lambda name: int(name.split("_")[1]))
        lines = [f"{name} = memory_factory()" for name in handles] + lines
        if any("datetime.fromisoformat(" in call.arguments for call in self.calls):
            lines.insert(0, "from datetime import datetime")
        return "\n".join(["async def reproduce(memory_factory):", *(f"    {line}" for line in lines)])

    def _lines(self) -> Iterator[str]:
        used = set(_VARIABLE.findall(" ".join(call.arguments for call in self.calls)))
        for _, grouped in groupby(self.calls, key=lambda call: (call.handle, call.method, call.failed)):
            run = list(grouped)
            shown = run if len(run) <= _SHOWN_CALLS else run[:2]
            for call in shown:
                yield call.code(named=call.name in used)
            if len(run) > _SHOWN_CALLS:
                if more := len(run) - len(shown) - 1:
                    yield f"# ... {more} more calls of {run[0].method}"
                yield run[-1].code(named=run[-1].name in used)

    def _name(self, call: Call, result: object) -> None:
        """Give a variable to a result that later calls may pass on."""
        if call.method not in _KINDS:
            return
        variable = f"{_KINDS[call.method]}_{self._variables + 1}"
        parts = [(variable, result)]
        if isinstance(result, list):
            parts = [(f"{variable}[{at}]", each) for at, each in enumerate(result)]
        noted = [self._note(place, each, call.arguments) for place, each in parts]
        if any(noted):
            self._variables += 1
            call.name = variable

    def _note(self, place: str, value: object, arguments: str) -> bool:
        """Remember where an id, or a record and its revision, can be found; return whether that is new."""
        # An id that the caller chose is already among the arguments.
        if type(value) is str and value not in self._names and repr(value) not in arguments:
            self._names[value] = place
            return True
        key = _key_of_record(value)
        if key is None or key in self._records:
            return False
        self._records[key] = place
        if revision := key[2]:
            self._names.setdefault(revision, f"{place}['revision']")
        return True

    def _show(self, value: object) -> str:
        known = self._names.get(value) if type(value) is str else self._records.get(_key_of_record(value))
        return known or _short.repr(value)


def _choose_definitions(hidden: list[str], shown: list[str]) -> list[str]:
    """Return the hidden lines that define the variables of the shown ones, in order."""
    used = set(_VARIABLE.findall("\n".join(shown)))
    chosen = []
    for line in reversed(hidden):
        name, _, call = line.partition(" = await ")
        if name in used:
            used.update(_VARIABLE.findall(call))
            chosen.append(line)
    return chosen[::-1]


def _key_of_record(value: object) -> _RecordKey | None:
    """Return what distinguishes a session's record from others, or `None` if the value is not one."""
    if type(value) is not dict:
        return None
    key = tuple(value.get(name) for name in ("id", "updated_at", "revision", "message_count"))
    return key if tuple(map(type, key)) == (str, str, str, int) else None


def awaitable(method: str, answer: Any) -> Any:
    """Return the awaitable that a method returned.

    Raises:
        TypeError: the method returned something else; it is not a coroutine function.
    """
    if not inspect.isawaitable(answer):
        raise TypeError(f"{method}() gave a {type(answer).__name__} at once: a memory's methods are `async def`")
    return answer


class RecordedFeedback:
    """The feedback of a handle, whose calls are recorded like those of the handle itself."""

    def __init__(self, find: Callable[[], Any], name: str, transcript: Transcript) -> None:
        self._find = find
        self._name = name
        self._transcript = transcript

    def __getattr__(self, method: str) -> Any:
        async def recorded(*args: Any, **kwargs: Any) -> Any:
            call = self._transcript.begin(self._name, f"feedback.{method}", args, kwargs)
            try:
                result = await awaitable(method, getattr(self._find(), method)(*args, **kwargs))
            except BaseException as error:
                self._transcript.end(call, error=error)
                raise
            self._transcript.end(call, result)
            return result

        return recorded


class RecordedMemory:
    """A handle that records its calls. It adds no suspension point, so cancellation is unchanged."""

    def __init__(self, memory: Any, name: str, transcript: Transcript) -> None:
        self._memory = memory
        self._name = name
        self._transcript = transcript

    def __getattr__(self, method: str) -> Any:
        bound = self._bound(method)

        async def recorded(*args: Any, **kwargs: Any) -> Any:
            call = self._transcript.begin(self._name, method, args, kwargs)
            try:
                result = await awaitable(method, bound(*args, **kwargs))
            except BaseException as error:
                self._transcript.end(call, error=error)
                raise
            self._transcript.end(call, result)
            return result

        return recorded

    @property
    def feedback(self) -> RecordedFeedback:
        """The feedback of the memory; a memory that refuses it does so when it is called."""
        with suppress(FluxMemoryError):
            self._bound("feedback")
        return RecordedFeedback(lambda: self._bound("feedback"), self._name, self._transcript)

    async def __aenter__(self) -> Self:
        await self._bound("__aenter__")()
        return self

    async def __aexit__(self, *exc_info: object) -> Any:
        return await self._bound("__aexit__")(*exc_info)

    def _bound(self, method: str) -> Any:
        try:
            return getattr(self._memory, method)
        except AttributeError as error:
            error.add_note(
                "A memory has every method of `flux_memory.Memory` that its capabilities need; leave out of them what "
                "it lacks."
            )
            raise
