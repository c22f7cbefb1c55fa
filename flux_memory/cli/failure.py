"""Shows on the terminal why a command failed."""

from __future__ import annotations

import json
import re
from typing import Final

import click

from flux_memory.records.printing import printable

_ONE: Final = re.compile(r"\b(?<![.,])1 (?:(session|message|row)s|(entr)ies)\b")


def show_failure(error: BaseException, *, as_json: bool = False) -> None:
    """Print an error, and below it the words of each cause that its own do not have; or both as one JSON object."""
    if as_json:
        failure = {"ok": False, "error": type(error).__name__, "message": str(error), "causes": causes(error)}
        click.echo(printable(json.dumps(failure)))
        return
    click.echo(printable(in_number(f"FAILED  {error}")), err=True)
    for cause in causes(error):
        click.echo(printable(f"        cause: {cause}"), err=True)


def causes(error: BaseException) -> list[str]:
    """Return the first line of each cause's message, unless the error's message quotes it."""
    found: list[str] = []
    cause = error.__cause__
    while cause is not None:
        words = next(iter(str(cause).splitlines()), "")
        if words and words not in str(error):
            found.append(f"{type(cause).__name__}: {words}")
        cause = cause.__cause__
    return list(dict.fromkeys(found))


def in_number(line: str) -> str:
    """Return a line in which one thing is singular: "1 session", not "1 sessions"."""
    return _ONE.sub(lambda found: f"1 {found[1] or found[2] + 'y'}", line)
