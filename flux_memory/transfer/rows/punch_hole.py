"""Frees the pages of a file after the last read, so that the disk need not write them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, Final

_KEEP_SIZE_AND_PUNCH_HOLE: Final = 0x01 | 0x02


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Free a range, which then reads as zeros; does nothing where the operating or file system lacks support."""
    if _fallocate is not None and length > 0:
        _fallocate(descriptor, _KEEP_SIZE_AND_PUNCH_HOLE, offset, length)


def _find_fallocate() -> Callable[..., Any] | None:
    if sys.platform != "linux":
        return None
    found: Callable[..., Any] | None = getattr(ctypes.CDLL(None), "fallocate64", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]  # type: ignore[attr-defined]
    return found


_fallocate: Final = _find_fallocate()
