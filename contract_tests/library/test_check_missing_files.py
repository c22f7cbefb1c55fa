"""What the check says of a file that does not exist: an error for a path that was given, a place for a default one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner, Result
from original_application import make_file_with_data

from flux_memory.cli import main

pytestmark = pytest.mark.usefixtures("clean_environment")

GIVEN: Final = ["chat.db", "./data/sqlite.db", "../data/sqlite.db", "new/directory/chat.db", "with space.db"]


def check(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


@pytest.mark.parametrize("given", GIVEN)
def test_a_given_path_without_a_file_is_an_error(tmp_path: Path, given: str) -> None:
    """The last command of a restore finds a file, or fails; the message has the absolute path."""
    before = sorted(tmp_path.rglob("*"))
    result = check("--sqlite-path", given)
    assert result.exit_code == 1
    assert (
        f"the file {tmp_path / given} does not exist; correct the path, or create a store there with --full"
        in result.stderr
    )
    answer = json.loads(check("--sqlite-path", str(tmp_path / given), "--json").stdout)
    assert (answer["ok"], answer["error"]) == (False, "BackendUnavailableError")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("url", ["sqlite:///chat.db", "sqlite+aiosqlite:///./data/sqlite.db", "sqlite:///a/b/c.db"])
def test_a_configured_file_that_is_to_come_is_not_an_error(
    tmp_path: Path, url: str, clean_environment: pytest.MonkeyPatch
) -> None:
    """An application would create it; the check names the place in full."""
    clean_environment.setenv("DATABASE_URL", url)
    result = check()
    assert result.exit_code == 0, result.output
    assert f"Target      would be created at {tmp_path / url.partition(':///')[2]}\n" in result.stdout
    assert "Note" not in result.stdout
    assert not any(tmp_path.iterdir())


def test_a_full_check_creates_the_file_and_shows_its_place(tmp_path: Path) -> None:
    """Its first check names the file that does not exist, its last one the file that was created."""
    result = check("--full", "--sqlite-path", "chat.db")
    assert result.exit_code == 0, result.output
    assert f"Target      {tmp_path}/chat.db\n" in result.stdout


@pytest.mark.parametrize("options", [[], ["--sqlite-path", "data/sqlite.db"], ["--full"], ["--json"]])
def test_the_original_file_beside_a_missing_one_is_pointed_out(tmp_path: Path, options: list[str]) -> None:
    """An upgraded application that keeps its old settings would begin an empty store beside its conversations."""
    original = tmp_path / "data" / "memory.db"
    original.parent.mkdir()
    make_file_with_data(original)
    result = check(*options)
    assert result.exit_code == (1 if "--sqlite-path" in options else 0), result.output
    assert f"the original application's file {original} exists and is not used" in result.output
    assert "DATABASE_URL=sqlite+aiosqlite:///" in result.output
    assert "2 sessions, 6 messages" in check("--sqlite-path", "data/memory.db").stdout


def test_a_file_that_exists_needs_no_hint(tmp_path: Path) -> None:
    """Whether or not the original's file is beside it."""
    for name in ("memory.db", "sqlite.db"):
        make_file_with_data(tmp_path / name)
    for name in ("memory.db", "sqlite.db"):
        result = check("--sqlite-path", name)
        assert f"Target      {tmp_path / name}\n" in result.stdout
        assert "Note" not in result.stdout
