"""Tests that a printed reproduction runs, and makes the calls that were made, with the arguments that were passed."""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

import pytest
from bound_stores import run_clause
from distant_stores import choose, is_small, is_sociable

from flux_memory import FluxMemoryError
from flux_memory.testkit import ReferenceMemory, ReferenceStore
from flux_memory.testkit.clauses import Clause
from flux_memory.testkit.contract.corpus import Colour, Shout, nested
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.recorder import Transcript
from flux_memory.testkit.recorder.expressions import freeze, imports_of, write
from flux_memory.testkit.recorder.folding import fold

VALUES: Final[dict[str, Any]] = {
    "many keys": {f"k{number}": number for number in range(30)},
    "many elements": [*range(5), "x", *range(30)],
    "one repeated element": [{"k": []}] * 40,
    "numbered records": [{"role": "user", "content": f"{number:03} of 100 %"} for number in range(100)],
    "a long text": "x" * 1_048_576,
    "a long text with a beginning": "007 " + "x" * 400,
    "a long pattern": "ab" * 5_000 + "a",
    "surrogates": "\ud800" * 300,
    "a text without a pattern": "".join(
        random.Random(0).choice("ab\x00\n'\u1234\U0001f600\ud800") for _ in range(5_000)
    ),
    "a long int": 10**400,
    "a negative int beyond what Python prints": -(10**9_000),
    "infinity": [float("inf"), float("-inf")],
    "a tuple": (1,),
    "sets": [{1, 2}, set()],
    "bytes": [b"\x00x", bytearray(b"y")],
    "a time": datetime(2040, 2, 29, 12, tzinfo=UTC),
    "a duration": timedelta(3, 4, 5),
    "a hundred levels": nested(100),
    "uneven levels": {"a": [[{"b": nested(60)}], 1]},
    "a mapping": MappingProxyType({"a": 1}),
    "a subclass": [Shout("x"), OrderedDict(a=1)],
}


def build(code: str) -> Any:
    """Return the value of an expression."""
    names: dict[str, Any] = {}
    exec("\n".join(imports_of(code)), names)
    return eval(code, names)


@pytest.mark.parametrize("name", VALUES)
def test_an_argument_is_rebuilt(name: str) -> None:
    """The expression of a value gives an equal value, and is not longer than a page for any value with a pattern."""
    code = write(freeze(VALUES[name]))
    assert build(code) == VALUES[name]
    assert len(code) < 5_000


def test_levels_beyond_what_python_compares() -> None:
    """Thousands of levels are rebuilt, level by level."""
    built, given, levels = build(write(freeze(nested(5_000)))), nested(5_000), 0
    while built and given:
        assert type(built) is type(given)
        built, given = (
            each["a"] if type(each) is dict and "a" in each else next(iter(each)) for each in (built, given)
        )
        levels += 1
    assert levels > 4_990
    assert built == given


def test_values_that_no_code_can_rebuild_stay_of_their_kind() -> None:
    """Values that only test a refusal are replaced by others that are refused alike; cycles are cycles again."""
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    assert math.isnan(build(write(freeze(float("nan")))))
    assert type(build(write(freeze(object())))) is object
    assert isinstance(
        build(write(freeze(Colour("red" if "red" in Colour._value2member_map_ else next(iter(Colour)))))), str
    )
    inside = build(write(freeze(cycle)))["self"]
    assert inside[0] is inside
    assert isinstance(build(write(freeze(iter((1, 2))))), Iterator)
    assert callable(build(write(freeze(len))))


def test_an_argument_is_shown_as_it_was_passed() -> None:
    """Changes of a list after the call do not show."""
    given = [{"k": [1]}]
    frozen = freeze(given)
    before = copy.deepcopy(given)
    given[0]["k"].append(2)
    assert build(write(frozen)) == before


@pytest.mark.parametrize(
    ("codes", "code", "numbers"),
    [
        (["f('a 3', 3)", "f('a 4', 4)"], "f('a %d' % number, number)", range(3, 5)),
        (["f('09')", "f('10')"], "f('%02d' % number)", range(9, 11)),
        (["f('9')", "f('10')"], "f(str(number))", range(9, 11)),
        (["f('1%')", "f('2%')"], "f('%d%%' % number)", range(1, 3)),
        (["f(x)", "f(x)"], "f(x)", range(2)),
    ],
)
def test_a_number_that_counts_up_is_a_loop(codes: list[str], code: str, numbers: range) -> None:
    """Code that differs in one number is folded, and the folded code gives the same calls."""
    folded = fold(codes)
    assert folded == (code, numbers)
    f, x = lambda *given: given, "x"
    names = {"f": f, "x": x}
    assert [eval(code, {**names, "number": number}) for number in numbers] == [eval(each, names) for each in codes]


@pytest.mark.parametrize(
    "codes",
    [
        ["f('1')", "f('3')"],
        ["f('1', 2)", "f('2', 2, 3)"],
        ["f('1', 5)", "f('2', 4)"],
        ["f('a')", "f('b')"],
        ["f(session_1)", "f(session_2)"],
        ["f('1 1')", "f('2 2')"],
    ],
)
def test_other_differences_are_not_folded(codes: list[str]) -> None:
    """Code that differs otherwise stays as it is."""
    assert fold(codes) is None


def makes_calls(each: Clause) -> bool:
    """Return whether a clause runs on the reference model and makes calls that its reproduction shows."""
    return is_small(each) and is_sociable(each) and not each.away and each.id != "FM-CAP-001"


def record_clause(clause_id: str) -> Transcript:
    """Run a clause on the reference model and return its calls."""
    shared = ReferenceStore()
    store = StoreUnderTest(lambda: ReferenceMemory(shared))
    # A clause that lacks a fixture has made calls all the same.
    with suppress(AssertionError):
        run_clause(clause_id, store)
    assert store.transcript.calls
    return store.transcript


@pytest.mark.parametrize("clause_id", choose(makes_calls))
def test_the_calls_of_a_clause_run_again(clause_id: str) -> None:
    """The printed calls of each clause are a function that runs, up to an error that is one of the memory's."""
    text = record_clause(clause_id).text()
    names: dict[str, Any] = {}
    exec(text, names)
    shared = ReferenceStore()
    opened: list[ReferenceMemory] = []

    def open_memory() -> ReferenceMemory:
        opened.append(ReferenceMemory(shared))
        return opened[-1]

    async def run() -> None:
        try:
            await names["reproduce"](open_memory)
        except FluxMemoryError:
            # Concurrent calls run one after the other here, and the last call may be one that was refused.
            pass
        finally:
            await asyncio.gather(*(each.close() for each in opened))

    asyncio.run(run())
