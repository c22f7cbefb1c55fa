"""The sessions of `PlainMemory` and their messages, in dicts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flux_memory.records import (
    MessageRow,
    SessionRow,
    SessionUpdate,
    TooLongError,
    make_revision,
    merge_metadata,
    message_id_taken,
    message_not_found,
    metadata_too_large,
    revision_conflict,
    utc_now,
)


@dataclass(slots=True)
class StoredSession:
    """A session and its messages, oldest first."""

    row: SessionRow
    created_at: str
    updated_at: str
    messages: dict[str, tuple[MessageRow, str]] = field(default_factory=dict)
    """Each message and its time, by its id."""
    revision: str = field(default_factory=make_revision)

    def columns(self, *, with_metadata: bool = True) -> tuple[object, ...]:
        """Return the columns that `build_session` takes."""
        metadata = self.row.metadata if with_metadata else "{}"
        times = self.created_at, self.updated_at
        return self.row.id, self.row.user_id, self.row.title, *times, metadata, self.revision, len(self.messages)

    def touch(self) -> str:
        """Give it another revision, and return the time of the change, which is never before the last one."""
        self.updated_at, self.revision = max(self.updated_at, utc_now()), make_revision()
        return self.updated_at

    def require(self, revision: str | None) -> None:
        """Refuse a change of a session that has another revision than its caller expects."""
        if revision not in {None, self.revision}:
            raise revision_conflict(self.row.id)

    def keep_until(self, message_id: str, *, inclusive: bool) -> dict[str, tuple[MessageRow, str]]:
        """Return the messages before one of them, and that one if wanted."""
        if message_id not in self.messages:
            raise message_not_found(self.row.id, message_id)
        ids = list(self.messages)
        return {id_: self.messages[id_] for id_ in ids[: ids.index(message_id) + inclusive]}

    def choose_new(self, rows: Iterable[MessageRow]) -> list[MessageRow]:
        """Return the messages that it does not have yet."""
        new = []
        for row in rows:
            if row.id not in self.messages:
                new.append(row)
            elif not row.same_as(*self.messages[row.id][0][1:]):
                raise message_id_taken(self.row.id, row.id)
        return new

    def append(self, rows: Iterable[MessageRow], moment: str) -> None:
        """Store messages at the end."""
        self.messages |= {row.id: (row, moment) for row in rows}


def change_row(row: SessionRow, update: SessionUpdate) -> SessionRow:
    """Return the row of a session after an update of its title and metadata."""
    if update.title is not None:
        row = row._replace(title=update.title)
    try:
        return row._replace(metadata=merge_metadata(row.metadata, update.merge_metadata, update.remove_metadata))
    except TooLongError:
        raise metadata_too_large(row.id) from None
