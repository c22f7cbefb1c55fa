"""Builds the stages of the guide to your own backend from its page; as a script, updates the results it shows.

`python tools/guide_stages.py` runs every clause on every stage and writes the failing clauses, their numbers and the
closing tables into the page.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from flux_memory.testkit.clauses import GROUPS

GUIDE: Final = Path(__file__).parents[1] / "docs" / "test-your-own-backend.md"
WITHOUT_MODEL: Final = ("-k", "not FM-MOD")
"""The model finds nothing before the clauses hold, and its failures take long."""
_QUIET: Final = ("-q", "-p", "no:cacheprovider", "--flux-postgres=off")
_RUN_SECONDS: Final = 600
"""Seconds for a run of all clauses; an idle machine needs a twentieth of that."""
_CLAUSES: Final = re.compile(r"[A-Z]{3}(?: [0-9]{3}(?:-[0-9]{3})?)+")
_COUNTED: Final = re.compile(r"([0-9]+)\s+(?:still\s+fail|in\s+all)\b")
_ROW: Final = re.compile(r"^([A-Z][a-z, -]+?) {2,}[0-9].*$", re.MULTILINE)
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


def run_stage(stage: Stage, place: Path, *arguments: str) -> str:
    """Run pytest on a stage's files in a directory, and return its output."""
    for name, content in stage.files.items():
        (place / name).write_text(content, encoding="utf-8")
    (place / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", *_QUIET, *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=_RUN_SECONDS, check=False)
    if "flux-memory contract" not in done.stdout:
        raise RuntimeError(f"the run has no closing table:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}")
    return done.stdout


def read_failing(printed: str) -> frozenset[str]:
    """Return the ids of the clauses that failed in a run."""
    return frozenset(re.findall(r"^failed: (FM-\S+) on ", printed, re.MULTILINE))


def write_results() -> None:
    """Run every stage, and write its results into the page."""
    for number in [stage.number for stage in read_stages()]:
        stage, last = read_stages()[number - 1], number == len(read_stages())
        with tempfile.TemporaryDirectory() as place:
            printed = run_stage(stage, Path(place), "--tb=no", *(() if last else WITHOUT_MODEL))
        text = GUIDE.read_text(encoding="utf-8")
        start = text.index(f"\n## {number}. ")
        end = text.index("\n## ", start + 1)
        GUIDE.write_text(text[:start] + _updated(text[start:end], printed) + text[end:], encoding="utf-8")
        sys.stdout.write(f"stage {number}: {len(read_failing(printed))} clauses fail\n")


def _updated(section: str, printed: str) -> str:
    """Return a section with the results of a run."""
    failing = read_failing(printed)
    for block in _fenced(section, "text"):
        if all(map(_CLAUSES.fullmatch, block.splitlines())):
            section = section.replace(block, format_ids(failing) + "\n")
        elif "clauses that hold" in block:
            section = section.replace(block, _between(printed, block.splitlines()[0].strip(), "not claimed") + "...\n")
        else:
            section = section.replace(block, _rows_updated(block, printed))
    return _COUNTED.sub(lambda found: found[0].replace(found[1], str(len(failing)), 1), section)


def _between(printed: str, first: str, last: str) -> str:
    """Return the lines of the closing table from its heading to a row, without spaces at their ends."""
    lines = [line.rstrip() for line in printed.splitlines()]
    start = next(at for at, line in enumerate(lines) if line.strip() == first)
    end = next(at for at, line in enumerate(lines[start:], start) if line.startswith(last))
    return "".join(f"{line}\n" for line in lines[start : end + 1])


def _rows_updated(block: str, printed: str) -> str:
    """Return a shown table with its rows as printed."""
    rows = {label[1]: label[0] for label in _ROW.finditer(printed)}
    return _ROW.sub(lambda found: rows.get(found[1], found[0]), block)


def format_ids(ids: Iterable[str]) -> str:
    """Return clause ids in the guide's notation."""
    groups: dict[str, list[int]] = {}
    for each in sorted(ids):
        _, group, number = each.split("-")
        groups.setdefault(group, []).append(int(number))
    return "\n".join(f"{group} {' '.join(_runs(groups[group]))}" for group in GROUPS if group in groups)


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
    """Merge code blocks into one file: a definition or import replaces an earlier definition; imports come first."""
    imports: list[ast.stmt] = []
    body: list[ast.stmt] = []
    for node in (node for block in blocks for node in ast.parse(block).body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
            names = {alias.asname or alias.name for alias in node.names}
            body = [each for each in body if _name(each) not in names]
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


if __name__ == "__main__":
    write_results()
