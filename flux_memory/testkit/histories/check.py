"""Holds what a store has in the end against what was asked of it and what was answered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from flux_memory import Message
from flux_memory.testkit.histories.asked import Asked
from flux_memory.testkit.histories.journal import History, Operation, Sent
from flux_memory.testkit.histories.stored import Stored, StoredSession
from flux_memory.testkit.histories.violations import Violation


def check(history: History, stored: Stored, before: Stored | None = None) -> list[Violation]:
    """Return every promise that was not kept; nothing if all were.

    Acknowledged is a subset of stored, refused and stored have nothing in common, nothing is half stored, and the
    order of each session agrees with real time for calls that did not overlap.

    Args:
        history: What the workers did. Nobody else may have written.
        stored: What the store had when they were done.
        before: What it had when they began, if it was not empty.
    """
    asked = Asked(history, before)
    return [violation for part in _PARTS for violation in part(asked, stored)]


def _errors(asked: Asked, _: Stored) -> Iterator[Violation]:
    for operation in asked.history.operations:
        if operation.foreign:
            yield Violation("foreign error", f"{_shown(operation)} raised {operation.error}, which is none of ours")


def _sessions(asked: Asked, stored: Stored) -> Iterator[Violation]:
    for name, attempts in asked.sessions.items():
        if name not in stored.sessions and asked.must_be_there(name, attempts):
            yield Violation("lost", f"session {name!r} was acknowledged and is not stored")
    for name, session in stored.sessions.items():
        attempts = asked.sessions[name]
        if not attempts.made:
            # Its creation was not recorded; a session that no call names at all is somebody else's.
            if all(operation.session != name for operation in asked.history.operations):
                yield Violation("from nowhere", f"session {name!r} is stored, and no call created it")
            continue
        if not attempts.possible():
            yield Violation("refused but stored", f"session {name!r} is stored, and its creation was refused")
        elif asked.must_be_gone(name, attempts):
            yield Violation("undeleted", f"session {name!r} was deleted, which was acknowledged, and is stored")
        else:
            yield from _session_as_sent(asked, name, session)


def _session_as_sent(asked: Asked, name: str, session: StoredSession) -> Iterator[Violation]:
    record = session.record
    sent = [fields for _, fields in asked.sessions[name].possible()]
    if not any(_same(record["metadata"], one["metadata"]) and record["user_id"] == one["user_id"] for one in sent):
        yield Violation("altered", f"session {name!r} is not as it was sent: {record!r:.300}")
    titles = asked.titles[name].possible()
    current = [
        title
        for one, title in titles
        if not any(other.outcome == "acknowledged" and other.began > one.ended for other, _ in titles)
    ]
    if record["title"] not in current:
        yield Violation(
            "altered", f"session {name!r} has the title {record['title']!r:.80}, not one of {current!r:.200}"
        )


def _messages(asked: Asked, stored: Stored) -> Iterator[Violation]:
    found = {(name, message["id"]) for name, session in stored.sessions.items() for message in session.history}
    for (name, made), attempts in asked.messages.items():
        if (name, made) not in found and asked.must_be_there(name, attempts):
            yield Violation("lost", f"message {made!r} of session {name!r} was acknowledged and is not stored")
    for name, session in stored.sessions.items():
        for message in session.history:
            yield from _message_as_sent(asked, name, message)


def _message_as_sent(asked: Asked, name: str, message: Message) -> Iterator[Violation]:
    attempts = asked.messages[name, message["id"]]
    what = f"message {message['id']!r} of session {name!r}"
    if not attempts.made:
        yield Violation("from nowhere", f"{what} is stored, and no call sent it")
    elif not attempts.possible():
        yield Violation("refused but stored", f"{what} is stored, and it was refused with {attempts.made[0][0].error}")
    elif asked.must_be_gone(name, attempts):
        yield Violation("undeleted", f"{what} was deleted, which was acknowledged, and is stored")
    elif not any(_as_sent(message, sent) for _, sent in attempts.possible()):
        yield Violation("altered", f"{what} is not as it was sent: {message!r:.300}")


def _batches(asked: Asked, stored: Stored) -> Iterator[Violation]:
    places = _places(stored)
    for operation in asked.history.operations:
        if operation.outcome == "failed" or len(operation.messages) < 2:
            continue
        name = operation.session or ""
        # What another call sent as well may be stored by that one.
        own = [sent.id for sent in operation.messages if len(asked.messages[name, sent.id].possible()) == 1]
        there = [places[name, made] for made in own if (name, made) in places]
        if 0 < len(there) < len(own):
            yield Violation("half stored", f"of {_shown(operation)} {len(there)} of {len(own)} messages are stored")
        if there != sorted(there):
            yield Violation("out of order", f"the messages of {_shown(operation)} are stored in another order")


def _order(asked: Asked, stored: Stored) -> Iterator[Violation]:
    for name, session in stored.sessions.items():
        ids = [message["id"] for message in session.history]
        for made, times in Counter(ids).items():
            if times > 1:
                yield Violation("doubled", f"message {made!r} of session {name!r} is stored {times} times")
        earliest, earliest_id = math.inf, ""
        for made in reversed(ids):
            attempts = asked.messages[name, made]
            if earliest < attempts.began < math.inf:
                yield Violation(
                    "out of order",
                    f"in session {name!r}, {made!r} stands before {earliest_id!r}, which was acknowledged "
                    f"{attempts.began - earliest:.6f} s before the other was sent",
                )
            if attempts.there < earliest:
                earliest, earliest_id = attempts.there, made
        moments = [message["created_at"] for message in session.history]
        if moments != sorted(moments):
            yield Violation("out of order", f"created_at decreases along the history of session {name!r}")


def _counts(_: Asked, stored: Stored) -> Iterator[Violation]:
    for name, session in stored.sessions.items():
        told, real = session.record["message_count"], len(session.history)
        if told != real:
            yield Violation("miscounted", f"session {name!r} has {real} messages and counts {told}")


def _numbers(_: Asked, stored: Stored) -> Iterator[Violation]:
    for name, rows in (stored.numbers or {}).items():
        if name not in stored.sessions:
            yield Violation("undeleted", f"session {name!r} is gone, and {len(rows)} of its messages are stored")
            continue
        numbers = sorted(number for number, _ in rows)
        for number, times in Counter(numbers).items():
            if times > 1:
                yield Violation("doubled", f"session {name!r} has {times} messages with the number {number}")
        if numbers and len(set(numbers)) != numbers[-1] - numbers[0] + 1:
            missing = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
            yield Violation("gap", f"session {name!r} has no message with the numbers {missing[:10]}")
        by_number = [made for _, made in sorted(rows)]
        shown = [message["id"] for message in stored.sessions[name].history]
        if by_number != shown:
            yield Violation("out of order", f"the history of session {name!r} is not in the order of its numbers")


def _reads(asked: Asked, stored: Stored) -> Iterator[Violation]:
    """Look at reads of whole histories that nothing was removed from: each saw a beginning of the final one."""
    finals = {name: [message["id"] for message in one.history] for name, one in stored.sessions.items()}
    for operation in asked.history.operations:
        name = operation.session or ""
        if operation.seen is None or name not in finals or asked.deletions(name):
            continue
        final, seen = finals[name], list(operation.seen)
        if seen != final[: len(seen)]:
            yield Violation("wrong read", f"{_shown(operation)} saw messages that are not stored, or in another order")
            continue
        late = next((made for made in final[len(seen) :] if asked.messages[name, made].there < operation.began), None)
        if late is not None:
            yield Violation("wrong read", f"{_shown(operation)} did not see {late!r}, acknowledged before it began")


_PARTS: Final[Sequence[Callable[[Asked, Stored], Iterator[Violation]]]] = (
    _errors,
    _sessions,
    _messages,
    _batches,
    _order,
    _counts,
    _numbers,
    _reads,
)


def _places(stored: Stored) -> dict[tuple[str, str], int]:
    return {
        (name, message["id"]): at
        for name, session in stored.sessions.items()
        for at, message in enumerate(session.history)
    }


def _as_sent(message: Message, sent: Sent) -> bool:
    return (message["role"], message["content"]) == (sent.role, sent.content) and _same(
        message["metadata"], sent.metadata
    )


def _same(one: Any, other: Any) -> bool:
    """Tell whether two JSON values are equal by type and value."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _shown(operation: Operation) -> str:
    return f"{operation.method}({operation.session!r}) of worker {operation.worker}, begun at {operation.began:.6f}"
