"""The command `flux-memory contract`: shows what changed between two reports of the contract."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from flux_memory.cli.values import NamedPath
from flux_memory.records.printing import printable

if TYPE_CHECKING:
    from flux_memory.testkit.evidence.diff import ClauseChange, Difference
    from flux_memory.testkit.evidence.document import Evidence

_REASON_CHARACTERS: Final = 200


@click.group(short_help="Work with reports of the contract.")
def contract() -> None:
    """Work with reports that `pytest --flux-report=DIR` has written."""


@contract.command(short_help="Show what changed between two reports.")
@click.argument("old", type=NamedPath(exists=True))
@click.argument("new", type=NamedPath(exists=True))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(old: Path, new: Path, *, as_json: bool) -> None:
    """Show the clauses that fail, hold, are new, gone or slower in NEW, compared with OLD.

    Each is a directory that `pytest --flux-report` has written, or the contract.json in it. Exits with 1 if a clause
    that held is no longer seen to hold, with 2 if a file cannot be read, and with 0 otherwise.
    """
    from flux_memory.testkit.evidence.diff import compare  # noqa: PLC0415 - other commands do not need it

    before, after = _read(old), _read(new)
    difference = compare(before, after)
    if as_json:
        click.echo("\n".join(map(printable, json.dumps(difference.as_dict(), indent=1).split("\n"))))
    else:
        _show(difference, before, after)
    sys.exit(1 if difference.is_worse else 0)


def _read(path: Path) -> Evidence:
    from flux_memory.testkit.evidence.document import NotEvidence, read_evidence  # noqa: PLC0415 - as above

    try:
        return read_evidence(path)
    except NotEvidence as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.UsageError(
            f"{error.filename}: {error.strerror}; give a directory that pytest --flux-report has written"
        ) from error


def _show(difference: Difference, before: Evidence, after: Evidence) -> None:
    _print(f"contract {before.contract}, {before.started}  ->  contract {after.contract}, {after.started}")
    in_both = {each.name for each in before.backends} & {each.name for each in after.backends}
    _section("Newly failing", difference.failing, in_both, colour="red")
    _section("No longer seen to hold", difference.lost, in_both, colour="red")
    _section("Fixed", difference.fixed, in_both, colour="green")
    _section("Changed, and not held before either", difference.other, in_both, colour="yellow")
    _section("Added", difference.added, in_both)
    _section("Removed", difference.removed, in_both)
    _section("Slower", difference.slower, in_both, colour="yellow", timed=True)
    worse = len(difference.failing) + len(difference.lost)
    click.echo(f"\n{worse} no longer hold" if worse else "\nall that held still holds")


def _section(
    title: str, changes: Sequence[ClauseChange], in_both: set[str], *, colour: str | None = None, timed: bool = False
) -> None:
    if not changes:
        return
    click.secho(f"\n{title}: {len(changes)}", fg=colour, bold=True)
    # A backend in only one report gets one line, not one for each clause.
    for backend, count in Counter(change.backend for change in changes if change.backend not in in_both).items():
        _print(f"{backend}, in one of the two reports only: {count}", indent=2)
    for change in changes:
        if change.backend in in_both:
            _show_change(change, timed=timed)


def _show_change(change: ClauseChange, *, timed: bool) -> None:
    moved = f"{change.before or 'not there'} -> {change.after or 'not there'}"
    if timed:
        moved = f"{change.seconds_before * 1000:.0f} ms -> {change.seconds_after * 1000:.0f} ms"
    _print(f"{change.clause} on {change.backend}: {moved}. {change.promise}", indent=2)
    if change.reason and change.after != "held":
        _print(textwrap.shorten(change.reason, _REASON_CHARACTERS, placeholder=" ..."), indent=6)


def _print(text: str, *, indent: int = 0) -> None:
    """Print a text in lines that fit the terminal, broken between words only."""
    lines = textwrap.wrap(
        printable(text),
        shutil.get_terminal_size().columns - 1,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 4),
        break_long_words=False,
        break_on_hyphens=False,
    )
    click.echo("\n".join(lines))
