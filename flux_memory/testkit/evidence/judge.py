"""Judges one phase of a clause's test: what it shows of the clause, and what the test's report has to say."""

from __future__ import annotations

import unittest
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from flux_memory.testkit.declarations import capabilities_of, why_known, why_unverifiable
from flux_memory.testkit.evidence.collect import presentable
from flux_memory.testkit.evidence.document import NOT_ASKED, Outcome, Result
from flux_memory.testkit.verdicts import BindingFault, Unverified
from flux_memory.testkit.versions import is_binding

if TYPE_CHECKING:
    from flux_memory.testkit.clauses import Clause

_REASON_CHARACTERS: Final = 600
_SKIPS: Final = (pytest.skip.Exception, unittest.SkipTest)
ONLY_KNOWN_FAILURE: Final = (
    "only @known_failure(clause_id, reason=...) above the class may declare that a clause fails; "
    "remove the xfail from it"
)


@dataclass(frozen=True, slots=True)
class Excuse:
    """Why a clause may be skipped, or may fail without failing the run. Only the kit gives one."""

    outcome: Outcome
    """`not claimed` or `thorough only` for a skip; `failed` (known) or `advisory` for a failure."""
    reason: str
    mark: pytest.Mark
    """The mark that makes pytest do so."""


EXCUSE: Final = pytest.StashKey[Excuse]()


def excuse(item: pytest.Item, clause: Clause, current: str) -> None:
    """Mark a clause that needs what is not claimed, takes too long, is known to fail, or is newer than required."""
    pinned: str | None = item.config.option.flux_contract
    if missing := clause.needs & ~capabilities_of(item):
        _excuse(item, "not claimed", missing.words, pytest.mark.skip(reason=f"not claimed: {missing.words}"))
    elif clause.thorough and item.config.option.flux_profile == "fast":
        reason = "it takes too long for the fast profile"
        _excuse(item, "thorough only", reason, pytest.mark.skip(reason=f"thorough only: {reason}"))
    elif (known := why_known(item, clause.id)) is not None:
        _excuse(item, "failed", known, pytest.mark.xfail(reason=known, strict=True))
    elif not is_binding(clause.since, current=current, pinned=pinned):
        held_to = f"the run is pinned to {pinned}" if pinned else "binding from the next minor version on"
        reason = f"since {clause.since}, {held_to}"
        _excuse(item, "advisory", reason, pytest.mark.xfail(reason=f"advisory: {reason}", strict=False))


def _excuse(item: pytest.Item, outcome: Outcome, reason: str, mark: pytest.MarkDecorator) -> None:
    item.add_marker(mark)
    item.stash[EXCUSE] = Excuse(outcome, reason, mark.mark)


def has_other_xfail(item: pytest.Item) -> bool:
    """Return whether a test has an xfail mark that the kit did not add."""
    given = item.stash.get(EXCUSE, None)
    return any(given is None or mark is not given.mark for mark in item.iter_markers("xfail"))


def result_of(
    item: pytest.Item, clause_id: str, call: pytest.CallInfo[None], reproduction: str
) -> dict[str, Any] | None:
    """Return the fields of the phase's `Result`; None if it shows nothing yet.

    The result follows from what was raised and from the kit's own excuse, never from a report, which any plugin may
    change, nor from the text of a reason.
    """
    given = item.stash.get(EXCUSE, None)
    declared = why_unverifiable(item, clause_id)
    raised = None if call.excinfo is None else call.excinfo.value
    if has_other_xfail(item) or isinstance(raised, pytest.xfail.Exception):
        return {"outcome": "failed", "reason": ONLY_KNOWN_FAILURE}
    if call.excinfo is None:
        return _result_without_error(item, given, declared) if call.when == "call" else None
    if isinstance(raised, _SKIPS):
        return _result_of_skip(item, raised, call.when, given, declared)
    reason = f"{call.excinfo.exconly():.{_REASON_CHARACTERS}}"
    if isinstance(raised, BindingFault) or call.when == "setup":
        why = raised.reason if isinstance(raised, BindingFault) else f"the clause could not be set up: {reason}"
        return {"outcome": "unverified", "fault": True, "reason": presentable(why)}
    result: dict[str, Any] = {"outcome": "failed", "reproduction": presentable(reproduction)}
    if declared is not None:
        reason = f"{reason} (the clause can be verified; remove its @unverifiable)"
    elif given is not None and given.outcome == "advisory":
        result["outcome"] = "advisory"
        reason = f"{reason} ({given.reason})"
    elif given is not None and given.outcome == "failed":
        result["known"] = True
        reason = f"known: {given.reason}"
    return {**result, "reason": presentable(reason)}


def _result_of_skip(
    item: pytest.Item, raised: BaseException, when: str, given: Excuse | None, declared: str | None
) -> dict[str, Any]:
    if given is not None and given.outcome in NOT_ASKED:
        return {"outcome": given.outcome, "reason": given.reason}
    # A fixture or a mark may skip for any reason; only the clause itself finds that it cannot be verified.
    if declared is not None and when == "call" and isinstance(raised, Unverified):
        return {"outcome": "unverifiable", "reason": presentable(declared)}
    return {"outcome": "unverified", "reason": presentable(str(raised))}


def _result_without_error(item: pytest.Item, given: Excuse | None, declared: str | None) -> dict[str, Any]:
    store = _store_of(item)
    if store is None or not store.finished:
        return {"outcome": "failed", "reason": "the clause did not run to its end, and no error was reported"}
    if declared is not None:
        return {"outcome": "failed", "reason": f"the clause can be verified; remove its @unverifiable ({declared})"}
    if given is not None and given.outcome == "failed":
        return {"outcome": "failed", "reason": f"the clause holds; remove its @known_failure ({given.reason})"}
    return {"outcome": "held", "left_out": [*store.left_out]}


def _store_of(item: pytest.Item) -> Any:
    return getattr(item, "funcargs", {}).get("store")


def correct(report: pytest.TestReport, clause_id: str, result: dict[str, Any], *, strict: bool) -> None:
    """Make a report fail if its result fails the run: an unexcused failure, or in a strict run an unverified clause."""
    if report.failed:
        return
    if result["outcome"] == "unverified" and strict:
        report.longrepr = f"{clause_id} is unverified, and the run is strict: {result['reason']}"
    elif Result(**result).fails_the_run:
        report.longrepr = f"{clause_id}: {result['reason']}"
        vars(report).pop("wasxfail", None)
    else:
        return
    report.outcome = "failed"
