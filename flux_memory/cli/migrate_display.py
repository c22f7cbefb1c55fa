"""Shows a transfer on the terminal: its phases, a progress bar, the table and the closing line."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from flux_memory.cli.failure import in_number
from flux_memory.records.printing import printable, shell_quoted
from flux_memory.transfer import Report, Status

_CLOSING: Final = {
    Status.IDENTICAL: "Proven identical: both sides have the same sessions, messages in order, and feedback.",
    Status.CONTAINED: (
        "Proven: every session and message of the file is in PostgreSQL, in order, with its content. PostgreSQL has "
        "more, as shown above; it was left as it is."
    ),
    Status.SKIPPED: (
        "Done and proven, except for the rows above that were deleted in PostgreSQL. To move them again, run with "
        "--restore-deleted."
    ),
    Status.READY: "Ready: {ready}. Run again without --dry-run to move it.",
    Status.REFUSED: (
        "Stopped before anything was changed: the rows above cannot be moved. Correct them, or run again with "
        "--on-invalid=quarantine to move the rest."
    ),
    Status.QUARANTINED: (
        "Done and proven, except for the rows in {quarantine}. Correct them there, {mask}then run: {retry}"
    ),
    Status.DIFFERENT: (
        "DIFFERENT: see the list above. Nothing was overwritten; correct these rows, then run again, or run with "
        "--replace to make PostgreSQL equal to the file."
    ),
}
_COMPARED: Final = (
    "Proven, except for the rows above that cannot be moved: every other session and message of the file is in "
    "PostgreSQL."
)
"""The closing line after `--verify`, which writes no quarantine file."""
_NOT_REPLACED: Final = (
    "DIFFERENT: see the list above. Nothing was overwritten, and PostgreSQL has its rows as before; change or drop the "
    "triggers that change or keep rows, then run again."
)
_NOT_WRITTEN: Final = (
    "DIFFERENT: see the list above. No file was written; correct these rows in PostgreSQL, then run again."
)

_AT_SEVERAL_MOMENTS: Final = (
    "Proven: every session and message of the file is in PostgreSQL, in order, with its content. Applications wrote "
    "meanwhile, so the servers of the cluster were read at different moments: stop them and run again for the state of "
    "one moment."
)
"""Closes a transfer whose target is a cluster."""
_RATE_COLUMNS: Final = 80
"""Columns that the terminal needs to show the rate."""


class _Rows(ProgressColumn):
    """The number of rows done; empty in a phase that counts no rows."""

    def render(self, task: Task) -> Text:
        done = "" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f}"
        return Text(done, style="progress.download", no_wrap=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = "" if task.total is None else f"{task.speed or 0:,.0f} rows/s"
        return Text(rate, style="progress.data.speed", no_wrap=True)


class _Time(ProgressColumn):
    """The time left, or the time taken in a phase that counts no rows."""

    _left = TimeRemainingColumn()
    _taken = TimeElapsedColumn()

    def render(self, task: Task) -> Text:
        return (self._taken if task.total is None else self._left).render(task)


class Display:
    """Shows a transfer: a progress bar on a terminal, plain lines elsewhere, nothing if quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console()
        rate = (_Rate(),) if self._console.width >= _RATE_COLUMNS else ()
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            _Rows(),
            *rate,
            _Time(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, visible=False)
        self._name = ""
        self._rows = 0
        self._began = 0.0

    def phase(self, name: str, rows: int | None) -> None:
        """End the last phase and begin another."""
        self._end_phase()
        self._name, self._rows, self._began = name, 0, time.monotonic()
        if not self._progress.disable:
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task(name, total=rows)

    def advance(self, rows: int) -> None:
        """Count rows."""
        self._rows += rows
        if not self._progress.disable:
            self._progress.advance(self._task, rows)

    def say(self, line: str) -> None:
        """Print a line."""
        if not self._quiet:
            self._progress.console.print(printable(in_number(line)), markup=False, highlight=False, soft_wrap=True)

    def verdict(self, report: Report, options: Sequence[str] = (), *, asks: bool = False) -> None:
        """Print the findings and one closing line.

        Args:
            report: The report of the transfer.
            options: The options that a retry needs, too.
            asks: Whether a question follows a dry run, instead of advice.
        """
        for tally in report.preflight.tallies.values():
            self.say(f"  {tally.count:,} {tally.table}: {tally.kind}. First: {'; '.join(tally.first)}")
        if report.preflight.refused:
            self.say(
                f"Cannot be moved: {report.preflight.refused_sessions:,} sessions, "
                f"{report.preflight.refused_messages:,} messages{_and_entries(report.preflight.refused_feedback)}"
                f"{f'; they are in {report.quarantine}' if report.quarantine else ''}"
            )
        if report.preflight.ties:
            self.say(
                f"{report.preflight.ties:,} messages share their time with the one before; they keep the order written"
            )
        self._losses(report)
        self._moved(report)
        self._verification(report)
        if report.status is Status.QUARANTINED and report.quarantine is None:
            self.say(_COMPARED)
        elif report.status is Status.DIFFERENT and report.replaces:
            self.say(_NOT_REPLACED)
        elif report.status is Status.DIFFERENT and "://" in report.source:
            self.say(_NOT_WRITTEN)
        elif report.status is Status.CONTAINED and report.verification and not report.verification.is_one_moment:
            self.say(_AT_SEVERAL_MOMENTS)
        elif not (asks and report.status is Status.READY):
            retry = " ".join(map(shell_quoted, ["flux-memory", "migrate", "--retry", str(report.quarantine), *options]))
            self.say(
                _CLOSING[report.status].format(
                    quarantine=report.quarantine,
                    retry=retry,
                    mask="replace *** below with the password, " * ("***" in retry),
                    ready="all but the rows above" if report.preflight.refused else "nothing is in the way",
                )
            )

    def _losses(self, report: Report) -> None:
        lost = report.losses
        if lost is None:
            return
        if lost.only_in_target or lost.added_since:
            self.say(
                f"PostgreSQL would lose {lost.only_in_target:,} sessions (with {lost.messages_only_in_target:,} "
                f"messages), and {lost.added_since:,} messages of other sessions, which the file does not have"
            )
        else:
            self.say("PostgreSQL would lose no session and no message")
        if lost.feedback_only_in_target:
            self.say(f"PostgreSQL would lose {_entries(lost.feedback_only_in_target)}")
        if lost.first_only_in_target:
            self.say(f"  First sessions: {', '.join(lost.first_only_in_target)}")
        if lost.differences:
            self.say(f"PostgreSQL would get the file's content for rows that differ: {_counted(lost.differences)}")
            for difference in lost.first_differences:
                self.say(f"  {difference}")
        if lost.columns:
            self.say(f"PostgreSQL would lose the values of your columns: {', '.join(lost.columns)}")

    def _moved(self, report: Report) -> None:
        moved = report.moved
        if moved is None:
            return
        self.say(f"Moved {moved.sessions:,} sessions, {moved.messages:,} messages{_and_entries(moved.feedback)}")
        if moved.replaced_sessions or moved.replaced_messages or moved.replaced_feedback:
            entries = _and_entries(moved.replaced_feedback)
            self.say(f"Replaced {moved.replaced_sessions:,} sessions, {moved.replaced_messages:,} messages{entries}")
        if moved.skipped_sessions or moved.skipped_messages or moved.skipped_feedback:
            entries = _and_entries(moved.skipped_feedback)
            self.say(
                f"Already there: {moved.skipped_sessions:,} sessions, {moved.skipped_messages:,} messages{entries}"
            )
        if moved.first_conflicts:
            self.say(
                f"In conflict, and left as they are: {moved.conflicting_sessions:,} sessions (with {moved.held_back:,} "
                f"messages held back), {moved.conflicting_messages:,} messages. "
                f"First: {', '.join(moved.first_conflicts)}. To take the file's rows instead, run with --replace"
            )

    def _verification(self, report: Report) -> None:
        found = report.verification
        if found is None or self._quiet:
            return
        back = "://" in report.source
        here, there = ("File", "PostgreSQL") if back else ("SQLite", "PostgreSQL")
        table = Table("Verification", *(Column(name, justify="right") for name in ("sessions", "messages", "feedback")))
        table.add_row(here, f"{found.sessions:,}", f"{found.messages:,}", f"{found.feedback:,}")
        table.add_row(there, f"{found.target_sessions:,}", f"{found.target_messages:,}", f"{found.target_feedback:,}")
        if self._console.is_terminal:
            self._console.print(table)
        else:
            mine, theirs = _and_entries(found.feedback), _and_entries(found.target_feedback)
            self.say(f"Verification: {here}: {found.sessions:,} sessions, {found.messages:,} messages{mine}")
            self.say(
                f"              {there}: {found.target_sessions:,} sessions, {found.target_messages:,} messages{theirs}"
            )
        if found.only_in_target or found.added_since:
            self.say(
                f"Only in {there}: {found.only_in_target:,} sessions, and {found.added_since:,} messages of sessions "
                f"that are on both sides. First sessions: {', '.join(found.first_only_in_target)}"
            )
        if found.feedback_only_in_target:
            self.say(f"Only in {there}: {_entries(found.feedback_only_in_target)}")
        if found.feedback_deleted_since:
            self.say(
                f"Skipped, since an earlier run moved them and they were deleted in {there}: "
                f"{_entries(found.feedback_deleted_since)}"
            )
        if found.deleted_since:
            self.say(
                f"Skipped, since an earlier run moved them and they were deleted in {there}: {found.deleted_since:,} "
                f"sessions, {found.messages_deleted_since:,} messages. First: {', '.join(found.first_deleted_since)}"
            )
        for difference in found.first_differences:
            self.say(f"  {difference}")
        if found.differences:
            self.say(f"Differences: {_counted(found.differences)}")

    def _end_phase(self) -> None:
        if self._name:
            seconds = time.monotonic() - self._began
            rows = f"{self._rows:,} rows in " if self._rows else ""
            self.say(f"{self._name}: {rows}{seconds:.1f} s")
        self._name = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end_phase()
        if not self._progress.disable:
            self._progress.remove_task(self._task)
        self._progress.stop()


def _entries(number: int) -> str:
    return f"{number:,} {'entry' if number == 1 else 'entries'} of feedback"


def _and_entries(number: int) -> str:
    return f", {_entries(number)}" if number else ""


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} x {kind}" for kind, count in kinds.items())
