"""Callers as an application has them: they begin at different moments, have different deadlines, and some leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from random import Random
from typing import Any, Final, Literal

from flux_memory import BackendUnavailableError, deadline

Ending = Literal["answered", "refused", "left"]
"""`refused`: the call had a deadline of its own, and it passed. `left`: the call was cancelled."""

DEADLINES_SECONDS: Final = (0.02, 0.2, 4.0, None)
"""The deadlines of callers; `None` is the handle's."""
LEAVING: Final = 0.15
"""The share of callers that leave, if they have no answer by then."""
_BEGIN_TURNS: Final = 6
"""Turns of the event loop within which a call begins."""
_LEAVE_TURNS: Final = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55)
"""Turns after which a caller leaves."""


async def call_as_anyone(call: Callable[[], Awaitable[Any]], chance: Random) -> Ending:
    """Make a call as any caller might: at a random turn of the loop, with a random deadline, or cancelled on the way.

    Args:
        call: Makes the call.
        chance: Chooses the caller.

    Returns:
        How the call ended. An error of a call with the handle's deadline is raised, and every error that does not
        say that the store was unavailable.
    """
    await _turns(chance.randrange(_BEGIN_TURNS))
    seconds = chance.choice(DEADLINES_SECONDS)
    calling = asyncio.ensure_future(_within(seconds, call))
    leaves = chance.random() < LEAVING
    try:
        if leaves:
            await _turns(chance.choice(_LEAVE_TURNS))
            calling.cancel()
        await calling
    except BackendUnavailableError:
        if seconds is None:
            raise
        return "refused"
    except asyncio.CancelledError:
        caller = asyncio.current_task()
        if not leaves or (caller is not None and caller.cancelling()):
            raise
        return "left"
    finally:
        # Nothing is left behind where the caller itself was cancelled.
        calling.cancel()
    return "answered"


async def _within(seconds: float | None, call: Callable[[], Awaitable[Any]]) -> None:
    with nullcontext() if seconds is None else deadline(seconds):
        await call()


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)
