"""The calls that tried to create a session or a message, and those that may have removed messages."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flux_memory.testkit.histories.journal import Operation

MessageKey = tuple[str, str]
"""A session's id and a message's id."""


@dataclass(slots=True)
class Attempts:
    """The calls that tried to create one record, each with what it sent."""

    made: list[tuple[Operation, Any]] = field(default_factory=list)

    def calls(self) -> int:
        """Return how many calls may have created it."""
        return len({id(operation) for operation, _ in self.possible()})

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
        return max((effect(operation) for operation, _ in self.possible()), default=-math.inf)


class Removals:
    """The pops and truncations that may have removed messages.

    Args:
        messages: The calls that tried to create each message.
        resends: Whether one add may store its message again after a removal that it overlapped.
    """

    def __init__(self, messages: Mapping[MessageKey, Attempts], *, resends: bool = False) -> None:
        self._messages = messages
        self._resends = resends
        self._by_session: dict[str, list[Operation]] = defaultdict(list)

    def take(self, operation: Operation) -> None:
        """Note a call that may have removed messages; others are ignored."""
        truncates = operation.truncate_all or operation.truncate_from is not None
        if truncates or (operation.method == "pop_message" and (operation.popped or operation.outcome == "unknown")):
            self._by_session[operation.session or ""].append(operation)

    def of(self, session: str) -> list[Operation]:
        """Return the calls that may have removed messages of a session."""
        return self._by_session[session]

    def named(self) -> set[MessageKey]:
        """Return the messages that acknowledged calls name as removed."""
        removals = [(name, one) for name, found in self._by_session.items() for one in found]
        return {
            (name, made)
            for name, one in removals
            if one.outcome == "acknowledged"
            for made in (one.popped, one.truncate_from)
            if made is not None
        }

    def unknown_pops(self, session: str) -> int:
        """Return how many pops may have removed a message without saying which."""
        return sum(one.method == "pop_message" and one.popped is None for one in self.of(session))

    def certain(self, session: str, message: str) -> list[Operation]:
        """Return the acknowledged calls that name this message as removed."""
        return [
            one
            for one in self.of(session)
            if one.outcome == "acknowledged" and message in {one.popped, one.truncate_from}
        ]

    def most_stores(self, session: str, message: str) -> int:
        """Return how often a message may have been stored: once by each add, and again after an overlapping removal."""
        attempts = self._messages[session, message]
        again = sum(
            any(add.began < removal.ended and removal.began < effect(add) for add, _ in attempts.possible())
            for removal in (self.certain(session, message) if self._resends else ())
        )
        return attempts.calls() + again

    def may_remove(self, session: str, message: str, *, pops: bool = True, until: float = math.inf) -> bool:
        """Return whether a call may have removed a message that was acknowledged, and no call has added it since.

        Args:
            session: The session's id.
            message: The message's id.
            pops: Whether a pop that does not say what it removed counts.
            until: Calls that began later do not count.
        """
        acknowledged = [one for one, _ in self._messages[session, message].made if one.outcome == "acknowledged"]
        removals = [
            one for one in self.of(session) if one.began < until and self._may(one, session, message, pops=pops)
        ]
        return not any(all(effect(removal) < add.began for removal in removals) for add in acknowledged)

    def could_remove(self, session: str, message: str) -> bool:
        """Return whether any call may have removed a message, whether or not it was acknowledged or added again."""
        return any(self._may(one, session, message, pops=True) for one in self.of(session))

    def must_remove(self, session: str, message: str) -> bool:
        """Return whether an acknowledged call removed a message, and no call can have added it since."""
        attempts = self._messages[session, message]
        certain = self.certain(session, message)
        if certain and (
            len(certain) >= self.most_stores(session, message) or any(attempts.over < one.began for one in certain)
        ):
            return True
        return any(
            one.outcome == "acknowledged"
            and attempts.over < one.began
            and (one.truncate_all or self._follows(session, message, one.truncate_from))
            for one in self.of(session)
        )

    def _may(self, removal: Operation, session: str, message: str, *, pops: bool) -> bool:
        if removal.method == "pop_message":
            return pops if removal.popped is None else removal.popped == message
        attempts = self._messages[session, message]
        if effect(removal) < attempts.began:
            return False
        if removal.truncate_all:
            return True
        cut = removal.truncate_from or ""
        return message == cut or not attempts.there < self._messages[session, cut].began

    def _follows(self, session: str, message: str, cut: str | None) -> bool:
        return cut is not None and self._messages[session, cut].there < self._messages[session, message].began


def effect(operation: Operation) -> float:
    """Return the time from which on a call can no longer take effect."""
    return math.inf if operation.outcome == "unknown" else operation.ended
