"""Memories whose close() takes its deadline several times."""

# ruff: noqa: D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from contextlib import suppress

from flux_memory import FluxMemoryError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by


@caught_by("FM-DLN-008")
class TakesItsDeadlineTwiceToClose(Sound):
    """Waits until the deadline for its calls, and as long again for its connections."""

    async def close(self) -> None:
        for _ in range(2):
            with suppress(FluxMemoryError):
                await self.delete_session("no session")
        await super().close()
