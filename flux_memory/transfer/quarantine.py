"""Where refused rows go, whole, one JSON object a line, for people to mend."""

from __future__ import annotations

import base64
import json
import math
import os
from pathlib import Path
from typing import Any, Final, TextIO

from flux_memory.errors import MigrationError
from flux_memory.transfer.problems import Problem
from flux_memory.transfer.source import RawRow

SESSION_COLUMNS: Final = ("id", "user_id", "title", "metadata", "created_at", "updated_at")
MESSAGE_COLUMNS: Final = ("session_id", "id", "role", "content", "metadata", "created_at")


class Quarantine:
    """The file that refused rows go to; it is made for its owner alone, when the first one comes.

    Each line has `table`, `problems`, `row`, and for a message the `session` it belongs to, as the source holds it.
    Bytes that are not text stand as `{"base64": ...}`.

    Args:
        path: Where; a file that is there is not overwritten. `None` writes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: TextIO | None = None

    @property
    def written(self) -> bool:
        """Whether there is a row in it."""
        return self._file is not None

    def clear(self) -> None:
        """Start anew: the source is read again."""
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()

    def add(self, table: str, row: RawRow, session: RawRow | None, problems: list[Problem]) -> None:
        """Write a row.

        Raises:
            MigrationError: The file is there already, or cannot be written.
        """
        if self.path is None:
            return
        entry: dict[str, Any] = {
            "table": table,
            "problems": [f"{problem.column}: {problem.kind}: {problem.detail}" for problem in problems],
            "row": _as_json(SESSION_COLUMNS if table == "sessions" else MESSAGE_COLUMNS, row),
        }
        if session is not None:
            entry["session"] = _as_json(SESSION_COLUMNS, session)
        try:
            if self._file is None:
                self._file = _create(self.path)
            self._file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            raise MigrationError(
                f"the quarantine file {self.path} cannot be written: {error.strerror}; give --quarantine-file "
                "another path"
            ) from error

    def close(self) -> None:
        """Put the file on the disk."""
        if self._file is not None and not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def _create(path: Path) -> TextIO:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "w", encoding="utf-8", errors="strict")


def _as_json(names: tuple[str, ...], row: RawRow) -> dict[str, Any]:
    return {name: _value(value) for name, value in zip(names, row, strict=False)}


def _value(value: object) -> object:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"text_base64": base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value
