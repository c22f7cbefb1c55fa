"""Reads one state of a PostgreSQL memory: its contents, and its rows for an archive."""

from __future__ import annotations

from typing import Any, Final

from flux_memory.errors import BackupError
from flux_memory.operations.backup import feedback
from flux_memory.operations.backup.archive_writer import ArchiveWriter
from flux_memory.operations.backup.contents import Contents, ContentsHasher
from flux_memory.transfer.progress import Advance
from flux_memory.transfer.rows.pgcopy import CopyReader, ValidMessage, ValidSession
from flux_memory.transfer.target.copy_out import copy_out
from flux_memory.transfer.target.server_digests import ServerSession, read_digests

# COPY takes no parameters.
SET_USER: Final = "SELECT set_config('flux_memory.backup_user', $1, TRUE)"
SELECT_SESSIONS: Final = """
SELECT
    sessions.id,
    sessions.user_id,
    coalesce(session_details.title, ''::text),
    coalesce(session_details.metadata, '{}'::jsonb)::text,
    sessions.created_at,
    sessions.updated_at
FROM sessions
LEFT JOIN session_details ON session_details.session_id::text = sessions.id::text
/* where */
ORDER BY sessions.id::text COLLATE "C"
"""
SESSIONS_OF_USER: Final = "WHERE sessions.user_id::text = current_setting('flux_memory.backup_user')"
SELECT_MESSAGES: Final = """
SELECT session_id, id, role, content, metadata::text, created_at
FROM messages
/* where */
ORDER BY session_id::text COLLATE "C", seq
"""
MESSAGES_OF_USER: Final = """
WHERE session_id::text IN (
    SELECT id::text FROM sessions WHERE user_id::text = current_setting('flux_memory.backup_user')
)
"""
WHERE: Final = "/* where */"
SELECT_IDS: Final = "SELECT id::text FROM sessions WHERE user_id::text = $1"

_MAX_NAMED: Final = 3


class Oddities:
    """Sessions whose messages do not agree with them; another program changed them."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def look_at(self, session: ServerSession) -> None:
        """Count a session with an oddity."""
        kind = ""
        if not session.exists and session.digest.count:
            kind = "messages without their session"
        elif session.exists and not session.counted:
            kind = "message_count differs from the messages there are"
        elif session.exists and not session.numbered:
            kind = "seq does not count the messages from 1 on"
        if kind:
            self.count += 1
            if len(self.first) < _MAX_NAMED:
                self.first.append(f"{kind}: {session.digest.id.decode()}")

    def __str__(self) -> str:
        """Return the number of oddities and the first of them."""
        return f"{self.count:,} sessions do not agree with their messages ({'; '.join(self.first)})"


async def read_contents(connection: Any, *, user: str | None = None) -> tuple[Contents, Oddities]:
    """Return the contents that the server computes, of all users or of one, in the caller's transaction.

    Args:
        connection: Connected to a memory with the current schema, in a transaction that sees one snapshot.
        user: The user.
    """
    ids = None if user is None else {id_.encode() for (id_,) in await connection.fetch(SELECT_IDS, user)}
    hasher, odd = ContentsHasher(), Oddities()

    def take(session: ServerSession) -> None:
        if ids is not None and session.digest.id not in ids:
            return
        odd.look_at(session)
        if session.exists:
            hasher.add_session(session.digest.row)
        hasher.add_messages(session.digest.id, session.digest.count, session.digest.messages)

    await read_digests(connection, take, None)
    async for id_, digest in feedback.database_digests(connection, user):
        hasher.add_feedback(id_, digest)
    return hasher.contents(), odd


async def write_rows(connection: Any, writer: ArchiveWriter, user: str | None, advance: Advance) -> None:
    """Write all rows, or those of a user, to an archive, in the caller's transaction.

    Raises:
        BackupError: A row has a NULL or a time that no backend reads.
    """
    sessions, messages = CopyReader(), CopyReader()
    if user is not None:
        await connection.execute(SET_USER, user)

    async def receive_sessions(data: bytes) -> None:
        count = 0
        for id_, user_id, title, metadata, created_at, updated_at in map(_without_nulls, sessions.rows(data)):
            writer.add_session(ValidSession(id_, user_id, title, metadata, _time(created_at), _time(updated_at)))
            count += 1
        advance(count)

    async def receive_messages(data: bytes) -> None:
        count = 0
        for session_id, id_, role, content, metadata, created_at in map(_without_nulls, messages.rows(data)):
            writer.add_message(session_id, ValidMessage(id_, role, content, metadata, _time(created_at)))
            count += 1
        advance(count)

    chosen = ("", "") if user is None else (SESSIONS_OF_USER, MESSAGES_OF_USER)
    await copy_out(connection, SELECT_SESSIONS.replace(WHERE, chosen[0]), receive_sessions)
    await copy_out(connection, SELECT_MESSAGES.replace(WHERE, chosen[1]), receive_messages)
    async for entry in feedback.database_feedback(connection, user):
        writer.add_feedback(entry)


def _without_nulls(values: list[bytes | None]) -> list[bytes]:
    found = [value for value in values if value is not None]
    if len(found) != len(values):
        raise BackupError(
            f"session {(values[0] or b'').decode()} of the PostgreSQL memory, or a message of it, has a NULL, which "
            "has no meaning there; set it to '', or metadata to '{}', first"
        )
    return found


def _time(value: bytes) -> int:
    return int.from_bytes(value, signed=True)
