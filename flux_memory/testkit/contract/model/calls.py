"""Calls as data: the method, its arguments and the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from flux_memory import Memory
from flux_memory.testkit.contract.cancel_points import When, cut_short
from flux_memory.testkit.timeouts import CALL_SECONDS, BlockedError, unblocked

_NAMING_MESSAGES: Final = frozenset({"message_id", "before", "after", "through", "truncate_from"})
"""Arguments with a message's id."""
_CHOSEN: Final = {
    "create_session": "session_id",
    "fork_session": "new_session_id",
    "add_message": "message_id",
    "add_messages": "message_id",
}
"""The argument by which a caller chooses the id that a call returns."""
_LONG_AGO: Final = datetime(2001, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class IdPlaceholder:
    """A placeholder for an id that exists when the call is made: number `at`, modulo the number of ids."""

    kind: Literal["session", "message"]
    at: int


@dataclass(frozen=True, slots=True)
class RecordPlaceholder:
    """A placeholder for a record of a session that was read before the call: number `at` from the newest.

    Its `part` is the whole record, its revision, or the time of its last change. Revisions are those of the call's
    session.
    """

    part: Literal["record", "revision", "moment"]
    at: int


@dataclass(frozen=True, slots=True)
class CancelPoint:
    """Where a call is cancelled; see `flux_memory.testkit.contract.cancel_points`."""

    point: int
    when: When


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A method call with its arguments by name; placeholders stand for values that the store chooses."""

    method: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Returned:
    """The call returned this."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The call raised this."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class CutOff:
    """The call was cancelled, so its outcome is unknown."""


Answer = Returned | Raised | CutOff


@dataclass(frozen=True, slots=True)
class Answered:
    """A call on a handle and its answer; its arguments no longer contain placeholders."""

    handle: int
    call: ModelCall
    answer: Answer


Known = Mapping[str, Sequence[str]]
"""The ids of the existing sessions, each with the ids of its messages."""


Records = Sequence[Mapping[str, Any]]
"""Records of sessions that were read, oldest first; a session can have several."""


def resolved(call: ModelCall, known: Known, records: Records = ()) -> ModelCall:
    """Return the call with a value for every placeholder; message ids and revisions are those of its session."""
    arguments = dict(call.arguments)
    if "session_id" in arguments:
        arguments["session_id"] = _picked(arguments["session_id"], list(known))
    session = arguments.get("session_id")
    messages = known.get(session, ()) if isinstance(session, str) else ()
    for name in arguments.keys() & _NAMING_MESSAGES:
        arguments[name] = _picked(arguments[name], messages)
    for name, value in list(arguments.items()):
        if isinstance(value, RecordPlaceholder):
            arguments[name] = _recorded(value, session, records)
    if isinstance(arguments.get("messages"), list):
        arguments["messages"] = [
            message | {"message_id": _picked(message["message_id"], messages)}
            if isinstance(message, dict) and "message_id" in message
            else message
            for message in arguments["messages"]
        ]
    return ModelCall(call.method, arguments)


def _picked(value: Any, ids: Sequence[str]) -> Any:
    if not isinstance(value, IdPlaceholder):
        return value
    return ids[value.at % len(ids)] if ids else f"no {value.kind}"


def _recorded(wanted: RecordPlaceholder, session: Any, records: Records) -> Any:
    if wanted.part == "revision":
        records = [record for record in records if record["id"] == session]
    if not records:
        return {"record": None, "revision": "no revision", "moment": _LONG_AGO}[wanted.part]
    record = records[-1 - wanted.at % len(records)]
    if wanted.part == "moment":
        return datetime.fromisoformat(record["updated_at"])
    return record["revision"] if wanted.part == "revision" else dict(record)


def made_by(call: ModelCall, answer: Answer) -> list[str | None]:
    """Return the ids in a call's answer, with `None` for each id that the caller chose."""
    if not isinstance(answer, Returned) or call.method not in _CHOSEN:
        return []
    if call.method == "add_messages":
        chosen = [message.get("message_id") for message in call.arguments["messages"]]
        told = answer.value if isinstance(answer.value, list) else []
    else:
        chosen = [call.arguments.get(_CHOSEN[call.method])]
        told = [answer.value]
    pairs = zip(told, chosen, strict=False)
    return [made if wanted is None and isinstance(made, str) else None for made, wanted in pairs]


async def at_once(
    calls: Sequence[tuple[Memory, ModelCall, CancelPoint | None]], *, seconds: float = CALL_SECONDS
) -> list[Answer]:
    """Make calls at the same time, cancel those with a `CancelPoint`, and return their answers in order.

    Raises:
        HangError: A call did not end in time.
    """
    tasks: list[asyncio.Task[Any]] = []
    for memory, call, cut in calls:
        made = getattr(memory, call.method)(**call.arguments)
        tasks.append(asyncio.ensure_future(made if cut is None else cut_short(made, cut.point, cut.when)))
    try:
        with unblocked(seconds):
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1)
                raise HangError(f"{calls[tasks.index(late.pop())][1].method} did not end within {seconds:g} s")
    except BlockedError as error:
        methods = " or ".join(sorted({call.method for _, call, _ in calls}))
        raise HangError(f"{methods}: {error}") from None
    finally:
        # Also if this raises: asyncio logs errors that were never retrieved when their tasks are collected.
        answers = [_answer(task) for task in tasks if task.done()]
    return answers


class HangError(AssertionError):
    """A call did not end."""


def _answer(task: asyncio.Task[Any]) -> Answer:
    if task.cancelled():
        return CutOff()
    error = task.exception()
    return Returned(task.result()) if error is None else Raised(error)
