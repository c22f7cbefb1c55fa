"""Entries of feedback on their way: valid rows, their digests, and a temporary file that holds them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from flux_memory.errors import MigrationError

_BATCH_ROWS: Final = 500
_BATCH_CHARACTERS: Final = 4 * 1024 * 1024


class ValidFeedback(NamedTuple):
    """A valid entry, as PostgreSQL prints it."""

    id: str
    session_id: str
    message_id: str | None
    user_id: str
    rating: int
    comment: str
    corrected_answer: str | None
    metadata: str
    created_at: str
    """In the form of the records."""

    def digest(self) -> bytes:
        """Return the SHA-256 of all columns but the id; `FEEDBACK_DIGEST` is the same in SQL."""
        parts = ["-" if value is None else f"{len(str(value).encode())}:{value}" for value in self[1:]]
        return sha256("".join(parts).encode()).digest()


def _field(expression: str) -> str:
    return f"coalesce(octet_length({expression})::text || ':' || {expression}, '-')"


FEEDBACK_DIGEST: Final = "sha256(convert_to({}, 'UTF8'::name))".format(
    " || ".join(
        map(
            _field,
            (
                "session_id::text",
                "message_id::text",
                "user_id::text",
                "rating::text",
                "comment",
                "corrected_answer",
                "metadata::text",
                """to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')""",
            ),
        )
    )
)
"""The SQL expression of the digest of an entry."""


class FeedbackSpool:
    """The valid entries of a source, ordered by the bytes of their ids, in an unnamed temporary file."""

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile("w+", prefix="flux-memory-", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise _no_room(error) from error
        self.count = 0

    def clear(self) -> None:
        """Delete everything spooled so far."""
        self._file.seek(0)
        self._file.truncate()
        self.count = 0

    def add(self, row: ValidFeedback) -> None:
        """Add the next entry."""
        try:
            self._file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise _no_room(error) from error
        self.count += 1

    def rows(self) -> Iterator[ValidFeedback]:
        """Iterate over the entries."""
        try:
            self._file.seek(0)
        except OSError as error:
            raise _no_room(error) from error
        for line in self._file:
            yield ValidFeedback(*json.loads(line))

    def batches(self) -> Iterator[list[ValidFeedback]]:
        """Iterate over the entries in batches of a bounded size."""
        batch: list[ValidFeedback] = []
        size = 0
        for row in self.rows():
            batch.append(row)
            size += len(row.comment) + len(row.corrected_answer or "") + len(row.metadata)
            if len(batch) >= _BATCH_ROWS or size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def close(self) -> None:
        """Close the file, which deletes it."""
        # Closing writes the buffer, which may fail on a full disk and is not needed.
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def as_json(rows: list[ValidFeedback]) -> str:
    """Return entries as a JSON array of objects, for `jsonb_to_recordset`."""
    objects: list[dict[str, Any]] = [row._asdict() for row in rows]
    return json.dumps(objects, ensure_ascii=False)


def _no_room(error: OSError) -> MigrationError:
    return MigrationError(
        f"the temporary directory {tempfile.gettempdir()} cannot hold the feedback on its way: {error.strerror}; "
        "set TMPDIR to a larger one"
    )
