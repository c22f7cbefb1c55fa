"""Counts and digests of all that a memory holds, the same for either engine and for a backup."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from flux_memory.errors import BackupError
from flux_memory.transfer.rows.pgcopy import (
    MessagesDigest,
    ValidMessage,
    ValidSession,
    copy_field,
    prepare_messages,
    session_digest,
)
from flux_memory.transfer.rows.ratings import ValidFeedback
from flux_memory.transfer.rows.spool import SessionDigest

KINDS: Final = ("sessions", "messages", "feedback")
_NOTHING: Final = sha256().hexdigest()
_BATCH_MESSAGES: Final = 256
_BATCH_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class Contents:
    """How many rows of each kind there are, and a digest of them in order."""

    sessions: int = 0
    messages: int = 0
    feedback: int = 0
    sessions_digest: str = _NOTHING
    """SHA-256, in hexadecimal, over the digests of the sessions in order of their ids, without message counts."""
    messages_digest: str = _NOTHING
    """SHA-256 over the id and the digest of the messages of each session that has any, in order of these ids."""
    feedback_digest: str = _NOTHING
    """SHA-256 over the id and the digest of each entry, in order of these ids."""

    @property
    def rows(self) -> int:
        """All rows."""
        return self.sessions + self.messages + self.feedback

    def differences(self, other: Contents) -> list[str]:
        """Return in words how the other side differs; nothing if both are equal."""
        found = []
        for kind in KINDS:
            mine, theirs = getattr(self, kind), getattr(other, kind)
            if mine != theirs:
                found.append(f"{mine:,} {kind} became {theirs:,}")
            elif getattr(self, f"{kind}_digest") != getattr(other, f"{kind}_digest"):
                found.append(f"the content of some {kind} differs")
        return found

    def __str__(self) -> str:
        """Return the counts in words."""
        feedback = f", {self.feedback:,} feedback entries" * bool(self.feedback)
        return f"{self.sessions:,} sessions, {self.messages:,} messages{feedback}"

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and digests as JSON has them."""
        return {
            **{kind: getattr(self, kind) for kind in KINDS},
            "digests": {kind: getattr(self, f"{kind}_digest") for kind in KINDS},
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Contents:
        """Return the contents that `as_dict` described.

        Raises:
            ValueError: The record is not such a description.
        """
        values: dict[str, Any] = {}
        digests = record.get("digests")
        for kind in KINDS:
            count, digest = record.get(kind), digests.get(kind) if isinstance(digests, dict) else None
            if type(count) is not int or count < 0 or not isinstance(digest, str):
                raise ValueError(f"there is no count or no digest of the {kind}")
            values[kind], values[f"{kind}_digest"] = count, digest
        return cls(**values)


def refuse_unknown_user(user: str | None, contents: Contents) -> None:
    """Refuse a user who has nothing: the name may be misspelt.

    Raises:
        BackupError: There is a user, and no session.
    """
    if user is not None and not contents.sessions:
        raise BackupError(f"the user {user!r:.80} has no sessions there; check --user")


class ContentsHasher:
    """Computes `Contents` from rows in order; each kind may be given apart from the others."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(KINDS, 0)
        self._hashes = {kind: sha256() for kind in KINDS}

    def add_session(self, row_digest: bytes) -> None:
        """Add the next session by its `pgcopy.session_digest`."""
        self._counts["sessions"] += 1
        self._hashes["sessions"].update(row_digest)

    def add_messages(self, session_id: bytes, count: int, digest: bytes) -> None:
        """Add all messages of the next session that has any, by their `pgcopy.MessagesDigest`."""
        if count:
            self._counts["messages"] += count
            self._hashes["messages"].update(copy_field(session_id) + digest)

    def add_feedback(self, id_: str, digest: bytes) -> None:
        """Add the next entry of feedback, by its `ValidFeedback.digest`."""
        self._counts["feedback"] += 1
        self._hashes["feedback"].update(copy_field(id_.encode()) + digest)

    def add_digest(self, digest: SessionDigest) -> None:
        """Add a session together with its messages."""
        self.add_session(digest.row)
        self.add_messages(digest.id, digest.count, digest.messages)

    def contents(self) -> Contents:
        """Return the result so far."""
        return Contents(**self._counts, **{f"{kind}_digest": self._hashes[kind].hexdigest() for kind in KINDS})  # type: ignore[arg-type]  # one dict of two types


class RowsHasher:
    """Computes `Contents` from valid rows: all sessions, then messages session by session, then feedback."""

    def __init__(self) -> None:
        self._hasher = ContentsHasher()
        self._session_id: bytes | None = None
        self._digest, self._count = MessagesDigest(), 0
        self._batch: list[ValidMessage] = []
        self._batch_bytes = 0

    def add_session(self, row: ValidSession) -> None:
        """Add the next session."""
        self._hasher.add_session(session_digest(row))

    def add_message(self, session_id: bytes, row: ValidMessage) -> None:
        """Add the next message of the same session, or the first of the next one."""
        if session_id != self._session_id:
            self._end_session()
            self._session_id = session_id
        self._batch.append(row)
        self._batch_bytes += len(row.content) + len(row.metadata)
        if len(self._batch) >= _BATCH_MESSAGES or self._batch_bytes >= _BATCH_BYTES:
            self._end_batch()

    def add_feedback(self, row: ValidFeedback) -> None:
        """Add the next entry of feedback."""
        self._hasher.add_feedback(row.id, row.digest())

    def contents(self) -> Contents:
        """Return the result; call it last."""
        self._end_session()
        return self._hasher.contents()

    def _end_session(self) -> None:
        if self._session_id is not None:
            self._end_batch()
            self._hasher.add_messages(self._session_id, self._count, self._digest.digest())
            self._session_id, self._digest, self._count = None, MessagesDigest(), 0

    def _end_batch(self) -> None:
        self._digest.update(prepare_messages(b"", self._count + 1, self._batch)[1])
        self._count += len(self._batch)
        self._batch, self._batch_bytes = [], 0
