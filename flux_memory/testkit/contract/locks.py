"""Clauses on records that another client has locked: a write ends by its deadline, and is whole or absent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from flux_memory import BackendUnavailableError, Memory, NewMessage, OutcomeUnknownError, SessionNotFoundError, deadline
from flux_memory.testkit.capabilities import NOTHING, Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, contents, gather_outcomes
from flux_memory.testkit.verdicts import unverified

LOCKED_SECONDS: Final = 2.5
"""The deadline of a write that meets a lock: servers give up a lock after whole seconds, the earliest after one."""
GRACE_SECONDS: Final = 5.0
"""By how much such a write may overrun its deadline; much less than a server waits for a lock by default."""
OLD: Final = 4
"""Messages of a session before it is locked."""
LOCKED: Final = 1
"""Which of them is locked; a write reaches it after others."""

State = tuple[str, list[str]] | None
"""The title and the contents of a session; None once it is deleted."""


@dataclass(frozen=True, slots=True)
class LockedWrite:
    """A write that meets a lock, and what it stores in a session of `OLD` messages, from the content "0" on."""

    name: str
    needs: Capability
    make: Callable[[Memory, str, list[str]], Awaitable[Any]]
    """Makes the call, given the session's id and the ids of its messages."""
    contents: Sequence[int] | None
    """None if the session is deleted."""
    title: str = "old"
    """On a memory with titles."""
    meets: int | None = None
    """The number of the message whose lock the write meets; None if it meets that of the session."""

    def after(self, before: State) -> State:
        """Return the state that the write leaves, given the state before it."""
        if self.contents is None or before is None:
            return None
        return (before[0] and self.title, list(map(str, self.contents)))


def _retries(ids: Sequence[str]) -> list[NewMessage]:
    """Return a batch of a new message, a retry of the locked one, and another new message."""
    first, last = numbered(OLD, OLD + 1)
    return [first, {"role": "user", "content": str(LOCKED), "message_id": ids[LOCKED]}, last]


_ALWAYS: Final = (
    LockedWrite("delete_session", NOTHING, lambda m, session, _: m.delete_session(session), None),
    LockedWrite(
        "delete_sessions",
        Capability.RETENTION | Capability.USER_SCOPE | Capability.SESSION_IDS,
        lambda m, session, _: m.delete_sessions(user_id=f"user of {session}"),
        None,
    ),
    LockedWrite(
        "update_session with a truncation",
        Capability.SESSION_UPDATES | Capability.TRUNCATE | Capability.TITLES | Capability.MESSAGE_IDS,
        lambda m, session, ids: m.update_session(session, title="new", truncate_from=ids[LOCKED], messages=numbered(9)),
        (*range(LOCKED), 9),
        "new",
    ),
)
"""Writes that meet the lock of a session, and that of a message in it."""
_OF_A_SESSION: Final = (
    LockedWrite("add_message", NOTHING, lambda m, session, _: m.add_message(session, "user", "9"), (*range(OLD), 9)),
    LockedWrite(
        "add_messages",
        Capability.BATCH,
        lambda m, session, _: m.add_messages(session, numbered(*range(OLD, 9))),
        range(9),
    ),
    LockedWrite(
        "update_session_title",
        Capability.TITLES,
        lambda m, session, _: m.update_session_title(session, "new"),
        range(OLD),
        "new",
    ),
    LockedWrite("pop_message", Capability.POP, lambda m, session, _: m.pop_message(session), range(OLD - 1)),
    *_ALWAYS,
)
_OF_A_MESSAGE: Final = (
    LockedWrite(
        "add_messages with a retry",
        Capability.BATCH | Capability.IDEMPOTENT_IDS,
        lambda m, session, ids: m.add_messages(session, _retries(ids)),
        range(OLD + 2),
    ),
    *_ALWAYS,
)
WRITES: Final = (
    *_OF_A_SESSION,
    *(
        replace(each, name=f"{each.name}, a message locked", needs=each.needs | Capability.MESSAGE_IDS, meets=LOCKED)
        for each in _OF_A_MESSAGE
    ),
)


class LocksContract(Binding):
    """The promises to writes that meet the locks of other clients."""

    @clause(
        "FM-CON-050",
        promise="A write to a session, or to a message in it, that another client has locked ends by its deadline as "
        "its outcome says: it is stored as a whole, or raises `BackendUnavailableError` and has stored nothing. Later "
        "calls work.",
        impact="A write whose wait for a lock ended at the server is reported as stored and is lost, or half of a "
        "batch is stored.",
        needs=Capability.OUTAGES | Capability.SESSIONS,
    )
    async def test_writes_that_meet_locks(self, store: StoreUnderTest) -> None:
        """Each write has a session of its own, and all of them are locked at the same time."""
        chosen = [each for each in WRITES if each.needs in store.capabilities]
        first = store.open()
        several = Capability.SEVERAL_HANDLES in store.capabilities
        handles = [store.open() if several else first for _ in chosen]

        async def prepare(memory: Memory, number: int) -> tuple[str, list[str]]:
            given = {
                Capability.SESSION_IDS: {"session_id": str(number)},
                Capability.TITLES: {"title": "old"},
                Capability.USER_SCOPE: {"user_id": f"user of {number}"},
            }
            claimed: dict[str, Any] = {}
            for needed, argument in given.items():
                claimed |= argument if needed in store.capabilities else {}
            session = await memory.create_session(**claimed)
            return session, await add_numbered(memory, session, range(OLD))

        made = await asyncio.gather(*(prepare(memory, number) for number, memory in enumerate(handles)))
        before = await asyncio.gather(*(_state(first, session) for session, _ in made))
        async with store.hold_locks(
            [
                (session, ids[each.meets] if each.meets is not None else None)
                for each, (session, ids) in zip(chosen, made, strict=True)
            ]
        ):
            with deadline(LOCKED_SECONDS):
                calls = [
                    asyncio.ensure_future(each.make(memory, session, ids))
                    for each, memory, (session, ids) in zip(chosen, handles, made, strict=True)
                ]
            await asyncio.wait(calls, timeout=LOCKED_SECONDS + GRACE_SECONDS)
            late = [each.name for each, call in zip(chosen, calls, strict=True) if not call.done()]
        outcomes = await gather_outcomes(*calls)
        assert not late, f"a deadline of {LOCKED_SECONDS} s, and {GRACE_SECONDS} s later not ended: {', '.join(late)}"
        found = await asyncio.gather(
            *(_state_after_a_write(memory, first, session) for memory, (session, _) in zip(handles, made, strict=True))
        )
        for each, old, outcome, now in zip(chosen, before, outcomes, found, strict=True):
            assert now in _allowed(each, old, outcome), f"{each.name}: {outcome!r}, but the session has {now}"
        if not any(isinstance(outcome, BackendUnavailableError) for outcome in outcomes):
            unverified("no write waited for the locks of hold_locks: lock the records as the backend's writes do")


def _allowed(write: LockedWrite, old: State, outcome: object) -> Sequence[State]:
    """Return the states that a write with this outcome may leave."""
    if isinstance(outcome, OutcomeUnknownError):
        return [old, write.after(old)]
    if isinstance(outcome, BackendUnavailableError):
        return [old]
    if isinstance(outcome, BaseException):
        pytest.fail(f"{write.name} raised {outcome!r}; a write that waits for a lock raises BackendUnavailableError")
    return [write.after(old)]


async def _state_after_a_write(memory: Memory, reader: Memory, session: str) -> State:
    """Add a message by the handle that met the lock; return the state without it."""
    # Once this write is done, earlier ones in the session are done as well.
    with suppress(SessionNotFoundError):
        await memory.add_message(session, "user", "after")
    state = await _state(reader, session)
    if state is None:
        return None
    assert state[1][-1] == "after"
    return state[0], state[1][:-1]


async def _state(memory: Memory, session: str) -> State:
    record, history = await asyncio.gather(memory.get_session(session), memory.get_history(session))
    if record is None:
        assert history == []
        return None
    assert record["message_count"] == len(history)
    return record["title"], contents(history)
