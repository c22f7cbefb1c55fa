"""Clauses on handles that want the same rows: no deadlock and no wait for a lock may lose or halve a write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from flux_memory import BackendUnavailableError, Memory, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.ledger import Ledger
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents, gather_outcomes

ROUNDS: Final = 3
CALLERS: Final = 4
"""Concurrent callers of each handle."""
SHARED: Final = 8
"""Messages that every caller adds, in one order or the other."""


class ContentionContract(Binding):
    """The promises to handles that write to the same sessions."""

    @clause(
        "FM-CON-021",
        promise="Handles that write to the same sessions and messages in opposite orders all end: each call succeeds, "
        "or raises a documented error and has stored nothing.",
        impact="Of two calls that block each other, one is reported as stored and is lost, or half of it is stored.",
        needs=Capability.BATCH
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSIONS
        | Capability.TITLES
        | Capability.SEVERAL_HANDLES,
    )
    async def test_writes_in_opposite_orders(self, store: StoreUnderTest) -> None:
        handles = [store.open(), store.open()]
        ledgers = [Ledger(made) for made in await asyncio.gather(*(handles[0].create_session() for _ in range(2)))]

        async def collide(number: int) -> None:
            shared, doomed = await asyncio.gather(*(handles[0].create_session("before") for _ in range(2)))
            ids = [f"{number} {place}" for place in range(SHARED)]
            adds, retries, changes = [], [], []
            for caller in range(CALLERS):
                for at, handle in enumerate(handles):
                    # One handle begins with the first session and the first message, the other with the last.
                    order = slice(None, None, -1 if at else 1)
                    name = f"{number} {caller} {at}"
                    adds += [ledger.add(handle, f"{name} a", f"{name} b", f"{name} c") for ledger in ledgers[order]]
                    retries.append(_add_all(handle, shared, ids[order]))
                    changes += [
                        handle.add_message(doomed, "user", name),
                        handle.update_session_title(shared, name),
                        handle.delete_session(doomed),
                    ]
            _, stored, changed = await asyncio.gather(
                asyncio.gather(*adds), gather_outcomes(*retries), gather_outcomes(*changes)
            )
            _documented(stored, BackendUnavailableError)
            _documented(changed, BackendUnavailableError, SessionNotFoundError)
            await _is_whole(handles[1], shared, ids if any(outcome is True for outcome in stored) else None)
            await handles[0].delete_session(doomed)
            assert await handles[1].get_session(doomed) is None
            assert await handles[1].get_history(doomed) == []

        await asyncio.gather(*map(collide, range(ROUNDS)))
        for handle in handles:
            await handle.close()
        for ledger in ledgers:
            await ledger.judge(store)


async def _add_all(memory: Memory, session: str, ids: Sequence[str]) -> bool:
    await memory.add_messages(session, [{"role": "user", "content": i, "message_id": i} for i in ids])
    return True


async def _is_whole(memory: Memory, session: str, ids: Sequence[str] | None) -> None:
    """Assert that a batch, which several calls added, is stored once and whole; `None` if none of them succeeded."""
    found = sorted(contents(await memory.get_history(session)))
    assert found == sorted(ids or ()) or (ids is None and len(found) == SHARED), f"{len(found)} of {SHARED} messages"
    record = await memory.get_session(session)
    assert record is not None
    assert record["message_count"] == len(found)


def _documented(outcomes: Sequence[Any], *kinds: type[Exception]) -> None:
    wrong = [one for one in outcomes if isinstance(one, BaseException) and not isinstance(one, kinds)]
    if wrong:
        raise AssertionError(f"unexpected: {wrong[:3]!r}") from wrong[0]
