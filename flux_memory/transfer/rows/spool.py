"""What the one reading of a source leaves for all that follows: rows as COPY reads them, and digests."""

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

_ENTRY: Final = Struct(">I32sQ32sI")
_FILE_COUNT: Final = 5
_BUFFER_BYTES: Final = 256 * 1024
_HOLE_BYTES: Final = 4 * 1024 * 1024
_LENGTH_BYTES: Final = array("I").itemsize


class SessionDigest(NamedTuple):
    """What proves a session equal."""

    id: bytes
    row: bytes
    """SHA-256 of the session's own columns, the count aside."""
    count: int  # type: ignore[assignment]  # hides tuple's method, which nobody wants of it
    messages: bytes
    """What `wire.MessagesDigest` returns of its messages."""


class RefusedRow(NamedTuple):
    """A row that cannot be moved, as the source holds it."""

    table: str
    row: RawRow
    session: RawRow | None
    """The session that a message belongs to."""
    problems: list[Problem]


class Batch(NamedTuple):
    """Some sessions with messages of theirs, as COPY reads them."""

    sessions: list[bytes]
    messages: list[bytes]
    """Pieces of whole rows."""
    message_count: int
    continues: bool
    """Whether its last session has more messages in the next batch."""


class Spool:
    """The accepted rows of a range of sessions in the order of their ids' bytes, in files that have no name.

    No end of the process leaves them behind, and memory stays the same for any number of rows.

    Args:
        descriptors: Of another process's `Spool`, to fill it from here; by default the files are made.
    """

    def __init__(self, descriptors: Iterable[int] = ()) -> None:
        self.keeps_rows = True
        """Whether rows are kept for a load; digests and refused rows always are."""
        self._files: list[IO[bytes]] = [os.fdopen(number, "w+b", _BUFFER_BYTES) for number in descriptors]
        if not self._files:
            self._files = [_file() for _ in range(_FILE_COUNT)]
        self._digests, self._sessions, self._messages, self._lengths, self._refused = self._files

    @property
    def descriptors(self) -> list[int]:
        """For the process that is to fill it."""
        return [file.fileno() for file in self._files]

    def clear(self) -> None:
        """Start anew."""
        with _explain_full_disk():
            for file in self._files:
                file.seek(0)
                file.truncate()

    def add_session(self, digest: SessionDigest, row: bytes) -> None:
        """Add the next session, its messages having been added."""
        head = _ENTRY.pack(len(digest.id), digest.row, digest.count, digest.messages, len(row))
        with _explain_full_disk():
            self._digests.write(head + digest.id)
            if self.keeps_rows:
                self._sessions.write(row)

    def add_messages(self, rows: list[bytes]) -> None:
        """Add messages of the session that comes next."""
        if self.keeps_rows:
            with _explain_full_disk():
                self._lengths.write(array("I", map(len, rows)))
                self._messages.write(b"".join(rows))

    def refuse(self, row: RefusedRow) -> None:
        """Keep a row that cannot be moved."""
        with _explain_full_disk():
            pickle.dump(row, self._refused)

    def flush(self) -> None:
        """Let the process whose files these are read them."""
        with _explain_full_disk():
            for file in self._files:
                file.flush()

    def digests(self) -> Iterator[SessionDigest]:
        """Return each session's digest."""
        self.flush()
        return (digest for digest, _ in self._entries())

    def refused(self) -> Iterator[RefusedRow]:
        """Return what cannot be moved."""
        self._refused.seek(0)
        while True:
            try:
                yield pickle.load(self._refused)  # noqa: S301 - from a file that only we could write to
            except EOFError:
                return

    def chunks(self, table: str) -> Iterator[bytes]:
        """Return the rows of `sessions` or `messages` as COPY reads them, cut anywhere; they can be had once."""
        file = self._sessions if table == "sessions" else self._messages
        file.seek(0)
        released = 0
        while chunk := file.read(_BUFFER_BYTES):
            yield chunk
            released = _release(file, released)

    def size(self, table: str) -> int:
        """Return how many bytes `chunks` returns."""
        return (self._sessions if table == "sessions" else self._messages).seek(0, os.SEEK_END)

    def batches(self, max_rows: int, max_bytes: int) -> Iterator[Batch]:
        """Return the rows in batches of at most so many sessions, so many messages, and about so many bytes.

        They can be had once.
        """
        for file in (self._sessions, self._messages, self._lengths):
            file.seek(0)
        batch = Batch([], [], 0, continues=False)
        size = released = 0
        for digest, row_length in self._entries():
            row = self._sessions.read(row_length)
            if len(batch.sessions) >= max_rows:
                yield batch
                batch, size = Batch([], [], 0, continues=False), 0
            batch.sessions.append(row)
            left = digest.count
            while left:
                room = max_rows - batch.message_count
                if not room or size >= max_bytes:
                    yield batch._replace(continues=True)
                    batch, size = Batch([row], [], 0, continues=False), 0
                    room = max_rows
                lengths = self._next_lengths(min(room, left), max_bytes - size)
                chunk = self._messages.read(sum(lengths))
                batch.messages.append(chunk)
                released = _release(self._messages, released)
                batch = batch._replace(message_count=batch.message_count + len(lengths))
                size += len(chunk)
                left -= len(lengths)
        if batch.sessions:
            yield batch

    def close(self) -> None:
        """Let the files go."""
        for file in self._files:
            # What it still holds is of no use any more, and may have no room.
            with suppress(OSError):
                file.close()

    def _entries(self) -> Iterator[tuple[SessionDigest, int]]:
        """Return each session's digest, and the length of its row."""
        self._digests.seek(0)
        while head := self._digests.read(_ENTRY.size):
            length, row, count, messages, row_length = _ENTRY.unpack(head)
            yield SessionDigest(self._digests.read(length), row, count, messages), row_length

    def _next_lengths(self, most: int, max_bytes: int) -> array[int]:
        """Return the lengths of the next messages, up to the one that reaches so many bytes."""
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
    """Let go of what was read, a good deal at a time; return where it ends."""
    end = file.tell()
    if end - start < _HOLE_BYTES:
        return start
    punch_hole(file.fileno(), start, end - start)
    return end


def all_digests(parts: Iterable[Spool]) -> Iterator[SessionDigest]:
    """Return the digests of parts that follow one another."""
    return chain.from_iterable(part.digests() for part in parts)


@contextmanager
def _explain_full_disk() -> Iterator[None]:
    """Say what to do where the disk has none."""
    try:
        yield
    except OSError as error:
        raise MigrationError(
            f"the temporary directory {tempfile.gettempdir()} cannot hold the rows on their way: {error.strerror}; "
            "set TMPDIR to a larger one"
        ) from error


def _file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(prefix="flux-memory-", buffering=_BUFFER_BYTES)
    except OSError as error:
        raise MigrationError(
            f"no temporary file can be made: {error.strerror}; set TMPDIR to a directory with room"
        ) from error
