"""Divides a schema file into commands of one change each, the only ones that a schema distributed by Citus takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_COMMENT: Final = re.compile(r"^--.*\n", re.MULTILINE)
_END: Final = re.compile(r";\n+")
_ALTER: Final = re.compile(r"(?P<head>ALTER TABLE \w+)\n +(?P<changes>.+)", re.DOTALL)
_NEXT_CHANGE: Final = re.compile(r",\n +(?=(?:ADD|ALTER|DROP) )")


def single_commands(sql: str) -> Iterator[str]:
    """Yield the commands of a schema file in order, an ALTER TABLE of several changes as several commands.

    Args:
        sql: The text of a file, in which commands end with a semicolon at the end of a line.
    """
    for command in _END.split(_COMMENT.sub("", sql).strip() + "\n"):
        if several := _ALTER.fullmatch(command.strip()):
            for change in _NEXT_CHANGE.split(several["changes"]):
                yield f"{several['head']} {change}"
        elif command.strip():
            yield command.strip()
