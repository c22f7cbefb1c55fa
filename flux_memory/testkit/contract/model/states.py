"""The possible states of a store: the reference model's data, and cancelled calls that may still take effect."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

from flux_memory import ConflictError, SessionNotFoundError
from flux_memory.testkit.contract.model.answers import ANY_REVISION, ANY_TIME, difference
from flux_memory.testkit.contract.model.calls import Answer, Answered, CutOff, ModelCall, Raised, Returned
from flux_memory.testkit.contract.model.pages_seen import page_as_seen
from flux_memory.testkit.reference import ReferenceMemory, ReferenceStore
from flux_memory.testkit.reference.memory import WRITES

_LISTINGS: Final = frozenset({"get_sessions", "count_sessions"})

_RECENT: Final = "2090-01-01T00:00:00.000000+00:00"
"""After each time that a store can have chosen."""

Sessions = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class State:
    """One state that explains every answer so far."""

    sessions: Sessions
    closed: frozenset[int] = frozenset()
    pending: tuple[Answered, ...] = ()

    def after(self, made: Answered) -> State | None:
        """Return the state after this call, or `None` if the model would have given a different answer."""
        expected, state = self.outcome(made)
        return state if isinstance(made.answer, CutOff) or difference(expected, made.answer) is None else None

    def outcome(self, made: Answered) -> tuple[Answer, State]:
        """Return the reference model's answer to a call, and the state after it."""
        if made.call.method == "close":
            return Returned(None), replace(self, closed=self.closed | {made.handle})
        writes = made.call.method in WRITES
        sessions = _copied(self.sessions) if writes else self.sessions
        # A cancelled call began before its handle was closed.
        closed = made.handle in self.closed and not isinstance(made.answer, CutOff)
        expected = _reference_answer(sessions, _told(made), closed=closed)
        if made.call.method == "get_sessions":
            arguments = {**made.call.arguments, "limit": None, "offset": 0, "before": None}
            whole = _reference_answer(sessions, ModelCall("get_sessions", arguments), closed=closed)
            expected = page_as_seen(whole, expected, made)
        if _contradicts_itself(made):
            # No promise says which error wins: the missing session or the invalid batch.
            expected = made.answer
        if repeats := self._repeated_id(made):
            expected = Returned(f"a new id, unlike {repeats!r}")
        if not writes:
            return expected, self
        if made.call.method == "update_session" and isinstance(expected, Returned):
            expected = Returned(expected.value | {"revision": ANY_REVISION})
        return expected, replace(self, sessions=_with_any_revision(self.sessions, sessions))

    def with_pending(self) -> Iterator[State]:
        """Yield this state, and the states in which cancelled calls have taken effect."""
        yield self
        for at, made in enumerate(self.pending):
            without = replace(self, pending=self.pending[:at] + self.pending[at + 1 :])
            if (applied := without.after(made)) is not None and applied.key() != without.key():
                yield from applied.with_pending()

    def key(self) -> str:
        """Return a text that equal states share."""
        shown = [repr(self.sessions[name]) for name in sorted(self.sessions)]
        return repr((shown, sorted(self.closed), [id(made) for made in self.pending]))

    def _repeated_id(self, made: Answered) -> str | None:
        """Return an id that the store generated although it was taken, as it would look like a retry."""
        if made.call.method not in {"add_message", "add_messages"} or not isinstance(made.answer, Returned):
            return None
        session = self.sessions.get(str(made.call.arguments.get("session_id")))
        taken = {message["id"] for message in session["messages"]} if session else set()
        asked, told = _messages(made.call), _told(made)
        for before, after in zip(asked, _messages(told), strict=False):
            if before.get("message_id") is None and after.get("message_id") in taken:
                return str(after["message_id"])
        return None


def explain(states: list[State], calls: list[Answered], *, loosely: bool = False) -> list[State]:
    """Return the possible states of a store after concurrent calls; none if the answers are impossible.

    Some order of the calls has to explain each answer. Cancelled calls may take effect at any time.

    Args:
        states: The possible states before the calls.
        calls: The calls, with their answers.
        loosely: Accept any listing, as no promise says what it shows during one of these calls.
    """
    cut = tuple(made for made in calls if isinstance(made.answer, CutOff))
    rest = [made for made in calls if made not in cut and not (loosely and _is_listing(made))]
    found: dict[str, State] = {}
    for state in states:
        start = replace(state, pending=state.pending + tuple(made for made in cut if made.call.method in WRITES))
        for end in _orders(start, rest, set()):
            found.setdefault(end.key(), end)
    return list(found.values())


def _orders(state: State, calls: list[Answered], tried: set[tuple[str, frozenset[int]]]) -> Iterator[State]:
    """Yield the final state of each order of the calls that explains their answers."""
    if not calls:
        yield state
        return
    place = (state.key(), frozenset(map(id, calls)))
    if place in tried:
        return
    tried.add(place)
    for before in state.with_pending():
        for at, made in enumerate(calls):
            if (after := before.after(made)) is not None:
                yield from _orders(after, calls[:at] + calls[at + 1 :], tried)


def _is_listing(made: Answered) -> bool:
    return made.call.method in _LISTINGS and isinstance(made.answer, Returned)


def _contradicts_itself(made: Answered) -> bool:
    """Return whether a batch was rejected that has one id twice with different contents."""
    if made.call.method not in {"add_messages", "update_session"} or not isinstance(made.answer, Raised):
        return False
    if not isinstance(made.answer.error, ConflictError | SessionNotFoundError):
        return False
    chosen = [message for message in made.call.arguments.get("messages", ()) if message.get("message_id") is not None]
    batch = [{"metadata": None, **message} for message in chosen]
    return any(one["message_id"] == other["message_id"] and one != other for one, other in combinations(batch, 2))


class _Timeless(ReferenceMemory):
    """Notes `ANY_TIME` for the times that a store would set."""

    def _now(self) -> str:
        return ANY_TIME


def _reference_answer(sessions: Sessions, call: ModelCall, *, closed: bool) -> Answer:
    store = ReferenceStore()
    with store.writing() as kept:
        kept.update(_with_recent_times(sessions) if call.method == "delete_sessions" else sessions)
    memory = _Timeless(store)
    if closed:
        _run(memory.close())
    try:
        answer: Answer = Returned(_run(getattr(memory, call.method)(**call.arguments)))
    except Exception as error:  # noqa: BLE001 - it is the expected answer
        answer = Raised(error)
    _run(memory.close())
    with store.reading() as kept:
        for name in sessions.keys() - kept.keys():
            del sessions[name]
        if call.method != "delete_sessions":
            sessions.update(kept)
    return answer


def _with_recent_times(sessions: Sessions) -> Sessions:
    """Return the sessions with a time for `ANY_TIME`, which is later than those that are known."""
    return {
        name: state | {"updated_at": _RECENT} if state["updated_at"] == ANY_TIME else state
        for name, state in sessions.items()
    }


def _run(call: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine of the reference model, which never suspends."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the reference model suspended")


def _copied(sessions: Sessions) -> Sessions:
    return {name: state | {"messages": list(state["messages"])} for name, state in sessions.items()}


def _with_any_revision(before: Sessions, after: Sessions) -> Sessions:
    """Return the state after a write, with `ANY_REVISION` for each session that it made or changed."""
    return {
        name: state
        if name in before and before[name]["revision"] == state["revision"]
        else state | {"revision": ANY_REVISION}
        for name, state in after.items()
    }


def _told(made: Answered) -> ModelCall:
    """Return the call with the ids that the store chose, so that the reference model uses the same."""
    call, answer = made.call, made.answer
    if not isinstance(answer, Returned) or not answer.value:
        return call
    arguments = dict(call.arguments)
    if call.method == "create_session" and arguments.get("session_id") is None:
        arguments["session_id"] = answer.value
    elif call.method == "fork_session" and arguments.get("new_session_id") is None:
        arguments["new_session_id"] = answer.value
    elif call.method == "add_message" and arguments.get("message_id") is None:
        arguments["message_id"] = answer.value
    elif call.method == "add_messages" and isinstance(answer.value, list) and isinstance(arguments["messages"], list):
        arguments["messages"] = [
            message if message.get("message_id") is not None else message | {"message_id": chosen}
            for message, chosen in zip(arguments["messages"], answer.value, strict=False)
        ] + arguments["messages"][len(answer.value) :]
    return ModelCall(call.method, arguments)


def _messages(call: ModelCall) -> list[Any]:
    return [call.arguments] if call.method == "add_message" else list(call.arguments["messages"])
