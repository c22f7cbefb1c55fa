"""Generates the pages of docs/contract from the clauses: `python tools/clause_pages.py`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flux_memory.testkit import CLAUSES, CONTRACT_VERSION, Clause, MemoryContract
from flux_memory.testkit.clauses import GROUPS

PROJECT: Final = Path(__file__).parents[1]
PLACE: Final = PROJECT / "docs" / "contract"
COMMAND: Final = f"python {Path(__file__).relative_to(PROJECT)}"
MADE: Final = f"<!-- Generated from the clauses by `{COMMAND}`: edit the clauses, not this page. -->"

INDEX: Final = """\
{made}

# The contract, clause by clause

What every memory promises, and what users lose if a promise is broken: {count} clauses, contract {version}. Each
clause is a test with an id that never changes. `pytest -k FM-ORD-003` runs one of them on your backend,
`pytest -k FM-ORD` a group; [the guide](../test-your-own-backend.md) shows how to set this up.

| clauses | protect | |
|---|---|---|
{rows}
"""
PAGE: Final = """\
{made}

# {title}

{about}

`pytest -k FM-{group}` runs this group of [the contract](README.md) on your backend.

{clauses}
"""
ABOUT_NEEDS: Final = "only for backends that claim: {needs}"
ABOUT_SINCE: Final = "since contract {since}"
ABOUT_THOROUGH: Final = "only in the thorough profile"


def pages() -> dict[str, str]:
    """Return the text of each page by file name."""
    groups = {group: shipped for group in GROUPS if (shipped := list(_shipped(group)))}
    rows = "\n".join(
        f"| [FM-{group}]({_file(group)}) | {GROUPS[group]} | {len(clauses)} |" for group, clauses in groups.items()
    )
    count = sum(map(len, groups.values()))
    index = INDEX.format(made=MADE, count=count, version=CONTRACT_VERSION, rows=rows)
    return {"README.md": index} | {_file(group): _page(group, clauses) for group, clauses in groups.items()}


def write() -> None:
    """Write the pages and remove those of groups that no longer exist."""
    PLACE.mkdir(exist_ok=True)
    made = pages()
    for name, content in made.items():
        (PLACE / name).write_text(content, encoding="utf-8")
    for path in PLACE.glob("*.md"):
        if path.name not in made:
            path.unlink()


def _shipped(group: str) -> Iterator[Clause]:
    """Yield the kit's own clauses of a group; a test run may register others."""
    for clause_id, clause in sorted(CLAUSES.items()):
        if clause_id.startswith(f"FM-{group}-") and clause.home.startswith(MemoryContract.__module__):
            yield clause


def _file(group: str) -> str:
    return re.sub(r"[^a-z]+", "-", GROUPS[group].lower()) + ".md"


def _page(group: str, clauses: list[Clause]) -> str:
    module, name, _ = clauses[0].home.rsplit(".", 2)
    about = inspect.getdoc(getattr(sys.modules[module], name)) or ""
    return PAGE.format(
        made=MADE,
        title=GROUPS[group],
        about=about.partition("\n")[0],
        group=group,
        clauses="\n\n".join(map(_clause, clauses)),
    )


def _clause(clause: Clause) -> str:
    needs = clause.needs.words
    remarks = [ABOUT_NEEDS.format(needs=needs)] if needs else []
    remarks += [ABOUT_SINCE.format(since=clause.since)] if clause.since != "1.0" else []
    remarks += [ABOUT_THOROUGH] if clause.thorough else []
    remark = f"\n\n<sub>{'; '.join(remarks)}</sub>" if remarks else ""
    return f"## {clause.id}\n\n{clause.promise}\n\n**Lost without it:** {clause.impact}{remark}"


if __name__ == "__main__":
    write()
