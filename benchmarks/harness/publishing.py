"""Writes a benchmark's result as JSON and as a page, and prints its tables and its missed targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def publish(
    path: Path, result: dict[str, Any], page: str, *, tables: dict[str, list[list[str]]], bad: list[str]
) -> None:
    """Write `path` with the suffixes .json and .md, and print the result.

    Args:
        path: The files without their suffix.
        result: The figures.
        page: The result as Markdown.
        tables: The tables to print by title; the first row is the header.
        bad: A sentence for each missed target.
    """
    console = Console()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    for title, (head, *rows) in tables.items():
        shown = Table(*head, title=title, title_justify="left")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    for each in bad:
        console.print(f"[red]missed: {each}[/red]")
