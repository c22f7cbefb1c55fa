"""A record of adds to one session and their outcomes, by the text of the messages: no ids are needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container
from dataclasses import replace
from typing import Any

import pytest

from flux_memory import BackendUnavailableError, Memory, MemoryClosedError, OutcomeUnknownError, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.histories import History, Operation, Sent, Stored, StoredSession, check

LONG_SECONDS = 30.0
"""The deadline of a call without a short one."""


class Ledger:
    """The adds to one session. Every message needs a different text."""

    def __init__(self, session: str) -> None:
        self.session = session
        self._operations: list[Operation] = []

    async def add(self, memory: Memory, *texts: str, within: float = LONG_SECONDS) -> bool:
        """Add a message, or a batch; return whether it was acknowledged.

        Args:
            memory: The handle.
            texts: What the messages say.
            within: The deadline, in seconds.
        """
        sent = tuple(Sent(text, "user", text, {}) for text in texts)
        method = "add_message" if len(texts) == 1 else "add_messages"
        at = len(self._operations)
        self._operations.append(Operation(f"{within} s", method, self.session, began=time.monotonic(), messages=sent))
        try:
            with deadline(within):
                if len(texts) == 1:
                    await memory.add_message(self.session, "user", texts[0])
                else:
                    await memory.add_messages(self.session, [{"role": "user", "content": text} for text in texts])
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            pytest.fail(f"the add of {texts} raised CancelledError, but its caller was not cancelled")
        except OutcomeUnknownError:
            return False
        except (BackendUnavailableError, MemoryClosedError) as error:
            self._end(at, outcome="failed", error=type(error).__name__)
            return False
        self._end(at, outcome="acknowledged")
        return True

    def adding(self, memory: Memory, *texts: str, within: float = LONG_SECONDS) -> asyncio.Task[bool]:
        """Start an add as a task."""
        return asyncio.ensure_future(self.add(memory, *texts, within=within))

    def rule_out(self, texts: Container[str], why: str) -> None:
        """Assert that of these messages only the acknowledged ones are stored."""
        for at, operation in enumerate(self._operations):
            if operation.outcome == "unknown" and operation.messages[0].content in texts:
                self._end(at, outcome="failed", error=why)

    async def judge(self, store: StoreUnderTest) -> None:
        """Compare the outcomes with the store. All calls must have ended, and their handles must be closed."""
        async with store.open() as memory:
            # Once this write is done, earlier ones in the session are done as well.
            assert await self.add(memory, "the last message")
            history = await memory.get_history(self.session)
            record: Any = {"metadata": {}, "user_id": "", "title": "", "message_count": len(history)}
            if Capability.SESSIONS in store.capabilities:
                record = await memory.get_session(self.session)
        by_text: Any = [{**message, "id": message["content"]} for message in history]
        stored = Stored({self.session: StoredSession(record, by_text)})
        if violations := check(History(tuple(self._operations)), stored):
            pytest.fail("\n".join(map(str, violations[:10])))

    def _end(self, at: int, **how: Any) -> None:
        self._operations[at] = replace(self._operations[at], ended=time.monotonic(), **how)
