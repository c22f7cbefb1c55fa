"""The findings of the state machine: the steps that it made, and the first difference from the reference model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flux_memory.testkit.timeouts import CALL_SECONDS

if TYPE_CHECKING:
    from flux_memory.testkit.contract.model.state_machine import MemoryMachine


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the machine that can be replayed."""

    rule: str
    arguments: Mapping[str, Any]

    def take(self, machine: MemoryMachine) -> None:
        """Replay the step."""
        getattr(machine, self.rule)(**self.arguments)

    def simpler(self) -> Iterator[Step]:
        """Yield simpler versions of the step."""
        if self.rule == "start" and self.arguments["names"]:
            yield Step("start", {"names": self.arguments["names"][:-1]})
        if self.rule == "reopen" and self.arguments["late"] is not None:
            yield Step("reopen", {**self.arguments, "late": None})
        if self.rule != "at_once":
            return
        group = list(self.arguments["group"])
        for at, (handle, call, cut) in enumerate(group):
            if len(group) > 1:
                yield Step("at_once", {"group": group[:at] + group[at + 1 :]})
            if cut is not None:
                yield Step("at_once", {"group": [*group[:at], (handle, call, None), *group[at + 1 :]]})
        if len(group) == 1 and group[0][2] is None:
            yield Step("write", {"handle": group[0][0], "call": group[0][1]})


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer that the model cannot explain, and the code that leads to it."""

    sentence: str
    code: str
    lines: int
    steps: tuple[Step, ...] = ()


class Findings:
    """Keeps the shortest finding of a run.

    Args:
        shrinking: How many seconds to search for a shorter one.
        call_seconds: How long a call may take.
        seconds: How long to explore at most.
    """

    def __init__(self, shrinking: float, *, call_seconds: float = CALL_SECONDS, seconds: float = math.inf) -> None:
        self.shortest: Finding | None = None
        self.timeout = call_seconds
        self._shrinking = shrinking
        self._enough = time.monotonic() + seconds

    def add(self, finding: Finding) -> None:
        """Keep a finding if it is at most as long as the shortest."""
        self._enough = min(self._enough, time.monotonic() + self._shrinking)
        if self.shortest is None or finding.lines <= self.shortest.lines:
            self.shortest = finding

    def raise_if_enough(self) -> None:
        """End the run if its time, or the time to search for smaller examples, is over."""
        if time.monotonic() > self._enough:
            raise EnoughError


class EnoughError(BaseException):
    """Ends a run of Hypothesis from within, which treats an `Exception` as another failure."""


class UnexplainedError(AssertionError):
    """The store broke a promise."""
