"""Writes the arguments of recorded calls as Python expressions that rebuild them, however long or strange they are."""

from __future__ import annotations

import math
import re
import zlib
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import eq
from types import MappingProxyType
from typing import Any, Final

from flux_memory.testkit.recorder.folding import VARIABLE, fold

Naming = Callable[[object], str | None]
"""Returns the variable that holds an id or a record, if there is one."""

_LONG: Final = 200
"""Characters of a text from which on a shorter expression is sought."""
_SHORT_ENOUGH: Final = 2_000
"""Characters of an expression that is not compressed."""
_MOST_PERIOD: Final = 64
"""Characters of the longest unit that is looked for in a long text."""
_RUN: Final = re.compile(r"(.)\1{39,}", re.DOTALL)
_LARGEST_REPR: Final = 10**300
"""Python refuses to print ints that are much longer."""
_DEEP: Final = 30
"""The depth from which on nested containers are looked at one after the other; Python parses about a hundred."""
_NESTED_BY_HAND: Final = 20
_FOLDED: Final = 9
"""Elements of a list that become a comprehension, if they are similar."""
_EXACT: Final[dict[type, Callable[[Any], str]]] = {
    datetime: lambda value: f"datetime.fromisoformat({value.isoformat()!r})",
    timedelta: lambda value: f"timedelta({value.days}, {value.seconds}, {value.microseconds})",
    complex: repr,
    range: repr,
    bytearray: repr,
    object: lambda _: "object()",
}
_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    str: lambda value: str.__getitem__(value, slice(None)),
    int: int.__pos__,
    float: float.__pos__,
    bytes: bytes,
    list: list,
    tuple: tuple,
    dict: dict,
}
"""The builtin types that others derive from, and what is in such a value, regardless of what the subclass shows."""
_IMPORTS: Final = {
    "datetime.fromisoformat(": "from datetime import datetime",
    "timedelta(": "from datetime import timedelta",
    "reduce(": "from functools import reduce",
    "MappingProxyType(": "from types import MappingProxyType",
    "decompress(b64decode(": "from base64 import b64decode\nfrom zlib import decompress",
    "with suppress(": "from contextlib import suppress",
}


@dataclass(frozen=True, slots=True)
class _Written:
    """A value of another type, as code around a value of a plain one."""

    before: str
    inner: Any = None
    after: str = ""


@dataclass(frozen=True, slots=True)
class _Nest:
    """Containers of one element in each other: the key of each object, `_NOTHING` for a list, and what is inside."""

    keys: Sequence[Any]
    inner: Any


_NOTHING: Final = object()
_SCALARS: Final = frozenset({str, int, float, bool, bytes, type(None)})


def freeze(value: Any, path: tuple[int, ...] = ()) -> Any:
    """Return a copy that later changes of the value do not reach."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if id(value) in path:
        return _Written("(lambda cycle: cycle.append(cycle) or cycle)([])", _NOTHING)
    if kind in {list, dict} and len(path) >= _DEEP:
        nest = _unnest(value)
        return _Nest(nest.keys, freeze(nest.inner)) if len(nest.keys) > _NESTED_BY_HAND else _freeze_items(value, ())
    if kind in {list, tuple, set, dict}:
        return _freeze_items(value, (*path, id(value)))
    return _freeze_other(value, path)


def _freeze_items(value: Any, path: tuple[int, ...]) -> Any:
    # Most are scalars, and a batch has ten thousands of them.
    if type(value) is dict:
        return {
            key if type(key) is str else freeze(key, path): item if type(item) in _SCALARS else freeze(item, path)
            for key, item in value.items()
        }
    return type(value)([item if type(item) in _SCALARS else freeze(item, path) for item in value])


def _unnest(value: Any) -> _Nest:
    keys: list[Any] = []
    seen = set()
    while type(value) in {list, dict} and len(value) == 1 and id(value) not in seen:
        seen.add(id(value))
        key = next(iter(value)) if type(value) is dict else _NOTHING
        keys.append(key)
        value = value[0 if key is _NOTHING else key]
    return _Nest(keys, value)


def _freeze_other(value: Any, path: tuple[int, ...]) -> _Written:
    kind = type(value)
    if kind in _EXACT:
        return _Written(_EXACT[kind](value), _NOTHING)
    if kind is MappingProxyType:
        return _Written("MappingProxyType(", freeze(dict(value), path), ")")
    if kind is type({}.keys()):
        return _Written("dict.fromkeys(", freeze(list(value), path), ").keys()")
    for base, strip in _PLAIN.items():
        if isinstance(value, base):
            return _Written(f"type({kind.__name__!r}, ({base.__name__},), {{}})(", freeze(strip(value), path), ")")
    return _Written(_stand_in(value), _NOTHING)


def _stand_in(value: Any) -> str:
    """Return code for another value that a memory refuses for the same reason."""
    if isinstance(value, type):
        return f"type({value.__name__!r}, (), {{}})"
    if callable(value):
        return "(lambda: None)"
    return "iter(())" if hasattr(value, "__next__") else f"type({type(value).__name__!r}, (), {{}})()"


def write(value: Any, name: Naming = lambda _: None) -> str:
    """Return an expression that rebuilds a frozen value, with the variables of the ids and records in it."""
    if known := name(value):
        return known
    writer = _WRITERS.get(type(value))
    return _write_plain(value) if writer is None else writer(value, name)


def _write_dict(value: Any, name: Naming) -> str:
    return "{" + ", ".join(f"{write(key, name)}: {write(item, name)}" for key, item in value.items()) + "}"


def _write_tuple(value: Any, name: Naming) -> str:
    return f"({', '.join(_write_each(value, name))}{',' if len(value) == 1 else ''})"


def _write_set(value: Any, name: Naming) -> str:
    return f"{{{', '.join(_write_each(value, name))}}}" if value else "set()"


def _write_other(value: _Written, name: Naming) -> str:
    return value.before if value.inner is _NOTHING else f"{value.before}{write(value.inner, name)}{value.after}"


def _write_list(value: Any, name: Naming) -> str:
    items = _write_each(value, name)
    folded = fold(items) if len(items) >= _FOLDED else None
    if folded is None:
        return f"[{', '.join(items)}]"
    begin = f"{folded.numbers.start}, " if folded.numbers.start else ""
    return f"[{folded.code} for {VARIABLE} in range({begin}{folded.numbers.stop})]"


def _write_each(values: Any, name: Naming) -> list[str]:
    return [write(each, name) for each in values]


def _write_nest(nest: _Nest, name: Naming) -> str:
    keys, code = nest.keys, write(nest.inner, name)
    period = next(period for period in range(1, len(keys) + 1) if all(map(eq, keys, keys[period:])))
    whole, rest = divmod(len(keys), period)
    code = _wrap(code, keys[len(keys) - rest :])
    return f"reduce(lambda inner, _: {_wrap('inner', keys[:period])}, range({whole}), {code})"


def _wrap(code: str, keys: Sequence[Any]) -> str:
    for key in reversed(keys):
        code = f"[{code}]" if key is _NOTHING else f"{{{write(freeze(key))}: {code}}}"
    return code


def _write_plain(value: Any) -> str:
    if type(value) is str:
        return _write_text(value)
    if type(value) is float and not math.isfinite(value):
        return f'float("{value}")'
    if type(value) is int and abs(value) >= _LARGEST_REPR:
        return f"int({_write_text(f'{value:x}')}, 16)"
    return repr(value)


def _write_text(text: str) -> str:
    if len(text) <= _LONG:
        return repr(text)
    for period in range(1, _MOST_PERIOD + 1):
        unit, (whole, rest) = text[:period], divmod(len(text), period)
        if text.startswith(unit * 3) and text == unit * whole + unit[:rest]:
            return f"{unit!r} * {whole}" + (f" + {unit[:rest]!r}" if rest else "")
    return min(_write_runs(text), _compress(text), key=len)


def _write_runs(text: str) -> str:
    """Return the text as a sum of parts, those of one repeated character as a product."""
    parts, end = [], 0
    for match in _RUN.finditer(text):
        parts += [repr(text[end : match.start()])] if end < match.start() else []
        parts.append(f"{match[1]!r} * {len(match[0])}")
        end = match.end()
    parts += [repr(text[end:])] if end < len(text) else []
    return " + ".join(parts)


def _compress(text: str) -> str:
    if len(text) <= _SHORT_ENOUGH:
        return repr(text)
    packed = b64encode(zlib.compress(text.encode("utf-8", "surrogatepass"))).decode()
    return f"decompress(b64decode({packed!r})).decode('utf-8', 'surrogatepass')"


_WRITERS: Final[dict[type, Callable[[Any, Naming], str]]] = {
    dict: _write_dict,
    list: _write_list,
    tuple: _write_tuple,
    set: _write_set,
    _Written: _write_other,
    _Nest: _write_nest,
}


def imports_of(code: str) -> list[str]:
    """Return the imports that written code needs."""
    return [line for needle, lines in _IMPORTS.items() if needle in code for line in lines.splitlines()]
