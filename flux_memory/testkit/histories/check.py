"""Compares the final state of a store with the calls made on it and their outcomes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from flux_memory import Message
from flux_memory.testkit.histories.changes_made import CHANGES, could_be, same_json, show
from flux_memory.testkit.histories.expected import Expected
from flux_memory.testkit.histories.journal import History, Sent
from flux_memory.testkit.histories.stored import Stored, StoredSession
from flux_memory.testkit.histories.violations import Violation


def check(history: History, stored: Stored, before: Stored | None = None, *, resends: bool = False) -> list[Violation]:
    """Return every broken promise.

    Every acknowledged write is stored, no failed one is, no batch is stored in part, and the order of each session
    agrees with real time for calls that did not overlap. A message vanishes only by a call that could have removed it,
    no two pops return it, and no two changes that expected the same revision succeed.

    Args:
        history: The calls of the workers. Other clients must not have written.
        stored: The state of the store after them.
        before: The state of the store before them, if it was not empty.
        resends: Whether the backend sends an add again whose answer was lost. Then one call may store its message a
            second time if another call removed it meanwhile.
    """
    expected = Expected(history, before, resends=resends)
    return [violation for part in _PARTS for violation in part(expected, stored)]


def _errors(expected: Expected, _: Stored) -> Iterator[Violation]:
    for operation in expected.history.operations:
        if operation.foreign:
            yield Violation("foreign error", f"{show(operation)} raised {operation.error}, not a library error")


def _sessions(expected: Expected, stored: Stored) -> Iterator[Violation]:
    for name, attempts in expected.sessions.items():
        if name not in stored.sessions and expected.must_be_there(name, attempts):
            yield Violation("lost", f"session {name!r} was acknowledged but is not stored")
    for name, session in stored.sessions.items():
        attempts = expected.sessions[name]
        if not attempts.made:
            # Its creation was not recorded; a session that no call names came from elsewhere.
            if all(operation.session != name for operation in expected.history.operations):
                yield Violation("from nowhere", f"session {name!r} is stored, but no call created it")
            continue
        if not attempts.possible():
            yield Violation("refused but stored", f"session {name!r} is stored, but its creation failed")
        elif expected.must_be_gone(name, attempts):
            yield Violation("undeleted", f"session {name!r} is stored, but its deletion was acknowledged")
        else:
            yield from _session_as_sent(expected, name, session)


def _session_as_sent(expected: Expected, name: str, session: StoredSession) -> Iterator[Violation]:
    record = session.record
    sent = [fields or {} for _, fields in expected.sessions[name].possible()]
    changes = expected.metadata_changes[name]
    if not any(record["user_id"] == one.get("user_id", record["user_id"]) for one in sent) or not any(
        could_be(record["metadata"], one.get("metadata", record["metadata"]), changes) for one in sent
    ):
        yield Violation("altered", f"session {name!r} differs from what was sent: {record!r:.300}")
    titles = expected.titles[name].possible()
    current = [
        title
        for one, title in titles
        if not any(other.outcome == "acknowledged" and other.began > one.ended for other, _ in titles)
    ]
    if record["title"] not in current:
        yield Violation(
            "altered", f"session {name!r} has the title {record['title']!r:.80}, not one of {current!r:.200}"
        )


def _messages(expected: Expected, stored: Stored) -> Iterator[Violation]:
    found = {(name, message["id"]) for name, session in stored.sessions.items() for message in session.history}
    for (name, made), attempts in expected.messages.items():
        removed = expected.removals.may_remove(name, made)
        if (name, made) not in found and not removed and expected.must_be_there(name, attempts):
            yield Violation("lost", f"message {made!r} of session {name!r} was acknowledged but is not stored")
    for name, session in stored.sessions.items():
        for message in session.history:
            yield from _message_as_sent(expected, name, message)


def _message_as_sent(expected: Expected, name: str, message: Message) -> Iterator[Violation]:
    attempts = expected.messages[name, message["id"]]
    what = f"message {message['id']!r} of session {name!r}"
    if not attempts.made:
        yield Violation("from nowhere", f"{what} is stored, but no call sent it")
    elif not attempts.possible():
        yield Violation("refused but stored", f"{what} is stored, but its add failed with {attempts.made[0][0].error}")
    elif expected.must_be_gone(name, attempts) or expected.removals.must_remove(name, message["id"]):
        yield Violation("undeleted", f"{what} is stored, but its removal was acknowledged")
    elif not any(_as_sent(message, sent) for _, sent in attempts.possible()):
        yield Violation("altered", f"{what} is not as it was sent: {message!r:.300}")


def _batches(expected: Expected, stored: Stored) -> Iterator[Violation]:
    places = _places(stored)
    for operation in expected.history.operations:
        if operation.outcome == "failed" or len(operation.messages) < 2:
            continue
        name = operation.session or ""
        # Skip messages that another call sent as well, and may have stored, and those that a call may have removed.
        own = [
            sent.id
            for sent in operation.messages
            if len(expected.messages[name, sent.id].possible()) == 1
            and not expected.removals.could_remove(name, sent.id)
        ]
        there = [places[name, made] for made in own if (name, made) in places]
        if 0 < len(there) < len(own):
            yield Violation("half stored", f"{len(there)} of {len(own)} messages of {show(operation)} are stored")
        if there != sorted(there):
            yield Violation("out of order", f"the messages of {show(operation)} are stored in a different order")


def _order(expected: Expected, stored: Stored) -> Iterator[Violation]:
    for name, session in stored.sessions.items():
        ids = [message["id"] for message in session.history]
        for made, times in Counter(ids).items():
            if times > 1:
                yield Violation("doubled", f"message {made!r} of session {name!r} is stored {times} times")
        earliest, earliest_id = math.inf, ""
        for made in reversed(ids):
            attempts = expected.messages[name, made]
            if earliest < attempts.began < math.inf:
                yield Violation(
                    "out of order",
                    f"in session {name!r}, {made!r} comes before {earliest_id!r}, which was acknowledged "
                    f"{attempts.began - earliest:.6f} s before the other was sent",
                )
            if attempts.there < earliest:
                earliest, earliest_id = attempts.there, made
        moments = [message["created_at"] for message in session.history]
        if moments != sorted(moments):
            yield Violation("out of order", f"created_at decreases along the history of session {name!r}")


def _counts(_: Expected, stored: Stored) -> Iterator[Violation]:
    for name, session in stored.sessions.items():
        told, real = session.record["message_count"], len(session.history)
        if told != real:
            yield Violation("miscounted", f"session {name!r} has {real} messages but a count of {told}")


def _numbers(_: Expected, stored: Stored) -> Iterator[Violation]:
    for name, rows in (stored.numbers or {}).items():
        if name not in stored.sessions:
            yield Violation("undeleted", f"session {name!r} is gone, but {len(rows)} of its messages are stored")
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


def _reads(expected: Expected, stored: Stored) -> Iterator[Violation]:
    """Check reads of complete histories without removals: each has to be a prefix of the final history."""
    finals = {name: [message["id"] for message in one.history] for name, one in stored.sessions.items()}
    for operation in expected.history.operations:
        name = operation.session or ""
        if operation.seen is None or name not in finals or expected.deletions(name) or expected.removals.of(name):
            continue
        final, seen = finals[name], list(operation.seen)
        if seen != final[: len(seen)]:
            yield Violation("wrong read", f"{show(operation)} saw messages that are not stored or in another order")
            continue
        late = next(
            (made for made in final[len(seen) :] if expected.messages[name, made].there < operation.began), None
        )
        if late is not None:
            yield Violation("wrong read", f"{show(operation)} did not see {late!r}, acknowledged before it began")


_PARTS: Final[Sequence[Callable[[Expected, Stored], Iterator[Violation]]]] = (
    _errors,
    _sessions,
    _messages,
    _batches,
    _order,
    _counts,
    _numbers,
    _reads,
    *CHANGES,
)


def _places(stored: Stored) -> dict[tuple[str, str], int]:
    return {
        (name, message["id"]): at
        for name, session in stored.sessions.items()
        for at, message in enumerate(session.history)
    }


def _as_sent(message: Message, sent: Sent) -> bool:
    return (message["role"], message["content"]) == (sent.role, sent.content) and same_json(
        message["metadata"], sent.metadata
    )
