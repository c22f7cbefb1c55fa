"""Memories that break clauses on the locks of other clients."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any

from flux_memory import BackendUnavailableError, deadline
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import LOCK_SECONDS, LONG_SECONDS
from flux_memory.testkit.reference.rows import new_id


@caught_by("FM-CON-050")
class AcknowledgesAnAddThatWaited(Sound):
    """Takes a lock that the server gave up for the end of the write."""

    async def add_message(self, *args: Any, **given: Any) -> Any:
        try:
            return await super().add_message(*args, **given)
        except BackendUnavailableError:
            return given.get("message_id") or new_id()


@caught_by("FM-CON-050")
class AcknowledgesADeletionThatWaited(Sound):
    async def delete_session(self, *args: Any, **given: Any) -> None:
        try:
            with deadline(LOCK_SECONDS):
                await super().delete_session(*args, **given)
        except BackendUnavailableError:
            return


@caught_by("FM-CON-050")
class WaitsForALockWithoutADeadline(Sound):
    async def pop_message(self, *args: Any) -> Any:
        with deadline(LONG_SECONDS):
            return await super().pop_message(*args)


@caught_by("FM-CON-050")
class RaisesWhatTheServerSaid(Sound):
    async def update_session_title(self, *args: Any) -> None:
        try:
            await super().update_session_title(*args)
        except BackendUnavailableError as error:
            raise RuntimeError("1205: lock wait timeout exceeded; try restarting transaction") from error


class _AddsOneByOne(Sound):
    """Undoes the statement that waited for a lock, and not the transaction."""

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        batch = list(messages)
        made: list[Any] = []
        for one in batch:
            try:
                made += await super().add_messages(session_id, [one], **given)
            except BackendUnavailableError:
                return self.ended(made, batch)
        return made

    def ended(self, made: list[Any], batch: list[Any]) -> Any:
        raise NotImplementedError


@caught_by("FM-CON-050")
class KeepsTheFirstHalfOfABatch(_AddsOneByOne):
    def ended(self, made: list[Any], batch: list[Any]) -> Any:
        raise BackendUnavailableError("a lock was not free in time; nothing was stored")


@caught_by("FM-CON-050")
class AcknowledgesHalfABatch(_AddsOneByOne):
    def ended(self, made: list[Any], batch: list[Any]) -> Any:
        return made + [new_id() for _ in batch[len(made) :]]


@caught_by("FM-CON-050")
class AddsBeforeItTruncates(Sound):
    """Adds in a transaction of its own, which a locked message does not stop."""

    async def update_session(self, session_id: Any, **parts: Any) -> Any:
        if parts.get("title") is not None and parts.get("truncate_from") is not None:
            await super().add_message(session_id, "user", "the rest follows")
        return await super().update_session(session_id, **parts)
