"""The closing table in the terminal: clauses by group and backend, and why the others did not hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from flux_memory.testkit.evidence.document import NOT_ASKED, BackendEvidence, ClauseEvidence, Evidence, Outcome

_COUNTED: Final[tuple[Outcome, ...]] = ("failed", "advisory", "unverified", *NOT_ASKED, "not run")
_LEFT: Final[Outcome] = "thorough only"
_THOROUGH: Final = "pass --flux-profile=thorough"
_PACKAGES: Final = ("flux-memory", "pytest", "pytest-asyncio", "Python", "system")
_WIDEST: Final = len("999 of 999")
_GAP: Final = 3


def write_table(terminal: pytest.TerminalReporter, evidence: Evidence) -> None:
    """Write the table."""
    pinned = f", pinned to {evidence.pinned}" if evidence.pinned else ""
    terminal.section(f"flux-memory contract {evidence.contract}{pinned}")
    _Table(terminal, evidence).write()
    for backend in evidence.backends:
        faults = [result for _, result in evidence.results_of(backend.name) if result.fault]
        if faults:
            why = " ".join(faults[0].reason.split())
            terminal.write_line(f"not checked: {len(faults)} clauses on {backend.name}: {why}", red=True)
        for clause, result in evidence.results_of(backend.name):
            if result.outcome in {"failed", "advisory", "unverified", "unverifiable"} and not result.fault:
                # A failure's reason is printed above, so the line names its test.
                why = result.test if result.outcome == "failed" else result.reason
                why = result.reason if result.known else why
                line = f"{result.outcome}: {clause.id} on {backend.name}: {' '.join(why.split())}"
                terminal.write_line(line, red=result.outcome == "failed", yellow=result.outcome != "failed")
        if left := [clause.id for clause, result in evidence.results_of(backend.name) if result.outcome == _LEFT]:
            terminal.write_line(f"{_LEFT}, not run: {', '.join(left)} on {backend.name}: {_THOROUGH}")
        if parts := evidence.parts_left_out(backend.name):
            named = "; ".join(f"{part} ({', '.join(ids)})" for part, ids in parts.items())
            terminal.write_line(f"{_LEFT}, parts not run: {named} on {backend.name}: {_THOROUGH}")
    terminal.write_line("")
    for backend in evidence.backends:
        if backend.about:
            terminal.write_line(f"{backend.name}: {backend.about}")
    known = [f"{name} {evidence.environment[name]}" for name in _PACKAGES[:-1] if name in evidence.environment]
    terminal.write_line(", ".join([*known, evidence.environment["system"]]))


class _Table:
    def __init__(self, terminal: pytest.TerminalReporter, evidence: Evidence) -> None:
        self._terminal = terminal
        self._evidence = evidence
        self._names = [backend.name for backend in evidence.backends]
        self._widths = [max(len(name), _WIDEST) + _GAP for name in self._names]
        self._left = max(len(title) for title in (*evidence.by_group(), "isolation, median ms"))

    def write(self) -> None:
        """Write the heading, the groups and the sums."""
        self._line("", self._names)
        for title, clauses in self._evidence.by_group().items():
            cells = [_cell(clauses, name) for name in self._names]
            if any(cell != "0" for cell in cells):
                self._terminal.write(f"{title:<{self._left}}")
                for cell, width in zip(cells, self._widths, strict=True):
                    self._terminal.write(f"{cell:>{width}}", green=" of " not in cell, red=" of " in cell)
                self._terminal.write_line("")
        self._terminal.write_line("-" * (self._left + sum(self._widths)))
        everything = self._evidence.clauses
        self._line("clauses that hold", [_cell(everything, name, in_full=True) for name in self._names])
        for outcome in _COUNTED:
            cells = [str(self._evidence.count(name, outcome)) for name in self._names]
            if any(cell != "0" for cell in cells):
                self._line(outcome, cells)
        self._line("seconds", [f"{backend.seconds:.1f}" for backend in self._evidence.backends], bold=False)
        self._line("isolation, median ms", [_isolation(each) for each in self._evidence.backends], bold=False)
        self._terminal.write_line("")

    def _line(self, title: str, cells: Sequence[str], *, bold: bool = True) -> None:
        line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, self._widths, strict=True))
        self._terminal.write_line(f"{title:<{self._left}}{line}", bold=bold)


def _cell(clauses: Sequence[ClauseEvidence], backend: str, *, in_full: bool = False) -> str:
    results = [clause.results[backend] for clause in clauses if backend in clause.results]
    ran = [result for result in results if result.outcome not in {*NOT_ASKED, "not run"}]
    held = sum(result.holds for result in ran)
    return str(held) if held == len(ran) and not in_full else f"{held} of {len(ran)}"


def _isolation(backend: BackendEvidence) -> str:
    return "" if backend.isolation_seconds is None else f"{backend.isolation_seconds * 1000:.1f}"
