"""The state machine: makes calls on two handles of one store, and compares every answer with the reference model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from flux_memory import Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.contract.model import generated
from flux_memory.testkit.contract.model.answers import Mismatch, difference
from flux_memory.testkit.contract.model.calls import (
    Answer,
    Answered,
    CancelPoint,
    CutOff,
    HangError,
    ModelCall,
    Raised,
    Returned,
    at_once,
    resolved,
)
from flux_memory.testkit.contract.model.findings import Finding, Findings, Step, UnexplainedError
from flux_memory.testkit.contract.model.reduce_to_claims import Item, claimed
from flux_memory.testkit.contract.model.script import Script
from flux_memory.testkit.contract.model.states import Sessions, State, explain
from flux_memory.testkit.contract.model.time_rules import (
    Rows,
    adopted,
    problem_of_revisions,
    problem_of_times,
    problem_of_update,
    unsorted,
)
from flux_memory.testkit.timeouts import BlockedError, unblocked

HANDLES: Final = 2
_MAX_PENDING: Final = 2
"""Cancelled calls that may still take effect; with more of them, almost any state could be explained."""
_MAX_RECORDS: Final = 8
"""Records that are kept for later calls."""
_HANG_AGAIN_SECONDS: Final = 2.0
"""The timeout of calls after one has hung, in the search for smaller examples."""

_MIN_STEPS_PER_HANDLE: Final = 5
"""A handle is reopened after this many steps at the earliest: opening is the most expensive call."""

EVERYTHING: Final = ModelCall("get_sessions", {"limit": None})


class MemoryMachine(RuleBasedStateMachine):
    """Two handles on one store, an event loop, and the states that explain every answer so far."""

    def __init__(self, factory: Callable[[], Memory], findings: Findings, claims: Capability, longest_id: int) -> None:
        findings.raise_if_enough()
        super().__init__()
        self._factory = factory
        self._claims = claims
        self._longest_id = longest_id
        self._findings = findings
        self._runner = asyncio.Runner()
        self._handles: dict[int, Memory] = {}
        self._states = [State({})]
        self._script = Script()
        self._steps: list[Step] = []
        self._told: list[ModelCall] = []
        self._certain = True
        self._reader = 0
        self._records: list[Mapping[str, Any]] = []
        """The records that were read, oldest first."""
        self._revisions: dict[str, set[str]] = {}
        """The revisions that each session has had."""
        self._steps_since_reopening = 0

    @initialize(names=generated.first_sessions)
    def start(self, names: list[str]) -> None:
        """Start from an empty store with a few sessions."""
        self._steps.append(Step("start", {"names": names}))
        self._open(0)
        for _, call, _ in self._claimed([(0, ModelCall("clear_all", {}), None)]) or self._deletions():
            self._do(call)
        if left := self._do(EVERYTHING):
            self._fail(f"a store that was cleared has sessions: {left!r:.200}")
        for name in names:
            self._call(0, ModelCall("create_session", {"session_id": name}))

    @rule(handle=generated.handles, call=generated.writes)
    def write(self, handle: int, call: ModelCall) -> None:
        """Change something."""
        self._steps.append(Step("write", {"handle": handle, "call": call}))
        self._call_if_claimed(handle, call)

    @rule(handle=generated.handles, call=generated.reads)
    def read(self, handle: int, call: ModelCall) -> None:
        """Read something, or make an invalid call."""
        self._steps.append(Step("read", {"handle": handle, "call": call}))
        self._call_if_claimed(handle, call)

    @precondition(lambda self: self._told)
    @rule(handle=generated.handles, at=st.integers(0, 5), changes=generated.changes)
    def retry(self, handle: int, at: int, changes: Mapping[str, Any]) -> None:
        """Send a message again with its id, unchanged or with different content."""
        self._steps.append(Step("retry", {"handle": handle, "at": at, "changes": changes}))
        if self._told:
            call = self._told[-1 - at % len(self._told)]
            self._call_if_claimed(handle, ModelCall(call.method, {**call.arguments, **changes}))

    @rule(group=generated.groups)
    def at_once(self, group: generated.Group) -> None:
        """Make several calls at the same time, some of which are cancelled."""
        self._steps.append(Step("at_once", {"group": group}))
        items = [(handle, self._resolved(call), cut) for handle, call, cut in self._claimed(group)]
        if not items:
            return
        answers = self._make(items)
        self._script.group(items, answers)
        self._learn([Answered(handle, call, answer) for (handle, call, _), answer in zip(items, answers, strict=True)])
        if any(len(state.pending) > _MAX_PENDING for state in self._states):
            self._settle()

    @precondition(lambda self: Capability.DURABLE in self._claims)
    @precondition(lambda self: self._steps_since_reopening >= _MIN_STEPS_PER_HANDLE)
    @rule(handle=generated.handles, late=st.one_of(st.none(), generated.calls))
    def reopen(self, handle: int, late: ModelCall | None) -> None:
        """Close a handle, call it after that, and open another handle in its place."""
        self._steps.append(Step("reopen", {"handle": handle, "late": late}))
        self._steps_since_reopening = 0
        if Capability.SEVERAL_HANDLES not in self._claims:
            handle = 0
        if handle in self._handles:
            self._close(handle)
            if late is not None:
                self._call_if_claimed(handle, late)
        if handle not in self._handles or handle in self._states[0].closed:
            # A read of the store may have reopened it, if it was the only handle.
            self._open(handle)
        self._observe()

    def teardown(self) -> None:
        """Close all handles, also after a failure."""
        for memory in self._handles.values():
            try:
                with unblocked(self._findings.timeout):
                    self._runner.run(asyncio.wait_for(memory.close(), self._findings.timeout))
            except (Exception, BlockedError) as error:  # noqa: BLE001 - an earlier failure is the one to report
                if self._findings.shortest is None:
                    self._fail(f"close() raised {error!r}")
        self._runner.close()

    def _claimed(self, items: Sequence[Item]) -> list[Item]:
        return [item for each in items if (item := claimed(each, self._claims, self._longest_id)) is not None]

    def _deletions(self) -> list[Item]:
        return [(0, ModelCall("delete_session", {"session_id": row["id"]}), None) for row in self._do(EVERYTHING)]

    def _do(self, call: ModelCall) -> Any:
        """Make a call that has to succeed in any state, while the model does not know the state yet."""
        (answer,) = self._make([(0, call, None)])
        if isinstance(answer, Returned):
            return answer.value
        self._script.call(0, call, answer)
        return self._fail(f"{call.method}: {_told(answer)}")

    def _call_if_claimed(self, handle: int, call: ModelCall) -> None:
        for at, asked, _ in self._claimed([(handle, call, None)]):
            self._call(at, asked)

    def _call(self, handle: int, call: ModelCall) -> None:
        made = self._resolved(call)
        (answer,) = self._make([(handle, made, None)])
        self._script.call(handle, made, answer)
        if call.method == "add_message" and isinstance(answer, Returned) and Capability.IDEMPOTENT_IDS in self._claims:
            self._told.append(ModelCall(call.method, {**made.arguments, "message_id": answer.value}))
        self._learn([Answered(handle, made, answer)])

    def _resolved(self, call: ModelCall) -> ModelCall:
        sessions = self._states[0].sessions
        known = {name: [message["id"] for message in sessions[name]["messages"]] for name in sessions}
        return resolved(call, known, self._records)

    def _open(self, handle: int) -> Memory:
        self._handles[handle] = self._factory()
        self._script.open(handle)
        self._states = [replace(state, closed=state.closed - {handle}) for state in self._states]
        return self._handles[handle]

    def _close(self, handle: int) -> None:
        closing = ModelCall("close", {})
        (answer,) = self._make([(handle, closing, None)])
        self._script.call(handle, closing, answer)
        self._judge([Answered(handle, closing, answer)])

    def _settle(self) -> None:
        """Close and reopen every handle: after that, no cancelled call can take effect any more."""
        handles = list(self._handles)
        for handle in handles:
            self._close(handle)
        for handle in handles:
            self._open(handle)
        self._observe()
        self._states = _distinct([replace(state, pending=()) for state in self._states])
        self._observe()

    def _make(self, items: Sequence[tuple[int, ModelCall, CancelPoint | None]]) -> list[Answer]:
        for handle in sorted({handle for handle, _, _ in items} - self._handles.keys()):
            self._open(handle)
        calls = [(self._handles[handle], call, cut) for handle, call, cut in items]
        try:
            return self._runner.run(at_once(calls, seconds=self._findings.timeout))
        except HangError as error:
            self._findings.timeout = _HANG_AGAIN_SECONDS
            self._script.group(items, [CutOff()] * len(items))
            self._fail(str(error))

    def _learn(self, made: list[Answered]) -> None:
        """Judge calls and adopt their changes."""
        alone = made if len(made) == 1 and self._certain else []
        before = self._states[0].sessions
        self._steps_since_reopening += 1
        self._judge(made)
        self._observe(before, alone)
        self._findings.raise_if_enough()

    def _judge(self, made: list[Answered], *, note: bool = False) -> None:
        clearing = len(made) > 1 and any(one.call.method == "clear_all" for one in made)
        states = explain(self._states, made, loosely=clearing)
        if not states:
            self._unexplained(made, note=note)
        self._adopt(states, made)

    def _adopt(self, states: list[State], made: list[Answered]) -> None:
        for one in made:
            if one.call.method != "get_sessions" or not isinstance(one.answer, Returned):
                continue
            if problem := unsorted(one.answer.value):
                self._fail(problem)
        self._states = states

    def _observe(self, before: Sessions | None = None, alone: Sequence[Answered] = ()) -> None:
        """Read everything, alternating between the handles, and adopt the times and the revisions."""
        earlier = self._states[0].sessions if before is None else before
        self._certain = not any(state.pending for state in self._states)
        # Also read removed sessions: they must have no messages.
        names = sorted({name for state in self._states for name in state.sessions} | earlier.keys())
        reads = [EVERYTHING, *(ModelCall("get_history", {"session_id": name}) for name in names)]
        if not self._certain:
            # A cancelled call may take effect between two reads, so their times may not agree.
            for call in reads:
                self._read(call)
            return
        rows, *found = cast("list[Rows]", self._read_together(reads))
        histories = dict(zip(names, found, strict=True))
        problems = [self._problem(state, earlier, rows, histories, alone) for state in self._states]
        if all(problems):
            self._script.expect(f"# then: {problems[0]}")
            self._fail(str(problems[0]))
        possible = [state for state, problem in zip(self._states, problems, strict=True) if problem is None]
        self._states = _distinct([adopted(state, rows, histories) for state in possible])
        self._remember(rows)

    def _problem(
        self, state: State, before: Sessions, rows: Rows, histories: dict[str, Rows], alone: Sequence[Answered]
    ) -> str | None:
        found = problem_of_times(state, before, rows, histories, alone=bool(alone))
        if Capability.REVISIONS in self._claims:
            found = found or problem_of_revisions(state, rows, self._revisions)
        return found or problem_of_update(alone, rows)

    def _remember(self, rows: Rows) -> None:
        """Keep what later calls may pass on, such as a revision that is no longer current."""
        opened = self._opened()
        for row in rows:
            self._revisions.setdefault(row["id"], set()).add(row["revision"])
            if row not in self._records:
                self._records = [*self._records[1 - _MAX_RECORDS :], row]
                if opened:
                    self._script.saw(opened[0], row)

    def _read(self, call: ModelCall) -> Any:
        handle = self._next_reader()
        (answer,) = self._make([(handle, call, None)])
        self._judge([Answered(handle, call, answer)], note=True)
        return answer.value if isinstance(answer, Returned) else []

    def _read_together(self, calls: Sequence[ModelCall]) -> list[Any]:
        """Read at the same time, which costs a distant store one round trip."""
        items: list[Item] = [(self._next_reader(), call, None) for call in calls]
        answers = self._make(items)
        for (handle, call, _), answer in zip(items, answers, strict=True):
            made = [Answered(handle, call, answer)]
            if not (states := explain(self._states, made)):
                # Alone, it fails with code that is easier to read.
                self._read(call)
                self._script.group(items, answers)
                self._fail(f"{call.method}, beside other reads: {_told(answer)}")
            self._adopt(states, made)
        return [answer.value if isinstance(answer, Returned) else [] for answer in answers]

    def _next_reader(self) -> int:
        self._reader += 1
        opened = self._opened()
        if not opened:
            self._open(0)
            opened = [0]
        return opened[self._reader % len(opened)]

    def _opened(self) -> list[int]:
        return [handle for handle in self._handles if handle not in self._states[0].closed]

    def _unexplained(self, made: list[Answered], *, note: bool) -> None:
        if len(made) > 1:
            self._fail("no order of these concurrent calls explains what they returned and raised")
        (one,) = made
        expected, _ = self._states[0].outcome(one)
        found = difference(expected, one.answer) or Mismatch("", expected, one.answer)
        code = self._script.code(one.handle, one.call)
        if not isinstance(expected, Returned) or not isinstance(one.answer, Returned):
            self._script.contradict(code, expected, _told(expected), _told(one.answer))
        elif note or one.call.method.startswith(("get", "count")):
            place = f"({code}){found.place}" if found.place else code
            wanted = self._script.shown(found.expected)
            claim = f"repr({place}) == {wanted!r}" if found.expected == found.seen else f"{place} == {wanted}"
            self._script.expect(f"assert {claim}  # seen: {found.seen!r:.200}")
        seen = self._script.shown(found.seen) if isinstance(one.answer, Returned) else _told(one.answer)
        wanted = self._script.shown(found.expected) if isinstance(expected, Returned) else _told(expected)
        where = f" at {found.place}" if found.place else ""
        self._fail(f"{code.removeprefix('await ')}{where}: expected {wanted:.300}, seen {seen:.300}")

    def _fail(self, sentence: str) -> NoReturn:
        finding = Finding(sentence, self._script.text(), len(self._script), tuple(self._steps))
        self._findings.add(finding)
        raise UnexplainedError(sentence)


def _told(answer: Answer) -> str:
    if isinstance(answer, Raised):
        return f"{type(answer.error).__name__}: {answer.error!s:.200}"
    return f"{answer.value!r:.200}" if isinstance(answer, Returned) else "cancelled"


def _distinct(states: list[State]) -> list[State]:
    return list({state.key(): state for state in states}.values())
