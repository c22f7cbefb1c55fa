"""Compares two backends: the same generated calls must get the same answers, including errors."""

from __future__ import annotations

import flux_memory.testkit.extra  # noqa: F401 - its error names the extra  # isort: skip

import asyncio
from collections.abc import Callable
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from flux_memory import Memory
from flux_memory.testkit.contract.model import generated
from flux_memory.testkit.contract.model.answers import TIMES, argument_of, difference, family, is_time
from flux_memory.testkit.contract.model.calls import (
    Answer,
    Known,
    ModelCall,
    Raised,
    Records,
    Returned,
    at_once,
    made_by,
    resolved,
)
from flux_memory.testkit.contract.model.exploration import FAST, Profile, run_machine
from flux_memory.testkit.contract.model.findings import Finding, Findings, UnexplainedError
from flux_memory.testkit.contract.model.script import Script

_REOPEN_AFTER_STEPS: Final = 5
"""Calls on a handle before it may be reopened: opening costs more than any other call."""

Factory = Callable[[], Memory]


class Differential:
    """Compares two backends call by call. Each call of a factory opens another handle on its store.

    Args:
        one: Opens handles on the first store, which is emptied.
        other: The same for the second one.
        names: The names of the two in a finding.
    """

    def __init__(self, one: Factory, other: Factory, *, names: tuple[str, str] = ("one", "other")) -> None:
        self._factories = (one, other)
        self._names = names

    def explore(self, profile: Profile = FAST) -> Finding | None:
        """Return the shortest sequence of calls that the two answer differently, if one is found.

        Generated ids compare by the order in which they were made, times by their format, and errors by their
        flux-memory class and the argument that they name.
        """
        findings = Findings(profile.shrinking)
        run_machine(
            lambda: _Machine(self._factories, self._names, findings), profile, lambda: findings.shortest is not None
        )
        return findings.shortest


class _Side:
    """One of the two stores: its handles, and names for its generated ids."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self.handles: dict[int, Memory] = {}
        self.known: Known = {}
        self.records: Records = ()
        """The sessions, the least recently changed first."""
        self._names: dict[str, str] = {}

    async def answer(self, handle: int, call: ModelCall) -> Answer:
        """Make a call and name the ids that it generated."""
        (answer,) = await at_once([(self._handle(handle), resolved(call, self.known, self.records), None)])
        for made in made_by(call, answer):
            if made is not None:
                self._names.setdefault(made, f"made {len(self._names)}")
        return self._comparable(answer)

    async def look(self) -> Answer:
        """Read everything."""
        memory = self._handle(0)
        sessions = await memory.get_sessions(None)
        self.records = sessions[::-1]
        histories = [await memory.get_history(row["id"]) for row in sessions]
        self.known = {
            row["id"]: [message["id"] for message in history] for row, history in zip(sessions, histories, strict=True)
        }
        return self._comparable(Returned([list(pair) for pair in zip(sessions, histories, strict=True)]))

    async def close(self, handle: int) -> None:
        """Close a handle; the next call on it opens another one."""
        if handle in self.handles:
            await self.handles.pop(handle).close()

    def _handle(self, handle: int) -> Memory:
        if handle not in self.handles:
            self.handles[handle] = self._factory()
        return self.handles[handle]

    def _comparable(self, answer: Answer) -> Answer:
        return Returned(self._named(answer.value)) if isinstance(answer, Returned) else answer

    def _named(self, value: Any) -> Any:
        if type(value) is str:
            return self._names.get(value, value)
        if type(value) is list:
            return [self._named(item) for item in value]
        if type(value) is dict:
            return {key: self._named_part(key, item) for key, item in value.items()}
        return value

    def _named_part(self, key: Any, value: Any) -> Any:
        if key in TIMES and is_time(value):
            return "a time"
        return "a revision" if key == "revision" and type(value) is str and value else self._named(value)


class _Machine(RuleBasedStateMachine):
    """Makes each call on both sides."""

    def __init__(self, factories: tuple[Factory, Factory], names: tuple[str, str], findings: Findings) -> None:
        findings.raise_if_enough()
        super().__init__()
        self._sides = [_Side(factory) for factory in factories]
        self._names = names
        self._findings = findings
        self._runner = asyncio.Runner()
        self._script = Script()
        self._opened: set[int] = set()
        self._steps_since_reopening = 0

    @initialize(names=generated.first_sessions)
    def start(self, names: list[str]) -> None:
        """Start from two empty stores, with a few sessions."""
        for side in self._sides:
            self._runner.run(side.answer(0, ModelCall("clear_all", {})))
        for name in names:
            self.write(0, ModelCall("create_session", {"session_id": name}))

    @rule(handle=generated.handles, call=generated.writes)
    def write(self, handle: int, call: ModelCall) -> None:
        """Make a write on both sides, then compare the whole stores."""
        self._compare(handle, call)
        one, other = (self._runner.run(side.look()) for side in self._sides)
        for record in self._sides[0].records:
            self._script.saw(0, record)
        if found := difference(one, other):
            self._fail(f"the stores differ at {found.place}: {found.expected!r:.200} and {found.seen!r:.200}")

    @rule(handle=generated.handles, call=generated.reads)
    def read(self, handle: int, call: ModelCall) -> None:
        """Make a read, or a call that is refused, on both sides."""
        self._compare(handle, call)

    @precondition(lambda self: self._steps_since_reopening >= _REOPEN_AFTER_STEPS)
    @rule(handle=generated.handles, late=st.one_of(st.none(), generated.calls))
    def reopen(self, handle: int, late: ModelCall | None) -> None:
        """Close a handle on both sides, perhaps call it once more, and let the next call open another one."""
        self._steps_since_reopening = 0
        self._compare(handle, ModelCall("close", {}))
        if late is not None:
            self._compare(handle, late)
        for side in self._sides:
            self._runner.run(side.close(handle))
        self._opened.discard(handle)

    def teardown(self) -> None:
        """Close what is open."""
        for side in self._sides:
            for handle in list(side.handles):
                self._runner.run(side.close(handle))
        self._runner.close()

    def _compare(self, handle: int, call: ModelCall) -> None:
        self._steps_since_reopening += 1
        written = resolved(call, self._sides[0].known, self._sides[0].records)
        one, other = (self._runner.run(side.answer(handle, call)) for side in self._sides)
        if handle not in self._opened:
            self._opened.add(handle)
            self._script.open(handle)
        self._script.call(handle, written, one)
        if isinstance(one, Raised) and isinstance(other, Raised):
            same = (family(one.error), argument_of(one.error)) == (family(other.error), argument_of(other.error))
        else:
            same = difference(one, other) is None
        if not same:
            self._fail(
                f"{self._script.code(handle, written).removeprefix('await ')} is answered differently", one, other
            )

    def _fail(self, sentence: str, *answers: Answer) -> None:
        for name, answer in zip(self._names, answers, strict=False):
            shown = answer.error if isinstance(answer, Raised) else answer
            sentence += f"\n{name}: {shown!r:.300}"
            self._script.expect(f"# {name}: {shown!r:.200}")
        self._findings.add(Finding(sentence, self._script.text(), len(self._script)))
        raise UnexplainedError(sentence)
