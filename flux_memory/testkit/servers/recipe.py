"""How to make a database: what it is copied from, who owns it, and the steps that fill it."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import os
import pickle
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Final, TypeAlias

Step: TypeAlias = str | Path | Callable[[str], object]
"""SQL, the path of a file with SQL, or a function that takes the database's DSN."""
EMPTY_TEMPLATE: Final = "template0"


class DatabaseInitError(Exception):
    """A step that makes a database failed; the message names the step, and the cause is chained."""


@dataclass(frozen=True)
class Recipe:
    """How to make a database. Recipes with the same `number` make the same database."""

    init: tuple[Step, ...] = ()
    template: str = EMPTY_TEMPLATE
    """The database that is copied first."""
    owner: str | None = None
    """The role that owns the database and runs the steps; None for the server's own role."""
    locale: str | None = None
    extensions: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        init: Iterable[Step] | Step,
        *,
        template: str | None,
        owner: str | None,
        locale: str | None,
        extensions: Iterable[str],
        directory: Path,
    ) -> Recipe:
        """Return a recipe from the arguments of a call.

        Args:
            init: The steps. A text without white space that ends in `.sql` is a path, too.
            template: The database to copy; None for an empty one.
            owner: The owning role; None for the server's own.
            locale: The locale; None for the template's.
            extensions: Names of extensions to create first.
            directory: Relative paths start here.

        Raises:
            TypeError: An argument has a value of another kind.
        """
        if isinstance(extensions, str):
            raise TypeError(f"extensions={extensions!r} is a text; pass a list of names: extensions=[{extensions!r}]")
        names = _as_list("extensions", extensions)
        for name, value in {"template": template, "owner": owner, "locale": locale}.items():
            if not isinstance(value, str | None):
                raise TypeError(f"{name}={value!r} is a {type(value).__name__}; pass a text")
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"extensions: {name!r} is not the name of an extension; pass texts")
        steps = [init] if isinstance(init, str | Path) or callable(init) else _as_list("init", init)
        return cls(
            tuple(_as_step(step, directory) for step in steps),
            template or EMPTY_TEMPLATE,
            owner,
            locale,
            tuple(names),
        )

    @property
    def is_plain(self) -> bool:
        """Whether nothing is left to do after copying."""
        return not self.init and not self.extensions

    @functools.cached_property
    def number(self) -> int:
        """A number from the content of the recipe: of its texts and files, and of its functions' code and state."""
        parts = [self.template, self.owner or "", self.locale or "", *self.extensions]
        digest = hashlib.sha256(repr(parts).encode())
        for step in self.init:
            digest.update(hashlib.sha256(_content_of(step)).digest())
        return int.from_bytes(digest.digest()[:7])


def _as_list(name: str, values: object) -> list[Any]:
    if not isinstance(values, Iterable):
        raise TypeError(f"{name}={values!r} is a {type(values).__name__}; pass a list")
    return list(values)


def _as_step(step: object, directory: Path) -> Step:
    if isinstance(step, str) and step.endswith(".sql") and not any(map(str.isspace, step)):
        step = Path(step)
    if isinstance(step, Path):
        return directory / step
    if isinstance(step, str) or callable(step):
        return step
    raise TypeError(f"init: {step!r} is neither SQL, nor a path, nor a function that takes a DSN")


def name_of(step: Step) -> str:
    """Return a step's name for messages."""
    if isinstance(step, Path):
        return f"the file {step}"
    if isinstance(step, str):
        first = step.strip().partition("\n")[0]
        return f"the SQL {first[:60]!r}"
    return f"the function {_function_of(step).__qualname__}"


def _content_of(step: Step) -> bytes:
    if isinstance(step, Path):
        try:
            return b"file\n" + step.read_bytes()
        except OSError as error:
            raise DatabaseInitError(f"{name_of(step)} cannot be read: {error.strerror}") from error
    if isinstance(step, str):
        return b"text\n" + step.encode()
    return "\n".join(("function", *_state_of(step))).encode(errors="replace")


def _function_of(step: Callable[..., object]) -> Callable[..., object]:
    """Return the function behind partial objects, bound methods and objects with `__call__`."""
    while isinstance(step, functools.partial):
        step = step.func
    step = getattr(step, "__func__", step)
    return step if hasattr(step, "__qualname__") else type(step).__call__


def _state_of(step: Callable[..., object]) -> Iterator[str]:
    """Yield a function's name and code, and each value with which the same code may do something else."""
    if isinstance(step, functools.partial):
        yield from map(_described, (step.args, *sorted(step.keywords.items())))
        yield from _state_of(step.func)
        return
    function = _function_of(step)
    yield f"{function.__module__}.{function.__qualname__}"
    if (code := getattr(function, "__code__", None)) is not None:
        yield from _content_of_code(code)
    if function is not step:
        # The object of a bound method, or the one with `__call__`.
        yield _described(getattr(step, "__self__", step))
    yield _described(getattr(function, "__defaults__", None))
    yield _described(tuple(sorted((getattr(function, "__kwdefaults__", None) or {}).items())))
    for cell in getattr(function, "__closure__", None) or ():
        # A variable without a value has no content.
        with suppress(ValueError):
            yield _described(cell.cell_contents)


def _content_of_code(code: CodeType) -> Iterator[str]:
    # Not the source, which is the same for two lambdas in one line and for a function and its decorated form.
    yield repr((code.co_code, code.co_exceptiontable, code.co_names))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _content_of_code(constant)
        else:
            yield repr(constant)


_COMPARED_BY_IDENTITY: Final[dict[int, object]] = {}
"""Values without a known content, kept so that no other value gets their `id`."""


def _described(value: object) -> str:
    """Return a text of a value's content, the same in all processes of the run if possible.

    Not its `repr`, which many classes shorten: that of each `MetaData` of SQLAlchemy is `MetaData()`.
    """
    if inspect.isfunction(value):
        return "\n".join(_state_of(value))
    if inspect.ismodule(value):
        return repr(value)
    if isinstance(value, tuple):
        return f"({','.join(map(_described, value))})"
    try:
        return pickle.dumps(value).hex()
    except Exception:  # noqa: BLE001 - a class decides with which error its objects refuse it
        _COMPARED_BY_IDENTITY[id(value)] = value
        return f"{os.getpid()} {id(value)}"


def call_function(function: Callable[[str], object], dsn: str) -> None:
    """Call a function of a recipe, and run its coroutine if it returns one.

    In a thread if an event loop is running here, because migrations often call `asyncio.run()` themselves.
    """
    if _is_loop_running():
        with ThreadPoolExecutor(1) as threads:
            threads.submit(_call, function, dsn).result()
    else:
        _call(function, dsn)


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _call(function: Callable[[str], object], dsn: str) -> None:
    result = function(dsn)
    if inspect.isawaitable(result):
        asyncio.run(_finish(result))


async def _finish(result: Awaitable[object]) -> None:
    await result
