"""Helpers of several groups of broken memories."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from flux_memory import BackendUnavailableError, deadline
from flux_memory.backends.deadlines import seconds_for
from flux_memory.testkit.mutants.catalogue import Sound

LOCK_SECONDS = 0.2
"""How long a call waits for a lock; short, so that clauses fail quickly."""
LONG_SECONDS = 30.0
"""The deadline of a call without one."""
KIB, MIB = 1 << 10, 1 << 20


def cut_text(value: Any, most: int) -> Any:
    """Return a text up to the cap; the sound memory refuses other types."""
    return value[:most] if isinstance(value, str) else value


class _WritesBackWhatItRead(Sound):
    def shared(self) -> Any:
        raise NotImplementedError

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        with self._store.reading() as sessions:
            before = copy.deepcopy(sessions[session_id]["messages"]) if session_id in sessions else []
        await asyncio.sleep(0)
        made = await super().add_message(session_id, *args, **kwargs)
        with self._store.writing() as sessions:
            sessions[session_id]["messages"] = [*before, sessions[session_id]["messages"][-1]]
        return made


class _ChangesContent(Sound):
    def change(self, content: Any) -> Any:
        raise NotImplementedError

    async def add_message(self, session_id: Any, role: Any, content: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().add_message(session_id, role, self.change(content), *args, **kwargs)


class _WorksInATask(Sound):
    """Works in a task that ignores the caller's deadline and cancellation."""

    after_seconds = 0.0

    async def in_a_task(self, call: Any) -> Any:
        work = asyncio.ensure_future(self._work(call))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(seconds_for(LONG_SECONDS)):
                return await asyncio.shield(work)
        except TimeoutError:
            raise BackendUnavailableError("not within the deadline; nothing was stored") from None

    async def _work(self, call: Any) -> Any:
        await asyncio.sleep(self.after_seconds)
        with deadline(LONG_SECONDS):
            return await call
