"""The creation of a file, beside other handles of the process."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

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
