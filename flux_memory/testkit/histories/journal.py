"""The calls of workers: one line of JSON before each call and one after it, so that it survives a killed process."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, Self

Outcome = Literal["acknowledged", "failed", "unknown"]
"""`failed`: an error that guarantees that nothing was stored. `unknown`: cancelled, killed, or any other error."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One message of an add."""

    id: str
    role: str
    content: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of one worker; its start and end are seconds of the machine's monotonic clock."""

    worker: str
    method: str
    session: str | None
    began: float
    ended: float = math.inf
    outcome: Outcome = "unknown"
    error: str | None = None
    """The class of the error."""
    foreign: bool = False
    """The error is not a library error."""
    messages: tuple[Sent, ...] = ()
    """The messages that an add sent."""
    fields: dict[str, Any] | None = None
    """The title, metadata and user that a call sent for its session, as far as it sent them."""
    creates: bool = False
    """An add creates a missing session."""
    expected_revision: str | None = None
    truncate_from: str | None = None
    truncate_all: bool = False
    merged: dict[str, Any] | None = None
    """The metadata that an update merged."""
    removed_keys: tuple[str, ...] = ()
    source: str | None = None
    """The session that a fork copies; its `session` is the copy."""
    through: str | None = None
    """The last message that a fork copies."""
    popped: str | None = None
    """The id of the message that `pop_message` returned."""
    revision: str | None = None
    """The revision that an update returned."""
    seen: tuple[str, ...] | None = None
    """The ids that a read of a whole history returned."""


_AT_THE_END: Final = ("ended", "outcome", "error", "foreign", "seen", "popped", "revision")
"""The fields of an operation that are known when it has ended."""


@dataclass(frozen=True, slots=True)
class History:
    """All calls of the workers."""

    operations: tuple[Operation, ...]

    @classmethod
    def read(cls, *places: Path) -> Self:
        """Read journals, or all journals of a directory. An unfinished last line of a killed process is ignored."""
        files = [file for place in places for file in (sorted(place.glob("*.jsonl")) if place.is_dir() else [place])]
        operations = [operation for file in files for operation in _operations(file)]
        return cls(tuple(sorted(operations, key=lambda operation: operation.began)))

    def count(self, outcome: Outcome) -> int:
        """Count the calls with this outcome."""
        return sum(operation.outcome == outcome for operation in self.operations)

    def longest_call(self) -> float:
        """Return the duration in seconds of the longest call that ended."""
        return max((one.ended - one.began for one in self.operations if one.ended < math.inf), default=0.0)

    def longest_outage(self) -> float:
        """Return the longest time in seconds in which calls were made but none was acknowledged."""
        if not self.operations:
            return 0.0
        answers = sorted(one.ended for one in self.operations if one.outcome == "acknowledged")
        last = max(one.began if one.ended == math.inf else one.ended for one in self.operations)
        moments = [self.operations[0].began, *answers, max(last, *answers) if answers else last]
        return max(after - before for before, after in pairwise(moments))


class Journal:
    """A worker's journal file. Each line is handed to the operating system before the call continues."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._prefix = f"{os.getpid()}-{time.monotonic_ns()}"
        self._calls = 0

    def begin(self, operation: Operation) -> str:
        """Record the start of a call, and return its number."""
        self._calls += 1
        number = f"{self._prefix}-{self._calls}"
        written = asdict(operation)
        for name in _AT_THE_END:
            del written[name]
        self._write({"begin": number, **written})
        return number

    def end(
        self,
        number: str,
        outcome: Outcome,
        *,
        error: BaseException | None = None,
        foreign: bool = False,
        **told: Any,
    ) -> None:
        """Record how a call ended, and what it told: `seen`, `popped` or `revision` of its `Operation`."""
        ended: dict[str, Any] = {"end": number, "ended": time.monotonic(), "outcome": outcome}
        if error is not None:
            ended |= {"error": type(error).__qualname__, "foreign": foreign}
        self._write(ended | told)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, line: dict[str, Any]) -> None:
        # A single write per line: processes may share a file.
        os.write(self._file, json.dumps(line).encode() + b"\n")


def _operations(file: Path) -> list[Operation]:
    begun: dict[str, dict[str, Any]] = {}
    for line in file.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        entry = json.loads(line)
        if "begin" in entry:
            begun[entry.pop("begin")] = entry
        else:
            begun[entry.pop("end")] |= entry
    return [_operation(entry) for entry in begun.values()]


def _operation(entry: dict[str, Any]) -> Operation:
    entry["messages"] = tuple(Sent(**message) for message in entry["messages"])
    entry["removed_keys"] = tuple(entry["removed_keys"])
    if entry.get("seen") is not None:
        entry["seen"] = tuple(entry["seen"])
    return Operation(**entry)
