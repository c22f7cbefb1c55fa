"""Tests a downstream project: the built wheel in an empty environment, and four lines of test for its own backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

# A backend that delegates to the SQLite memory through public names only.
BACKEND = """
from flux_memory import ConversationMemory


class MyMemory(ConversationMemory):
    pass


class ForgetfulMemory(ConversationMemory):
    async def update_session_title(self, session_id, title):
        pass


def open_memory(path):
    return MyMemory(path / "chat.db")
"""
FOUR_LINES = """
import pytest
from flux_memory.testkit import MemoryContract
from mypackage import {kind}

class TestMine(MemoryContract):
    @pytest.fixture
    def memory_factory(self, tmp_path):
        return lambda: {kind}(tmp_path / "chat.db")
"""
CONFIGURATION = """
[pytest]
asyncio_mode = {mode}
asyncio_default_fixture_loop_scope = {scope}
asyncio_default_test_loop_scope = {scope}
addopts = --strict-markers --strict-config
filterwarnings = error
"""


def run_command(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV", "PYTHON"))
    }
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def downstream_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the built wheel and its testkit, and without this checkout."""
    place = tmp_path_factory.mktemp("downstream")
    python = str(place / "environment" / "bin" / "python")
    for command in (
        (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(place), str(PROJECT)),
        (sys.executable, "-m", "venv", "--without-pip", str(place / "environment")),
    ):
        done = run_command(*command, cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = place.glob("*.whl")
    # A module is compiled at its first import; most modules of the packages are never imported.
    install = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile")
    done = run_command(*install, f"{wheel}[testkit]", "pytest-xdist", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


@pytest.mark.parametrize(("mode", "scope"), [("strict", "function"), ("auto", "session")])
def test_four_lines_plug_a_backend_in(downstream_python: str, tmp_path: Path, mode: str, scope: str) -> None:
    """The contract runs from the wheel in a downstream project with any asyncio mode and loop scopes."""
    (tmp_path / "mypackage.py").write_text(BACKEND)
    (tmp_path / "test_mine.py").write_text(FOUR_LINES.format(kind="MyMemory"))
    (tmp_path / "pytest.ini").write_text(CONFIGURATION.format(mode=mode, scope=scope))
    done = run_command(downstream_python, "-m", "pytest", "-q", "-k", "FM-SES or FM-ORD or FM-CON", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TestMine" in done.stdout


def test_a_failing_clause_says_what_users_lose(downstream_python: str, tmp_path: Path) -> None:
    """A failing clause shows its id, its promise, the users' loss, and the calls that reproduce it."""
    (tmp_path / "mypackage.py").write_text(BACKEND)
    (tmp_path / "test_mine.py").write_text(FOUR_LINES.format(kind="ForgetfulMemory"))
    done = run_command(downstream_python, "-m", "pytest", "-q", "-k", "FM-TXT-002 or FM-TXT-001", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FM-TXT-002" in done.stdout
    assert "update_session_title(" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_a_factory_on_the_command_line_plugs_a_backend_in(downstream_python: str, tmp_path: Path) -> None:
    """Without a test file, one option that names a function is enough."""
    (tmp_path / "mypackage.py").write_text(BACKEND)
    done = run_command(
        *(
            downstream_python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--pyargs",
            "flux_memory.testkit.contract",
        ),
        *("--flux-memory-factory=mypackage:open_memory", "-k", "FM-SES or FM-MSG", "-n", "2"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
