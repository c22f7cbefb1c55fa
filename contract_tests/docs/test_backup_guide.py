"""Runs the commands that the guide to backups prints, in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

import pytest
from backup_stores import Store, fill, run_command

PAGE: Final = Path(__file__).parents[2] / "docs/operations/backups.md"


def test_each_command_of_the_guide_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the places of a reader, each printed command of flux-memory ends with exit code 0."""
    for name in ("DATABASE_BACKEND", "FLUX_MEMORY_DATABASE_URL", "FLUX_MEMORY_DATABASE_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "chat.db", None)
    store.use(fill)
    store.use(lambda memory: memory.create_session("of ann", user_id="ann"))
    (tmp_path / "units").mkdir()
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    commands = [
        line for block in blocks for line in block.splitlines() if re.match("flux-memory (backup|restore)", line)
    ]
    assert len(commands) >= 8
    restored = 0
    for command in commands:
        made = sorted(str(path) for path in tmp_path.glob("backups/*.db"))
        place = command.replace("/var/backups/chat/chat-20261130T031500Z.db", "FILE").replace(
            "FILE", (made or ["-"])[-1]
        )
        place = place.replace("/var/backups/chat", str(tmp_path / "backups")).replace(
            "/exports", str(tmp_path / "exports")
        )
        place = place.replace("/srv/chat", str(tmp_path)).replace("/tmp/units", str(tmp_path / "units"))
        target = store.sqlite_path
        if place.startswith("flux-memory restore"):
            restored += 1
            target = tmp_path / f"restored-{restored}.db"
        monkeypatch.setenv("DATABASE_URL", f"sqlite+aiosqlite:///{target}")
        # Names of backups have seconds, and the page's come one after another.
        arguments = [*shlex.split(place)[1:], *(["--name", f"n{len(made)}"] if "backup /" in place else [])]
        result = run_command(*arguments)
        assert result.exit_code == 0, (command, result.output)
    assert restored >= 3
    assert len(list(tmp_path.glob("units/*"))) == 2
