"""The workflow names its actions by commit, since a tag can be moved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

WORKFLOWS: Final = sorted((Path(__file__).parents[2] / ".github/workflows").glob("*.yml"))
PINNED: Final = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
"""An action by its commit, with the release beside it for readers."""


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit(workflow: Path) -> None:
    """A moved tag changes no run."""
    used = re.findall(r"uses: *(.+)", workflow.read_text(encoding="utf-8"))
    assert used
    assert [action for action in used if not PINNED.fullmatch(action)] == []
