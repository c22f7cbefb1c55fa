"""The SQL that finds a message by its id, with a plan that reads one row however long the session is."""

from __future__ import annotations

from typing import Final

# An equality would let the planner choose the primary key and filter all messages of the session by their id: in a
# database without statistics, or where most sessions are short, both indexes look the same to it. The order is that of
# the index on ids alone.
FIND_MESSAGE: Final = """(
        SELECT id, seq, role, content, metadata, created_at
        FROM messages
        WHERE session_id::text = {session} AND id::text >= {id}
        ORDER BY messages.id
        LIMIT 1
    ) AS found"""
"""A message of a session if `found.id` is the wanted one; else another one, or none."""
MESSAGE_OF_SESSION: Final = FIND_MESSAGE.format(session="$1", id="$2")
