"""Tests the checker of histories: it finds every kind of violation, and none in a correct history."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flux_memory.testkit.histories import (
    History,
    Journal,
    Operation,
    Sent,
    Stored,
    StoredSession,
    check,
)


def moment(second: float) -> str:
    return f"2026-01-01T00:00:{second:09.6f}+00:00"


def add(*ids: str, began: float, ended: float | None = None, outcome: Any = "acknowledged", **other: Any) -> Operation:
    """Return an add of messages whose content is their id; it takes a tenth of a second by default."""
    sent = tuple(Sent(made, "user", made, {}) for made in ids)
    end = began + 0.1 if ended is None else ended
    method = "add_message" if len(ids) == 1 else "add_messages"
    return Operation("w", method, "s", began=began, ended=end, outcome=outcome, messages=sent, **other)


def create(began: float = 0.0, **other: Any) -> Operation:
    fields = {"title": "t", "metadata": {}, "user_id": "u"}
    made = Operation("w", "create_session", "s", began=began, ended=began + 0.1, outcome="acknowledged", fields=fields)
    return replace(made, **other)


def call(method: str, began: float, *, session: str | None = "s", **other: Any) -> Operation:
    made = Operation("w", method, session, began=began, ended=began + 0.1, outcome="acknowledged")
    return replace(made, **other)


def holding(*ids: str, numbers: Any = None, **changed: Any) -> Stored:
    """Return a store with one session that has these messages."""
    history = [
        {"id": made, "role": "user", "content": made, "metadata": {}, "created_at": moment(at)}
        for at, made in enumerate(ids)
    ]
    record: Any = {
        "id": "s",
        "user_id": "u",
        "title": "t",
        "created_at": moment(0),
        "updated_at": moment(59),
        "metadata": {},
        "message_count": len(ids),
    }
    session: Any = StoredSession(record | changed, history)  # type: ignore[arg-type]
    return Stored({"s": session}, numbers)


def kinds(stored: Stored, *operations: Operation, before: Stored | None = None) -> list[str]:
    return sorted({violation.kind for violation in check(History(operations), stored, before)})


A, B, C = add("a", began=1), add("b", began=2), add("c", began=3)


def altered(stored: Stored, **changed: Any) -> Stored:
    stored.sessions["s"].history[0].update(changed)  # type: ignore[typeddict-item]
    return stored


@pytest.mark.parametrize(
    ("kind", "stored", "operations"),
    [
        ("lost", holding("b"), [create(), A, B]),
        ("lost", holding(), [create(), add("a", "b", began=1)]),
        ("lost", Stored({}), [create()]),
        ("lost", Stored({}), [create(), A]),
        ("lost", holding(), [create(), call("delete_session", 0.5), create(0.7), A]),
        ("refused but stored", holding("a"), [create(), add("a", began=1, outcome="failed", error="ConflictError")]),
        ("refused but stored", holding(), [create(outcome="failed")]),
        ("from nowhere", holding("a"), [create()]),
        ("from nowhere", holding(), []),
        ("doubled", holding("a", "a"), [create(), A]),
        ("doubled", holding("a", "b", numbers={"s": [(1, "a"), (1, "b")]}), [create(), A, B]),
        ("half stored", holding("a"), [create(), add("a", "b", began=1, outcome="unknown")]),
        ("half stored", holding("b"), [create(), add("a", "b", began=1)]),
        ("altered", altered(holding("a"), content="x"), [create(), A]),
        ("altered", altered(holding("a"), role="x"), [create(), A]),
        ("altered", altered(holding("a"), metadata={"k": 1}), [create(), A]),
        ("altered", holding(title="x"), [create()]),
        ("altered", holding(title="t"), [create(), call("update_session_title", 1, fields={"title": "new"})]),
        ("altered", holding(user_id="x"), [create()]),
        (
            "altered",
            holding(metadata={"k": 1.0}),
            [create(fields={"title": "t", "metadata": {"k": 1}, "user_id": "u"})],
        ),
        ("out of order", holding("b", "a"), [create(), A, B]),
        ("out of order", holding("c", "a", "b"), [create(), A, B, C]),
        ("out of order", holding("b", "a"), [create(), A, add("b", began=2, outcome="unknown")]),
        ("out of order", holding("b", "a"), [create(), add("a", "b", began=1)]),
        ("out of order", altered(holding("a", "b"), created_at=moment(50)), [create(), A, B]),
        ("out of order", holding("a", "b", numbers={"s": [(2, "a"), (1, "b")]}), [create(), A, B]),
        ("gap", holding("a", "b", numbers={"s": [(1, "a"), (3, "b")]}), [create(), A, B]),
        ("miscounted", holding("a", message_count=2), [create(), A]),
        ("undeleted", holding(), [create(), call("delete_session", 1)]),
        ("undeleted", holding("a"), [create(), A, call("clear_all", 2, session=None), create(3)]),
        ("undeleted", Stored({}, {"s": [(1, "a")]}), [create(), A, call("delete_session", 2)]),
        ("wrong read", holding("a", "b"), [create(), A, B, call("get_history", 3, seen=("a",))]),
        ("wrong read", holding("a", "b"), [create(), A, B, call("get_history", 3, seen=("b", "a"))]),
        ("wrong read", holding("a"), [create(), A, call("get_history", 3, seen=("a", "x"))]),
        ("foreign error", holding(), [create(), add("a", began=1, outcome="unknown", error="OSError", foreign=True)]),
    ],
)
def test_every_kind_of_violation_is_found(kind: str, stored: Stored, operations: list[Operation]) -> None:
    """A broken promise is reported under its own kind, in a sentence."""
    found = check(History(tuple(operations)), stored)
    assert kind in {violation.kind for violation in found}
    assert all("session" in str(violation) or "(" in str(violation) for violation in found)


@pytest.mark.parametrize(
    ("stored", "operations"),
    [
        (Stored({}), []),
        (holding("a", "b", "c"), [create(), A, B, C]),
        (holding("a"), [create(), add("a", began=1, outcome="unknown")]),
        (holding(), [create(), add("a", began=1, outcome="unknown")]),
        (holding(), [create(), add("a", "b", began=1, outcome="unknown")]),
        (holding("a", "b"), [create(), add("a", "b", began=1, outcome="unknown")]),
        (holding(), [create(), add("a", began=1, outcome="failed")]),
        (holding("a"), [create(), A, add("a", began=2, outcome="failed")]),
        (holding("a"), [create(), add("a", began=1, outcome="unknown"), add("a", began=2)]),
        (holding("b", "a"), [create(), add("a", began=1, ended=5), add("b", began=2)]),
        (holding("b", "a"), [create(), add("a", began=1, outcome="unknown"), B]),
        (holding("a"), [create(), add("a", "b", began=1, outcome="unknown"), A]),
        (Stored({}), [create(), A, call("delete_session", 2)]),
        (Stored({}), [create(), add("a", began=1, ended=3), call("delete_session", 2)]),
        (holding("a"), [create(), A, call("delete_session", 2, outcome="unknown")]),
        (Stored({}), [create(), A, call("delete_session", 2, outcome="unknown")]),
        (holding("b"), [create(), A, call("clear_all", 1.5, session=None), create(1.7), B]),
        (Stored({}), [create(outcome="unknown")]),
        (holding(title="x"), [create(), call("update_session_title", 1, outcome="unknown", fields={"title": "x"})]),
        (holding(), [create(), call("update_session_title", 1, outcome="failed", fields={"title": "x"})]),
        (holding("a", "b", numbers={"s": [(2, "b"), (1, "a")]}), [create(), A, B]),
        (holding("a", "b"), [create(), A, call("get_history", 1.5, seen=("a",)), B]),
        (holding("a", "b"), [create(), A, add("b", began=2, ended=9), call("get_history", 3, seen=("a",))]),
    ],
)
def test_what_is_allowed_is_no_violation(stored: Stored, operations: list[Operation]) -> None:
    """Overlapping calls in either order, unknown calls stored or not, deleted data: all of it is allowed."""
    assert check(History(tuple(operations)), stored) == []


def test_what_was_there_before_is_no_violation() -> None:
    """A store that was not empty is compared with its earlier content."""
    assert kinds(holding("a", "b"), B, before=holding("a")) == []
    assert kinds(holding("b"), B, before=holding("a")) == ["lost"]
    assert kinds(holding("b", "a"), B, before=holding("a")) == ["out of order"]


def test_a_killed_process_leaves_a_record(tmp_path: Path) -> None:
    """A call without an answer is unknown, and an incomplete last line is accepted."""
    journal = Journal(tmp_path / "killed.jsonl")
    answered = journal.begin(create())
    journal.end(answered, "acknowledged")
    journal.begin(add("a", "b", began=1))
    journal.close()
    path = tmp_path / "killed.jsonl"
    path.write_bytes(path.read_bytes() + json.dumps({"begin": "x"}).encode()[:-3])
    history = History.read(path)
    assert [(one.method, one.outcome) for one in history.operations] == [
        ("create_session", "acknowledged"),
        ("add_messages", "unknown"),
    ]
    assert check(history, holding("a", "b")) == []
    assert kinds(holding("a"), *history.operations) == ["half stored"]


def test_an_empty_history_has_no_longest_call() -> None:
    """An empty history has a longest call of 0 seconds."""
    assert (History(()).longest_call(), History(()).longest_outage()) == (0.0, 0.0)
