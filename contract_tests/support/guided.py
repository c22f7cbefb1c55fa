"""Builds the stages of the guide to one's own backend out of its page, as a reader does."""

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
    """The files as they are at the section's end, by their names."""
    failing: frozenset[str]
    """The clauses that fail then, says the text."""
    counted: int | None
    """How many those are, says the text."""
    outputs: list[str]
    """The other outputs that are shown."""
    looked_at: str | None
    """The clause whose failure the section begins with; it is the stage before that fails it."""


def stages() -> list[Stage]:
    """Return the numbered sections, in order."""
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


def told(ids: set[str]) -> str:
    """Return clauses as the guide lists them."""
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
    """Put blocks into one file: what has a name replaces what had it, in classes too; imports come first."""
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
