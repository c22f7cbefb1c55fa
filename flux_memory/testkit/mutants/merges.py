"""Memories that break clauses on the metadata of updates."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
import unicodedata
from typing import Any, ClassVar

from flux_memory import MAX_METADATA_BYTES, ConflictError, InvalidInputError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.reference import values


class _ChangesMerges(Sound):
    """Merges something else than it is given, which may depend on what is stored."""

    def merged(self, stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    async def update_session(self, session_id: Any, *, merge_metadata: Any = None, **given: Any) -> Any:
        row = await super().get_session(session_id)
        if row is not None and isinstance(merge_metadata, dict):
            merge_metadata = self.merged(row["metadata"], merge_metadata)
        return await super().update_session(session_id, merge_metadata=merge_metadata, **given)


@caught_by("FM-UPD-020")
class MergesDeeply(_ChangesMerges):
    """Merges objects into objects, as SQLite's `json_patch` does, except for nulls."""

    def merged(self, stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        both = {key: stored[key] for key in given if key in stored}
        return {
            key: self.merged(both[key], value) | {k: v for k, v in both[key].items() if k not in value}
            if isinstance(value, dict) and isinstance(both.get(key), dict)
            else value
            for key, value in given.items()
        }


@caught_by("FM-UPD-020")
class ExtendsLists(_ChangesMerges):
    def merged(self, stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        return {
            key: [*stored[key], *value] if isinstance(value, list) and isinstance(stored.get(key), list) else value
            for key, value in given.items()
        }


@caught_by("FM-UPD-020")
class ReplacesTheMetadata(Sound):
    async def update_session(self, session_id: Any, *, merge_metadata: Any = None, **given: Any) -> Any:
        row = await super().get_session(session_id)
        if row is not None and isinstance(merge_metadata, dict):
            given["remove_metadata"] = [*given.get("remove_metadata", ()), *row["metadata"]]
        return await super().update_session(session_id, merge_metadata=merge_metadata, **given)


@caught_by("FM-UPD-021")
class NullIsNotMerged(_ChangesMerges):
    def merged(self, stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        del stored
        return {key: value for key, value in given.items() if value is not None}


@caught_by("FM-UPD-021")
class NullDeletes(Sound):
    async def update_session(self, session_id: Any, *, merge_metadata: Any = None, **given: Any) -> Any:
        if isinstance(merge_metadata, dict):
            gone = [key for key, value in merge_metadata.items() if value is None]
            merge_metadata = {key: value for key, value in merge_metadata.items() if value is not None}
            given["remove_metadata"] = [*given.get("remove_metadata", ()), *gone]
        return await super().update_session(session_id, merge_metadata=merge_metadata, **given)


@caught_by("FM-UPD-021")
class NestedNullsAreDropped(_ChangesMerges):
    def merged(self, stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        return {
            key: {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value
            for key, value in given.items()
        }


@caught_by("FM-UPD-021", reference_only=True)
class AnUpdateDropsStoredNulls(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        made = await super().update_session(session_id, **given)
        if given.get("merge_metadata") is None:
            return made
        with self._store.writing() as sessions:
            state = sessions[session_id]
            state["metadata"] = {
                key: value
                for key, value in state["metadata"].items()
                if value is not None or key in given["merge_metadata"]
            }
        return await super().get_session(session_id)


def _numbers(value: Any, change: Any) -> Any:
    """Return JSON with its numbers changed."""
    if isinstance(value, dict):
        return {key: _numbers(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item, change) for item in value]
    return change(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


@caught_by("FM-UPD-022")
class MergedFloatsBecomeIntegers(_ChangesMerges):
    def merged(self, stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        del stored
        changed: dict[str, Any] = _numbers(given, lambda one: int(one) if one == 1 else one)
        return changed


@caught_by("FM-UPD-022")
class MergedIntegersAreDoubles(_ChangesMerges):
    def merged(self, stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        del stored
        changed: dict[str, Any] = _numbers(given, lambda one: int(float(one)) if 2**53 < abs(one) < 2**64 else one)
        return changed


@caught_by("FM-UPD-022", reference_only=True)
class AMergeReadsTheRestAsDoubles(Sound):
    """Decodes and encodes the stored metadata: the keys that are not merged change."""

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        await super().update_session(session_id, **given)
        with self._store.writing() as sessions:
            metadata = sessions[session_id]["metadata"]
            merged = given.get("merge_metadata") or {}
            for key in metadata.keys() - merged.keys():
                metadata[key] = _numbers(metadata[key], lambda one: int(float(one)) if abs(one) < 2**64 else one)
        return await super().get_session(session_id)


@caught_by("FM-UPD-022")
class TextsAreMergedAsJson(_ChangesMerges):
    def merged(self, stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        del stored
        return {key: int(value) if value == "1" else value for key, value in given.items()}


@caught_by("FM-UPD-023")
class RemovesByPath(_ChangesMerges):
    async def update_session(self, session_id: Any, *, remove_metadata: Any = (), **given: Any) -> Any:
        keys = list(remove_metadata)
        row = await super().get_session(session_id)
        metadata = row["metadata"] if row else {}
        for key in keys:
            first, _, rest = key.partition(".")
            if rest and isinstance(metadata.get(first), dict) and rest in metadata[first]:
                kept = {name: value for name, value in metadata[first].items() if name != rest}
                given["merge_metadata"] = {first: kept} | (given.get("merge_metadata") or {})
        return await super(_ChangesMerges, self).update_session(session_id, remove_metadata=keys, **given)


class _FindsKeys(Sound):
    """Removes each stored key that it takes for one of the given keys."""

    def is_meant(self, stored: str, keys: list[str]) -> bool:
        raise NotImplementedError

    async def update_session(self, session_id: Any, *, remove_metadata: Any = (), **given: Any) -> Any:
        keys = list(remove_metadata)
        row = await super().get_session(session_id)
        keys += [key for key in (row["metadata"] if row else {}) if self.is_meant(key, keys)]
        return await super().update_session(session_id, remove_metadata=keys, **given)


@caught_by("FM-UPD-023")
class RemovesInAnyCase(_FindsKeys):
    def is_meant(self, stored: str, keys: list[str]) -> bool:
        return stored.lower() in [key.lower() for key in keys]


@caught_by("FM-UPD-023")
class RemovesComposedKeys(_FindsKeys):
    def is_meant(self, stored: str, keys: list[str]) -> bool:
        return unicodedata.normalize("NFC", stored) in keys


@caught_by("FM-UPD-023")
class MissingKeysAreErrors(Sound):
    async def update_session(self, session_id: Any, *, remove_metadata: Any = (), **given: Any) -> Any:
        keys = list(remove_metadata)
        row = await super().get_session(session_id)
        if row is not None and set(keys) - row["metadata"].keys():
            raise InvalidInputError("remove_metadata has a key that the session does not have")
        return await super().update_session(session_id, remove_metadata=keys, **given)


@caught_by("FM-UPD-024")
class RemovesAfterItMerges(Sound):
    async def update_session(
        self, session_id: Any, *, merge_metadata: Any = None, remove_metadata: Any = (), **given: Any
    ) -> Any:
        keys = list(remove_metadata)
        if isinstance(merge_metadata, dict):
            merge_metadata = {key: value for key, value in merge_metadata.items() if key not in keys}
        return await super().update_session(session_id, merge_metadata=merge_metadata, remove_metadata=keys, **given)


@caught_by("FM-UPD-024")
class MergesIntoWhatItRemoves(_ChangesMerges):
    def merged(self, stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        return {
            key: {**stored[key], **value} if isinstance(value, dict) and isinstance(stored.get(key), dict) else value
            for key, value in given.items()
        }

    async def update_session(self, session_id: Any, *, remove_metadata: Any = (), **given: Any) -> Any:
        keys = list(remove_metadata)
        super_call = super().update_session if keys else super(_ChangesMerges, self).update_session
        return await super_call(session_id, remove_metadata=keys, **given)


@caught_by("FM-UPD-025")
class FiltersByTheFirstMetadata(Sound):
    """Has an index for filters, which only creations fill."""

    index: ClassVar[dict[str, Any]] = {}

    async def create_session(self, title: Any = "", metadata: Any = None, **given: Any) -> Any:
        session = await super().create_session(title, metadata, **given)
        self.index[session] = metadata or {}
        return session

    async def get_sessions(self, *args: Any, metadata: Any = None, **given: Any) -> Any:
        rows = await super().get_sessions(*args, **given)
        return [row for row in rows if not metadata or values.contains(self.index.get(row["id"], {}), metadata)]


@caught_by("FM-UPD-025")
class IndexesKeepRemovedKeys(Sound):
    """Adds merged metadata to an index, and leaves what it replaces there."""

    index: ClassVar[dict[str, list[Any]]] = {}

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        row = await super().get_session(session_id)
        made = await super().update_session(session_id, **given)
        self.index.setdefault(session_id, []).append(row and row["metadata"])
        return made

    async def get_sessions(self, *args: Any, metadata: Any = None, **given: Any) -> Any:
        return [
            row
            for row in await super().get_sessions(*args, **given)
            if any(values.contains(one, metadata or {}) for one in (row["metadata"], *self.index.get(row["id"], ())))
        ]


@caught_by("FM-UPD-026", reference_only=True)
class MergesWithoutABound(Sound):
    async def update_session(self, session_id: Any, *, merge_metadata: Any = None, **given: Any) -> Any:
        made = await super().update_session(session_id, merge_metadata={}, **given)
        with self._store.writing() as sessions:
            sessions[session_id]["metadata"] |= merge_metadata or {}
            return {**made, "metadata": sessions[session_id]["metadata"]}


@caught_by("FM-UPD-026")
class ChecksTheSizeFirst(Sound):
    """Reports the size of a change that another client has overtaken."""

    async def update_session(self, session_id: Any, *, merge_metadata: Any = None, **given: Any) -> Any:
        row = await super().get_session(session_id)
        if row is not None and values.size({**row["metadata"], **(merge_metadata or {})}) > MAX_METADATA_BYTES:
            raise InvalidInputError("the metadata would be too large")
        return await super().update_session(session_id, merge_metadata=merge_metadata, **given)


@caught_by("FM-UPD-028")
class CountsWhatIsReplaced(Sound):
    async def update_session(self, session_id: Any, *, merge_metadata: Any = None, **given: Any) -> Any:
        row = await super().get_session(session_id)
        if row is not None and merge_metadata:
            size = values.size(row["metadata"]) + values.size(merge_metadata)
            if size > MAX_METADATA_BYTES:
                raise InvalidInputError("the metadata would be too large")
        return await super().update_session(session_id, merge_metadata=merge_metadata, **given)


@caught_by("FM-UPD-027")
class MergesIntoWhatItHasRead(Sound):
    """Reads the metadata, merges, and writes all of it."""

    async def update_session(self, session_id: Any, *, merge_metadata: Any = None, **given: Any) -> Any:
        row = await super().get_session(session_id)
        await asyncio.sleep(0)
        if row is not None and merge_metadata and not given:
            now = await super().get_session(session_id)
            given["remove_metadata"] = list(now["metadata"] if now else ())
            merge_metadata = {**row["metadata"], **merge_metadata}
        return await super().update_session(session_id, merge_metadata=merge_metadata, **given)


@caught_by("FM-UPD-027")
class ConcurrentUpdatesConflict(Sound):
    busy: ClassVar[dict[str, int]] = {}

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        self.busy[session_id] = self.busy.get(session_id, 0) + 1
        try:
            if self.busy[session_id] > 1:
                raise ConflictError("could not serialize access due to concurrent update")
            await asyncio.sleep(0)
            return await super().update_session(session_id, **given)
        finally:
            self.busy[session_id] -= 1
