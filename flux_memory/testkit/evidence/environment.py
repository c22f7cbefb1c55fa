"""The environment of a run: versions of Python, the platform and the relevant packages."""

from __future__ import annotations

import platform
import sqlite3
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import pytest

_PACKAGES: Final = ("flux-memory", "pytest", "pytest-asyncio", "pytest-xdist", "hypothesis", "aiosqlite", "asyncpg")


def environment(config: pytest.Config) -> dict[str, str]:
    """Return names and versions in display order."""
    found = {"flux-memory": "", "Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["system"] = f"{platform.system()} {platform.machine()}"
    workers = getattr(config.option, "numprocesses", None)
    found["workers"] = str(workers or 1)
    found["profile"] = config.option.flux_profile
    return {name: value for name, value in found.items() if value}
