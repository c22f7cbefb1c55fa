"""Memories that break clauses on metadata filters at any depth."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import json
import unicodedata
from typing import Any

from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.reference import values


class _Filters(Sound):
    """Filters by containment, with one change."""

    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [row for row in rows if self.contains(row["metadata"], metadata or {}, ())]

    def contains(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        """Return whether a value contains another; `place` has a key for each object above, and `None` for an array."""
        if isinstance(whole, dict) and isinstance(part, dict):
            for key, item in part.items():
                stored = self.stored(whole, key)
                found = stored is not None and self.contains(whole[stored], item, (*place, key))
                if not found and not (stored is None and self.is_missing(key, item, whole, place)):
                    return False
            return True
        if isinstance(whole, list) and isinstance(part, list):
            return all(any(self.contains(one, item, (*place, None)) for one in whole) for item in part)
        return values.equal(whole, part) or self.is_equal(whole, part, place)

    def stored(self, whole: dict[str, Any], key: str) -> str | None:
        """Return the stored key that the filter's key names."""
        return key if key in whole else None

    def is_missing(self, key: str, item: Any, whole: Any, place: tuple[Any, ...]) -> bool:
        """Return whether a missing key counts as a match."""
        return False

    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        """Return whether two different values count as equal."""
        return False


@caught_by("FM-LST-015")
class InnerMissingIsNull(_Filters):
    """Like the path functions of a database, which return NULL for a missing key."""

    def is_missing(self, key: str, item: Any, whole: Any, place: tuple[Any, ...]) -> bool:
        return item is None and bool(place)


@caught_by("FM-LST-015")
class InnerTrueIsOne(_Filters):
    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return len(place) > 1 and not isinstance(whole, str) and bool(whole == part)


@caught_by("FM-LST-015")
class TextsOfNumbersAreNumbers(_Filters):
    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return isinstance(whole, str) and type(part) in {int, float} and whole == str(part)


@caught_by("FM-LST-015")
class TextsOfJsonAreJson(_Filters):
    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return isinstance(part, str) and not isinstance(whole, str) and json.dumps(whole) == part


@caught_by("FM-LST-015")
class EmptyTextIsNull(_Filters):
    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return not whole and part is None and isinstance(whole, str)


@caught_by("FM-LST-016")
class InnerTextsFold(_Filters):
    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return len(place) > 1 and isinstance(whole, str) and isinstance(part, str) and whole.lower() == part.lower()


@caught_by("FM-LST-016")
class TrailingSpacesAreEqual(_Filters):
    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return isinstance(whole, str) and isinstance(part, str) and whole.rstrip(" ") == part.rstrip(" ")


@caught_by("FM-LST-016")
class KeysAreNormalised(_Filters):
    def stored(self, whole: dict[str, Any], key: str) -> str | None:
        composed = unicodedata.normalize("NFC", key)
        return key if key in whole else next((k for k in whole if unicodedata.normalize("NFC", k) == composed), None)


@caught_by("FM-LST-016")
class QuotedKeysAreLost(_Filters):
    """Builds paths without escaping quotes."""

    def stored(self, whole: dict[str, Any], key: str) -> str | None:
        return key if key in whole and '"' not in key else None


@caught_by("FM-LST-016")
class FiltersAreQueries(_Filters):
    """Passes the filter to a store of documents as it is."""

    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return isinstance(part, dict) and "$ne" in part and bool(part["$ne"] != whole)


@caught_by("FM-LST-016")
class FiltersFields(Sound):
    """Keeps a session as one flat document."""

    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [row for row in rows if values.contains({**row, **row["metadata"]}, metadata or {})]


@caught_by("FM-LST-012")
class LooksIntoArrays(_Filters):
    """Like a path of a document store, which leads through arrays."""

    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        if not isinstance(whole, list) or not isinstance(part, dict):
            return False
        return any(self.contains(one, part, place) for one in whole)


@caught_by("FM-LST-012")
class IndexesAreKeys(_Filters):
    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        if not isinstance(whole, list) or not isinstance(part, dict) or not part:
            return False
        return self.contains({str(at): one for at, one in enumerate(whole)}, part, place)


@caught_by("FM-LST-012")
class EmptyMatchesAnything(_Filters):
    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return None in place and part == {}


@caught_by("FM-LST-012")
class EmptyMeansEmpty(_Filters):
    def contains(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return whole == part if part == [] and len(place) > 1 else super().contains(whole, part, place)


@caught_by("FM-LST-010")
class InnerNumbersAreDoubles(_Filters):
    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return len(place) > 1 and type(whole) is type(part) is int and float(whole) == float(part)


@caught_by("FM-LST-010")
class FractionsAreCut(_Filters):
    def is_equal(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return type(whole) is float and abs(whole) < 1e15 and type(part) is int and int(whole) == part


@caught_by("FM-LST-010")
class LargeDoublesDiffer(_Filters):
    def contains(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        return not (type(part) is float and abs(part) > 1e300) and super().contains(whole, part, place)


@caught_by("FM-LST-011")
class InnerKeysAreAlternatives(_Filters):
    """Joins the conditions of an inner object with OR."""

    def contains(self, whole: Any, part: Any, place: tuple[Any, ...]) -> bool:
        if place and isinstance(whole, dict) and isinstance(part, dict) and len(part) > 1:
            return any(super(InnerKeysAreAlternatives, self).contains(whole, {k: v}, place) for k, v in part.items())
        return super().contains(whole, part, place)


@caught_by("FM-LST-017")
class TuplesMatchNothing(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, metadata=metadata, **kwargs)
        return [] if any(isinstance(value, tuple) for value in (metadata or {}).values()) else rows


@caught_by("FM-LST-017")
class FiltersByDisplayText(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        wanted = {key: str(item) if isinstance(item, str) else item for key, item in (metadata or {}).items()}
        return await super().get_sessions(*args, metadata=wanted, **kwargs)
