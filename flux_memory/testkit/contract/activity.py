"""Clauses on what counts as activity: each change moves its session in every list, and keeps it from retention."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from flux_memory import Memory
from flux_memory.testkit.capabilities import NOTHING, Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.clock import UNSET_CLOCK
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.verdicts import unverified

Change = Callable[[Memory, str], Awaitable[Any]]
"""Changes a session of three messages."""

CHANGES: Final[dict[str, tuple[Capability, Change]]] = {
    "an add": (NOTHING, lambda memory, session: memory.add_message(session, "user", "x")),
    "a batch": (NOTHING, lambda memory, session: memory.add_messages(session, numbered(7, 8))),
    "a rename": (NOTHING, lambda memory, session: memory.update_session_title(session, "new")),
    "an add that may create": (
        Capability.CREATE_ON_ADD,
        lambda memory, session: memory.add_message(session, "user", "x", create=True),
    ),
    "a pop": (Capability.POP, lambda memory, session: memory.pop_message(session)),
    "a title": (Capability.SESSION_UPDATES, lambda memory, session: memory.update_session(session, title="new")),
    "a merge": (
        Capability.SESSION_UPDATES,
        lambda memory, session: memory.update_session(session, merge_metadata={"l": 2}),
    ),
    "an update that appends": (
        Capability.SESSION_UPDATES,
        lambda memory, session: memory.update_session(session, messages=numbered(7)),
    ),
    "a truncation": (Capability.TRUNCATE, lambda memory, session: memory.update_session(session, truncate_all=True)),
    "a fork": (Capability.FORK, lambda memory, session: memory.fork_session(session)),
}
"""The calls that change a session or make one, with what they need beyond those of every memory with lists."""
LISTS: Final[tuple[dict[str, Any], ...]] = ({}, {"user_id": "ann"}, {"metadata": {"k": 1}})
"""The whole list, that of an owner, and a filtered one."""


class ActivityContract(Binding):
    """The promises of lists and retention after each kind of change."""

    @clause(
        "FM-LST-037",
        promise="Each change makes its session the first, once, of every list that it is in: the whole list, its "
        "owner's and a filtered one. `delete_sessions(inactive_since=)` takes it for active.",
        impact="An edited conversation stays at the bottom of its user's list, or is deleted as inactive.",
        needs=Capability.SESSIONS
        | Capability.BATCH
        | Capability.TITLES
        | Capability.TIMESTAMPS
        | Capability.USER_SCOPE
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER,
    )
    async def test_each_change_is_activity(self, store: StoreUnderTest) -> None:
        memory = store.open()
        changes = {name: change for name, (needed, change) in CHANGES.items() if needed in store.capabilities}
        sessions = [await memory.create_session(metadata={"k": 1}, user_id="ann") for _ in changes]
        await memory.create_session(user_id="bob")
        await together(memory.add_messages(session, numbered(0, 1, 2)) for session in sessions)
        # Whole, because the store may keep whole seconds.
        moment = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
        for at, (name, change) in enumerate(changes.items()):
            async with store.clock_at(moment + timedelta(minutes=at)):
                changed = await change(memory, sessions[at])
            whole, own, filtered = await together(memory.get_sessions(None, **given) for given in LISTS)
            active = changed if name == "a fork" else sessions[at]
            assert len({row["id"] for row in whole}) == len(whole), f"listed twice after {name}"
            assert await memory.get_session(active) in whole, f"another record after {name}"
            assert own == filtered == [row for row in whole if row["user_id"] == "ann"], f"other lists after {name}"
            if whole[0]["updated_at"] < moment.isoformat(timespec="seconds"):
                unverified(UNSET_CLOCK)
            assert whole[0]["id"] == active, f"not first after {name}"
            if Capability.LIST_CURSOR in store.capabilities:
                assert await memory.get_sessions(None, before=own[0], user_id="ann") == own[1:], f"after {name}"
        if Capability.RETENTION in store.capabilities:
            # A fork leaves its original as it was, at the end of the list.
            assert await memory.delete_sessions(user_id="ann", inactive_since=moment) == len(own) - len(changes)
            assert await memory.delete_sessions(inactive_since=moment) == 1
            assert await memory.get_sessions(None) == own[: len(changes)]
