"""Decides what one phase of a clause's test says of the clause, and what it does to the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from flux_memory.testkit.claims import capabilities_of
from flux_memory.testkit.evidence.collect import presentable
from flux_memory.testkit.evidence.versions import is_binding

if TYPE_CHECKING:
    from flux_memory.testkit.clauses import Clause
    from flux_memory.testkit.evidence.document import Outcome

_ADVISORY: Final = "advisory: "
_ABSENT: Final = "not claimed: "
_LONGEST: Final = 600


def excuse_if_advisory(item: pytest.Item, clause: Clause, current: str) -> None:
    """Let a clause that a backend is not yet held to run, and fail without failing the run."""
    pinned: str | None = item.config.option.flux_contract
    if not is_binding(clause.since, current=current, pinned=pinned):
        held_to = f"the run is pinned to {pinned}" if pinned else "binding from the next minor version on"
        item.add_marker(pytest.mark.xfail(reason=f"{_ADVISORY}since {clause.since}, {held_to}", strict=False))


def leave_out_if_not_claimed(item: pytest.Item, clause: Clause) -> None:
    """Do not run a clause that needs what the backend does not claim; FM-CAP holds the backend to that."""
    if missing := clause.needs & ~capabilities_of(item):
        item.add_marker(pytest.mark.skip(reason=f"{_ABSENT}{missing.words}"))


def result_of(call: pytest.CallInfo[None], report: pytest.TestReport, reproduction: str) -> dict[str, str] | None:
    """Return the outcome, and the reason and the reproduction where there are any; None if there is none yet."""
    excuse: str | None = getattr(report, "wasxfail", None)
    if report.passed:
        # That it could be set up, or cleared up after, says nothing yet.
        return {"outcome": "held"} if report.when == "call" else None
    outcome: Outcome = "failed"
    if report.skipped and excuse is None:
        why = presentable(_why_skipped(report))
        if why.startswith(_ABSENT):
            return {"outcome": "not claimed", "reason": why.removeprefix(_ABSENT)}
        return {"outcome": "unverified", "reason": why}
    seen = call.excinfo.exconly() if call.excinfo is not None else str(report.longrepr)
    reason = f"{seen:.{_LONGEST}}"
    if excuse is not None and excuse.startswith(_ADVISORY):
        outcome = "advisory"
        reason = f"{reason} ({excuse.removeprefix(_ADVISORY)})"
    elif excuse is not None:
        reason = f"known: {excuse}" if excuse else f"known: {reason}"
    return {"outcome": outcome, "reason": presentable(reason), "reproduction": presentable(reproduction)}


def fail_if_strict(item: pytest.Item, clause_id: str, report: pytest.TestReport) -> None:
    """Under `--flux-strict`, turn the skip of a clause into a failure."""
    if not item.config.option.flux_strict or not report.skipped or hasattr(report, "wasxfail"):
        return
    if not _why_skipped(report).startswith(_ABSENT):
        report.outcome = "failed"
        report.longrepr = f"{clause_id} is unverified, and the run is strict: {_why_skipped(report)}"


def _why_skipped(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ").removeprefix("unverified: ")
