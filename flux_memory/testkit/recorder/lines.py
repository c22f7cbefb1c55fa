"""Writes recorded calls as lines of a function that makes the same calls: similar ones as a loop, every write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from flux_memory.testkit.recorder.folding import VARIABLE, Folded, fold

_LONG: Final = 100
"""Lines from which on earlier calls that only read are left out."""
_LAST: Final = 24
"""Last lines, which are all shown."""
_FOLDED: Final = 4
"""Similar calls that become a loop."""
_NUMBERS: Final = re.compile(r"[0-9]+")
_NAMED: Final = re.compile(r"\b[a-z]+_[0-9]+\b")
_READS: Final = ("get_", "count_")


@dataclass(slots=True)
class Call:
    """One call on one handle."""

    handle: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    overlapped: bool
    began: float
    """On the monotonic clock."""
    elsewhere: bool = False
    name: str | None = None
    outcome: str | None = None
    failed: bool = False

    @property
    def remarks(self) -> Iterator[str]:
        """What happened in the recorded run."""
        if self.overlapped:
            yield "concurrent"
        if self.elsewhere:
            yield "on another event loop"
        if self.outcome is None:
            yield "did not return"
        elif self.outcome:
            yield self.outcome


@dataclass(slots=True)
class _Block:
    """The lines of one call or of several similar ones."""

    lines: list[str]
    calls: int
    is_needed: bool
    """Whether it changes the store, or defines a variable that a call uses."""


def write_calls(coded: Sequence[tuple[Call, str]]) -> list[str]:
    """Return the lines that make these calls, each given with its expression."""
    used = {name for _, code in coded for name in _NAMED.findall(code)}
    blocks = [
        block
        for _, alike in groupby(coded, key=lambda each: _likeness(each[0], each[1], used))
        for block in _write_alike(list(alike), used, last=coded[-1][0])
    ]
    earlier, last = blocks[:-_LAST], blocks[-_LAST:]
    left_out = [] if len(blocks) <= _LONG else [block for block in earlier if not block.is_needed]
    if left_out:
        earlier = [block for block in earlier if block.is_needed]
        count = sum(block.calls for block in left_out)
        last = [_Block([f"# {count} earlier calls that only read are left out"], 0, is_needed=True), *last]
    return [line for block in (*earlier, *last) for line in block.lines]


def _likeness(call: Call, code: str, used: set[str]) -> tuple[object, ...]:
    alone = call.name if call.name in used else None
    return alone, call.failed, call.outcome is None, call.overlapped, call.elsewhere, _NUMBERS.sub("", code)


def _write_alike(alike: list[tuple[Call, str]], used: set[str], *, last: Call) -> Iterator[_Block]:
    folded = fold([code for _, code in alike]) if len(alike) >= _FOLDED else None
    if folded is not None:
        yield _write_loop(alike[0][0], folded)
        return
    for call, code in alike:
        is_needed = call.name in used or not call.method.startswith(_READS)
        target = f"{call.name} = " if call.name in used else ""
        remarks = "; ".join(call.remarks)
        line = f"{target}{code}{f'  # {remarks}' if remarks else ''}"
        # The error of the last call is what is to be seen.
        if call.failed and call is not last and call.outcome != "cancelled":
            yield _Block(["with suppress(Exception):", f"    {line}"], 1, is_needed)
        else:
            yield _Block([line], 1, is_needed)


def _write_loop(call: Call, folded: Folded) -> _Block:
    numbers = folded.numbers
    variable = VARIABLE if re.search(rf"\b{VARIABLE}\b", folded.code) else "_"
    begin = f"{numbers.start}, " if numbers.start else ""
    lines = [f"for {variable} in range({begin}{numbers.stop}):"]
    if call.failed:
        lines.append("    with suppress(Exception):")
    remarks = "; ".join([f"{len(numbers)} calls", *call.remarks])
    lines.append(f"{'    ' * len(lines)}{folded.code}  # {remarks}")
    return _Block(lines, len(numbers), not call.method.startswith(_READS))
