"""Checks of pops, truncations, updates and forks in a history."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from flux_memory.testkit.histories.expected import Expected
from flux_memory.testkit.histories.journal import Operation
from flux_memory.testkit.histories.stored import Stored
from flux_memory.testkit.histories.violations import Violation


def _removed_twice(expected: Expected, _: Stored) -> Iterator[Violation]:
    """Each add stores its message once, so that no more calls can remove it."""
    for name, made in expected.removals.named():
        attempts, certain = expected.messages[name, made], expected.removals.certain(name, made)
        if len(certain) <= expected.removals.most_stores(name, made):
            continue
        if attempts.calls():
            yield Violation("removed twice", f"{show(certain[-1])} removed {made!r}, which was removed before")
        else:
            yield Violation("from nowhere", f"{show(certain[-1])} removed {made!r}, but no call sent it")


def _vanished(expected: Expected, stored: Stored) -> Iterator[Violation]:
    """A pop without an answer removes one message at most."""
    missing: dict[str, list[str]] = defaultdict(list)
    for (name, made), attempts in expected.messages.items():
        there = name in stored.sessions and any(each["id"] == made for each in stored.sessions[name].history)
        explained = expected.removals.may_remove(name, made, pops=False)
        if not there and not explained and expected.must_be_there(name, attempts):
            missing[name].append(made)
    for name, ids in missing.items():
        unknown = expected.removals.unknown_pops(name)
        if 0 < unknown < len(ids):
            yield Violation(
                "lost",
                f"{len(ids)} acknowledged messages of session {name!r} are not stored, and {unknown} pops may have "
                f"removed one each: {ids[:10]}",
            )


def _pops(expected: Expected, stored: Stored) -> Iterator[Violation]:
    """A pop takes the newest message."""
    for operation in expected.history.operations:
        name = operation.session or ""
        if operation.method != "pop_message" or operation.outcome != "acknowledged" or name not in stored.sessions:
            continue
        popped = None if operation.popped is None else expected.messages[name, operation.popped]
        for message in stored.sessions[name].history:
            attempts = expected.messages[name, message["id"]]
            # Added once and never removed, so it was there during the call.
            stayed = attempts.calls() == 1 and attempts.there < operation.began and not expected.deletions(name)
            if stayed and popped is None:
                yield Violation("wrong read", f"{show(operation)} found no message, but {message['id']!r} was there")
            elif stayed and popped is not None and popped.there < attempts.began:
                yield Violation(
                    "out of order", f"{show(operation)} removed {operation.popped!r}, but {message['id']!r} was newer"
                )


def _came_back(expected: Expected, _: Stored) -> Iterator[Violation]:
    """A message that was removed as often as it was added is not read again."""
    for operation in expected.history.operations:
        name = operation.session or ""
        for made in operation.seen or ():
            certain = expected.removals.certain(name, made)
            gone = [one for one in certain if one.ended < operation.began]
            if gone and len(gone) >= expected.removals.most_stores(name, made):
                yield Violation("undeleted", f"{show(operation)} saw {made!r}, whose removal was acknowledged before")


def _revisions(expected: Expected, _: Stored) -> Iterator[Violation]:
    """Of the changes that expected one revision, one can succeed."""
    done = [one for one in expected.history.operations if one.outcome == "acknowledged"]
    changes = [one for one in done if one.method == "update_session"]
    wanted: Counter[tuple[str | None, str | None]] = Counter(
        (one.session, one.expected_revision) for one in changes if one.expected_revision
    )
    for one in done:
        # A deletion that finds no session succeeds in any case.
        sure = one.method == "delete_session" and len(list(expected.deletions(one.session or ""))) == 1
        if sure and wanted[one.session, one.expected_revision]:
            wanted[one.session, one.expected_revision] += 1
    for (name, revision), times in wanted.items():
        if times > 1:
            yield Violation("overwritten", f"{times} changes of session {name!r} expected {revision!r} and succeeded")
    told = Counter((one.session, one.revision) for one in changes if one.revision)
    for (name, revision), times in told.items():
        if times > 1:
            yield Violation("overwritten", f"{times} changes of session {name!r} returned the revision {revision!r}")


def _forks(expected: Expected, stored: Stored) -> Iterator[Violation]:
    """A fork copies a state of its source: in the same order, and no batch in part."""
    for fork in expected.history.operations:
        source, copy = fork.source or "", fork.session or ""
        if fork.source is None or fork.outcome == "failed" or not {source, copy} <= stored.sessions.keys():
            continue
        if expected.removals.of(source) or expected.deletions(source) or expected.removals.of(copy):
            continue
        original = [message["id"] for message in stored.sessions[source].history]
        copied = [message["id"] for message in stored.sessions[copy].history]
        common = [made for made in copied if made in set(original)]
        if common != original[: len(common)]:
            yield Violation("out of order", f"{show(fork)} did not copy the beginning of {source!r} in its order")
        for batch in expected.history.operations:
            ids = {sent.id for sent in batch.messages} if batch.session == source else set()
            if fork.through is None and len(ids) > 1 and 0 < len(ids & set(copied)) < len(ids & set(original)):
                yield Violation("half stored", f"{show(fork)} copied a part of the messages of {show(batch)}")


def could_be(found: dict[str, Any], made: dict[str, Any], changes: Sequence[Operation]) -> bool:
    """Return whether a session that was made with this metadata can have the one that was found.

    Args:
        found: The metadata that is stored.
        made: The metadata with which the session was created.
        changes: The updates that may have changed it.
    """
    if not changes:
        return same_json(found, made)
    merged = [change.merged or {} for change in changes]
    for key, value in found.items():
        if not any(key in one and same_json(value, one[key]) for one in (made, *merged)):
            return False
    removable = {key for change in changes for key in change.removed_keys}
    written = made.keys() | {
        key for change in changes if change.outcome == "acknowledged" for key in (change.merged or {})
    }
    return written - removable <= found.keys()


def same_json(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal by type and value."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def show(operation: Operation) -> str:
    """Return a call in words."""
    return f"{operation.method}({operation.session!r}) of worker {operation.worker}, begun at {operation.began:.6f}"


CHANGES: Final[Sequence[Callable[[Expected, Stored], Iterator[Violation]]]] = (
    _removed_twice,
    _vanished,
    _pops,
    _came_back,
    _revisions,
    _forks,
)
