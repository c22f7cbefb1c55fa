"""A simulated disk that loses power: records every write and sync of SQLite, and yields the states a cut may leave.

The library runs unchanged on the SQLite that Python's `sqlite3` links. A VFS registered there as the default passes
everything to the operating system and records writes, truncations, syncs and deletions.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

_SECTOR_BYTES: Final = 512
"""Bytes that a disk writes as a whole or not at all."""
_POINTER = ctypes.c_void_p
# File names stay pointers: SQLite keeps them and stores more behind them.
_XOPEN = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, _POINTER, ctypes.c_int, _POINTER)
_XDELETE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_int)
_XCLOSE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER)
_XWRITE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_int, ctypes.c_int64)
_XTRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int64)
_XSYNC = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int)


class _Vfs(ctypes.Structure):
    """The changed part of `sqlite3_vfs`; the rest is copied."""

    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", _POINTER),
        ("zName", ctypes.c_char_p),
        ("pAppData", _POINTER),
        ("xOpen", _XOPEN),
        ("xDelete", _XDELETE),
        ("rest", _POINTER * 16),
    )


class _Methods(ctypes.Structure):
    """The changed part of `sqlite3_io_methods`; the rest is copied."""

    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("xClose", _XCLOSE),
        ("xRead", _POINTER),
        ("xWrite", _XWRITE),
        ("xTruncate", _XTRUNCATE),
        ("xSync", _XSYNC),
        ("rest", _POINTER * 13),
    )


class _File(ctypes.Structure):
    _fields_ = (("pMethods", ctypes.POINTER(_Methods)),)


@dataclass(frozen=True)
class Event:
    """One operation on one file, or a note of the test."""

    kind: Literal["write", "truncate", "sync", "delete", "note"]
    name: str
    at: int = 0
    """The offset of a write, the size after a truncation, or 1 for a deletion that must be durable."""
    data: bytes = b""


@dataclass
class Record:
    """All operations in order. Notes tell what had been acknowledged at that point."""

    events: list[Event] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Add a note between two operations."""
        self.events.append(Event("note", what))

    def noted(self, events: int) -> list[str]:
        """Return the notes of the first `events` events."""
        return [event.name for event in self.events[:events] if event.kind == "note"]

    def cut(self, events: int, rng: random.Random) -> dict[str, bytes]:
        """Return the files after a power cut that follows the first `events` events.

        Synced data survives. Of the data written since a file's last sync, each sector of each write may survive or
        not, in any combination; the same holds for a truncation. A deletion may be undone until the directory is
        synced, which SQLite does with the first sync of a new file.
        """
        disk = _Disk()
        for event in self.events[:events]:
            disk.take(event)
        return disk.cut(rng)


class _Disk:
    """The durable content of a disk, and the operations that may be lost."""

    def __init__(self) -> None:
        self._synced: dict[str, bytearray] = {}
        self._waiting: dict[str, list[Event]] = {}
        self._deleted: dict[str, bytearray] = {}

    def take(self, event: Event) -> None:
        if event.kind in {"write", "truncate"}:
            self._waiting.setdefault(event.name, []).append(event)
        elif event.kind == "sync":
            if event.name not in self._synced:
                self._deleted.clear()
            _apply(self._synced.setdefault(event.name, bytearray()), self._waiting.pop(event.name, []))
        elif event.kind == "delete":
            self._waiting.pop(event.name, None)
            content = self._synced.pop(event.name, None)
            if content is not None and not event.at:
                self._deleted[event.name] = content

    def cut(self, rng: random.Random) -> dict[str, bytes]:
        files = {name: bytearray(content) for name, content in self._synced.items()}
        for name, since in self._waiting.items():
            kept = rng.choice((0.0, 0.5, 0.9, 1.0))
            parts = [part for one in since for part in _sectors(one)]
            _apply(files.setdefault(name, bytearray()), [part for part in parts if rng.random() < kept])
        files |= {name: content for name, content in self._deleted.items() if rng.random() < 0.5}
        return {name: bytes(content) for name, content in files.items()}


@contextmanager
def record_writes(directory: Path) -> Iterator[Record]:
    """Record SQLite's operations on files in a directory, for connections opened in the block.

    Raises:
        AttributeError: Python's SQLite hides its C functions; use a Python that links a shared library.
    """
    record = Record()
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    default = library.sqlite3_vfs_find(None)
    recorder = _RecordingVfs(record, directory, default.contents)
    assert library.sqlite3_vfs_register(ctypes.byref(recorder.vfs), 1) == 0
    try:
        yield record
    finally:
        assert library.sqlite3_vfs_register(default, 1) == 0
        assert library.sqlite3_vfs_unregister(ctypes.byref(recorder.vfs)) == 0


class _RecordingVfs:
    """The default VFS with its own `xOpen` and `xDelete`, and files with some of their own methods."""

    def __init__(self, record: Record, directory: Path, default: _Vfs) -> None:
        self._record = record
        self._directory = directory
        self._default = default
        self._methods: dict[int, tuple[_Methods, _Methods]] = {}
        self._names: dict[int, str] = {}
        self.vfs = _Vfs.from_buffer_copy(default)
        self.vfs.zName = b"forgetful"
        self.vfs.xOpen = _XOPEN(self._open)
        self.vfs.xDelete = _XDELETE(self._delete)

    def _watched(self, name: int | None) -> str | None:
        """Return a watched file's name without its directory, or None."""
        path = None if name is None else Path(os.fsdecode(ctypes.string_at(name)))
        return path.name if path is not None and path.parent == self._directory else None

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        result = int(self._default.xOpen(vfs, name, file, flags, out))
        watched = self._watched(name)
        if result == 0 and watched is not None:
            opened = ctypes.cast(file, ctypes.POINTER(_File)).contents
            original = ctypes.addressof(opened.pMethods.contents)
            if original not in self._methods:
                self._methods[original] = opened.pMethods.contents, self._recorded(opened.pMethods.contents)
            opened.pMethods = ctypes.pointer(self._methods[original][1])
            self._names[file] = watched
        return result

    def _recorded(self, original: _Methods) -> _Methods:
        methods = _Methods.from_buffer_copy(original)
        # Memory-mapped writes would go unrecorded; SQLite writes through `xWrite` then.
        methods.iVersion = min(methods.iVersion, 2)

        def close(file: int) -> int:
            self._names.pop(file, None)
            return int(original.xClose(file))

        def write(file: int, data: int, size: int, at: int) -> int:
            self._record.events.append(Event("write", self._names[file], at, ctypes.string_at(data, size)))
            return int(original.xWrite(file, data, size, at))

        def truncate(file: int, size: int) -> int:
            self._record.events.append(Event("truncate", self._names[file], size))
            return int(original.xTruncate(file, size))

        def sync(file: int, flags: int) -> int:
            result = int(original.xSync(file, flags))
            self._record.events.append(Event("sync", self._names[file]))
            return result

        methods.xClose, methods.xWrite = _XCLOSE(close), _XWRITE(write)
        methods.xTruncate, methods.xSync = _XTRUNCATE(truncate), _XSYNC(sync)
        return methods

    def _delete(self, vfs: int, name: int, durable: int) -> int:
        watched = self._watched(name)
        result = int(self._default.xDelete(vfs, name, durable))
        if result == 0 and watched is not None:
            self._record.events.append(Event("delete", watched, durable))
        return result


def _apply(content: bytearray, events: list[Event]) -> None:
    for event in events:
        if event.kind == "truncate":
            del content[event.at :]
        else:
            end = event.at + len(event.data)
            content.extend(bytes(max(0, end - len(content))))
            content[event.at : end] = event.data


def _sectors(event: Event) -> Iterator[Event]:
    if event.kind == "truncate":
        yield event
        return
    start = event.at
    while start < event.at + len(event.data):
        end = min((start // _SECTOR_BYTES + 1) * _SECTOR_BYTES, event.at + len(event.data))
        yield Event("write", event.name, start, event.data[start - event.at : end - event.at])
        start = end
