"""Records the calls made on handles, and prints them as code that reproduces a failure."""

from __future__ import annotations

import asyncio
import inspect
import reprlib
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from flux_memory import FluxMemoryError
from flux_memory.testkit.recorder.expressions import freeze, imports_of, write
from flux_memory.testkit.recorder.lines import Call, write_calls

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


class _Short(reprlib.Repr):
    """A short `repr` of any result, including an int that is too long for `repr`."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if abs(x) < 10**300 else f"<an int of {x.bit_length()} bits>"


_short = _Short()
_short.maxstring = _short.maxother = _short.maxlong = 72
_short.maxdict = _short.maxlist = _short.maxtuple = 6


class _Place(NamedTuple):
    """Code for a value that a call returned."""

    code: str
    since: int
    """The number of calls that had begun by then; these cannot use it."""


@dataclass(slots=True)
class Transcript:
    """The calls of one test, ordered by their start."""

    calls: list[Call] = field(default_factory=list)
    on_end: Callable[[], None] = lambda: None
    """Called whenever a call ends."""
    _handles: int = 0
    _running: list[Call] = field(default_factory=list)
    _last: float = field(default_factory=time.monotonic)
    _names: dict[str, _Place] = field(default_factory=dict)
    """Each id and revision that a call returned."""
    _records: dict[_RecordKey, _Place] = field(default_factory=dict)
    _variables: int = 0
    _loops: dict[str, asyncio.AbstractEventLoop] = field(default_factory=dict)

    def record(self, memory: Any) -> RecordedMemory:
        """Return a handle that forwards to this one and records its calls."""
        self._handles += 1
        return RecordedMemory(memory, f"memory_{self._handles}", self)

    def recorded(self, handle: str, method: str, make: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Return what makes the calls of a handle's method, and records them."""

        async def recorded(*args: Any, **kwargs: Any) -> Any:
            call = self.begin(handle, method, args, kwargs)
            try:
                result = await make(*args, **kwargs)
            except BaseException as error:
                self.end(call, error=error)
                raise
            self.end(call, result)
            return result

        return recorded

    def begin(self, handle: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Record the start of a call."""
        loop = asyncio.get_running_loop()
        elsewhere = self._loops.setdefault(handle, loop) is not loop
        frozen = tuple(map(freeze, args)), {name: freeze(value) for name, value in kwargs.items()}
        call = Call(handle, method, *frozen, bool(self._running), time.monotonic(), elsewhere)
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
            call.outcome, call.failed = f"{type(error).__name__}: {' '.join(str(error).split()):.150}", True
        else:
            self._name(call, result)
            is_id = call.method in _KINDS and isinstance(result, str)
            call.outcome = "" if result is None or is_id else f"-> {_short.repr(result)}"

    def waiting(self) -> tuple[str | None, float]:
        """Return the oldest call in flight and when it began; without any, `None` and when the last one ended."""
        return (self._running[0].method, self._running[0].began) if self._running else (None, self._last)

    def text(self) -> str:
        """Return the calls as code to paste into a test."""
        lines = write_calls([(call, self._code(number, call)) for number, call in enumerate(self.calls)])
        handles = sorted({call.handle for call in self.calls}, key=lambda name: int(name.split("_")[1]))
        body = [*(f"{name} = memory_factory()" for name in handles), *lines]
        imports = imports_of("\n".join(body))
        return "\n".join(["async def reproduce(memory_factory):", *(f"    {line}" for line in (*imports, *body))])

    def _code(self, number: int, call: Call) -> str:
        """Return a call as an expression, with the variables that calls before it have given."""

        def name(value: object) -> str | None:
            if type(value) is str:
                place = self._names.get(value)
            else:
                key = _key_of_record(value)
                place = None if key is None else self._records.get(key)
            return None if place is None or place.since > number else place.code

        arguments = [write(value, name) for value in call.args]
        arguments += [f"{key}={write(value, name)}" for key, value in call.kwargs.items()]
        return f"await {call.handle}.{call.method}({', '.join(arguments)})"

    def _name(self, call: Call, result: object) -> None:
        """Give a variable to a result that later calls may pass on."""
        if call.method not in _KINDS:
            return
        variable = f"{_KINDS[call.method]}_{self._variables + 1}"
        parts = [(variable, result)]
        if isinstance(result, list):
            parts = [(f"{variable}[{at}]", each) for at, each in enumerate(result)]
        # A batch has thousands of texts, and only ids are looked up in them.
        has_ids = any(type(each) is str for _, each in parts)
        given = _texts_of((call.args, call.kwargs), set()) if has_ids else set()
        noted = [self._note(place, each, given) for place, each in parts]
        if any(noted):
            self._variables += 1
            call.name = variable

    def _note(self, code: str, value: object, given: set[str]) -> bool:
        """Remember where an id, or a record and its revision, can be found; return whether that is new."""
        place = _Place(code, len(self.calls))
        # An id that the caller chose is already among the arguments.
        if type(value) is str and value not in self._names and value not in given:
            self._names[value] = place
            return True
        key = _key_of_record(value)
        if key is None or key in self._records:
            return False
        self._records[key] = place
        if revision := key[2]:
            self._names.setdefault(revision, place._replace(code=f"{code}['revision']"))
        return True


def _texts_of(value: object, found: set[str]) -> set[str]:
    """Add the texts in a value to those that were found, and return all."""
    if type(value) is str:
        found.add(value)
    elif isinstance(value, dict):
        for each in value.values():
            _texts_of(each, found)
    elif isinstance(value, list | tuple):
        for each in value:
            _texts_of(each, found)
    return found


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
        return self._transcript.recorded(
            self._name,
            f"feedback.{method}",
            lambda *args, **kwargs: awaitable(method, getattr(self._find(), method)(*args, **kwargs)),
        )


class RecordedMemory:
    """A handle that records its calls. It adds no suspension point, so cancellation is unchanged."""

    def __init__(self, memory: Any, name: str, transcript: Transcript) -> None:
        self._memory = memory
        self._name = name
        self._transcript = transcript

    def __getattr__(self, method: str) -> Any:
        bound = self._bound(method)
        return self._transcript.recorded(
            self._name, method, lambda *args, **kwargs: awaitable(method, bound(*args, **kwargs))
        )

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
