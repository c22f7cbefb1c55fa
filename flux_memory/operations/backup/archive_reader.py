"""Reads an archive, and verifies on the way that it is whole and unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import IO, Any, Final, NoReturn

from flux_memory.errors import BackupError
from flux_memory.operations.backup import compression, feedback
from flux_memory.operations.backup.archive_lines import FORMAT, ORDER, split_line
from flux_memory.operations.backup.contents import Contents, RowsHasher
from flux_memory.transfer.rows.pgcopy import ValidMessage, ValidSession
from flux_memory.transfer.rows.raw import RawRow
from flux_memory.transfer.rows.validate import RowValidator

_MAX_LINE_BYTES: Final = 512 * 1024 * 1024
"""A message of the largest size is shorter, with an escape for each of its characters."""


@dataclass(frozen=True)
class Header:
    """The first line of an archive."""

    engine: str
    store: str
    name: str
    created_at: str
    schema_version: int
    user: str | None


class ArchiveReader:
    """The records of an archive, in order. After the last one, `contents` is verified.

    Args:
        path: The file, as messages name it.
        file: Its uncompressed lines.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.contents: Contents | None = None
        """The counts and digests of the whole archive, once it was read to its end."""
        self._path = path
        self._file = file
        self._number = 0
        self._damage = compression.damage_errors()
        self._validator = RowValidator(UTC)
        self._hasher = RowsHasher()
        self.header = self._read_header()

    def records(self) -> Iterator[tuple[str, tuple[Any, ...], RawRow]]:
        """Iterate over the kind, the valid row and the raw row of each record; of feedback both are the valid row.

        Raises:
            BackupError: The archive is cut off, altered or not in order.
        """
        place = 0
        while True:
            record, metadata = self._split(self._read_line())
            kind = record.get("kind")
            if kind == "end":
                self._end(record)
                return
            if kind not in ORDER or ORDER.index(kind) < place:
                self._refuse(f"a record of the kind {str(kind)!r:.30} is out of place")
            place = ORDER.index(kind)
            if metadata is None:
                self._refuse("the record has no metadata")
            yield self._take(kind, record, metadata)

    def _take(self, kind: str, record: dict[str, Any], metadata: str) -> tuple[str, tuple[Any, ...], RawRow]:
        if kind == "session":
            raw: RawRow = (
                *(record.get(key) for key in ("id", "user_id", "title")),
                metadata,
                *(record.get(key) for key in ("created_at", "updated_at")),
                0,
                self._number,
            )
            session = self._validator.validate_session(raw)
            if not isinstance(session, ValidSession):
                self._refuse(f"the session is not valid: {session[0].detail}")
            self._hasher.add_session(session)
            return kind, session, raw
        if kind == "message":
            raw = (
                *(record.get(key) for key in ("session_id", "id", "role", "content")),
                metadata,
                record.get("created_at"),
                0,
                self._number,
            )
            message = self._validator.validate_message(raw)
            if not isinstance(message, ValidMessage) or not isinstance(raw[0], str):
                self._refuse("the message is not valid")
            self._hasher.add_message(raw[0].encode(), message)
            return kind, message, raw
        try:
            entry = feedback.read_line(record, metadata, self._validator)
        except ValueError as error:
            self._refuse(str(error))
        self._hasher.add_feedback(entry)
        return kind, entry, entry

    def _end(self, record: dict[str, Any]) -> None:
        try:
            said = Contents.from_dict(record)
        except ValueError as error:
            self._refuse(str(error))
        if differences := said.differences(self._hasher.contents()):
            raise BackupError(f"{self._path} was altered: {'; '.join(differences)}. Use another backup")
        try:
            # Reading on verifies the checksum of the compressed bytes.
            more = self._file.read(1)
        except self._damage as error:
            self._refuse(str(error))
        if more:
            self._refuse("bytes follow its end")
        self.contents = said

    def _read_header(self) -> Header:
        try:
            record, _ = split_line(self._read_line())
            version = record["flux_memory_archive"]
            if version != FORMAT:
                raise BackupError(
                    f"{self._path} has the archive format {str(version)!r:.20}, and this flux-memory reads {FORMAT}; "
                    "use the release that made the backup, or a later one"
                )
            texts = [record[key] for key in ("engine", "store", "name", "created_at")]
            user, schema_version = record["user"], record["schema_version"]
            if not all(isinstance(text, str) for text in texts) or not isinstance(schema_version, int):
                raise TypeError("a value has another type")
            engine, store, name, created_at = texts
            return Header(engine, store, name, created_at, schema_version, None if user is None else str(user))
        except (ValueError, KeyError, TypeError):
            raise BackupError(
                f"{self._path} is compressed, but is not an archive of flux-memory; give the file that flux-memory "
                "backup --archive wrote"
            ) from None

    def _split(self, line: bytes) -> tuple[dict[str, Any], str | None]:
        try:
            return split_line(line)
        except (ValueError, TypeError) as error:
            self._refuse(str(error))

    def _read_line(self) -> bytes:
        self._number += 1
        try:
            line = self._file.readline(_MAX_LINE_BYTES)
        except self._damage as error:
            self._refuse(str(error))
        if not line:
            raise BackupError(
                f"{self._path} is cut off after line {self._number - 1:,}; copy it again from where it was made, or "
                "use another backup"
            )
        return line

    def _refuse(self, reason: str) -> NoReturn:
        raise BackupError(f"{self._path} is damaged at line {self._number:,}: {reason}. Use another backup")


@contextmanager
def open_archive(path: Path) -> Iterator[ArchiveReader]:
    """Open an archive.

    Raises:
        BackupError: The file is not an archive, or its compression is not available.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        kind = compression.detect(file.read(4))
        file.seek(0)
        if kind is None:
            raise BackupError(f"{path} is not an archive of flux-memory; give the file of a backup")
        compression.require(kind, f"{path} is compressed by")
        with compression.decompressing(file, kind) as lines:
            yield ArchiveReader(path, lines)
