"""Tests values that every command refuses: an empty path, and seconds that are not a number."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from flux_memory.cli import main

pytestmark = pytest.mark.usefixtures("clean_environment")

TAKE_PATHS = [
    "backup",
    "backup schedule",
    "restore",
    "feedback import",
    "feedback export",
    "contract diff report.json",
]


@pytest.mark.parametrize("command", TAKE_PATHS)
def test_an_empty_path_is_not_the_working_directory(command: str, tmp_path: Path) -> None:
    """`flux-memory backup "$DIRECTORY"` with an unset variable must not write into it, or thin it out."""
    (tmp_path / "report.json").write_text("{}")
    result = CliRunner().invoke(main, [*command.split(), ""])
    assert result.exit_code == 2
    assert "it is empty; give a path" in result.output
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("seconds", ["nan", "inf"])
@pytest.mark.parametrize("command", ["check", "prune --user ann", "top --once"])
def test_seconds_are_a_number(command: str, seconds: str, tmp_path: Path) -> None:
    """Wrong usage, before anything is opened."""
    result = CliRunner().invoke(
        main, [*command.split(), "--sqlite-path", str(tmp_path / "chat.db"), "--timeout", seconds]
    )
    assert result.exit_code == 2
    assert f"'{seconds}' is not a number of seconds" in result.output
