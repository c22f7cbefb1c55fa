"""Tests the guide to your own backend: each stage fails exactly the clauses it names, the last two none."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from guide_stages import GUIDE, Stage, format_ids, read_failing, read_stages, run_stage

STAGES = read_stages()
UNCHECKED = 2
"""Stages that check no argument. What they accept beyond a limit they accept beyond a smaller one, and the clauses of
the limit of 64 MiB take most of their time: 39 of 60 seconds."""
FIXED_EARLY = "FM-LIM-010"
"""Many sessions, which the second stage lists slowly and correctly; the last stage runs the clause again."""
SMALLER = "    max_content_bytes = 1_000_000\n"
UPDATE = "python tools/guide_stages.py writes the results into the guide"


def check_shown(output: str, printed: str) -> None:
    """Fail unless the output that the guide shows was printed; `...` stands for omitted lines."""
    lines = [line.rstrip() for line in printed.splitlines()]
    missing = [line for line in output.splitlines() if line != "..." and line.rstrip() not in lines]
    assert missing == [], f"the guide shows what was not printed; the run printed:\n{printed[-6_000:]}"


def read_report(clause_id: str, printed: str) -> str:
    """Return the report of one failed clause from the output of a run."""
    reports = re.split(r"^_{3,} (.+) _{3,}$", printed, flags=re.MULTILINE)
    return next(report for title, report in pairwise(reports) if title.endswith(f"[{clause_id}]"))


def with_smaller_limit(stage: Stage) -> Stage:
    """Return a stage whose binding claims that its store takes a megabyte of content."""
    name = "test_jsonl_memory.py"
    head, found, body = stage.files[name].partition("(MemoryContract):\n")
    assert found
    return replace(stage, files=stage.files | {name: f"{head}{found}{SMALLER}{body}"})


@pytest.mark.parametrize("number", range(1, len(STAGES) + 1))
def test_a_stage_fails_exactly_what_the_guide_says(number: int, tmp_path: Path) -> None:
    """A reader who follows the guide sees the failures that it announces, to the clause, and the reports it shows."""
    stage, last = STAGES[number - 1], number == len(STAGES)
    # Each stage runs what failed before it, and the last one everything.
    chosen = {1: "not FM-MOD", len(STAGES): ""}.get(number, " or ".join(STAGES[number - 2].failing - {FIXED_EARLY}))
    printed = run_stage(with_smaller_limit(stage) if number <= UNCHECKED else stage, tmp_path, "-k", chosen)
    failing = read_failing(printed)
    assert failing == stage.failing, f"stage {number} fails these; {UPDATE}:\n\n{format_ids(failing)}"
    assert stage.counted == (len(failing) or None), UPDATE
    if last:
        assert "unverified" not in printed
    elif failing:
        following = STAGES[number]
        assert following.looked_at in failing
        check_shown(following.outputs[0], read_report(str(following.looked_at), printed))
    if stage.looked_at is None or last:
        check_shown(stage.outputs[-1], printed)


def test_the_guide_can_be_read_in_ten_minutes() -> None:
    """The guide has few stages, each fixes a bug, the last claims more, and it takes at most ten minutes to read."""
    assert 5 <= len(STAGES) <= 7
    *fixing, adding = STAGES
    for before, stage in pairwise(fixing):
        assert stage.failing < before.failing
    assert fixing[-1].failing == adding.failing == frozenset()
    assert fixing[-1].files["test_jsonl_memory.py"] != adding.files["test_jsonl_memory.py"]
    stages = GUIDE.read_text(encoding="utf-8").partition("## What `flux_memory.records` has")[0]
    prose = re.sub(r"^```.*?^```$", "", stages, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) < 1_000
