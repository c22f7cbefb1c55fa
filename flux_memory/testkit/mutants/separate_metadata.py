"""Memories that break clauses on metadata in batches, with the names of fields, and beside other metadata."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any, ClassVar

from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.metadata import reduce
from flux_memory.testkit.mutants.shared import MIB


class _ChangesBatches(Sound):
    def change(self, value: Any) -> Any:
        raise NotImplementedError

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        changed: list[Any] = [{**one, "metadata": reduce(one["metadata"], self.change)} for one in messages]
        return await super().add_messages(session_id, changed, **given)


@caught_by("FM-MET-018")
class BatchesLoseThePoint(_ChangesBatches):
    def change(self, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value


@caught_by("FM-MET-018")
class BatchesHaveNoBooleans(_ChangesBatches):
    def change(self, value: Any) -> Any:
        return int(value) if isinstance(value, bool) else value


@caught_by("FM-MET-018")
class BatchesDropNull(_ChangesBatches):
    def change(self, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class _ReadsNotation(Sound):
    def change(self, value: Any) -> Any:
        raise NotImplementedError

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        return [{**row, "metadata": reduce(row["metadata"], self.change)} for row in rows]


@caught_by("FM-MET-019")
class ReadsExtendedJson(_ReadsNotation):
    """Like a driver for documents, to which `{"$date": ...}` is a time."""

    def change(self, value: Any) -> Any:
        return value["$date"] if isinstance(value, dict) and value.keys() == {"$date"} else value


@caught_by("FM-MET-019")
class ReadsTypedValues(_ReadsNotation):
    """Like a driver for key-value tables, to which `{"S": "x"}` is a text."""

    def change(self, value: Any) -> Any:
        return value["S"] if isinstance(value, dict) and value.keys() == {"S"} else value


@caught_by("FM-MET-019")
class ListsBecomeSets(_ReadsNotation):
    def change(self, value: Any) -> Any:
        texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return sorted(set(value)) if texts else value


@caught_by("FM-MET-019")
class DropsInnerNull(_ReadsNotation):
    def change(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if item is not None or key != "d"}


@caught_by("FM-MET-019")
class MetadataOverridesFields(Sound):
    """Keeps a session as one flat document."""

    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [{**row, "title": row["metadata"].get("title", row["title"])} for row in rows]


@caught_by("FM-MET-020")
class MessagesExtendTheirSession(Sound):
    added: ClassVar[dict[str, Any]] = {}

    async def add_message(self, session_id: Any, role: Any, content: Any, metadata: Any = None, **kwargs: Any) -> Any:
        made = await super().add_message(session_id, role, content, metadata, **kwargs)
        self.added.setdefault(session_id, {}).update(metadata or {})
        return made

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "metadata": {**row["metadata"], **self.added.get(session_id, {})}}


@caught_by("FM-MET-020")
class FiltersByMessages(Sound):
    """Joins the tables, and compares the wrong column of the same name."""

    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        found = []
        for row in await super().get_sessions(*args, **kwargs):
            stored = [row["metadata"], *(one["metadata"] for one in await super().get_history(row["id"]))]
            if any((metadata or {}).items() <= one.items() for one in stored):
                found.append(row)
        return found


class _SessionsLoseDigits(Sound):
    def change(self, value: Any) -> Any:
        raise NotImplementedError

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "metadata": reduce(row["metadata"], self.change)}


@caught_by("FM-MET-002")
class SessionsLoseThePoint(_SessionsLoseDigits):
    def change(self, value: Any) -> Any:
        return int(value) if isinstance(value, float) and abs(value) >= 1e16 else value


@caught_by("FM-MET-002")
class SessionsKeepDoubles(_SessionsLoseDigits):
    def change(self, value: Any) -> Any:
        return int(float(value)) if type(value) is int and 2**53 < abs(value) < 10**300 else value


@caught_by("FM-MET-018")
class BatchesDropLargeMetadata(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        kept: list[Any] = [one if len(str(one["metadata"])) < MIB else {**one, "metadata": {}} for one in messages]
        return await super().add_messages(session_id, kept, **given)
