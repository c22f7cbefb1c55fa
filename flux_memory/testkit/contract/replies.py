"""What the caller of a write was told, to compare with what is stored."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, NamedTuple

from flux_memory import BackendUnavailableError, Memory, Message, OutcomeUnknownError, Session


class Reply(NamedTuple):
    """The reply to a write."""

    acknowledged: bool | None
    """`True`, or `False` if the write was refused; `None` if its outcome is unknown."""
    result: Any = None
    """The result of an acknowledged write."""

    def check(self, done: bool, what: object) -> None:
        """Fail if the write is acknowledged and not done, or refused and done."""
        told = "acknowledged, but not done" if self.acknowledged else "refused, but done"
        assert self.acknowledged in {None, done}, f"{told}: {what}"


async def reply_to(call: Awaitable[Any]) -> Reply:
    """Wait for a write and return the reply; other errors are raised."""
    try:
        return Reply(True, await call)
    except OutcomeUnknownError:
        return Reply(None)
    except BackendUnavailableError:
        return Reply(False)


async def find_state(memory: Memory, session: str) -> tuple[Session | None, list[Message]]:
    """Return the record of a session, or `None`, and its history."""
    return await memory.get_session(session), await memory.get_history(session)
