"""Memories that break clauses on metadata."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, ClassVar

from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import KIB, cut_text


def reduce(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return JSON with a change applied to it and to everything in it."""
    value = change(value)
    if isinstance(value, dict):
        return {change(key): reduce(item, change) for key, item in value.items()}
    return [reduce(item, change) for item in value] if isinstance(value, list) else value


class _ReducesMetadata(Sound):
    def change(self, value: Any) -> Any:
        raise NotImplementedError

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        return [{**row, "metadata": reduce(row["metadata"], self.change)} for row in rows]


@caught_by("FM-MET-017")
class CutsLongTextsInMetadata(_ReducesMetadata):
    def change(self, value: Any) -> Any:
        return cut_text(value, 64 * KIB)


@caught_by("FM-MET-017")
class CutsLongKeys(_ReducesMetadata):
    def change(self, value: Any) -> Any:
        return {key[:255]: item for key, item in value.items()} if isinstance(value, dict) else value


@caught_by("FM-MET-017")
class KeepsOneThousandKeys(_ReducesMetadata):
    """Like a search engine with a limit on the fields of a document."""

    def change(self, value: Any) -> Any:
        return dict(list(value.items())[:1_000]) if isinstance(value, dict) else value


@caught_by("FM-MET-017")
class KeepsOneThousandElements(_ReducesMetadata):
    def change(self, value: Any) -> Any:
        return value[:1_000] if isinstance(value, list) else value


@caught_by("FM-MET-017")
class SessionsDropLargeMetadata(Sound):
    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "metadata": row["metadata"] if len(str(row["metadata"])) < 64 * KIB else {}}


@caught_by("FM-MET-017")
class ListsDropLargeMetadata(Sound):
    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [{**row, "metadata": row["metadata"] if len(str(row["metadata"])) < 64 * KIB else {}} for row in rows]


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return change(value)


class _ChangesWhatIsRead(Sound):
    def change(self, value: Any) -> Any:
        raise NotImplementedError

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        return [{**row, "metadata": _mapped(row["metadata"], self.change)} for row in rows]


class _ChangesWhatIsWritten(Sound):
    def change(self, metadata: Any) -> Any:
        raise NotImplementedError

    async def create_session(self, title: Any = "", metadata: Any = None, **kwargs: Any) -> Any:
        return await super().create_session(title, self.change(metadata), **kwargs)

    async def add_message(self, session_id: Any, role: Any, content: Any, metadata: Any = None, **kwargs: Any) -> Any:
        return await super().add_message(session_id, role, content, self.change(metadata), **kwargs)


@caught_by("FM-MET-001")
class BoolsAreNumbers(_ChangesWhatIsRead):
    def change(self, value: Any) -> Any:
        return int(value) if isinstance(value, bool) else value


@caught_by("FM-MET-001")
class DropsEmptyKeys(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        return {key: value for key, value in metadata.items() if key} if isinstance(metadata, dict) else metadata


@caught_by("FM-MET-002")
class ListsWithoutMetadata(Sound):
    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        return [{**row, "metadata": {}} for row in await super().get_sessions(*args, **kwargs)]


@caught_by("FM-MET-003")
class LargeFloatsBecomeInts(_ChangesWhatIsRead):
    def change(self, value: Any) -> Any:
        return int(value) if isinstance(value, float) and abs(value) >= 1e16 else value


@caught_by("FM-MET-003")
class WholeFloatsBecomeInts(_ChangesWhatIsRead):
    def change(self, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value


@caught_by("FM-MET-004")
class IntsThroughFloats(_ChangesWhatIsRead):
    def change(self, value: Any) -> Any:
        return int(float(value)) if type(value) is int and 2**53 < abs(value) < 10**300 else value


@caught_by("FM-MET-005")
class KeepsNegativeZero(_ChangesWhatIsRead):
    def change(self, value: Any) -> Any:
        return -0.0 if isinstance(value, float) and value == 0 else value


@caught_by("FM-MET-006")
class RefusesMappings(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        return metadata if isinstance(metadata, dict | list | None) else json.loads(json.dumps(metadata))


@caught_by("FM-MET-007")
class EmptyIsNone(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return [{**row, "metadata": row["metadata"] or None} for row in await super().get_history(*args, **kwargs)]


@caught_by("FM-MET-008")
class FalsyIsEmpty(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        return metadata or {}


@caught_by("FM-MET-009")
class KeysBecomeText(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        return {str(key): value for key, value in metadata.items()} if isinstance(metadata, dict) else metadata


@caught_by("FM-MET-010")
class NanBecomesNull(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        return _mapped(metadata, lambda value: None if isinstance(value, float) and math.isnan(value) else value)


@caught_by("FM-MET-011")
class DropsNul(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        return _mapped(metadata, lambda value: value.replace("\x00", "") if isinstance(value, str) else value)


@caught_by("FM-MET-012")
class ReplacesHalfEmoji(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        return _mapped(
            metadata, lambda value: value.encode(errors="replace").decode() if isinstance(value, str) else value
        )


@caught_by("FM-MET-013")
class StoresTheRepr(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        known = (str, int, float, list, tuple, dict, type(None))
        return _mapped(metadata, lambda value: value if isinstance(value, known) else repr(value))


@caught_by("FM-MET-014")
class FlattensTheDeep(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        return self._cut(metadata, 1)

    def _cut(self, value: Any, depth: int) -> Any:
        if depth > 100 and isinstance(value, dict | list):
            return None
        if isinstance(value, dict):
            return {key: self._cut(item, depth + 1) for key, item in value.items()}
        return [self._cut(item, depth + 1) for item in value] if isinstance(value, list) else value


@caught_by("FM-MET-015")
class AddsToTheArgument(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        if isinstance(metadata, dict):
            metadata.setdefault("source", "chat")
        return metadata


@caught_by("FM-MET-016")
class SharesWhatItRead(Sound):
    cached: ClassVar[dict[str, Any]] = {}

    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(session_id, *args, **kwargs)
        return [self.cached.setdefault(row["id"], row) for row in rows]


@caught_by("FM-MET-017")
class DropsTheLarge(_ChangesWhatIsWritten):
    def change(self, metadata: Any) -> Any:
        return {} if len(str(metadata)) > 500_000 else metadata
