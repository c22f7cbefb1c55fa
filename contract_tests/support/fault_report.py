"""The figures of `faults/`: a pytest plugin that adds them up over the rounds, and prints and writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import pytest

from flux_memory.testkit.histories import History, Stored, check

_PROPERTY: Final = "fault"
_COLUMNS: Final = (
    ("fault", "fault"),
    ("backend", "backend"),
    ("rounds", "rounds"),
    ("acknowledged", "acknowledged"),
    ("lost", "lost"),
    ("duplicated", "duplicated"),
    ("outage", "longest outage, s"),
    ("call", "longest call, s"),
)


@dataclass
class Figures:
    """Totals of one fault over all its rounds; times in seconds."""

    fault: str
    backend: str
    rounds: int = 0
    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    outage: float = 0.0
    call: float = 0.0

    def add(self, *, rounds: int, acknowledged: int, lost: int, duplicated: int, outage: float, call: float) -> None:
        """Add the figures of some rounds."""
        self.rounds += rounds
        self.acknowledged += acknowledged
        self.lost += lost
        self.duplicated += duplicated
        self.outage = max(self.outage, outage)
        self.call = max(self.call, call)


class Fault:
    """The figures of the running test, whose fault has a name: `@pytest.mark.fault("name", backend="sqlite")`."""

    def __init__(self, item: pytest.Item) -> None:
        marker = item.get_closest_marker("fault")
        assert marker is not None, 'name the fault: @pytest.mark.fault("kill -9 of the server", backend="postgres")'
        self._figures: Final[dict[str, Any]] = asdict(Figures(*marker.args, **marker.kwargs))
        self._long = bool(item.config.option.long)
        # Filled while the test runs; xdist transports it with the test's report.
        item.user_properties.append((_PROPERTY, self._figures))

    def rounds(self, usual: int, long: int) -> range:
        """Return the rounds to run: `usual` of them, or `long` with `--long`."""
        return range(long if self._long else usual)

    def judge(self, history: History, stored: Stored, before: Stored | None = None) -> None:
        """Check one round's history against the stored data: record the figures, and fail if a promise is broken."""
        violations = check(history, stored, before, resends=self._figures["backend"] == "postgres")
        kinds = [violation.kind for violation in violations]
        self.add(
            acknowledged=history.count("acknowledged"),
            lost=kinds.count("lost"),
            duplicated=kinds.count("doubled"),
            outage=history.longest_outage(),
            call=history.longest_call(),
        )
        assert not violations, "\n".join(map(str, violations[:20]))

    def add(
        self,
        *,
        rounds: int = 1,
        acknowledged: int = 0,
        lost: int = 0,
        duplicated: int = 0,
        outage: float = 0.0,
        call: float = 0.0,
    ) -> None:
        """Record rounds that `judge` did not; outage and call in seconds."""
        figures = Figures(**self._figures)
        figures.add(
            rounds=rounds, acknowledged=acknowledged, lost=lost, duplicated=duplicated, outage=outage, call=call
        )
        self._figures.update(asdict(figures))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the fault tests."""
    group = parser.getgroup("faults", "the tests of contract_tests/faults")
    group.addoption("--long", action="store_true", help="Run every round of what breaks at a random moment.")
    group.addoption(
        "--faults-report", metavar="FILE", type=Path, help="Write the figures there: Markdown, or JSON for *.json."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "fault(name, backend): the fault that a test causes, for the summary.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures, and write them to the file of `--faults-report`."""
    found = _sum_up(terminalreporter)
    if not found:
        return
    terminalreporter.section("faults")
    for line in _format_table(found):
        terminalreporter.write_line(line)
    if file := config.option.faults_report:
        text = json.dumps([asdict(one) for one in found], indent=2) if file.suffix == ".json" else _markdown(found)
        file.write_text(text + "\n", encoding="utf-8")


def _sum_up(terminalreporter: pytest.TerminalReporter) -> list[Figures]:
    total: dict[tuple[str, str], Figures] = {}
    for one in _iterate_figures(terminalreporter):
        figures = total.setdefault((one["backend"], one["fault"]), Figures(one["fault"], one["backend"]))
        figures.add(**{name: value for name, value in one.items() if name not in {"fault", "backend"}})
    return [total[key] for key in sorted(total)]


def _iterate_figures(terminalreporter: pytest.TerminalReporter) -> Iterator[dict[str, Any]]:
    names = {field.name for field in fields(Figures)}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if report.when == "call" and name == _PROPERTY and value.keys() == names:
                    yield value


def _cells(figures: Figures) -> list[str]:
    values = [getattr(figures, name) for name, _ in _COLUMNS]
    return [f"{value:.2f}" if isinstance(value, float) else f"{value}" for value in values]


def _format_table(found: list[Figures]) -> list[str]:
    rows = [[title for _, title in _COLUMNS], *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _markdown(found: list[Figures]) -> str:
    rows = [[title for _, title in _COLUMNS], ["---", "---", *["---:"] * (len(_COLUMNS) - 2)], *map(_cells, found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
