"""The SQL that fills a new SQLite file with the rows of a memory."""

from __future__ import annotations

from typing import Final

INSERT_SESSION: Final = """
INSERT INTO sessions (id, user_id, created_at, updated_at, revision)
VALUES (?, ?, ?, ?, lower(hex(randomblob(16))))
"""
INSERT_DETAILS: Final = "INSERT INTO session_details (session_id, title, metadata) VALUES (?, ?, ?)"
INSERT_MESSAGE: Final = """
INSERT INTO messages (session_id, seq, id, role, content, metadata, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
INSERT_FEEDBACK: Final = """
INSERT INTO feedback (id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
COUNT_MESSAGES: Final = """
UPDATE sessions SET message_count = (SELECT count(*) FROM messages WHERE session_id = sessions.id)
"""
