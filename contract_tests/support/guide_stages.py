"""Builds the stages of the guide `test-your-own-backend` from its page, as a reader would."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

GUIDE: Final = Path(__file__).parents[2] / "docs" / "test-your-own-backend.md"
_CLAUSES: Final = re.compile(r"[A-Z]{3}(?: [0-9]{3}(?:-[0-9]{3})?)+")
_COUNTED: Final = re.compile(r"([0-9]+)\s+(?:still\s+fail|in\s+all)\b")
_ONE_CLAUSE: Final = re.compile(r"-k (FM-[A-Z]{3}-[0-9]{3})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Stage:
    """One section of the guide."""

    number: int
    title: str
    files: dict[str, str]
    """Contents of the files at the section's end, by file name."""
    failing: frozenset[str]
    """The ids of the clauses that fail at that point, according to the text."""
    counted: int | None
    """The number of those clauses, according to the text."""
    outputs: list[str]
    """The other outputs that the section shows."""
    looked_at: str | None
    """The failing clause that opens the section; the stage before fails it."""


def read_stages() -> list[Stage]:
    """Return the numbered sections in order."""
    text = GUIDE.read_text(encoding="utf-8")
    headings = list(re.finditer(r"^## (?:([0-9]+)\. )?(.*)$", text, re.MULTILINE))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    found: list[Stage] = []
    blocks: list[str] = []
    for heading, end in zip(headings, ends, strict=True):
        if heading[1] is None:
            continue
        section = text[heading.end() : end]
        blocks += _fenced(section, "python")
        shown = _fenced(section, "text")
        lists = [block for block in shown if all(map(_CLAUSES.fullmatch, block.splitlines()))]
        clause, counted = _ONE_CLAUSE.search(section), _COUNTED.search(section)
        found.append(
            Stage(
                number=int(heading[1]),
                title=heading[2],
                files=_files(blocks),
                failing=frozenset(each for block in lists for each in _ids(block)),
                counted=counted and int(counted[1]),
                outputs=[block for block in shown if block not in lists],
                looked_at=clause and clause[1],
            )
        )
    return found


def format_ids(ids: set[str]) -> str:
    """Return clause ids in the guide's notation."""
    groups: dict[str, list[int]] = {}
    for each in sorted(ids):
        _, group, number = each.split("-")
        groups.setdefault(group, []).append(int(number))
    return "\n".join(f"{group} {' '.join(_runs(numbers))}" for group, numbers in groups.items())


def _runs(numbers: list[int]) -> Iterator[str]:
    breaks = [at for at, (one, other) in enumerate(pairwise(numbers), 1) if other != one + 1]
    for start, end in pairwise([0, *breaks, len(numbers)]):
        first, last = numbers[start], numbers[end - 1]
        yield f"{first:03}" if first == last else f"{first:03}-{last:03}"


def _ids(block: str) -> Iterator[str]:
    for line in block.splitlines():
        group, *runs = line.split()
        for run in runs:
            first, _, last = run.partition("-")
            yield from (f"FM-{group}-{number:03}" for number in range(int(first), int(last or first) + 1))


def _fenced(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def _files(blocks: list[str]) -> dict[str, str]:
    names = dict.fromkeys(block.partition("\n")[0].removeprefix("# ") for block in blocks)
    return {name: _merged([block for block in blocks if block.startswith(f"# {name}\n")]) for name in names}


def _merged(blocks: list[str]) -> str:
    """Merge code blocks into one file: a definition replaces an earlier one of the same name; imports come first."""
    imports: list[ast.stmt] = []
    body: list[ast.stmt] = []
    for node in (node for block in blocks for node in ast.parse(block).body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
            continue
        before = next((each for each in body if _name(each) == _name(node) is not None), None)
        if isinstance(before, ast.ClassDef) and isinstance(node, ast.ClassDef):
            names = set(map(_name, node.body))
            before.body = [each for each in before.body if _name(each) not in names] + node.body
        elif before is not None:
            body[body.index(before)] = node
        else:
            body.append(node)
    return ast.unparse(ast.Module(imports + body, type_ignores=[])) + "\n"


def _name(node: ast.stmt) -> str | None:
    return getattr(node, "name", None)
