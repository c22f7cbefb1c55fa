"""Memories that break clauses on the life of a handle."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
import selectors
from typing import Any, ClassVar

from flux_memory import (
    BackendUnavailableError,
    FluxMemoryError,
    MemoryClosedError,
)
from flux_memory.testkit.mutants.catalogue import Sound, caught_by


@caught_by("FM-LIF-001")
class ClosingTwiceFails(Sound):
    gone = False

    async def close(self) -> None:
        if self.gone:
            raise MemoryClosedError("closed already")
        self.gone = True
        await super().close()


@caught_by("FM-LIF-002", reference_only=True)
class OpensAgain(Sound):
    async def count_sessions(self, **given: Any) -> Any:
        self._closed = False
        return await super().count_sessions(**given)


@caught_by("FM-LIF-003")
class ArgumentsBeforeState(Sound):
    async def get_session(self, session_id: Any) -> Any:
        if not isinstance(session_id, str):
            raise TypeError("session_id must be a str")
        return await super().get_session(session_id)


@caught_by("FM-LIF-012")
class ClosedPopsFindNothing(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        try:
            return await super().pop_message(session_id)
        except MemoryClosedError:
            return None


@caught_by("FM-LIF-012")
class ForksCheckTheirArgumentsFirst(Sound):
    async def fork_session(self, session_id: Any, **kwargs: Any) -> Any:
        if not isinstance(session_id, str):
            raise TypeError("session_id must be a str")
        return await super().fork_session(session_id, **kwargs)


@caught_by("FM-LIF-004")
class SwallowsErrors(Sound):
    async def __aexit__(self, *exc_info: object) -> Any:
        await super().__aexit__(*exc_info)
        return True


@caught_by("FM-LIF-005")
class AcknowledgesWhatCloseDrops(Sound):
    shut = False

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        if self.shut:
            return "00000000-0000-7000-8000-000000000000"
        return await super().add_message(session_id, *args, **kwargs)

    async def close(self) -> None:
        self.shut = True
        await super().close()


@caught_by("FM-LIF-006")
class ClosesThemAll(Sound):
    gone: ClassVar[bool] = False

    async def close(self) -> None:
        type(self).gone = True
        await super().close()

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        if self.gone:
            raise BackendUnavailableError("the pool is closed")
        return await super().add_message(*args, **kwargs)


@caught_by("FM-LIF-007")
class LeavesASelectorOpen(Sound):
    """Closes its store, but leaks the file of its selector."""

    left: ClassVar[dict[int, selectors.BaseSelector]] = {}

    async def close(self) -> None:
        self.left[id(self)] = selectors.DefaultSelector()
        await super().close()


@caught_by("FM-LIF-008", reference_only=True)
class NeverWarns(Sound):
    def __del__(self) -> None:
        pass


@caught_by("FM-LIF-009")
class BoundToItsLoop(Sound):
    loop: asyncio.AbstractEventLoop | None = None

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        running = asyncio.get_running_loop()
        self.loop = self.loop or running
        if self.loop is not running:
            raise RuntimeError("got Future attached to a different loop")
        return await super().add_message(*args, **kwargs)

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        self.loop = asyncio.get_running_loop()
        return await super().create_session(*args, **kwargs)


@caught_by("FM-LIF-010")
class DiesWithItsLoop(BoundToItsLoop):
    pass


@caught_by("FM-LIF-009")
class RefusesOtherLoops(BoundToItsLoop):
    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().add_message(*args, **kwargs)
        except RuntimeError as error:
            raise FluxMemoryError("create one memory for each event loop") from error


@caught_by("FM-LIF-010")
class RefusesTheNextLoop(RefusesOtherLoops):
    pass


@caught_by("FM-LIF-011")
class DamageHidesAll(Sound):
    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        for row in await super().get_sessions(None):
            await super().get_history(row["id"])
        return await super().get_history(session_id, *args, **kwargs)


@caught_by("FM-LIF-011")
class DamageIsSkipped(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().get_history(*args, **kwargs)
        except FluxMemoryError:
            return []


@caught_by("FM-LIF-013")
class DamageLeavesASnapshot(Sound):
    snapshot: Any = None

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().get_history(*args, **kwargs)
        except FluxMemoryError:
            self.snapshot = {row["id"]: row for row in await super().get_sessions(None)}
            raise

    async def get_session(self, session_id: Any) -> Any:
        return (self.snapshot or {}).get(session_id) or await super().get_session(session_id)
