"""Encodes rows in PostgreSQL's binary COPY format, decodes COPY output, and computes digests of rows.

A row's digest is SHA-256 over the row in the format of PostgreSQL's `record_send`, so the server can compute the same
digest. A message's digest covers its position in the session. The digest of a session's messages hashes their digests
in order; a commutative sum, such as XOR, could be forged with other messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from struct import Struct
from typing import Final, NamedTuple

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
COPY_TRAILER: Final = b"\xff\xff"

SESSION_COLUMNS: Final = ("id", "created_at", "updated_at", "message_count", "user_id")
DETAIL_COLUMNS: Final = ("session_id", "title", "metadata")
WHOLE_SESSION_COLUMNS: Final = (*SESSION_COLUMNS, *DETAIL_COLUMNS)
MESSAGE_COLUMNS: Final = ("session_id", "seq", "created_at", "id", "role", "content", "metadata")

# `session_digest` and `prepare_messages` encode the same columns in the same order. A session of another program may
# have no details.
SESSION_DIGEST: Final = (
    "sha256(record_send(ROW(sessions.created_at, sessions.updated_at, sessions.id::text, sessions.user_id, "
    "coalesce(session_details.title, ''::text), coalesce(session_details.metadata, '{}'::jsonb))))"
)
MESSAGE_DIGEST: Final = (
    "sha256(record_send(ROW("
    "messages.seq, messages.created_at, messages.id::text, messages.role, messages.content, messages.metadata)))"
)

GROUP_MESSAGES: Final = 1000
"""Messages hashed as one group; a session's digest hashes the groups, so the server holds one group in memory."""
_DIGEST_BYTES: Final = 32

_INT8: Final = 20
_TEXT: Final = 25
_TIMESTAMP: Final = 1114
_JSONB: Final = 3802
_JSONB_VERSION: Final = b"\x01"

_DETAIL_HEAD: Final = b"\x00\x03"
_SESSION_HEAD: Final = b"\x00\x05"
_MESSAGE_HEAD: Final = b"\x00\x07"
_WHOLE_SESSION_HEAD: Final = b"\x00\x08"
_LENGTH: Final = Struct(">i").pack
_READ_LENGTH: Final = Struct(">i").unpack
_TYPED_TEXT: Final = _LENGTH(_TEXT)
_TYPED_JSONB: Final = _LENGTH(_JSONB)
_SESSION_NUMBERS: Final = Struct(">iqiqiq").pack
_MESSAGE_NUMBERS: Final = Struct(">iqiq").pack
_DIGEST_NUMBERS: Final = Struct(">iiiqiiq").pack


class _FieldLengths(dict[int, bytes]):
    """Encoded lengths; the common ones are precomputed."""

    def __missing__(self, value: int) -> bytes:
        return _LENGTH(value)


_FIELD_LENGTHS: Final = _FieldLengths((value, _LENGTH(value)) for value in range(4096))


class ValidSession(NamedTuple):
    """A valid session: text and canonical metadata in UTF-8, times in microseconds since 2000."""

    id: bytes
    user_id: bytes
    title: bytes
    metadata: bytes
    created_at: int
    updated_at: int


class ValidMessage(NamedTuple):
    """A valid message, encoded alike."""

    id: bytes
    role: bytes
    content: bytes
    metadata: bytes
    created_at: int


def copy_field(value: bytes) -> bytes:
    """Encode a value for COPY: its length, then the value."""
    return _LENGTH(len(value)) + value


def copy_session(row: ValidSession, message_count: int) -> bytes:
    """Encode a session for COPY, with the columns `SESSION_COLUMNS`."""
    return b"".join(
        (
            _SESSION_HEAD,
            copy_field(row.id),
            _SESSION_NUMBERS(8, row.created_at, 8, row.updated_at, 8, message_count),
            copy_field(row.user_id),
        )
    )


def copy_details(row: ValidSession) -> bytes:
    """Encode a session's details for COPY, with the columns `DETAIL_COLUMNS`."""
    return b"".join(
        (_DETAIL_HEAD, copy_field(row.id), copy_field(row.title), copy_field(_JSONB_VERSION + row.metadata))
    )


def copy_whole_session(session: bytes, details: bytes) -> bytes:
    """Join the rows of `copy_session` and `copy_details` into one with the columns `WHOLE_SESSION_COLUMNS`."""
    return b"".join((_WHOLE_SESSION_HEAD, session[len(_SESSION_HEAD) :], details[len(_DETAIL_HEAD) :]))


def read_session_id(session: bytes) -> str:
    """Return the id in a row of `copy_session`."""
    at = len(_SESSION_HEAD)
    (length,) = _READ_LENGTH(session[at : at + 4])
    return session[at + 4 : at + 4 + length].decode()


def session_digest(row: ValidSession) -> bytes:
    """Compute the digest that the server computes by `SESSION_DIGEST`."""
    return sha256(
        b"".join(
            (
                _DIGEST_NUMBERS(6, _TIMESTAMP, 8, row.created_at, _TIMESTAMP, 8, row.updated_at),
                _TYPED_TEXT,
                copy_field(row.id),
                _TYPED_TEXT,
                copy_field(row.user_id),
                _TYPED_TEXT,
                copy_field(row.title),
                _TYPED_JSONB,
                copy_field(_JSONB_VERSION + row.metadata),
            )
        )
    ).digest()


def message_digest(seq: int, row: ValidMessage) -> bytes:
    """Compute the digest that the server computes by `MESSAGE_DIGEST`."""
    return prepare_messages(b"", seq, [row])[1][0]


class MessagesDigest:
    """Computes the digest of a session's messages, given in order."""

    def __init__(self) -> None:
        self._groups = sha256()
        self._group = bytearray()
        # seq begins with 1, so the first group, seq / GROUP_MESSAGES = 0, has one message less.
        self._size = (GROUP_MESSAGES - 1) * _DIGEST_BYTES

    def update(self, digests: Iterable[bytes]) -> None:
        """Add the digests of the next messages."""
        self._group += b"".join(digests)
        while len(self._group) >= self._size:
            self._end_group()

    def digest(self) -> bytes:
        """Return the digest of all messages; call it last and once."""
        if self._group:
            self._end_group()
        return self._groups.digest()

    def _end_group(self) -> None:
        self._groups.update(sha256(self._group[: self._size]).digest())
        del self._group[: self._size]
        self._size = GROUP_MESSAGES * _DIGEST_BYTES


def prepare_messages(session_field: bytes, first: int, rows: Iterable[ValidMessage]) -> tuple[list[bytes], list[bytes]]:
    """Encode consecutive messages for COPY, with the columns `MESSAGE_COLUMNS`; return them and their digests.

    Args:
        session_field: The id of their session, encoded by `copy_field`.
        first: The seq of the first message.
        rows: The messages.
    """
    spool, digests = [], []
    length_of = _FIELD_LENGTHS
    for seq, (id_, role, content, metadata, created_at) in enumerate(rows, first):
        id_length, role_length = length_of[len(id_)], length_of[len(role)]
        content_length, metadata_length = length_of[len(content)], length_of[len(metadata) + 1]
        copied = (
            _MESSAGE_HEAD,
            session_field,
            _MESSAGE_NUMBERS(8, seq, 8, created_at),
            id_length,
            id_,
            role_length,
            role,
            content_length,
            content,
            metadata_length,
            _JSONB_VERSION,
            metadata,
        )
        digested = (
            _DIGEST_NUMBERS(6, _INT8, 8, seq, _TIMESTAMP, 8, created_at),
            _TYPED_TEXT,
            id_length,
            id_,
            _TYPED_TEXT,
            role_length,
            role,
            _TYPED_TEXT,
            content_length,
            content,
            _TYPED_JSONB,
            metadata_length,
            _JSONB_VERSION,
            metadata,
        )
        spool.append(b"".join(copied))
        digests.append(sha256(b"".join(digested)).digest())
    return spool, digests


class CopyReader:
    """Decodes binary COPY output that arrives in chunks of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._started = False

    def rows(self, data: bytes) -> Iterator[list[bytes | None]]:
        """Add a chunk, and yield the rows that it completes; the caller must consume them all."""
        buffer = self._buffer
        buffer += data
        at = 0
        if not self._started:
            if len(buffer) < len(COPY_HEADER):
                return
            self._started = True
            at = len(COPY_HEADER)
        while (row := _read_row(buffer, at)) is not None:
            values, at = row
            yield values
        del buffer[:at]


def _read_row(buffer: bytearray, at: int) -> tuple[list[bytes | None], int] | None:
    """Return the row at an offset and the offset after it; `None` for an incomplete row or the trailer."""
    if len(buffer) < at + 2:
        return None
    columns = int.from_bytes(buffer[at : at + 2], signed=True)
    if columns < 0:
        return None
    at += 2
    values: list[bytes | None] = []
    for _ in range(columns):
        if len(buffer) < at + 4:
            return None
        length = int.from_bytes(buffer[at : at + 4], signed=True)
        at += 4
        if length < 0:
            values.append(None)
            continue
        if len(buffer) < at + length:
            return None
        values.append(bytes(buffer[at : at + length]))
        at += length
    return values, at
