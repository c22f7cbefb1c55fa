"""Memories that break clauses on combinations of calls."""

# ruff: noqa: D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any, ClassVar

from flux_memory.testkit.mutants.catalogue import Sound, caught_by


@caught_by("FM-MOD-001")
class BackwardsOnceRenamed(Sound):
    """Stores a batch backwards, but only in a renamed session."""

    _renamed: ClassVar[dict[Any, bool]] = {}

    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(session_id, title)
        self._renamed[session_id] = True

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        backwards = isinstance(messages, list) and isinstance(session_id, str) and session_id in self._renamed
        ids = await super().add_messages(session_id, messages[::-1] if backwards else messages, **given)
        return ids[::-1] if backwards else ids
