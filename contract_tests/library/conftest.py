"""The environment of the tests of settings and of the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An empty working directory, and an environment without the library's variables; changes it for a test."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.upper().removeprefix("FLUX_MEMORY_") in {"DATABASE_BACKEND", "DATABASE_URL", "POSTGRES_DSN"}:
            monkeypatch.delenv(name)
    return monkeypatch
