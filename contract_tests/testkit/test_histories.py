"""Tests the checker of histories: it finds every kind of violation, and none in a correct history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted_histories import (
    add_operation,
    alter,
    call_operation,
    create_operation,
    find_kinds,
    format_time,
    store_with,
)

from flux_memory.testkit.histories import History, Journal, Operation, Stored, check

A, B, C = add_operation("a", began=1), add_operation("b", began=2), add_operation("c", began=3)


@pytest.mark.parametrize(
    ("kind", "stored", "operations"),
    [
        ("lost", store_with("b"), [create_operation(), A, B]),
        ("lost", store_with(), [create_operation(), add_operation("a", "b", began=1)]),
        ("lost", Stored({}), [create_operation()]),
        ("lost", Stored({}), [create_operation(), A]),
        ("lost", store_with(), [create_operation(), call_operation("delete_session", 0.5), create_operation(0.7), A]),
        (
            "refused but stored",
            store_with("a"),
            [create_operation(), add_operation("a", began=1, outcome="failed", error="ConflictError")],
        ),
        ("refused but stored", store_with(), [create_operation(outcome="failed")]),
        ("from nowhere", store_with("a"), [create_operation()]),
        ("from nowhere", store_with(), []),
        ("doubled", store_with("a", "a"), [create_operation(), A]),
        ("doubled", store_with("a", "b", numbers={"s": [(1, "a"), (1, "b")]}), [create_operation(), A, B]),
        ("half stored", store_with("a"), [create_operation(), add_operation("a", "b", began=1, outcome="unknown")]),
        ("half stored", store_with("b"), [create_operation(), add_operation("a", "b", began=1)]),
        ("altered", alter(store_with("a"), content="x"), [create_operation(), A]),
        ("altered", alter(store_with("a"), role="x"), [create_operation(), A]),
        ("altered", alter(store_with("a"), metadata={"k": 1}), [create_operation(), A]),
        ("altered", store_with(title="x"), [create_operation()]),
        (
            "altered",
            store_with(title="t"),
            [create_operation(), call_operation("update_session_title", 1, fields={"title": "new"})],
        ),
        ("altered", store_with(user_id="x"), [create_operation()]),
        (
            "altered",
            store_with(metadata={"k": 1.0}),
            [create_operation(fields={"title": "t", "metadata": {"k": 1}, "user_id": "u"})],
        ),
        ("out of order", store_with("b", "a"), [create_operation(), A, B]),
        ("out of order", store_with("c", "a", "b"), [create_operation(), A, B, C]),
        ("out of order", store_with("b", "a"), [create_operation(), A, add_operation("b", began=2, outcome="unknown")]),
        ("out of order", store_with("b", "a"), [create_operation(), add_operation("a", "b", began=1)]),
        ("out of order", alter(store_with("a", "b"), created_at=format_time(50)), [create_operation(), A, B]),
        ("out of order", store_with("a", "b", numbers={"s": [(2, "a"), (1, "b")]}), [create_operation(), A, B]),
        ("gap", store_with("a", "b", numbers={"s": [(1, "a"), (3, "b")]}), [create_operation(), A, B]),
        ("miscounted", store_with("a", message_count=2), [create_operation(), A]),
        ("undeleted", store_with(), [create_operation(), call_operation("delete_session", 1)]),
        (
            "undeleted",
            store_with("a"),
            [create_operation(), A, call_operation("clear_all", 2, session=None), create_operation(3)],
        ),
        ("undeleted", Stored({}, {"s": [(1, "a")]}), [create_operation(), A, call_operation("delete_session", 2)]),
        ("wrong read", store_with("a", "b"), [create_operation(), A, B, call_operation("get_history", 3, seen=("a",))]),
        (
            "wrong read",
            store_with("a", "b"),
            [create_operation(), A, B, call_operation("get_history", 3, seen=("b", "a"))],
        ),
        ("wrong read", store_with("a"), [create_operation(), A, call_operation("get_history", 3, seen=("a", "x"))]),
        (
            "foreign error",
            store_with(),
            [create_operation(), add_operation("a", began=1, outcome="unknown", error="OSError", foreign=True)],
        ),
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
        (store_with("a", "b", "c"), [create_operation(), A, B, C]),
        (store_with("a"), [create_operation(), add_operation("a", began=1, outcome="unknown")]),
        (store_with(), [create_operation(), add_operation("a", began=1, outcome="unknown")]),
        (store_with(), [create_operation(), add_operation("a", "b", began=1, outcome="unknown")]),
        (store_with("a", "b"), [create_operation(), add_operation("a", "b", began=1, outcome="unknown")]),
        (store_with(), [create_operation(), add_operation("a", began=1, outcome="failed")]),
        (store_with("a"), [create_operation(), A, add_operation("a", began=2, outcome="failed")]),
        (
            store_with("a"),
            [create_operation(), add_operation("a", began=1, outcome="unknown"), add_operation("a", began=2)],
        ),
        (store_with("b", "a"), [create_operation(), add_operation("a", began=1, ended=5), add_operation("b", began=2)]),
        (store_with("b", "a"), [create_operation(), add_operation("a", began=1, outcome="unknown"), B]),
        (store_with("a"), [create_operation(), add_operation("a", "b", began=1, outcome="unknown"), A]),
        (Stored({}), [create_operation(), A, call_operation("delete_session", 2)]),
        (Stored({}), [create_operation(), add_operation("a", began=1, ended=3), call_operation("delete_session", 2)]),
        (store_with("a"), [create_operation(), A, call_operation("delete_session", 2, outcome="unknown")]),
        (Stored({}), [create_operation(), A, call_operation("delete_session", 2, outcome="unknown")]),
        (
            store_with("b"),
            [create_operation(), A, call_operation("clear_all", 1.5, session=None), create_operation(1.7), B],
        ),
        (Stored({}), [create_operation(outcome="unknown")]),
        (
            store_with(title="x"),
            [create_operation(), call_operation("update_session_title", 1, outcome="unknown", fields={"title": "x"})],
        ),
        (
            store_with(),
            [create_operation(), call_operation("update_session_title", 1, outcome="failed", fields={"title": "x"})],
        ),
        (store_with("a", "b", numbers={"s": [(2, "b"), (1, "a")]}), [create_operation(), A, B]),
        (store_with("a", "b"), [create_operation(), A, call_operation("get_history", 1.5, seen=("a",)), B]),
        (
            store_with("a", "b"),
            [
                create_operation(),
                A,
                add_operation("b", began=2, ended=9),
                call_operation("get_history", 3, seen=("a",)),
            ],
        ),
    ],
)
def test_allowed_histories_have_no_violation(stored: Stored, operations: list[Operation]) -> None:
    """Overlapping calls in either order, unknown calls stored or not, deleted data: all of it is allowed."""
    assert check(History(tuple(operations)), stored) == []


def test_earlier_content_is_not_a_violation() -> None:
    """A store that was not empty is compared with its earlier content."""
    assert find_kinds(store_with("a", "b"), B, before=store_with("a")) == []
    assert find_kinds(store_with("b"), B, before=store_with("a")) == ["lost"]
    assert find_kinds(store_with("b", "a"), B, before=store_with("a")) == ["out of order"]


def test_a_killed_process_leaves_a_record(tmp_path: Path) -> None:
    """A call without an answer is unknown, and an incomplete last line is accepted."""
    journal = Journal(tmp_path / "killed.jsonl")
    answered = journal.begin(create_operation())
    journal.end(answered, "acknowledged")
    journal.begin(add_operation("a", "b", began=1))
    journal.close()
    path = tmp_path / "killed.jsonl"
    path.write_bytes(path.read_bytes() + json.dumps({"begin": "x"}).encode()[:-3])
    history = History.read(path)
    assert [(one.method, one.outcome) for one in history.operations] == [
        ("create_session", "acknowledged"),
        ("add_messages", "unknown"),
    ]
    assert check(history, store_with("a", "b")) == []
    assert find_kinds(store_with("a"), *history.operations) == ["half stored"]


def test_an_empty_history_has_no_longest_call() -> None:
    """An empty history has a longest call of 0 seconds."""
    assert (History(()).longest_call(), History(()).longest_outage()) == (0.0, 0.0)
