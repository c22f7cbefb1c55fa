"""Reads the files of a page's recipes, and runs them in an environment with the wheel of the project."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def making_once(place: Path) -> Iterator[bool]:
    """Make a directory in the first process of a parallel run, while the others wait; yields whether this is the one.

    An attempt that failed is made anew from nothing.
    """
    finished = place / "finished"
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if finished.exists():
            yield False
            return
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        yield True
        finished.touch()


def make_recipe_environment(directories: pytest.TempPathFactory, group: str) -> str:
    """Return the interpreter of an environment with the wheel and the packages of a dependency group.

    Each environment is made once for the run, and the wheel once for all of them.
    """
    base = directories.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    place, built = shared / f"environment-{group}", shared / "wheel"
    python = str(place / "environment" / "bin" / "python")
    with making_once(place) as is_first:
        if is_first:
            with making_once(built) as is_to_build:
                if is_to_build:
                    _run_quietly(
                        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(built), str(PROJECT)
                    )
            (wheel,) = built.glob("*.whl")
            _install(place, python, group, wheel)
    return python


def _run_quietly(*command: str) -> None:
    done = run_in_recipe(*command, cwd=PROJECT)
    assert done.returncode == 0, done.stdout + done.stderr


def _install(place: Path, python: str, group: str, wheel: Path) -> None:
    packages = tomllib.loads((PROJECT / "pyproject.toml").read_text())["dependency-groups"][group]
    extra = "".join(each.removeprefix("flux-memory") for each in packages if each.startswith("flux-memory"))
    others = [package for package in packages if not package.startswith("flux-memory")]
    _run_quietly(sys.executable, "-m", "venv", "--without-pip", str(place / "environment"))
    install = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile")
    _run_quietly(*install, f"{wheel}{extra}", *others)
