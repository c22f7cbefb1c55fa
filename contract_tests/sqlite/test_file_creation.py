"""Tests the creation of a file beside other handles of the process."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from flux_memory import ConversationMemory
from flux_memory.backends.sqlite.file import make_private


def test_no_handle_opens_a_file_that_another_is_creating(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the creation closes a descriptor, which drops all locks that the process holds on the file by then."""
    real_open = os.open
    other = threading.Thread(target=make_private, args=(path,))
    overlaps: list[bool] = []

    def open_slowly(name: Any, *args: Any, **kwargs: Any) -> int:
        descriptor = real_open(name, *args, **kwargs)
        if name == path and not overlaps:
            other.start()
            # It has to wait for this thread.
            other.join(0.2)
            overlaps.append(not other.is_alive())
        return descriptor

    monkeypatch.setattr(os, "open", open_slowly)
    make_private(path)
    other.join()
    assert overlaps == [False]


@pytest.mark.asyncio
async def test_first_use_races_on_many_files(tmp_path: Path) -> None:
    """Handles that race to create a file always wait for its lock."""
    for number in range(60):
        handles = [ConversationMemory(tmp_path / f"{number}.db") for _ in range(8)]
        outcomes = await asyncio.gather(*(handle.create_session() for handle in handles), return_exceptions=True)
        for handle in handles:
            await handle.close()
        assert all(isinstance(outcome, str) for outcome in outcomes), outcomes
