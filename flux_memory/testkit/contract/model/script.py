"""Writes calls as a test that can be pasted into a downstream project."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flux_memory.testkit.contract.model.calls import Answer, CancelPoint, CutOff, ModelCall, Raised, made_by


@dataclass(slots=True)
class _Reading:
    """A session's record, a handle that could read it, and the line before which it could."""

    handle: int
    record: Mapping[str, Any]
    place: int
    variable: str = ""


class Script:
    """The code of one example, line by line. Ids made by the store become variables."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: dict[str, str] = {}
        self._handles: list[str] = []
        self._imports: set[str] = set()
        self._read: dict[tuple[str, str], _Reading] = {}
        """The records that were read, by id and revision."""

    def __len__(self) -> int:
        return len(self._lines)

    def open(self, handle: int) -> None:
        """Add the opening of a handle."""
        self._handles.append(f"memory_{handle + 1}")
        self._lines.append(f"{self._handles[-1]} = memory_factory()")

    def call(self, handle: int, call: ModelCall, answer: Answer) -> None:
        """Add a single call."""
        code = self.code(handle, call)
        if isinstance(answer, Raised):
            self._lines.append(f"with suppress(Exception):  # {_said(answer.error)}")
            self._lines.append(f"    {code}")
            self._imports.add("from contextlib import suppress")
        else:
            self._lines.append(f"{self._target(call, answer)}{code}")

    def group(self, items: Sequence[tuple[int, ModelCall, CancelPoint | None]], answers: Sequence[Answer]) -> None:
        """Add concurrent calls."""
        self._imports.add("import asyncio")
        lines = []
        for (handle, call, cut), answer in zip(items, answers, strict=True):
            code = self.code(handle, call).removeprefix("await ")
            if cut is not None:
                code = f"cut_short({code}, {cut.point}, {cut.when!r})"
                self._imports.add("from flux_memory.testkit.contract.cancel_points import cut_short")
            lines.append(f"    {code},  # {_outcome(answer)}")
        targets = ", ".join(
            self._target(call, answer).removesuffix(" = ") or "_"
            for (_, call, _), answer in zip(items, answers, strict=True)
        )
        self._lines += [f"{targets} = await asyncio.gather(", *lines, "    return_exceptions=True,", ")"]

    def saw(self, handle: int, record: Mapping[str, Any]) -> None:
        """Note that a session has this record now, as a later call may pass it on."""
        reading = _Reading(handle, dict(record), len(self._lines))
        self._read.setdefault((record["updated_at"], record["revision"]), reading)

    def expect(self, line: str) -> None:
        """Add a line that says what was expected."""
        self._lines.append(line)

    def contradict(self, code: str, expected: Answer, wanted: str, seen: str) -> None:
        """Make the last call one that ends as expected, or else the test fails; a cancelled one gets a comment."""
        calls = [line.strip() for line in self._lines[-1:] if line.endswith(code)]
        if not calls or isinstance(expected, CutOff):
            self._lines += [f"# expected: {wanted}", f"# seen:     {seen}"]
            return
        if self._lines.pop().startswith(" "):
            self._lines.pop()
        if isinstance(expected, Raised):
            name = _public_name(expected.error)
            self._imports.add(f"from flux_memory import {name}")
            self._lines += [f"with pytest.raises({name}):  # seen: {seen}", f"    {code}"]
        else:
            self._lines.append(f"{code}  # seen: {seen}")

    def code(self, handle: int, call: ModelCall) -> str:
        """Return a call as an expression."""
        arguments = ", ".join(f"{name}={self.shown(value)}" for name, value in call.arguments.items())
        return f"await memory_{handle + 1}.{call.method}({arguments})"

    def shown(self, value: Any) -> str:
        """Return a value as code; an id made by the store becomes its variable."""
        if type(value) is list:
            return "[" + ", ".join(map(self.shown, value)) + "]"
        if type(value) is dict:
            if (reading := self._reading_of(value)) is not None:
                return self._variable(reading)
            return "{" + ", ".join(f"{self.shown(key)}: {self.shown(item)}" for key, item in value.items()) + "}"
        if isinstance(value, datetime):
            self._imports.add("from datetime import datetime")
            return f"datetime.fromisoformat({self._text(value.isoformat(timespec='microseconds'))})"
        return self._text(value) if type(value) is str else _literal(value)

    def _text(self, value: str) -> str:
        if value in self._names:
            return self._names[value]
        for reading in self._read.values():
            for part in ("revision", "updated_at"):
                if value and reading.record[part] == value:
                    return f'{self._variable(reading)}["{part}"]'
        return _literal(value)

    def _reading_of(self, record: Mapping[str, Any]) -> _Reading | None:
        reading = self._read.get((str(record.get("updated_at")), str(record.get("revision"))))
        return reading if reading is not None and reading.record == record else None

    def _variable(self, reading: _Reading) -> str:
        """Return the variable of a record; it is read where it was seen first."""
        if not reading.variable:
            reading.variable = f"record_{sum(bool(each.variable) for each in self._read.values()) + 1}"
            place, session = reading.place, self.shown(reading.record["id"])
            code = f"{reading.variable} = await memory_{reading.handle + 1}.get_session({session})"
            self._lines.insert(place, code)
            for each in self._read.values():
                each.place += each.place > place
        return reading.variable

    def text(self) -> str:
        """Return the whole test."""
        closing = [f"await {name}.close()" for name in sorted(set(self._handles))]
        body = "\n".join(f"    {line}" for line in [*self._lines, *closing])
        imports = "\n".join(sorted({*self._imports, "import pytest"}))
        return f"{imports}\n\n\n@pytest.mark.asyncio\nasync def test_reproduction(memory_factory):\n{body}\n"

    def _target(self, call: ModelCall, answer: Answer) -> str:
        """Return the assignment before a call: variables for the ids made by the store."""
        made = made_by(call, answer)
        if not any(made):
            return ""
        kind = "session" if call.method in {"create_session", "fork_session"} else "message"
        names = ["_" if one is None else self._names.setdefault(one, f"{kind}_{len(self._names) + 1}") for one in made]
        return f"[{', '.join(names)}] = " if call.method == "add_messages" else f"{names[0]} = "


def _literal(value: Any) -> str:
    """Return a value as code, even if its `repr` is not code or is long."""
    if type(value) is float and not math.isfinite(value):
        return f'float("{value}")'
    if type(value) is int and abs(value) >= 10**4300:
        return f"{'-' if value < 0 else ''}10**4300"
    if type(value) is str and len(value) > 36 and len(set(value)) == 1:
        return f"{value[0]!r} * {len(value)}"
    return repr(value)


def _public_name(error: BaseException) -> str:
    """Return the name of an error's class, or of its first base, in `flux_memory`."""
    return next(base.__name__ for base in type(error).__mro__ if base.__module__ == "flux_memory.errors")


def _outcome(answer: Answer) -> str:
    if isinstance(answer, CutOff):
        return "cancelled"
    return _said(answer.error) if isinstance(answer, Raised) else f"returned {answer.value!r:.60}"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''!s:.100}"
