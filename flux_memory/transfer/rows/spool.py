"""Spools rows in COPY format, digests and refused rows to temporary files, so that the source is read once."""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate, chain
from struct import Struct
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

from flux_memory.errors import MigrationError
from flux_memory.transfer.rows.problems import Problem
from flux_memory.transfer.rows.punch_hole import punch_hole
from flux_memory.transfer.rows.raw import RawRow

_ENTRY: Final = Struct(">I32sQ32sII")
_FILE_COUNT: Final = 6
_BUFFER_BYTES: Final = 256 * 1024
_HOLE_BYTES: Final = 4 * 1024 * 1024
_SAMPLE_BYTES: Final = 1024 * 1024
"""Size at which a spool that does not keep all rows stops keeping them."""
_LENGTH_BYTES: Final = array("I").itemsize


class SessionDigest(NamedTuple):
    """Digests that prove a session equal on both sides."""

    id: bytes
    row: bytes
    """SHA-256 of the session's own columns, without the message count."""
    count: int  # type: ignore[assignment]  # hides an unused method of tuple
    messages: bytes
    """From `pgcopy.MessagesDigest`."""


class RefusedRow(NamedTuple):
    """A refused row, as stored in the source."""

    table: str
    row: RawRow
    session: RawRow | None
    """The session that a message belongs to."""
    problems: list[Problem]


class Batch(NamedTuple):
    """Sessions, their details and messages of theirs, in COPY format."""

    sessions: list[bytes]
    details: list[bytes]
    """As many rows as there are sessions, in the same order."""
    messages: list[bytes]
    """Chunks of whole rows, one for each session that has messages here."""
    counts: list[int]
    """The number of messages of each session."""
    message_count: int
    continues: bool
    """Whether its last session has more messages in the next batch."""


class Spool:
    """The accepted rows of a range of sessions, ordered by the bytes of their ids, in unnamed temporary files.

    Unnamed files vanish with the process, even if it is killed. Memory use does not depend on the number of rows.

    Args:
        descriptors: File descriptors of another process's `Spool`, to fill it from this process; by default new files
            are created.
    """

    def __init__(self, descriptors: Iterable[int] = ()) -> None:
        self.keeps_rows = True
        """Whether all accepted rows are kept; else only the first, with at least one message if there is any."""
        self.kept_sessions = 0
        """The number of sessions whose rows this process kept."""
        self._kept_bytes = 0
        self._keeps_next = True
        self._files: list[IO[bytes]] = [os.fdopen(number, "w+b", _BUFFER_BYTES) for number in descriptors]
        if not self._files:
            self._files = [_create_file() for _ in range(_FILE_COUNT)]
        self._digests, self._sessions, self._details, self._messages, self._lengths, self._refused = self._files
        self._tables = {"sessions": self._sessions, "session_details": self._details, "messages": self._messages}

    @property
    def descriptors(self) -> list[int]:
        """The file descriptors to pass to the process that fills the spool."""
        return [file.fileno() for file in self._files]

    def clear(self) -> None:
        """Delete everything spooled so far."""
        self.kept_sessions, self._kept_bytes, self._keeps_next = 0, 0, True
        with _explain_full_disk():
            for file in self._files:
                file.seek(0)
                file.truncate()

    def add_session(self, digest: SessionDigest, row: bytes, details: bytes) -> None:
        """Add the next session, after its messages."""
        head = _ENTRY.pack(len(digest.id), digest.row, digest.count, digest.messages, len(row), len(details))
        with _explain_full_disk():
            self._digests.write(head + digest.id)
            if self._keeps_next:
                self._sessions.write(row)
                self._details.write(details)
                self.kept_sessions += 1
                self._kept_bytes += len(row) + len(details)
                self._keeps_next = self.keeps_rows or not digest.count or self._kept_bytes < _SAMPLE_BYTES

    def add_messages(self, rows: list[bytes]) -> None:
        """Add messages of the session that `add_session` adds next."""
        if self._keeps_next:
            with _explain_full_disk():
                self._lengths.write(array("I", map(len, rows)))
                self._kept_bytes += self._messages.write(b"".join(rows))

    def refuse(self, row: RefusedRow) -> None:
        """Keep a row that cannot be moved."""
        with _explain_full_disk():
            pickle.dump(row, self._refused)

    def flush(self) -> None:
        """Write buffered rows, so that the process that owns the files can read them."""
        with _explain_full_disk():
            for file in self._files:
                file.flush()

    def digests(self) -> Iterator[SessionDigest]:
        """Iterate over the sessions' digests."""
        self.flush()
        return (digest for digest, *_ in self._entries())

    def refused(self) -> Iterator[RefusedRow]:
        """Iterate over the refused rows."""
        self._refused.seek(0)
        while True:
            try:
                yield pickle.load(self._refused)  # noqa: S301 - an unnamed file of our own
            except EOFError:
                return

    def chunks(self, table: str) -> Iterator[bytes]:
        """Iterate once over the rows of a table in COPY format; a chunk may end within a row."""
        file = self._tables[table]
        file.seek(0)
        released = 0
        while chunk := file.read(_BUFFER_BYTES):
            yield chunk
            released = _release(file, released)

    def size(self, table: str) -> int:
        """Return the number of bytes that `chunks` yields."""
        return self._tables[table].seek(0, os.SEEK_END)

    def batches(self, max_rows: int, max_bytes: int) -> Iterator[Batch]:
        """Iterate once over the rows in batches of at most `max_rows` sessions and messages, and about `max_bytes`."""
        for file in (self._sessions, self._details, self._messages, self._lengths):
            file.seek(0)
        batch = Batch([], [], [], [], 0, continues=False)
        size = released = 0
        for digest, row_length, details_length in self._entries():
            row, details = self._sessions.read(row_length), self._details.read(details_length)
            if not row:
                # The rows of this session and of later ones were not kept.
                break
            if len(batch.sessions) >= max_rows:
                yield batch
                batch, size = Batch([], [], [], [], 0, continues=False), 0
            batch.sessions.append(row)
            batch.details.append(details)
            batch.counts.append(0)
            left = digest.count
            while left:
                room = max_rows - batch.message_count
                if not room or size >= max_bytes:
                    yield batch._replace(continues=True)
                    batch, size = Batch([row], [details], [], [0], 0, continues=False), 0
                    room = max_rows
                lengths = self._next_lengths(min(room, left), max_bytes - size)
                chunk = self._messages.read(sum(lengths))
                batch.messages.append(chunk)
                batch.counts[-1] = len(lengths)
                released = _release(self._messages, released)
                batch = batch._replace(message_count=batch.message_count + len(lengths))
                size += len(chunk)
                left -= len(lengths)
        if batch.sessions:
            yield batch

    def close(self) -> None:
        """Close the files, which deletes them."""
        for file in self._files:
            # Closing writes the buffer, which may fail on a full disk and is not needed.
            with suppress(OSError):
                file.close()

    def _entries(self) -> Iterator[tuple[SessionDigest, int, int]]:
        """Iterate over the sessions' digests, and the lengths of their rows and of their details."""
        self._digests.seek(0)
        while head := self._digests.read(_ENTRY.size):
            length, row, count, messages, row_length, details_length = _ENTRY.unpack(head)
            yield SessionDigest(self._digests.read(length), row, count, messages), row_length, details_length

    def _next_lengths(self, most: int, max_bytes: int) -> array[int]:
        """Return the lengths of the next messages, up to the one that reaches `max_bytes`."""
        lengths = array("I", self._lengths.read(most * _LENGTH_BYTES))
        for number, total in enumerate(accumulate(lengths), 1):
            if total >= max_bytes and number < len(lengths):
                self._lengths.seek((number - len(lengths)) * _LENGTH_BYTES, os.SEEK_CUR)
                return lengths[:number]
        return lengths

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _release(file: IO[bytes], start: int) -> int:
    """Free what was read since `start`, if it is at least `_HOLE_BYTES`; return the offset freed up to."""
    end = file.tell()
    if end - start < _HOLE_BYTES:
        return start
    punch_hole(file.fileno(), start, end - start)
    return end


def all_digests(parts: Iterable[Spool]) -> Iterator[SessionDigest]:
    """Iterate over the digests of consecutive parts."""
    return chain.from_iterable(part.digests() for part in parts)


@contextmanager
def _explain_full_disk() -> Iterator[None]:
    """Turn an error of a full disk into advice."""
    try:
        yield
    except OSError as error:
        raise MigrationError(
            f"the temporary directory {tempfile.gettempdir()} cannot hold the rows on their way: {error.strerror}; "
            "set TMPDIR to a larger one"
        ) from error


def _create_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(prefix="flux-memory-", buffering=_BUFFER_BYTES)
    except OSError as error:
        raise MigrationError(
            f"no temporary file can be made: {error.strerror}; set TMPDIR to a directory with room"
        ) from error
