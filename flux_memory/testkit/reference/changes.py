"""The reference model's changes of conversations: updates, pops, forks and bulk deletions, in the plainest code."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from flux_memory import ConflictError, InvalidInputError, MemoryClosedError, Message, Metadata, NewMessage, Session
from flux_memory.testkit.reference import arguments, rows, values
from flux_memory.testkit.reference.store import ReferenceStore


class ReferenceChanges:
    """The methods of the reference model that look at the revision or the tail of a conversation."""

    def __init__(self, store: ReferenceStore) -> None:
        self._store = store
        self._closed = False
        self._used = False

    async def get_message(self, session_id: str, message_id: str) -> Message | None:
        """See `Memory`."""
        self._check_open()
        key = arguments.plain_text("session_id", session_id)
        wanted = arguments.plain_text("message_id", message_id)
        with self._store.reading() as sessions:
            messages = sessions[key]["messages"] if key in sessions else []
            return next((rows.message_record(message) for message in messages if message["id"] == wanted), None)

    async def pop_message(self, session_id: str) -> Message | None:
        """See `Memory`."""
        self._check_open()
        key = arguments.plain_text("session_id", session_id)
        with self._store.writing() as sessions:
            if key not in sessions or not sessions[key]["messages"]:
                return None
            popped = rows.message_record(sessions[key]["messages"][-1])
            del sessions[key]["messages"][-1]
            rows.change(sessions[key], self._now())
        return popped

    async def update_session(
        self,
        session_id: str,
        *,
        expected_revision: str | None = None,
        title: str | None = None,
        merge_metadata: Metadata | None = None,
        remove_metadata: Iterable[str] = (),
        truncate_from: str | None = None,
        truncate_all: bool = False,
        messages: Iterable[NewMessage] = (),
    ) -> Session:
        """See `Memory`."""
        self._check_open()
        key = arguments.plain_text("session_id", session_id)
        expected = None if expected_revision is None else arguments.plain_text("expected_revision", expected_revision)
        new_title = None if title is None else arguments.text("title", title)
        merged = arguments.metadata("merge_metadata", merge_metadata)
        removed = arguments.keys("remove_metadata", remove_metadata)
        first_cut = None if truncate_from is None else arguments.plain_text("truncate_from", truncate_from)
        cuts_all = arguments.flag("truncate_all", truncate_all)
        batch = arguments.drafts(messages)
        if cuts_all and first_cut is not None:
            raise InvalidInputError("truncate_from and truncate_all are both given")
        if new_title is None and merge_metadata is None and not (removed or first_cut is not None or cuts_all or batch):
            raise InvalidInputError("update_session has nothing to change")
        rows.refuse_contradictions(batch)
        with self._store.writing() as sessions:
            changed = values.copy_json(rows.existing(sessions, key))
            rows.check_revision(changed, expected)
            if cuts_all:
                changed["messages"] = []
            if first_cut is not None:
                del changed["messages"][rows.find_message(changed, first_cut) :]
            if new_title is not None:
                changed["title"] = new_title
            kept = {name: value for name, value in changed["metadata"].items() if name not in removed}
            changed["metadata"] = kept | merged
            moment = max(self._now(), changed["updated_at"])
            changed["messages"] += rows.append(changed, batch, moment)[0]
            if problem := values.problem_of_size(changed["metadata"]):
                raise InvalidInputError(f"merge_metadata would make the metadata {problem}")
            rows.change(changed, moment)
            sessions[key] = changed
            return rows.session_record(changed)

    async def fork_session(
        self,
        session_id: str,
        *,
        through: str | None = None,
        new_session_id: str | None = None,
        user_id: str | None = None,
        title: str | None = None,
    ) -> str:
        """See `Memory`."""
        self._check_open()
        key = arguments.plain_text("session_id", session_id)
        last = None if through is None else arguments.plain_text("through", through)
        new = rows.new_id() if new_session_id is None else arguments.identifier("new_session_id", new_session_id)
        owner = None if user_id is None else arguments.owner(user_id)
        new_title = None if title is None else arguments.text("title", title)
        with self._store.writing() as sessions:
            original = rows.existing(sessions, key)
            count = len(original["messages"]) if last is None else rows.find_message(original, last) + 1
            if new in sessions:
                raise ConflictError(f"session {new!r} exists")
            given: dict[str, Any] = {
                "id": new,
                "user_id": original["user_id"] if owner is None else owner,
                "title": original["title"] if new_title is None else new_title,
                "metadata": values.copy_json(original["metadata"]),
            }
            forked = rows.new_session(max(self._now(), original["updated_at"]), **given)
            forked["messages"] = values.copy_json(original["messages"][:count])
            sessions[new] = forked
        return new

    async def delete_sessions(self, *, user_id: str | None = None, inactive_since: datetime | None = None) -> int:
        """See `Memory`."""
        self._check_open()
        user = None if user_id is None else arguments.plain_text("user_id", user_id)
        moment = None if inactive_since is None else arguments.moment("inactive_since", inactive_since)
        if user is None and moment is None:
            raise InvalidInputError("delete_sessions needs user_id or inactive_since")
        with self._store.writing() as sessions:
            found = [
                state["id"]
                for state in sessions.values()
                if user in {None, state["user_id"]} and (moment is None or state["updated_at"] < moment)
            ]
            if user and moment is None:
                with self._store.feedback.writing() as entries:
                    for key, entry in list(entries.items()):
                        if entry["user_id"] == user or (entry["user_id"] == "" and entry["session_id"] in found):
                            del entries[key]
            for each in found:
                del sessions[each]
        return len(found)

    def _check_open(self) -> None:
        self._used = True
        if self._closed:
            raise MemoryClosedError("this memory is closed")

    def _now(self) -> str:
        """Return the current time in the format of records."""
        return datetime.now(UTC).isoformat(timespec="microseconds")
