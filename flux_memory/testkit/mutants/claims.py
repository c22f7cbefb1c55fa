"""Memories that break clauses on claims."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any

from flux_memory import (
    BackendUnavailableError,
    InvalidInputError,
)
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.durability import KeepsToItsProcess


@caught_by("FM-CAP-001")
class ClearsNothing(Sound):
    async def clear_all(self) -> None:
        raise InvalidInputError("clear_all is not supported")


@caught_by("FM-CAP-002")
class ReturnsNoId(Sound):
    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        await super().add_message(*args, **kwargs)
        return ""


@caught_by("FM-CAP-002")
class KnowsNoTimes(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return [{**row, "created_at": ""} for row in await super().get_history(*args, **kwargs)]


@caught_by("FM-CAP-003")
class ForgetsAtARestart(KeepsToItsProcess):
    pass


@caught_by("FM-CAP-004")
class BrokenByAnOutage(Sound):
    """Never reconnects after an outage."""

    broken = False

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        if self.broken:
            raise BackendUnavailableError("the connection is closed")
        try:
            return await super().add_message(*args, **kwargs)
        except BackendUnavailableError:
            self.broken = True
            raise


@caught_by("FM-CAP-004")
class DriverErrorsInAnOutage(Sound):
    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().add_message(*args, **kwargs)
        except BackendUnavailableError as error:
            raise ConnectionResetError from error
