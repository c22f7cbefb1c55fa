"""The feedback of `IndependentMemory`: its table, and the calls on it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from independent_values import (
    WrongTypeError,
    check_key,
    check_moment,
    check_row_count,
    check_text,
    encode_json,
    make_id,
    parse_exact,
)

from flux_memory import ConflictError, InvalidInputError

# The owner is looked up when a user is erased, unless the session is gone by then: a different design from the
# library's, which copies the owner to each entry. `forget_session` notes it just before.
FEEDBACK_TABLE: Final = """
CREATE TABLE feedback (feedback_id TEXT PRIMARY KEY, session_id TEXT, message_id TEXT, rating INTEGER, comment TEXT,
    corrected_answer TEXT, metadata TEXT, created_at TEXT, former_owner TEXT);
CREATE TRIGGER forget_session BEFORE DELETE ON sessions BEGIN
    UPDATE feedback SET former_owner = old.user_id WHERE session_id = old.id AND former_owner IS NULL;
END
"""
ERASE: Final = """
DELETE FROM feedback WHERE former_owner = :user OR former_owner IS NULL AND session_id IN (
    SELECT id FROM sessions WHERE user_id = :user
)
"""
COLUMNS: Final = "feedback_id, session_id, message_id, rating, comment, corrected_answer, metadata, created_at"

Run = Callable[..., Awaitable[Any]]


class IndependentFeedback:
    """Ratings in the same file, through the handle's own way to run work."""

    def __init__(self, run: Run, check_open: Callable[[], None]) -> None:
        self._run = run
        self._check_open = check_open

    async def add(
        self,
        session_id: str,
        rating: int,
        *,
        message_id: str | None = None,
        comment: str = "",
        corrected_answer: str | None = None,
        metadata: Any = None,
        feedback_id: str | None = None,
    ) -> str:
        self._check_open()
        entry = (
            make_id() if feedback_id is None else check_text("feedback_id", feedback_id, 1, 255),
            check_text("session_id", session_id, 1, 255),
            None if message_id is None else check_text("message_id", message_id, 1, 255),
            check_rating(rating),
            check_text("comment", comment, longest=2**40),
            None if corrected_answer is None else check_text("corrected_answer", corrected_answer, longest=2**40),
            encode_json("metadata", metadata),
        )
        await self._run(lambda db: insert_entry(db, entry), write=True)
        return entry[0]

    async def get(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        session_id: str | None = None,
        message_id: str | None = None,
        rating: int | None = None,
    ) -> list[Any]:
        self._check_open()
        most, start = -1 if limit is None else check_row_count("limit", limit), check_row_count("offset", offset)
        asked = {
            "session": None if session_id is None else check_key("session_id", session_id),
            "message": None if message_id is None else check_key("message_id", message_id),
            "rating": None if rating is None else check_rating(rating),
        }
        sql = f"""
        SELECT {COLUMNS} FROM feedback
        WHERE (:session IS NULL OR session_id = :session) AND (:message IS NULL OR message_id = :message)
            AND (:rating IS NULL OR rating = :rating)
        ORDER BY created_at DESC, feedback_id DESC LIMIT :most OFFSET :start
        """
        rows = await self._run(lambda db: db.execute(sql, asked | {"most": most, "start": start}).fetchall())
        return [dict(row) | {"metadata": json.loads(row["metadata"])} for row in rows]

    async def stats(self, *, since: datetime | None = None) -> Any:
        self._check_open()
        moment = "" if since is None else check_moment("since", since)
        sql = "SELECT created_at, rating FROM feedback WHERE created_at >= ?"
        rows = await self._run(lambda db: db.execute(sql, (moment,)).fetchall())
        days: dict[str, Counter[int]] = {}
        for row in rows:
            days.setdefault(row["created_at"][:10], Counter())[row["rating"]] += 1
        by_day = [{"day": day, **_numbers(days[day])} for day in sorted(days)]
        return {**_numbers(sum(days.values(), Counter())), "by_day": by_day}

    async def delete(self, feedback_id: str) -> None:
        self._check_open()
        key = check_key("feedback_id", feedback_id)
        await self._run(lambda db: db.execute("DELETE FROM feedback WHERE feedback_id = ?", (key,)).close(), write=True)


def check_rating(rating: object) -> int:
    """Return a rating: -1, 0 or 1."""
    if not isinstance(rating, int) or isinstance(rating, bool):
        raise WrongTypeError(f"rating must be an int, not {type(rating).__name__}")
    if rating not in {-1, 0, 1}:
        raise InvalidInputError("rating must be -1, 0 or 1")
    return rating


def insert_entry(db: sqlite3.Connection, entry: tuple[Any, ...]) -> None:
    """Store an entry, unless the same one is stored."""
    known = db.execute(f"SELECT {COLUMNS} FROM feedback WHERE feedback_id = ?", entry[:1]).fetchone()
    if known is None:
        moment = datetime.now(UTC).isoformat(timespec="microseconds")
        db.execute(f"INSERT INTO feedback ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*entry, moment))
    elif tuple(known)[:6] != entry[:6] or parse_exact(known["metadata"]) != parse_exact(entry[6]):
        raise ConflictError(f"there is other feedback {entry[0]!r}")


def _numbers(ratings: Counter[int]) -> dict[str, int]:
    return {"total": ratings.total(), "positive": ratings[1], "negative": ratings[-1], "neutral": ratings[0]}
