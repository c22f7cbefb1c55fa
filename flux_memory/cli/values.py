"""Types of what is given on the command line: a path that is not empty, and a number of seconds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click


class NamedPath(click.Path):
    """A path. An unset shell variable gives an empty one, which must not mean the working directory.

    Args:
        options: As for `click.Path`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail("it is empty; give a path", param, ctx)
        return super().convert(value, param, ctx)


class Seconds(click.FloatRange):
    """A number of seconds within limits. Comparisons with nan are false, so the limits alone would accept it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the seconds."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds, such as 2 or 0.5", param, ctx)
        return seconds
