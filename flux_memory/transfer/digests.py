"""The digests of a store's sessions, in the order of their ids' bytes, kept in a file that has no name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from struct import Struct
from types import TracebackType
from typing import Final, NamedTuple, Self

_ENTRY: Final = Struct(">I32sQ32s")


class SessionDigest(NamedTuple):
    """What proves a session equal."""

    id: bytes
    row: bytes
    """SHA-256 of the session's own columns, the count aside."""
    count: int  # type: ignore[assignment]  # hides tuple's method, which nobody wants of it
    messages: int
    """XOR of the SHA-256 of its messages, each with its place."""


class DigestSpool:
    """Digests written one after another and read as often as needed; memory stays the same for any number."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="flux-memory-")  # noqa: SIM115 - closed by close()

    def append(self, digest: SessionDigest) -> None:
        """Add the next session's."""
        self._file.write(
            _ENTRY.pack(len(digest.id), digest.row, digest.count, digest.messages.to_bytes(32)) + digest.id
        )

    def clear(self) -> None:
        """Start anew."""
        self._file.seek(0)
        self._file.truncate()

    def __iter__(self) -> Iterator[SessionDigest]:
        self._file.seek(0)
        while head := self._file.read(_ENTRY.size):
            length, row, count, messages = _ENTRY.unpack(head)
            yield SessionDigest(self._file.read(length), row, count, int.from_bytes(messages))

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
