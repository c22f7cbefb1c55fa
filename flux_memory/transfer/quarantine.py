"""Where refused rows go, whole, one JSON object a line, for people to mend."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flux_memory.errors import MigrationError
from flux_memory.transfer.leftovers import publish, unproven_file
from flux_memory.transfer.prepared import RefusedRow
from flux_memory.transfer.source import MESSAGE_FIELDS, SESSION_FIELDS, RawRow


def refuse_unwritable(path: Path) -> None:
    """Refuse, before anything is read, a place where no quarantine file can be made.

    Raises:
        MigrationError: Its directory takes none, or there is one already.
    """
    if not os.access(path.absolute().parent, os.R_OK | os.W_OK | os.X_OK):
        raise MigrationError(
            f"the quarantine file {path} cannot be written: its directory is not there, or takes no files of yours; "
            "give --quarantine-file another path"
        )
    if path.exists():
        raise MigrationError(
            f"the quarantine file {path} exists and is not overwritten; move it away, or give another name"
        )


def write_quarantine(path: Path, rows: Iterable[RefusedRow]) -> None:
    """Write refused rows to a file for its owner alone, which appears once it is whole and on the disk.

    Each line has `table`, `problems`, `row`, and for a message the `session` it belongs to, as the source holds it.
    Bytes that are not text stand as `{"base64": ...}`.

    Raises:
        MigrationError: Another process made the file meanwhile, or it cannot be written to its end; it is not there.
    """
    try:
        with unproven_file(path) as unproven:
            with unproven.open("w", encoding="utf-8", errors="strict") as file:
                for row in rows:
                    file.write(json.dumps(_entry(row), ensure_ascii=False, allow_nan=False) + "\n")
            publish(unproven, path)
    except OSError as error:
        raise MigrationError(
            f"the quarantine file {path} cannot be written: {error.strerror}; give --quarantine-file another path, "
            "and run again: what was moved is skipped"
        ) from error


def _entry(refused: RefusedRow) -> dict[str, Any]:
    names = SESSION_FIELDS if refused.table == "sessions" else MESSAGE_FIELDS
    entry: dict[str, Any] = {
        "table": refused.table,
        "problems": [f"{problem.column}: {problem.kind}: {problem.detail}" for problem in refused.problems],
        "row": _as_json(names, refused.row),
    }
    if refused.session is not None:
        entry["session"] = _as_json(SESSION_FIELDS, refused.session)
    return entry


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
