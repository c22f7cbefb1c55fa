"""The workers of a storm: the calls that they make on shared sessions and on their own, and how these calls end."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    FluxMemoryError,
    NewMessage,
    OutcomeUnknownError,
    Session,
    SessionNotFoundError,
    deadline,
)
from flux_memory.testkit.histories import Recorder

Ending = Literal["acknowledged", "refused", "unknown", "cancelled", "conflict", "missing", "bad row", "foreign error"]
"""How a call ended; `refused`: the store could not be reached, and nothing was stored."""

Call = Callable[[], Awaitable[Any]]

DEADLINE_SECONDS: Final = (0.02, 0.2, 4.0)
"""Deadlines of calls."""
HANG_SECONDS: Final = 10.0
"""Seconds after its deadline or cancellation at which a call counts as hung; one second is the promise."""
ATTEMPTS: Final = 5
USERS: Final = 4
"""Owners of the sessions that workers create and delete in one round."""
_ERRORS: Final[tuple[tuple[type[Exception], Ending], ...]] = (
    (OutcomeUnknownError, "unknown"),
    (BackendUnavailableError, "refused"),
    (ConflictError, "conflict"),
    (SessionNotFoundError, "missing"),
    (FluxMemoryError, "bad row"),
)
"""Subclasses first."""


@dataclass
class Summary:
    """Counts of what happened, and of broken promises."""

    engine: str
    seed: int
    rounds: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    """Acknowledged calls by method."""
    broken: Counter[str] = field(default_factory=Counter)
    """Broken promises by kind; there must be none."""
    examples: list[str] = field(default_factory=list)
    longest_overrun: float = 0.0
    """Seconds by which the slowest call outlived its deadline."""

    def add_broken(self, kind: str, sentence: str) -> None:
        """Count a broken promise, and keep the sentence as an example."""
        self.broken[kind] += 1
        self.examples.append(f"{kind}: {sentence}"[:500])

    def shown(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        about = {"engine": self.engine, "seed": self.seed, "rounds": self.rounds}
        told = {"outcomes": dict(self.outcomes), "acknowledged": dict(self.acknowledged), "broken": dict(self.broken)}
        return about | told | {"longest_overrun": round(self.longest_overrun, 2)}


class Caller:
    """Makes calls with random deadlines, cancels some, and counts how they end."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    async def make(
        self,
        rng: random.Random,
        method: str,
        call: Call,
        *allowed: Ending,
        patient: bool = False,
    ) -> tuple[Ending, Any]:
        """Make one call, and return how it ended and its result or error.

        Args:
            rng: Chooses the deadline, and whether the call is cancelled.
            method: The name under which it is counted.
            call: Makes the call.
            allowed: Refusals that the state of the session can cause; any other breaks a promise.
            patient: Whether the call has the longest deadline.
        """
        seconds = DEADLINE_SECONDS[-1] if patient else rng.choice(DEADLINE_SECONDS)
        leaves_after = rng.random() * rng.choice((0.002, 0.02, 0.2)) if rng.random() < 0.1 else None
        outcome = await self._one(call, seconds, leaves_after)
        ending = self._ending(outcome)
        self._summary.outcomes["calls"] += 1
        self._summary.outcomes[ending] += 1
        self._summary.acknowledged[method] += ending == "acknowledged"
        if ending == "foreign error" or (ending in {"conflict", "missing", "bad row"} and ending not in allowed):
            self._summary.add_broken(f"false {ending}", f"{method}: {outcome!r}")
        return ending, outcome

    def _ending(self, outcome: object) -> Ending:
        if not isinstance(outcome, BaseException):
            return "acknowledged"
        if isinstance(outcome, asyncio.CancelledError):
            return "cancelled"
        return next((ending for kind, ending in _ERRORS if isinstance(outcome, kind)), "foreign error")

    async def _one(self, call: Call, seconds: float, leaves_after: float | None) -> Any:
        with deadline(seconds):
            task = asyncio.ensure_future(call())
        began = time.monotonic()
        await asyncio.wait([task], timeout=seconds + HANG_SECONDS if leaves_after is None else leaves_after)
        if not task.done():
            if leaves_after is None:
                self._summary.add_broken("hung", "a call outlived its deadline")
            task.cancel()
            began, seconds = time.monotonic(), 0.0
            await asyncio.wait([task], timeout=HANG_SECONDS)
        self._summary.longest_overrun = max(self._summary.longest_overrun, time.monotonic() - began - seconds)
        if not task.done():
            self._summary.add_broken("hung", "a call outlived its cancellation")
            return asyncio.CancelledError()
        return asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()


class Workers:
    """The calls of one round; the journal of `memory` has them all.

    Args:
        memory: The handle that all workers share.
        summary: Counts the outcomes.
        name: The prefix of every id and user of the round.
        sessions: The number of shared sessions.
    """

    def __init__(self, memory: Recorder, summary: Summary, name: str, sessions: int) -> None:
        self.sessions: Final = [f"{name}-{number}" for number in range(sessions)]
        self.stopping = False
        self._memory = memory
        self._summary = summary
        self._caller = Caller(summary)
        self._name = name
        self._numbers = 0
        self._made: list[str] = []
        """Sessions of users, which may be deleted at any time."""
        self._revisions: dict[tuple[str, str], tuple[int, str]] = {}
        """The count and `updated_at` with which each revision was read."""

    async def work(self, rng: random.Random) -> None:
        """Make calls on shared sessions until the round ends."""
        calls = {
            self._add: 30, self._add_batch: 10, self._pop: 14, self._update: 14, self._truncate: 3, self._create: 4,
            self._add_and_create: 6, self._fork: 3, self._read: 8, self._delete: 3, self._delete_user: 1, self._bad: 3,
        }  # fmt: skip
        while not self.stopping:
            await rng.choices([*calls], [*calls.values()])[0](rng)
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() / 50)

    def number(self) -> str:
        """Return a name that is new in the storm."""
        self._numbers += 1
        return f"{self._name}-n{self._numbers}"

    def batch(self, size: int) -> list[NewMessage]:
        """Return new messages with ids."""
        return [{"role": "user", "content": text, "message_id": text} for text in (self.number() for _ in range(size))]

    async def read_session(self, rng: random.Random, session: str) -> Session | None:
        """Return a session as it is now; `None` if the call fails."""
        ending, found = await self._caller.make(rng, "get_session", lambda: self._memory.get_session(session))
        if ending != "acknowledged" or found is None:
            return None
        state = (found["message_count"], found["updated_at"])
        if self._revisions.setdefault((session, found["revision"]), state) != state:
            self._summary.add_broken("revision repeated", f"{found!r} had the revision with {state!r}")
        return found  # type: ignore[no-any-return]

    async def make(self, rng: random.Random, method: str, call: Call, *allowed: Ending) -> tuple[Ending, Any]:
        """Make one call; see `Caller.make`."""
        return await self._caller.make(rng, method, call, *allowed)

    async def _again(self, rng: random.Random, method: str, call: Call, *allowed: Ending) -> None:
        """Make a call, and retry it with the same ids while it fails."""
        for attempt in range(ATTEMPTS):
            ending, _ = await self._caller.make(rng, method, call, *allowed, patient=attempt > 1)
            if ending not in {"refused", "unknown", "cancelled"} or self.stopping or rng.random() < 0.2:
                return

    def _any(self, rng: random.Random) -> tuple[str, tuple[Ending, ...]]:
        """Return a session, and the refusal that its deletion can cause."""
        if self._made and rng.random() < 0.15:
            return rng.choice(self._made[-20:]), ("missing",)
        return rng.choice(self.sessions), ()

    async def _add(self, rng: random.Random) -> None:
        (session, allowed), text = self._any(rng), self.number()
        add = self._memory.add_message
        await self._again(rng, "add_message", lambda: add(session, "user", text, message_id=text), *allowed)

    async def _add_batch(self, rng: random.Random) -> None:
        (session, allowed), batch = self._any(rng), self.batch(rng.randrange(2, 6))
        await self._again(rng, "add_messages", lambda: self._memory.add_messages(session, batch), *allowed)

    async def _bad(self, rng: random.Random) -> None:
        """Add a row that the store refuses; the other calls in its statement must not fail with it."""
        session, text = rng.choice(self.sessions), f"bad {self.number()}"
        await self._caller.make(rng, "bad row", lambda: self._memory.add_message(session, "user", text), "bad row")

    async def _pop(self, rng: random.Random) -> None:
        session, _ = self._any(rng)
        await self._caller.make(rng, "pop_message", lambda: self._memory.pop_message(session))

    async def _update(self, rng: random.Random) -> None:
        """Change a session that has the revision read before."""
        session, _ = self._any(rng)
        if (found := await self.read_session(rng, session)) is None:
            return
        key, text = f"k{rng.randrange(5)}", self.number()
        parts: dict[str, Any] = {"title": text, "merge_metadata": {key: text}, "messages": self.batch(2)}
        for name in rng.sample([*parts], rng.randrange(3)):
            del parts[name]
        if rng.random() < 0.2:
            parts["remove_metadata"] = [f"k{rng.randrange(5)}"]
        expected = found["revision"] if rng.random() < 0.8 else None
        allowed: tuple[Ending, ...] = ("missing", "conflict") if expected else ("missing",)
        _, updated = await self._caller.make(
            rng,
            "update_session",
            lambda: self._memory.update_session(session, expected_revision=expected, **parts),
            *allowed,
        )
        if isinstance(updated, dict) and updated["revision"] == found["revision"]:
            self._summary.add_broken("revision repeated", f"{updated!r} kept its revision")

    async def _truncate(self, rng: random.Random) -> None:
        session, _ = self._any(rng)
        parts: dict[str, Any] = {"truncate_all": True}
        if rng.random() < 0.9:
            read = self._memory.get_history
            ending, newest = await self._caller.make(rng, "get_history", lambda: read(session, 6))
            if ending != "acknowledged" or not newest:
                return
            parts = {"truncate_from": rng.choice(newest)["id"]}
        if rng.random() < 0.5:
            parts["messages"] = self.batch(2)
        await self._caller.make(
            rng, "truncation", lambda: self._memory.update_session(session, **parts), "conflict", "missing"
        )

    async def _create(self, rng: random.Random) -> None:
        name, user = self.number(), self._user(rng)
        create = self._memory.create_session
        # An earlier attempt with an unknown outcome may have created it.
        await self._again(
            rng, "create_session", lambda: create(name, {"made": name}, session_id=name, user_id=user), "conflict"
        )
        self._made.append(name)

    async def _add_and_create(self, rng: random.Random) -> None:
        name, user, batch = self.number(), self._user(rng), self.batch(rng.randrange(1, 4))
        add = self._memory.add_messages
        await self._again(rng, "add_messages creates", lambda: add(name, batch, create=True, user_id=user))
        self._made.append(name)

    async def _fork(self, rng: random.Random) -> None:
        (session, _), copy, user = self._any(rng), self.number(), self._user(rng)
        through = None
        if rng.random() < 0.5:
            ending, found = await self._caller.make(rng, "get_history", lambda: self._memory.get_history(session, 20))
            through = found[0]["id"] if ending == "acknowledged" and found else None
        fork = self._memory.fork_session
        await self._again(
            rng,
            "fork_session",
            lambda: fork(session, through=through, new_session_id=copy, user_id=user),
            "conflict",
            "missing",
        )
        self._made.append(copy)

    async def _read(self, rng: random.Random) -> None:
        session, _ = self._any(rng)
        calls: list[tuple[str, Call]] = [
            ("get_history", lambda: self._memory.get_history(session)),
            ("get_sessions", lambda: self._memory.get_sessions(20)),
            ("count_sessions", self._memory.count_sessions),
        ]
        method, call = rng.choice(calls)
        await self._caller.make(rng, method, call)

    async def _delete(self, rng: random.Random) -> None:
        if not self._made:
            return
        session, expected = rng.choice(self._made[-20:]), None
        if rng.random() < 0.7:
            if (found := await self.read_session(rng, session)) is None:
                return
            expected = found["revision"]
        delete = self._memory.delete_session
        await self._caller.make(rng, "delete_session", lambda: delete(session, expected_revision=expected), "conflict")

    async def _delete_user(self, rng: random.Random) -> None:
        user = self._user(rng)
        await self._caller.make(rng, "delete_sessions", lambda: self._memory.delete_sessions(user_id=user))

    def _user(self, rng: random.Random) -> str:
        return f"{self._name}-u{rng.randrange(USERS)}"
