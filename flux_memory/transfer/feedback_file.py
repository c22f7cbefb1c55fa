"""Reads the original application's files of feedback, one JSON object per line, into a memory, and writes them."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import IO, Any, Final, Protocol

from flux_memory import records
from flux_memory.errors import InvalidInputError, MigrationError
from flux_memory.feedback import FeedbackEntry
from flux_memory.records import timestamps
from flux_memory.records.ratings import DatedFeedback, ImportOutcome
from flux_memory.transfer.progress import Advance
from flux_memory.transfer.quarantine import refuse_unwritable
from flux_memory.transfer.tempfiles import publish, refuse_existing, unproven_file

_KEYS: Final = frozenset(
    {
        *("id", "message_id", "session_id", "rating", "rating_label"),
        *("comment", "corrected_answer", "metadata", "created_at"),
    }
)
_LABEL: Final = "rating_label"
"""The key that the original's later lines have. It is kept in the metadata."""
_BATCH_ENTRIES: Final = 500
_BATCH_BYTES: Final = 4 * 1024 * 1024
_MAX_LINE_BYTES: Final = 256 * 1024 * 1024
"""Bytes of a line; the largest entry has fewer, unless each character is escaped."""
_PAGE_ENTRIES: Final = 500
_BEFORE_ALL: Final = ("", "")
_MAX_NAMED: Final = 5
"""Refused lines that a report names."""


class DatedStore(Protocol):
    """The feedback of either engine."""

    async def add_dated(self, entries: list[DatedFeedback]) -> list[ImportOutcome]:
        """Add entries with their own times, and return what became of each."""
        ...

    async def read_on(self, after: tuple[str, str], limit: int) -> list[FeedbackEntry]:
        """Return the oldest entries that follow a time and an id, oldest first."""
        ...


@dataclass
class ImportReport:
    """What became of the lines of a file."""

    added: int = 0
    present: int = 0
    """Entries that were there already."""
    refused: int = 0
    first_refused: list[str] = field(default_factory=list)
    quarantine: str | None = None
    """The file with the refused lines, if one was written."""
    dry_run: bool = False

    @property
    def exit_code(self) -> int:
        """0: every line is stored; 3: some were refused."""
        return 3 if self.refused else 0


@dataclass(frozen=True)
class _Line:
    number: int
    raw: bytes
    is_whole: bool


class _RefusedLineError(ValueError):
    """A line is not an entry; the message says why."""


async def import_feedback(
    path: Path,
    store: DatedStore,
    quarantine: Path,
    advance: Advance,
    *,
    naive: tzinfo = UTC,
    dry_run: bool = False,
) -> ImportReport:
    """Add the entries of a file that the memory does not have; a second run adds nothing.

    Lines that are not entries, and entries whose id another one has, go to the quarantine file, which appears once it
    is complete. The lines of a quarantine file can be imported like those of the original.

    Args:
        path: The file.
        store: The feedback of the memory.
        quarantine: The file to create for refused lines; an existing one is not overwritten.
        advance: Called with the number of lines read.
        naive: The zone of times without an offset.
        dry_run: Whether to read and check the lines only.

    Raises:
        MigrationError: The file cannot be read, or the quarantine file cannot be written.
        FluxMemoryError: The memory failed; entries that were stored before stay, and a second run goes on.
    """
    if not dry_run:
        refuse_unwritable(quarantine)
    report = ImportReport(dry_run=dry_run)
    with ExitStack() as stack:
        refused = _Refused(quarantine, stack, report)
        batch: list[tuple[_Line, DatedFeedback]] = []
        size = 0
        for line in _lines(path):
            advance(1)
            try:
                batch.append((line, _read_entry(line, naive)))
            except _RefusedLineError as error:
                refused.add(line, str(error))
                continue
            size += len(line.raw)
            if len(batch) >= _BATCH_ENTRIES or size >= _BATCH_BYTES:
                await _store(batch, store, refused, report)
                batch, size = [], 0
        await _store(batch, store, refused, report)
        refused.publish()
    return report


async def export_feedback(store: DatedStore) -> AsyncIterator[str]:
    """Yield a line for each entry, oldest first, in the form of the original application's files.

    Times are UTC without an offset, as the original wrote them; `metadata` is there only if it is not empty.
    """
    after = _BEFORE_ALL
    while page := await store.read_on(after, _PAGE_ENTRIES):
        for entry in page:
            yield _write_entry(entry) + "\n"
        after = (page[-1]["created_at"], page[-1]["feedback_id"])


async def _store(
    batch: list[tuple[_Line, DatedFeedback]], store: DatedStore, refused: _Refused, report: ImportReport
) -> None:
    if not batch:
        return
    if report.dry_run:
        report.added += len(batch)
        return
    outcomes = await store.add_dated([entry for _, entry in batch])
    for (line, entry), outcome in zip(batch, outcomes, strict=True):
        if outcome is ImportOutcome.ADDED:
            report.added += 1
        elif outcome is ImportOutcome.PRESENT:
            report.present += 1
        else:
            refused.add(line, f"other feedback has the id {entry.row.id!r:.80}, and was left as it was")


class _Refused:
    """The quarantine file, which is created at the first refused line."""

    def __init__(self, path: Path, stack: ExitStack, report: ImportReport) -> None:
        self._path = path
        self._stack = stack
        self._report = report
        self._unproven: Path | None = None
        self._file: IO[str] | None = None

    def add(self, line: _Line, reason: str) -> None:
        """Write a line with its number and why it was refused."""
        self._report.refused += 1
        if len(self._report.first_refused) < _MAX_NAMED:
            self._report.first_refused.append(f"line {line.number}: {reason}")
        if self._report.dry_run:
            return
        try:
            if self._file is None:
                self._unproven = self._stack.enter_context(unproven_file(self._path))
                self._file = self._stack.enter_context(self._unproven.open("w", encoding="utf-8"))
            entry = {"line": line.number, "problems": [reason], **_content(line)}
            self._file.write(json.dumps(entry, ensure_ascii=True) + "\n")
        except OSError as error:
            raise self._not_written(error) from error

    def publish(self) -> None:
        """Give the complete file its name."""
        if self._file is None or self._unproven is None:
            return
        try:
            self._file.flush()
            publish(self._unproven, self._path)
        except OSError as error:
            raise self._not_written(error) from error
        self._report.quarantine = str(self._path)

    def _not_written(self, error: OSError) -> MigrationError:
        return MigrationError(
            f"the quarantine file {self._path} cannot be written: {error.strerror}; give --quarantine-file another "
            "path, and run again: entries that are stored are skipped"
        )


def _content(line: _Line) -> dict[str, Any]:
    """Return a refused line: as the object that it is, or else as text."""
    try:
        row = json.loads(line.raw) if line.is_whole else None
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        return {name: row[name] for name in ("row", "text") if name in row} if _is_quarantined(row) else {"row": row}
    return {"text": line.raw.decode(errors="backslashreplace")}


def _lines(path: Path) -> Iterator[_Line]:
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(_MAX_LINE_BYTES):
                number += 1
                is_whole = len(raw) < _MAX_LINE_BYTES or raw.endswith(b"\n")
                while not is_whole and (rest := file.readline(_MAX_LINE_BYTES)):
                    if rest.endswith(b"\n"):
                        break
                raw = raw.strip() if is_whole else raw[:1_000]
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if raw:
                    yield _Line(number, raw, is_whole)
    except OSError as error:
        raise MigrationError(f"{path} cannot be read: {error.strerror}; check the path and its rights") from error


def _read_entry(line: _Line, naive: tzinfo) -> DatedFeedback:
    given = _read_object(line)
    metadata = given.get("metadata")
    if _LABEL in given:
        if metadata is not None and not isinstance(metadata, dict):
            raise _RefusedLineError("metadata is not a JSON object")
        metadata = {**(metadata or {}), _LABEL: given[_LABEL]}
    try:
        row = records.check_new_feedback(
            given["session_id"],
            given["rating"],
            message_id=given.get("message_id") or None,
            comment=given.get("comment") or "",
            corrected_answer=given.get("corrected_answer"),
            metadata=metadata,
            feedback_id=given["id"],
        )
        return DatedFeedback(row, timestamps.parse(given["created_at"], naive))
    except (InvalidInputError, ValueError) as error:
        raise _RefusedLineError(str(error)) from error


def _read_object(line: _Line) -> dict[str, Any]:
    """Return the object of a line, which has the keys of an entry and no others."""
    if not line.is_whole:
        raise _RefusedLineError(f"longer than {_MAX_LINE_BYTES:,} bytes")
    try:
        given = json.loads(line.raw.decode())
    except UnicodeDecodeError as error:
        raise _RefusedLineError(f"not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise _RefusedLineError(f"not JSON: {error}") from error
    if isinstance(given, dict) and _is_quarantined(given):
        given = given.get("row")
    if not isinstance(given, dict):
        raise _RefusedLineError("not a JSON object")
    if unknown := sorted(given.keys() - _KEYS):
        raise _RefusedLineError(
            f"unknown keys: {', '.join(map(repr, unknown)):.200}; known are {', '.join(sorted(_KEYS))}"
        )
    if missing := [key for key in ("id", "session_id", "rating", "created_at") if given.get(key) is None]:
        raise _RefusedLineError(f"without {', '.join(missing)}")
    return given


def _is_quarantined(given: dict[str, Any]) -> bool:
    """Return whether a line is from a quarantine file."""
    return given.keys() >= {"line", "problems"}


def _write_entry(entry: FeedbackEntry) -> str:
    metadata = dict(entry["metadata"])
    label = {_LABEL: metadata.pop(_LABEL)} if _LABEL in metadata else {}
    line = {
        "id": entry["feedback_id"],
        "message_id": entry["message_id"],
        "session_id": entry["session_id"],
        "rating": entry["rating"],
        **label,
        "comment": entry["comment"],
        "corrected_answer": entry["corrected_answer"],
        **({"metadata": metadata} if metadata else {}),
        "created_at": datetime.fromisoformat(entry["created_at"]).replace(tzinfo=None).isoformat(),
    }
    return json.dumps(line, ensure_ascii=False)


async def write_feedback(path: Path, store: DatedStore, advance: Advance) -> int:
    """Write all entries to a new file that only its owner can read, and return their number.

    Args:
        path: The file to create, which appears once it is complete; an existing one is not overwritten.
        store: The feedback of the memory.
        advance: Called with the number of lines written.

    Raises:
        MigrationError: The file exists, or cannot be written.
    """
    refuse_existing(path)
    written = 0
    try:
        with unproven_file(path) as unproven:
            with unproven.open("w", encoding="utf-8", newline="\n") as file:
                async for line in export_feedback(store):
                    file.write(line)
                    written += 1
                    advance(1)
            publish(unproven, path)
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        reason = error.strerror or os.strerror(error.errno or 0)
        raise MigrationError(
            f"{path} cannot be written: {reason}; check the directory, its rights and its room"
        ) from error
    return written
