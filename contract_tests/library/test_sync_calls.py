"""Each method of `SyncMemory` has the signature of the protocol's, and passes its arguments on."""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import get_type_hints

import pytest
from sync_docstrings import PAIRS, Pair, methods, with_docstrings

import flux_memory
import flux_memory.sync
from flux_memory import ConflictError, MemoryClosedError, NewMessage
from flux_memory.sync import SyncMemory


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.promised)
def test_the_methods_are_those_of_the_protocol(pair: Pair) -> None:
    """Each method takes the same arguments, returns what the coroutine returns, and has the same docstring."""
    source = pair.sync.read_text("utf-8")
    promised, kept = methods(pair.protocol.read_text("utf-8"), pair.promised), methods(source, pair.kept)
    assert promised.keys() == kept.keys()
    for name in promised:
        ours = getattr(getattr(flux_memory.sync, pair.kept), name)
        theirs = getattr(getattr(flux_memory, pair.promised), name)
        assert isinstance(ours, property) == isinstance(theirs, property), name
        if not isinstance(ours, property):
            assert inspect.signature(ours) == inspect.signature(theirs), name
            assert get_type_hints(ours) == get_type_hints(theirs), name
            assert not inspect.iscoroutinefunction(ours), name
    assert source == with_docstrings(pair), "run python tools/sync_docstrings.py"


def test_a_conversation_without_await(open_sync_memory: Callable[[], SyncMemory]) -> None:
    """Every method works, and `with` closes the memory."""
    with open_sync_memory() as memory:
        session = memory.create_session("old", {"lang": "ko"}, user_id="ann")
        memory.add_message(session, "user", "1")
        ids = memory.add_messages(session, [{"role": "user", "content": text} for text in "23"])
        memory.update_session_title(session, "new")
        assert [row["content"] for row in memory.get_history(session)] == ["1", "2", "3"]
        assert [row["content"] for row in memory.get_history(session, 1, before=ids[1])] == ["2"]
        assert [row["title"] for row in memory.get_sessions(user_id="ann", metadata={"lang": "ko"})] == ["new"]
        found = memory.get_session(session)
        assert found is not None
        assert (found["message_count"], memory.count_sessions()) == (3, 1)
        memory.delete_session(session)
        memory.create_session()
        memory.clear_all()
        assert memory.count_sessions() == 0
    with pytest.raises(MemoryClosedError):
        memory.count_sessions()
    with pytest.raises(MemoryClosedError):
        memory.add_messages(session, None)  # type: ignore[arg-type]  # the arguments do not matter any more
    with pytest.raises(MemoryClosedError):
        memory.update_session(session, remove_metadata="ab")
    memory.close()


def test_changes_without_await(open_sync_memory: Callable[[], SyncMemory]) -> None:
    """Every argument of the methods that change a conversation reaches the memory."""
    with open_sync_memory() as memory:
        first = memory.add_message("trip", "user", "1", create=True, user_id="ann")
        rest = memory.add_messages("trip", [{"role": "user", "content": text} for text in "234"], user_id="ann")
        with pytest.raises(ConflictError):
            memory.add_messages("trip", [{"role": "user", "content": "5"}], user_id="bob")
        assert memory.add_messages("empty", [], create=True) == []
        assert [row["content"] for row in memory.get_history("trip", 2, after=first)] == ["2", "3"]
        assert memory.get_message("trip", rest[0]) == memory.get_history("trip")[1]
        popped = memory.pop_message("trip")
        assert popped is not None
        assert popped["content"] == "4"
        fork = memory.fork_session("trip", through=first, new_session_id="copy", user_id="bob", title="copied")
        assert [row["content"] for row in memory.get_history(fork)] == ["1"]
        revision = memory.get_sessions(user_id="ann")[0]["revision"]
        changed = memory.update_session(
            "trip",
            expected_revision=revision,
            title="new",
            merge_metadata={"lang": "ko", "draft": True},
            truncate_from=rest[0],
            messages=[{"role": "user", "content": "2 again"}],
        )
        assert (changed["title"], changed["message_count"]) == ("new", 2)
        assert [row["metadata"] for row in memory.get_sessions(before=changed, with_metadata=False)] == [{}]
        assert memory.update_session("trip", remove_metadata=["draft"])["metadata"] == {"lang": "ko"}
        assert memory.update_session("trip", truncate_all=True)["message_count"] == 0
        assert memory.count_sessions(user_id="ann", metadata={"lang": "ko"}) == 1
        with pytest.raises(ConflictError):
            memory.delete_session("trip", expected_revision=revision)
        assert memory.delete_sessions(user_id="bob", inactive_since=datetime.now(UTC) + timedelta(days=1)) == 1
        assert [row["id"] for row in memory.get_sessions()] == ["trip"]


def test_feedback_without_await(open_sync_memory: Callable[[], SyncMemory]) -> None:
    """Every argument of the methods of feedback reaches the memory."""
    with open_sync_memory() as memory:
        memory.create_session(session_id="trip", user_id="ann")
        given = {"message_id": "m", "comment": "c", "corrected_answer": "a", "metadata": {"k": 1}}
        assert memory.feedback.add("trip", -1, feedback_id="f", **given) == "f"  # type: ignore[arg-type]
        other = memory.feedback.add("gone", 1)
        with pytest.raises(ConflictError):
            memory.feedback.add("trip", 0, feedback_id="f")
        (entry,) = memory.feedback.get(session_id="trip", message_id="m", rating=-1)
        assert entry == {"feedback_id": "f", "session_id": "trip", "rating": -1, **given} | {
            "created_at": entry["created_at"]
        }
        assert [row["feedback_id"] for row in memory.feedback.get(1, 1)] == ["f"]
        counted = memory.feedback.stats()
        assert (counted["total"], counted["positive"], counted["negative"]) == (2, 1, 1)
        assert memory.feedback.stats(since=datetime.now(UTC) + timedelta(days=1))["by_day"] == []
        memory.feedback.delete(other)
        memory.delete_sessions(user_id="ann")
        assert memory.feedback.get() == []
    with pytest.raises(MemoryClosedError):
        memory.feedback.stats()


def test_a_batch_is_read_in_the_thread_of_its_caller(open_sync_memory: Callable[[], SyncMemory]) -> None:
    """A generator may read a cursor that belongs to the thread, or call the memory itself, without a deadlock."""

    def keys() -> Iterator[str]:
        yield from memory.get_sessions()[0]["metadata"]

    def copied(role: str) -> Iterator[NewMessage]:
        for row in memory.get_history(session):
            yield {"role": role, "content": row["content"]}

    with open_sync_memory() as memory, closing(sqlite3.connect(":memory:")) as db:
        session = memory.create_session()
        rows = db.execute("VALUES ('1'), ('2')")
        memory.add_messages(session, ({"role": "user", "content": text} for (text,) in rows))
        memory.add_messages(session, copied("system"))
        assert [(row["role"], row["content"]) for row in memory.get_history(session)] == [
            ("user", "1"),
            ("user", "2"),
            ("system", "1"),
            ("system", "2"),
        ]
        memory.update_session(session, merge_metadata={"a": 1, "b": 2})
        changed = memory.update_session(session, remove_metadata=keys(), messages=copied("tool"))
        assert (changed["metadata"], changed["message_count"]) == ({}, 8)
