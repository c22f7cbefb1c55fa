"""Tests that a recipe is recognised by its content, so that a database is never a copy of another recipe's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flux_memory.testkit.servers.recipe import Recipe


def fail(_dsn: str) -> None:
    raise LookupError("out of luck")


def make_step(value: object) -> Callable[[str], None]:
    def step(dsn: str) -> None:
        print(dsn, value)

    return step


class Silent:
    """A value whose text says nothing; it can be pickled unless it refuses."""

    def __init__(self, value: int, *, refuses: bool) -> None:
        self.value = value
        self.refuses = refuses

    def __repr__(self) -> str:
        return "Silent()"

    def __getstate__(self) -> object:
        if self.refuses:
            raise TypeError("cannot be pickled")
        return self.__dict__


def apply(dsn: str, value: object) -> None:
    print(dsn, value)


def apply_twice(step: Callable[[str], None]) -> Callable[[str], None]:
    @functools.wraps(step)
    def wrapper(dsn: str) -> None:
        step(dsn)
        step(dsn)

    return wrapper


def apply_once(step: Callable[[str], None]) -> Callable[[str], None]:
    @functools.wraps(step)
    def wrapper(dsn: str) -> None:
        step(dsn)

    return wrapper


class Migration:
    """A function that is an object with a state."""

    def __init__(self, version: int) -> None:
        self.version = version

    def __repr__(self) -> str:
        return f"Migration({self.version})"

    def __call__(self, dsn: str) -> None:
        print(dsn, self.version)

    def run(self, dsn: str) -> None:
        print(dsn, self.version)


def number_of(*init: Any, **more: Any) -> int:
    arguments: dict[str, Any] = {"template": None, "owner": None, "locale": None, "extensions": (), **more}
    return Recipe.of(init, directory=Path("/"), **arguments).number


def test_recipes_are_the_same_by_their_content(tmp_path: Path) -> None:
    """Promise: a database is copied only if every step, file, closure and argument is the same."""
    (tmp_path / "a.sql").write_text("SELECT 1")
    (tmp_path / "b.sql").write_text("SELECT 1")
    before = number_of(tmp_path / "a.sql")
    assert before == number_of(tmp_path / "b.sql")
    (tmp_path / "a.sql").write_text("SELECT 2")
    different = [
        before,
        number_of(tmp_path / "a.sql"),
        number_of("SELECT 1"),
        number_of("SELECT 1", "SELECT 1"),
        number_of("SELECT 1", owner="a"),
        number_of("SELECT 1", locale="a"),
        number_of("SELECT 1", template="a"),
        number_of("SELECT 1", extensions=["a"]),
        number_of(fail),
        number_of(make_step(1)),
        number_of(make_step(2)),
        number_of(functools.partial(apply, value=Path("/a"))),
        number_of(functools.partial(apply, value=Path("/b"))),
        number_of(Migration(1)),
        number_of(Migration(2)),
        number_of(Migration(1).run),
        number_of(lambda dsn: print(dsn, 1)),
        number_of(lambda dsn: print(dsn, 2)),
        *(number_of(step) for step in (lambda dsn: apply(dsn, 1), lambda dsn: apply(dsn, 2))),
        *(number_of(make_step(Silent(value, refuses=False))) for value in (1, 2)),
        *(number_of(make_step(Silent(1, refuses=True))) for _ in range(3)),
        number_of(apply_once(fail)),
        number_of(apply_twice(fail)),
    ]
    assert len(set(different)) == len(different)
    refusing = Silent(1, refuses=True)
    for same in (
        lambda: number_of(make_step(1)),
        lambda: number_of(Migration(1)),
        lambda: number_of(fail),
        lambda: number_of(make_step(Silent(1, refuses=False))),
        lambda: number_of(make_step(refusing)),
    ):
        assert same() == same()
