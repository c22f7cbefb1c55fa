"""Memories that break clauses on the ids of other systems."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any
from uuid import UUID

from flux_memory.testkit.mutants.catalogue import Sound, caught_by


class _ChangesIds(Sound):
    """Changes the ids that a caller gives, in each call that a clause makes."""

    def known_as(self, given: Any) -> Any:
        raise NotImplementedError

    def _text(self, given: Any) -> Any:
        return self.known_as(given) if isinstance(given, str) else given

    async def create_session(self, *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        return await super().create_session(*args, session_id=self._text(session_id), **kwargs)

    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        given = self._text(message_id)
        return await super().add_message(self._text(session_id), *args, message_id=given, **kwargs)

    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().get_history(self._text(session_id), *args, **kwargs)

    async def get_session(self, session_id: Any) -> Any:
        return await super().get_session(self._text(session_id))


@caught_by("FM-LIM-030")
class IdsHave80Characters(_ChangesIds):
    def known_as(self, given: Any) -> Any:
        return given[:80]


@caught_by("FM-LIM-030")
class IdsHave254Characters(_ChangesIds):
    def known_as(self, given: Any) -> Any:
        return given[:254] if len(given) < 256 else given


@caught_by("FM-LIM-030")
class CursorsHave36Characters(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **kwargs: Any) -> Any:
        before = before[:36] if isinstance(before, str) else before
        return await super().get_history(session_id, limit, before=before, **kwargs)


@caught_by("FM-LIM-030")
class DeletionsHave36Characters(Sound):
    async def delete_session(self, session_id: Any, **kwargs: Any) -> None:
        await super().delete_session(session_id[:36], **kwargs)


@caught_by("FM-LIM-030")
class LookUpsHave36Characters(Sound):
    async def get_message(self, session_id: Any, message_id: Any) -> Any:
        return await super().get_message(session_id, message_id[:36] if isinstance(message_id, str) else message_id)


@caught_by("FM-LIM-030")
class ForksHave80Characters(Sound):
    async def fork_session(self, session_id: Any, *, new_session_id: Any = None, **kwargs: Any) -> Any:
        new = new_session_id[:80] if isinstance(new_session_id, str) else new_session_id
        return await super().fork_session(session_id, new_session_id=new, **kwargs)


@caught_by("FM-LIM-031")
class IdsAreUuidsWherePossible(_ChangesIds):
    """Stores what looks like a UUID in the one notation of a UUID column."""

    def known_as(self, given: Any) -> Any:
        try:
            return str(UUID(given))
        except ValueError:
            return given


@caught_by("FM-LIM-031")
class IdsAreNumbersWherePossible(_ChangesIds):
    def known_as(self, given: Any) -> Any:
        return str(int(given)) if given.isdecimal() else given


@caught_by("FM-LIM-031")
class IdsAreDecoded(_ChangesIds):
    """Decodes percent signs, as a store on a server may."""

    def known_as(self, given: Any) -> Any:
        return given.replace("%20", " ")


@caught_by("FM-LIM-031")
class IdsEndAtASemicolon(_ChangesIds):
    def known_as(self, given: Any) -> Any:
        return given.partition(";")[0]
