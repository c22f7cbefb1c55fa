"""Memories that break clauses on forks."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
import copy
import unicodedata
from typing import Any

from flux_memory import ConflictError, SessionNotFoundError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.reference.rows import new_id


class _ChangesForks(Sound):
    """Changes the messages or the record of a copy."""

    async def fork_session(self, session_id: Any, **kwargs: Any) -> Any:
        made = await super().fork_session(session_id, **kwargs)
        with self._store.writing() as sessions:
            self.change(sessions[made], sessions[session_id])
        return made

    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        raise NotImplementedError


@caught_by("FM-FRK-001", reference_only=True)
class ForksMintNewIds(_ChangesForks):
    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        fork["messages"] = [{**one, "id": new_id()} for one in fork["messages"]]


@caught_by("FM-FRK-001", reference_only=True)
class ForksDateMessagesAnew(_ChangesForks):
    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        fork["messages"] = [{**one, "created_at": fork["created_at"]} for one in fork["messages"]]


@caught_by("FM-FRK-001", reference_only=True)
class ForksLoseMessageMetadata(_ChangesForks):
    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        fork["messages"] = [{**one, "metadata": {}} for one in fork["messages"]]


@caught_by("FM-FRK-001", reference_only=True)
class ForksAreOrderedById(_ChangesForks):
    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        fork["messages"].sort(key=lambda one: one["id"][::-1])


@caught_by("FM-FRK-002", reference_only=True)
class ForksLoseMetadata(_ChangesForks):
    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        fork["metadata"] = {}


@caught_by("FM-FRK-002")
class ForksKeepTheirOwner(Sound):
    async def fork_session(self, session_id: Any, *, user_id: Any = None, **kwargs: Any) -> Any:
        del user_id
        return await super().fork_session(session_id, **kwargs)


@caught_by("FM-FRK-002")
class EmptyTitlesAreNone(Sound):
    async def fork_session(self, session_id: Any, *, title: Any = None, **kwargs: Any) -> Any:
        return await super().fork_session(session_id, title=title or None, **kwargs)


@caught_by("FM-FRK-002")
class ForksBelongToNobody(Sound):
    async def fork_session(self, session_id: Any, *, user_id: Any = "", **kwargs: Any) -> Any:
        return await super().fork_session(session_id, user_id=user_id or "", **kwargs)


@caught_by("FM-FRK-003")
class ForksIgnoreThrough(Sound):
    async def fork_session(self, session_id: Any, *, through: Any = None, **kwargs: Any) -> Any:
        del through
        return await super().fork_session(session_id, **kwargs)


@caught_by("FM-FRK-003", reference_only=True)
class ThroughIsExclusive(Sound):
    async def fork_session(self, session_id: Any, *, through: Any = None, **kwargs: Any) -> Any:
        made = await super().fork_session(session_id, through=through, **kwargs)
        if through is not None:
            with self._store.writing() as sessions:
                del sessions[made]["messages"][-1:]
        return made


@caught_by("FM-FRK-003", reference_only=True)
class ThroughIsTheFirstMessage(Sound):
    async def fork_session(self, session_id: Any, *, through: Any = None, **kwargs: Any) -> Any:
        made = await super().fork_session(session_id, through=through, **kwargs)
        with self._store.writing() as sessions:
            messages = copy.deepcopy(sessions[session_id]["messages"])
            if through is not None:
                at = [one["id"] for one in messages].index(through)
                sessions[made]["messages"] = messages[at:]
        return made


@caught_by("FM-FRK-004")
class UnknownThroughCopiesAll(Sound):
    async def fork_session(self, session_id: Any, *, through: Any = None, **kwargs: Any) -> Any:
        known = through in [row["id"] for row in await super().get_history(session_id)]
        return await super().fork_session(session_id, through=through if known else None, **kwargs)


@caught_by("FM-FRK-004")
class ForksReplaceSessions(Sound):
    async def fork_session(self, session_id: Any, *, new_session_id: Any = None, **kwargs: Any) -> Any:
        if new_session_id not in {None, session_id} and await super().get_session(session_id) is not None:
            await super().delete_session(new_session_id)
        return await super().fork_session(session_id, new_session_id=new_session_id, **kwargs)


@caught_by("FM-FRK-004")
class RefusedForksLeaveASession(Sound):
    async def fork_session(self, session_id: Any, *, new_session_id: Any = None, **kwargs: Any) -> Any:
        try:
            return await super().fork_session(session_id, new_session_id=new_session_id, **kwargs)
        except ConflictError:
            if new_session_id is not None and await super().get_session(new_session_id) is None:
                await super().create_session(session_id=new_session_id)
            raise


@caught_by("FM-FRK-004")
class ForksOfNothingAreEmpty(Sound):
    async def fork_session(self, session_id: Any, *, new_session_id: Any = None, **kwargs: Any) -> Any:
        try:
            return await super().fork_session(session_id, new_session_id=new_session_id, **kwargs)
        except SessionNotFoundError:
            return await super().create_session(session_id=new_session_id)


@caught_by("FM-FRK-005")
class ForksCutLongIds(Sound):
    async def fork_session(self, session_id: Any, *, new_session_id: Any = None, **kwargs: Any) -> Any:
        if isinstance(new_session_id, str):
            new_session_id = new_session_id[:255]
        return await super().fork_session(session_id, new_session_id=new_session_id, **kwargs)


@caught_by("FM-FRK-005")
class ForksTakeAnyTitle(Sound):
    async def fork_session(self, session_id: Any, *, title: Any = None, **kwargs: Any) -> Any:
        return await super().fork_session(session_id, title=title and str(title), **kwargs)


@caught_by("FM-FRK-006", reference_only=True)
class ForksShareTheirRows(_ChangesForks):
    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        fork["messages"] = original["messages"]


@caught_by("FM-FRK-006")
class DeletionsFollowForks(Sound):
    """Deletes a session with the copies that were made of it."""

    async def fork_session(self, session_id: Any, **kwargs: Any) -> Any:
        made = await super().fork_session(session_id, **kwargs)
        self.__dict__.setdefault("forks", {}).setdefault(session_id, []).append(made)
        return made

    async def delete_session(self, session_id: Any, **kwargs: Any) -> Any:
        for fork in self.__dict__.get("forks", {}).pop(session_id, []):
            await super().delete_session(fork)
        await super().delete_session(session_id, **kwargs)


@caught_by("FM-FRK-007", reference_only=True)
class ForksKeepTheirCreation(_ChangesForks):
    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        fork["created_at"] = original["created_at"]


@caught_by("FM-FRK-007", reference_only=True)
class ForksKeepTheRevision(_ChangesForks):
    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        fork["revision"] = original["revision"]


@caught_by("FM-FRK-007", reference_only=True)
class TheClockDatesForks(_ChangesForks):
    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        fork["created_at"] = fork["updated_at"] = self._now()


@caught_by("FM-FRK-007")
class ForksAreActivity(Sound):
    async def fork_session(self, session_id: Any, **kwargs: Any) -> Any:
        made = await super().fork_session(session_id, **kwargs)
        row: Any = await super().get_session(session_id)
        await super().update_session_title(session_id, row["title"])
        return made


@caught_by("FM-FRK-008", reference_only=True)
class ForksCopyOnePage(_ChangesForks):
    def change(self, fork: dict[str, Any], original: dict[str, Any]) -> None:
        fork["messages"] = fork["messages"][:1_000]


class _ForksInSteps(Sound):
    """Makes a copy by calls of its own: the session first, and then its messages."""

    async def fork_session(self, session_id: Any, *, new_session_id: Any = None, **kwargs: Any) -> Any:
        del kwargs
        row: Any = await super().get_session(session_id)
        rows = await super().get_history(session_id)
        made = await super().create_session(row["title"], row["metadata"], session_id=new_session_id)
        await asyncio.sleep(0)
        batch: Any = [
            {"message_id" if name == "id" else name: value for name, value in one.items() if name != "created_at"}
            for one in rows
        ]
        await super().add_messages(made, batch)
        return made


@caught_by("FM-FRK-020")
class ForksCreateTheSessionFirst(_ForksInSteps):
    pass


@caught_by("FM-FRK-020")
class ForksAreRenamedLast(Sound):
    async def fork_session(self, session_id: Any, *, title: Any = None, **kwargs: Any) -> Any:
        made = await super().fork_session(session_id, title="", **kwargs)
        await asyncio.sleep(0)
        row: Any = await super().get_session(session_id)
        await super().update_session_title(made, row["title"] if title is None else title)
        return made


@caught_by("FM-FRK-021", reference_only=True)
class ForksReadInParts(Sound):
    """Reads the older half by its place from the end, while the end moves."""

    async def fork_session(self, session_id: Any, **kwargs: Any) -> Any:
        with self._store.reading() as sessions:
            first = copy.deepcopy(sessions[session_id]["messages"][:-20])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        made = await super().fork_session(session_id, **kwargs)
        with self._store.writing() as sessions:
            sessions[made]["messages"] = first + sessions[made]["messages"][-20:]
        return made


@caught_by("FM-FRK-021")
class ForksCopyWhatTheySawBefore(Sound):
    """Copies through the last message that its handle has read."""

    async def fork_session(self, session_id: Any, *, through: Any = None, **kwargs: Any) -> Any:
        last: dict[Any, Any] = self.__dict__.setdefault("last", {})
        if session_id not in last and through is None:
            last[session_id] = [row["id"] for row in await super().get_history(session_id, 1)]
        seen = through or next(iter(last.get(session_id, ())), None)
        return await super().fork_session(session_id, through=seen, **kwargs)


@caught_by("FM-FRK-022")
class ForksCheckTheIdFirst(Sound):
    """Looks whether the new id is free, and then replaces the session that has it by then."""

    async def fork_session(self, session_id: Any, *, new_session_id: Any = None, **kwargs: Any) -> Any:
        if new_session_id is not None and await super().get_session(new_session_id) is not None:
            raise ConflictError(new_session_id)
        await asyncio.sleep(0)
        if new_session_id is not None:
            await super().delete_session(new_session_id)
        return await super().fork_session(session_id, new_session_id=new_session_id, **kwargs)


@caught_by("FM-FRK-009", reference_only=True)
class CopiesOfCopiesLoseTheirMetadata(Sound):
    """Looks the metadata up under the session that was copied first."""

    async def fork_session(self, session_id: Any, **kwargs: Any) -> Any:
        made = await super().fork_session(session_id, **kwargs)
        first: set[str] = self.__dict__.setdefault("copies", set())
        if session_id in first:
            with self._store.writing() as sessions:
                sessions[made]["metadata"] = {}
        first.add(made)
        return made


@caught_by("FM-FRK-009")
class CopiesShareTheFate(Sound):
    """Deletes the copies of a copy with it."""

    async def fork_session(self, session_id: Any, **kwargs: Any) -> Any:
        made = await super().fork_session(session_id, **kwargs)
        copies: dict[str, list[str]] = self.__dict__.setdefault("copies", {})
        if any(session_id in each for each in copies.values()):
            copies.setdefault(session_id, []).append(made)
        copies.setdefault("", []).append(made)
        return made

    async def delete_session(self, session_id: Any, **kwargs: Any) -> Any:
        for each in self.__dict__.get("copies", {}).get(session_id, ()):
            await super().delete_session(each)
        return await super().delete_session(session_id, **kwargs)


@caught_by("FM-FRK-010")
class ThroughIsTrimmed(Sound):
    async def fork_session(self, session_id: Any, *, through: Any = None, **given: Any) -> Any:
        return await super().fork_session(session_id, through=through and through.strip(), **given)


@caught_by("FM-FRK-010")
class OwnersOfForksAreFolded(Sound):
    async def fork_session(self, session_id: Any, *, user_id: Any = None, **given: Any) -> Any:
        return await super().fork_session(session_id, user_id=user_id and user_id.casefold(), **given)


@caught_by("FM-FRK-010")
class IdsOfForksAreComposed(Sound):
    async def fork_session(self, session_id: Any, *, new_session_id: Any = None, **given: Any) -> Any:
        composed = new_session_id and unicodedata.normalize("NFC", new_session_id)
        return await super().fork_session(session_id, new_session_id=composed, **given)
