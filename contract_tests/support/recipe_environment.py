"""Reads the files of a page's recipes, and runs them in an environment with the wheel of the project."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).parents[2]
_FOREIGN: Final = ("PYTEST_", "COV", "PYTHON", "FLUX_MEMORY_", "DJANGO_", "DATABASE_", "POSTGRES_")


def find_recipe_files(page: Path, heading: str) -> dict[str, str]:
    """Return the code blocks below a heading that name a file in their first line, by that name."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page.read_text(), re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```\w+\n(?:#|--) (\S+)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    others = section.count("\n```sh\n")
    assert len(blocks) + others == section.count("\n```") / 2, "a block without a file name"
    return dict(blocks)


def recipe_variables(**more: str) -> dict[str, str]:
    """Return an environment without the variables of this run."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)} | more


def run_in_recipe(*command: str, cwd: Path, seconds: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the variables of this run."""
    environment = recipe_variables(**variables)
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


def make_recipe_environment(directories: pytest.TempPathFactory, group: str) -> str:
    """Return the interpreter of an environment with the wheel and the packages of a dependency group.

    The first process of a parallel run makes it, and the others wait for it.
    """
    base = directories.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    place = shared / f"environment-{group}"
    python, finished = str(place / "environment" / "bin" / "python"), place / "finished"
    with (shared / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            # An attempt that failed left its directory behind.
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            _install(place, python, group)
            finished.touch()
    return python


def _install(place: Path, python: str, group: str) -> None:
    packages = tomllib.loads((PROJECT / "pyproject.toml").read_text())["dependency-groups"][group]
    extra = "".join(each.removeprefix("flux-memory") for each in packages if each.startswith("flux-memory"))
    others = [package for package in packages if not package.startswith("flux-memory")]
    for command in (
        (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(place), str(PROJECT)),
        (sys.executable, "-m", "venv", "--without-pip", str(place / "environment")),
    ):
        done = run_in_recipe(*command, cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = place.glob("*.whl")
    install = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile")
    done = run_in_recipe(*install, f"{wheel}{extra}", *others, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
