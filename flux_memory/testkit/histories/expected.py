"""What a history implies for a store: which calls tried to create or remove each session and message."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from flux_memory.testkit.histories.attempts import Attempts, MessageKey, Removals, effect
from flux_memory.testkit.histories.journal import History, Operation, Sent
from flux_memory.testkit.histories.stored import Stored

_BEFORE = Operation("before", "before", None, began=-math.inf, ended=-math.inf, outcome="acknowledged")


class Expected:
    """The calls of a history, grouped by the session, title or message that they affect."""

    def __init__(self, history: History, before: Stored | None = None, *, resends: bool = False) -> None:
        self.history = history
        self.messages: dict[MessageKey, Attempts] = defaultdict(Attempts)
        self.sessions: dict[str, Attempts] = defaultdict(Attempts)
        self.titles: dict[str, Attempts] = defaultdict(Attempts)
        self.metadata_changes: dict[str, list[Operation]] = defaultdict(list)
        """The updates that may have changed a session's metadata."""
        self.removals = Removals(self.messages, resends=resends)
        self._deletions: dict[str | None, list[Operation]] = defaultdict(list)
        for name, session in (before.sessions if before else {}).items():
            self.sessions[name].made.append((_BEFORE, dict(session.record)))
            self.titles[name].made.append((_BEFORE, session.record["title"]))
            for message in session.history:
                sent = Sent(message["id"], message["role"], message["content"], message["metadata"])
                self.messages[name, sent.id].made.append((_BEFORE, sent))
        for operation in history.operations:
            self._take(operation)
        for operation in history.operations:
            if operation.source is not None and operation.outcome != "failed":
                self._copy(operation, operation.source)

    def _take(self, operation: Operation) -> None:
        name = operation.session or ""
        possible = operation.outcome != "failed"
        # A deletion of many sessions that failed may have removed some.
        if (operation.method in {"delete_session", "clear_all"} and possible) or operation.method == "delete_sessions":
            self._deletions[operation.session].append(operation)
        if operation.method in {"create_session", "fork_session"} or operation.creates:
            self.sessions[name].made.append((operation, operation.fields))
        if operation.fields is not None and "title" in operation.fields:
            # An add leaves the title of a session that exists as it is.
            named = replace(operation, outcome="unknown") if operation.creates and possible else operation
            self.titles[name].made.append((named, operation.fields["title"]))
        if possible and (operation.merged or operation.removed_keys):
            self.metadata_changes[name].append(operation)
        if possible:
            self.removals.take(operation)
        for sent in operation.messages:
            self.messages[name, sent.id].made.append((operation, sent))

    def _copy(self, fork: Operation, source: str) -> None:
        """Take the messages that a fork may have copied, and the titles that its session may have."""
        copy = fork.session or ""
        if "title" not in (fork.fields or {}):
            self.titles[copy].made += [(fork, title) for _, title in self.titles[source].possible()]
        last = None if fork.through is None else self.messages[source, fork.through]
        for (name, made), attempts in list(self.messages.items()):
            after_last = last is not None and made != fork.through and last.there < attempts.began
            if name != source or after_last or attempts.began > effect(fork):
                continue
            certain = (
                attempts.there < fork.began
                and not self.deletions(source)
                and not self.removals.may_remove(source, made, until=fork.ended)
                and (last is None or made == fork.through or attempts.there < last.began)
            )
            by = fork if certain else replace(fork, outcome="unknown")
            self.messages[copy, made].made += [(by, sent) for _, sent in attempts.possible()]

    def deletions(self, session: str) -> Iterable[Operation]:
        """Return the calls that may have removed a session."""
        return [*self._deletions[session], *self._deletions[None]]

    def must_be_there(self, session: str, attempts: Attempts) -> bool:
        """Return whether a record was acknowledged and its session cannot have been removed since."""
        return attempts.there < math.inf and all(
            effect(deletion) < attempts.began for deletion in self.deletions(session)
        )

    def must_be_gone(self, session: str, attempts: Attempts) -> bool:
        """Return whether an acknowledged call removed a session, and no call can have created the record since."""
        return any(
            deletion.outcome == "acknowledged" and attempts.over < deletion.began and self._removes(deletion, session)
            for deletion in self.deletions(session)
        )

    def _removes(self, deletion: Operation, session: str) -> bool:
        """Return whether a call removes this session for certain."""
        if deletion.method != "delete_sessions":
            return True
        user = (deletion.fields or {}).get("user_id")
        owners = [(fields or {}).get("user_id") for _, fields in self.sessions[session].possible()]
        return user is not None and bool(owners) and all(owner == user for owner in owners)
