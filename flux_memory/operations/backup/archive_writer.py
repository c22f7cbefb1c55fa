"""Writes an archive in order, and computes its contents meanwhile."""

from __future__ import annotations

from typing import IO

from flux_memory.errors import BackupError
from flux_memory.operations.backup.archive_lines import end_line, message_line, session_line
from flux_memory.operations.backup.contents import Contents, RowsHasher
from flux_memory.operations.backup.feedback import feedback_line
from flux_memory.transfer.rows.pgcopy import ValidMessage, ValidSession
from flux_memory.transfer.rows.ratings import ValidFeedback

_NO_TIME = "the memory has a time outside the years 1 to 9999, which no backend reads; correct it first"


class ArchiveWriter:
    """Receives all sessions, then the messages session by session, then feedback, each in order of ids.

    Args:
        file: Receives the lines.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hasher = RowsHasher()

    def add_session(self, row: ValidSession) -> None:
        """Write the next session."""
        try:
            self._file.write(session_line(row))
        except OverflowError:
            raise BackupError(_NO_TIME) from None
        self._hasher.add_session(row)

    def add_message(self, session_id: bytes, row: ValidMessage) -> None:
        """Write the next message of the same session, or the first of the next one."""
        try:
            self._file.write(message_line(session_id.decode(), row))
        except OverflowError:
            raise BackupError(_NO_TIME) from None
        self._hasher.add_message(session_id, row)

    def add_feedback(self, row: ValidFeedback) -> None:
        """Write the next entry of feedback."""
        self._file.write(feedback_line(row))
        self._hasher.add_feedback(row)

    def finish(self) -> Contents:
        """Write the last line, and return what was written."""
        contents = self._hasher.contents()
        self._file.write(end_line(contents))
        return contents
