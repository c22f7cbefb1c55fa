"""Memories that break clauses on what counts as activity."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any

from flux_memory.testkit.mutants.catalogue import Sound, caught_by


class _KeepsItsPlaces(Sound):
    """Leaves sessions at the end of some lists after some changes."""

    def is_stale(self, given: dict[str, Any]) -> bool:
        raise NotImplementedError

    def sink(self, session_id: Any) -> None:
        """Note a session that such a list shows at its end."""
        self.__dict__.setdefault("sunk", []).append(session_id)

    async def get_sessions(self, *args: Any, **given: Any) -> Any:
        sunk, rows = self.__dict__.get("sunk", []), await super().get_sessions(*args, **given)
        return sorted(rows, key=lambda row: row["id"] in sunk) if self.is_stale(given) else rows


@caught_by("FM-LST-037")
class PopsAreNoActivity(_KeepsItsPlaces):
    def is_stale(self, given: dict[str, Any]) -> bool:
        return True

    async def pop_message(self, session_id: Any) -> Any:
        self.sink(session_id)
        return await super().pop_message(session_id)


@caught_by("FM-LST-037")
class UpdatesKeepThePlaceInOwnersLists(_KeepsItsPlaces):
    def is_stale(self, given: dict[str, Any]) -> bool:
        return given.get("user_id") is not None

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        self.sink(session_id)
        return await super().update_session(session_id, **given)


@caught_by("FM-LST-037")
class ForksEndFilteredLists(_KeepsItsPlaces):
    def is_stale(self, given: dict[str, Any]) -> bool:
        return given.get("metadata") is not None

    async def fork_session(self, session_id: Any, **given: Any) -> Any:
        made = await super().fork_session(session_id, **given)
        self.sink(made)
        return made


@caught_by("FM-LST-037")
class TruncationsLeaveTheOldPlace(Sound):
    """Lists a truncated session at its old place, too."""

    async def update_session(self, session_id: Any, *, truncate_all: Any = False, **given: Any) -> Any:
        changed = await super().update_session(session_id, truncate_all=truncate_all, **given)
        if truncate_all:
            self.__dict__.setdefault("left", []).append(changed)
        return changed

    async def get_sessions(self, *args: Any, **given: Any) -> Any:
        return [*await super().get_sessions(*args, **given), *self.__dict__.get("left", [])]


@caught_by("FM-LST-037", reference_only=True)
class RetentionMissesPops(Sound):
    """Keeps the sessions' times for retention in a place of its own, which a pop forgets."""

    async def pop_message(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        popped = await super().pop_message(session_id)
        self.__dict__.setdefault("times", {})[session_id] = row and row["updated_at"]
        return popped

    async def delete_sessions(self, *, user_id: Any = None, inactive_since: Any = None) -> Any:
        with self._store.writing() as sessions:
            for name, time in self.__dict__.get("times", {}).items():
                if name in sessions:
                    sessions[name]["updated_at"] = time
        return await super().delete_sessions(user_id=user_id, inactive_since=inactive_since)
