"""Histories and stores of one session, written by hand for tests of the checker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flux_memory.testkit.histories import History, Operation, Sent, Stored, StoredSession, check


def format_time(second: float) -> str:
    return f"2026-01-01T00:00:{second:09.6f}+00:00"


def add_operation(
    *ids: str, began: float, ended: float | None = None, outcome: Any = "acknowledged", **other: Any
) -> Operation:
    """Return an add of messages whose content is their id; it takes a tenth of a second by default."""
    sent = tuple(Sent(made, "user", made, {}) for made in ids)
    end = began + 0.1 if ended is None else ended
    method = "add_message" if len(ids) == 1 else "add_messages"
    return Operation("w", method, "s", began=began, ended=end, outcome=outcome, messages=sent, **other)


def create_operation(began: float = 0.0, **other: Any) -> Operation:
    fields = {"title": "t", "metadata": {}, "user_id": "u"}
    made = Operation("w", "create_session", "s", began=began, ended=began + 0.1, outcome="acknowledged", fields=fields)
    return replace(made, **other)


def call_operation(method: str, began: float, *, session: str | None = "s", **other: Any) -> Operation:
    made = Operation("w", method, session, began=began, ended=began + 0.1, outcome="acknowledged")
    return replace(made, **other)


def store_with(*ids: str, numbers: Any = None, **changed: Any) -> Stored:
    """Return a store with one session that has these messages."""
    history = [
        {"id": made, "role": "user", "content": made, "metadata": {}, "created_at": format_time(at)}
        for at, made in enumerate(ids)
    ]
    record: Any = {
        "id": "s",
        "user_id": "u",
        "title": "t",
        "created_at": format_time(0),
        "updated_at": format_time(59),
        "metadata": {},
        "message_count": len(ids),
    }
    session: Any = StoredSession(record | changed, history)  # type: ignore[arg-type]
    return Stored({"s": session}, numbers)


def find_kinds(stored: Stored, *operations: Operation, before: Stored | None = None) -> list[str]:
    return sorted({violation.kind for violation in check(History(operations), stored, before)})


def alter(stored: Stored, **changed: Any) -> Stored:
    stored.sessions["s"].history[0].update(changed)  # type: ignore[typeddict-item]
    return stored
