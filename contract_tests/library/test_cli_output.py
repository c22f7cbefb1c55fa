"""Tests the command line on outputs that do not take everything: full disks, and alphabets without some letters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flux_memory import ConversationMemory
from flux_memory.sync import SyncMemory

COMMANDS = ["check", "check --json", "top --once", "feedback export", "prune --inactive 1d --dry-run"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A memory with a session, and an entry of feedback for the export."""
    path = tmp_path / "chat.db"
    with SyncMemory(ConversationMemory(path)) as memory:
        memory.create_session("대화", session_id="긴 이름 " * 20)
        memory.feedback.add("긴 이름 " * 20, 1)
    return path


def run_program(*arguments: str, output: int, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flux_memory", *arguments],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "", **variables},
    )


@pytest.mark.parametrize("command", [*COMMANDS, "--help"])
def test_a_full_disk_behind_the_output_is_an_error_in_one_line(command: str, path: Path) -> None:
    """A log on a full disk is what a nightly job meets, and a traceback hides it."""
    with Path("/dev/full").open("w") as full:
        store = [] if command == "--help" else ["--sqlite-path", str(path)]
        result = run_program(*command.split(), *store, output=full.fileno())
    assert result.returncode == 1
    assert result.stderr == "FAILED  the output cannot be written: No space left on device; write it elsewhere\n"


@pytest.mark.parametrize("command", [*COMMANDS, "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_wants_no_more_is_not_an_error(command: str, unbuffered: str, path: Path) -> None:
    """`flux-memory feedback export | head` prints no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    store = [] if command == "--help" else ["--sqlite-path", str(path)]
    result = run_program(*command.split(), *store, output=writing, PYTHONUNBUFFERED=unbuffered)
    os.close(writing)
    assert (result.returncode, result.stderr) in {(0, ""), (1, "")}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_the_output_lacks_are_escaped(command: str, encoding: str, path: Path) -> None:
    """A store with names of another alphabet is shown under any locale."""
    result = run_program(
        *command.split(), "--sqlite-path", str(path), output=subprocess.DEVNULL, PYTHONIOENCODING=encoding
    )
    assert (result.returncode, result.stderr) == (0, "")
