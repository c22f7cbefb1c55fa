"""Tests the guide to your own backend: each stage fails exactly the clauses it names, the last one none."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from guide_stages import GUIDE, Stage, format_ids, read_stages

STAGES: Final = read_stages()
QUIET: Final = ("-q", "-p", "no:cacheprovider", "--flux-postgres=off")
RUN_SECONDS: Final = 300
"""Seconds for a run of all clauses; an idle machine needs a tenth of that."""


def run_pytest(place: Path, stage: Stage, *arguments: str) -> str:
    """Run pytest on a stage's files; return its output."""
    for name, content in stage.files.items():
        (place / name).write_text(content)
    (place / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    command = [sys.executable, "-m", "pytest", *QUIET, *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert "flux-memory contract" in done.stdout, done.stdout[-2_000:] + done.stderr[-2_000:]
    return done.stdout


def check_shown(output: str, printed: str) -> None:
    """Fail unless the output that the guide shows was printed; `...` stands for omitted lines."""
    lines = [line.rstrip() for line in printed.splitlines()]
    missing = [line for line in output.splitlines() if line != "..." and line.rstrip() not in lines]
    assert missing == [], f"the guide shows what was not printed; the run printed:\n{printed[-6_000:]}"


def select_clauses(stage: Stage, *, is_long: bool) -> tuple[str, ...]:
    """Return pytest's arguments that select a stage's clauses; the first and the last stage run all of them."""
    if stage is STAGES[-1]:
        return ()
    # The model is left out: it finds nothing before the clauses hold, and its failures take long.
    every = stage is STAGES[0] or is_long
    return "--tb=no", "-k", "not FM-MOD" if every else " or ".join(sorted(STAGES[stage.number - 2].failing))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: f"stage-{stage.number}")
def test_a_stage_fails_exactly_what_the_guide_says(stage: Stage, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """A reader who follows the guide sees the failures it announces, to the clause.

    A stage between the first and the last runs the clauses that the stage before it failed, or all with `--long`.
    """
    last = stage is STAGES[-1]
    printed = run_pytest(tmp_path, stage, *select_clauses(stage, is_long=pytestconfig.option.long))
    failing = set(re.findall(r"^failed: (FM-\S+) on ", printed, re.MULTILINE))
    assert failing == stage.failing, (
        f"stage {stage.number} fails these; say so in {GUIDE.name}:\n\n{format_ids(failing)}"
    )
    assert stage.counted == (len(failing) or None)
    if last:
        assert "unverified" not in printed
    if stage.looked_at is None or last:
        check_shown(stage.outputs[-1], printed)


@pytest.mark.parametrize("before", STAGES[:-1], ids=lambda stage: f"stage-{stage.number + 1}")
def test_a_stage_begins_with_a_failure_that_is_real(before: Stage, tmp_path: Path) -> None:
    """The report that a section shows is the output of the stage before."""
    stage = STAGES[before.number]
    assert stage.looked_at in before.failing
    check_shown(stage.outputs[0], run_pytest(tmp_path, before, "-k", str(stage.looked_at)))


def test_the_guide_can_be_read_in_ten_minutes() -> None:
    """The guide has few stages, each fixes a bug, and it takes at most ten minutes to read."""
    assert 5 <= len(STAGES) <= 7
    for before, stage in pairwise(STAGES):
        assert stage.failing < before.failing
    prose = re.sub(r"^```.*?^```$", "", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) < 1_000
