"""What a history implies for a store: which calls tried to create or remove each session and message."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flux_memory.testkit.histories.journal import History, Operation, Sent
from flux_memory.testkit.histories.stored import Stored

_BEFORE = Operation("before", "before", None, began=-math.inf, ended=-math.inf, outcome="acknowledged")

MessageKey = tuple[str, str]
"""A session's id and a message's id."""


@dataclass(slots=True)
class Attempts:
    """The calls that tried to create one record, each with what it sent."""

    made: list[tuple[Operation, Any]] = field(default_factory=list)

    def possible(self) -> list[tuple[Operation, Any]]:
        """Return the calls that may have created it."""
        return [(operation, sent) for operation, sent in self.made if operation.outcome != "failed"]

    @property
    def began(self) -> float:
        """The earliest time at which it may have existed."""
        return min((operation.began for operation, _ in self.possible()), default=math.inf)

    @property
    def there(self) -> float:
        """The time from which on it must have existed, unless it was removed; infinite if it need not exist."""
        return min(
            (operation.ended for operation, _ in self.made if operation.outcome == "acknowledged"), default=math.inf
        )

    @property
    def over(self) -> float:
        """The time from which on no call can create it any more."""
        return max((_effect(operation) for operation, _ in self.possible()), default=-math.inf)


class Expected:
    """The calls of a history, grouped by the session, title or message that they affect."""

    def __init__(self, history: History, before: Stored | None = None) -> None:
        self.history = history
        self.messages: dict[MessageKey, Attempts] = defaultdict(Attempts)
        self.sessions: dict[str, Attempts] = defaultdict(Attempts)
        self.titles: dict[str, Attempts] = defaultdict(Attempts)
        self._deletions: dict[str | None, list[Operation]] = defaultdict(list)
        for name, session in (before.sessions if before else {}).items():
            self.sessions[name].made.append((_BEFORE, dict(session.record)))
            self.titles[name].made.append((_BEFORE, session.record["title"]))
            for message in session.history:
                sent = Sent(message["id"], message["role"], message["content"], message["metadata"])
                self.messages[name, sent.id].made.append((_BEFORE, sent))
        for operation in history.operations:
            self._take(operation)

    def _take(self, operation: Operation) -> None:
        name = operation.session or ""
        if operation.method in {"delete_session", "clear_all"} and operation.outcome != "failed":
            self._deletions[operation.session].append(operation)
        if operation.method == "create_session":
            self.sessions[name].made.append((operation, operation.fields))
        if operation.fields is not None:
            self.titles[name].made.append((operation, operation.fields["title"]))
        for sent in operation.messages:
            self.messages[name, sent.id].made.append((operation, sent))

    def deletions(self, session: str) -> Iterable[Operation]:
        """Return the calls that may have removed a session."""
        return [*self._deletions[session], *self._deletions[None]]

    def must_be_there(self, session: str, attempts: Attempts) -> bool:
        """Return whether a record was acknowledged and cannot have been removed since."""
        return attempts.there < math.inf and all(
            _effect(deletion) < attempts.began for deletion in self.deletions(session)
        )

    def must_be_gone(self, session: str, attempts: Attempts) -> bool:
        """Return whether an acknowledged call removed a record, and no call can have created it since."""
        return any(
            deletion.outcome == "acknowledged" and attempts.over < deletion.began
            for deletion in self.deletions(session)
        )


def _effect(operation: Operation) -> float:
    """Return the time from which on a call can no longer take effect."""
    return operation.ended if operation.outcome == "acknowledged" else math.inf
