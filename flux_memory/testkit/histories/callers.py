"""Callers as in a real application: they start at different times, with different deadlines, and some leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from random import Random
from typing import Any, Final, Literal

from flux_memory import BackendUnavailableError, deadline

Ending = Literal["answered", "refused", "left"]
"""`refused`: the call had its own deadline, which passed. `left`: the call was cancelled."""

DEADLINES_SECONDS: Final = (0.02, 0.2, 4.0, None)
"""The deadlines of callers; `None` is the handle's deadline."""
LEAVING_SHARE: Final = 0.15
"""The share of callers that leave unless they are answered first."""
_BEGIN_TURNS: Final = 6
"""A call begins within this many turns of the event loop."""
_LEAVE_TURNS: Final = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55)
"""Turns after which a caller leaves."""


async def call_as_anyone(call: Callable[[], Awaitable[Any]], chance: Random) -> Ending:
    """Make a call as any caller might: at a random turn of the loop, with a random deadline, or cancelled.

    Args:
        call: Makes the call.
        chance: The random generator that chooses the caller.

    Returns:
        How the call ended. A call with the handle's deadline raises every error; with its own deadline, every error
        except `BackendUnavailableError`.
    """
    await _turns(chance.randrange(_BEGIN_TURNS))
    seconds = chance.choice(DEADLINES_SECONDS)
    calling = asyncio.ensure_future(_within(seconds, call))
    leaves = chance.random() < LEAVING_SHARE
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
        # Leave no task behind if the caller itself was cancelled.
        calling.cancel()
    return "answered"


async def _within(seconds: float | None, call: Callable[[], Awaitable[Any]]) -> None:
    with nullcontext() if seconds is None else deadline(seconds):
        await call()


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)
