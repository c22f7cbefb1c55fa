"""Reduces calls to what a backend claims; the clauses on claims check the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flux_memory import MAX_ID_LENGTH
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.contract.model.calls import CancelPoint, ModelCall
from flux_memory.testkit.reference.memory import WRITES

NEEDED: Final = Capability.MESSAGE_IDS | Capability.SESSIONS | Capability.SESSION_IDS | Capability.TIMESTAMPS
"""Without these capabilities the model cannot determine what a store holds."""

_METHODS: Final = {
    "add_messages": Capability.BATCH,
    "get_message": Capability.MESSAGE_LOOKUP,
    "pop_message": Capability.POP,
    "update_session_title": Capability.TITLES,
    "fork_session": Capability.FORK,
    "delete_sessions": Capability.RETENTION,
    "clear_all": Capability.CLEAR_ALL,
}
_IDS: Final = ("session_id", "message_id", "before", "after", "through", "truncate_from", "new_session_id")
_OF_A_MESSAGE: Final = {"metadata": Capability.MESSAGE_METADATA, "message_id": Capability.IDEMPOTENT_IDS}
_OF_AN_ADD: Final = {
    "create": Capability.CREATE_ON_ADD,
    "user_id": Capability.CREATE_ON_ADD | Capability.USER_SCOPE,
}
_ARGUMENTS: Final[dict[str, dict[str, Capability]]] = {
    "create_session": {
        "title": Capability.TITLES,
        "metadata": Capability.SESSION_METADATA,
        "user_id": Capability.USER_SCOPE,
    },
    "add_message": _OF_A_MESSAGE | _OF_AN_ADD,
    "add_messages": _OF_AN_ADD,
    "get_history": {"before": Capability.CURSOR, "after": Capability.FORWARD_CURSOR},
    "get_sessions": {
        "user_id": Capability.USER_SCOPE,
        "metadata": Capability.METADATA_FILTER,
        "before": Capability.LIST_CURSOR,
        "with_metadata": Capability.LIST_CURSOR,
    },
    "count_sessions": {
        "user_id": Capability.COUNT_FILTER | Capability.USER_SCOPE,
        "metadata": Capability.COUNT_FILTER | Capability.METADATA_FILTER,
    },
    "update_session": {
        "expected_revision": Capability.REVISIONS,
        "title": Capability.SESSION_UPDATES | Capability.TITLES,
        "merge_metadata": Capability.SESSION_UPDATES | Capability.SESSION_METADATA,
        "remove_metadata": Capability.SESSION_UPDATES | Capability.SESSION_METADATA,
        # The model has to know the ids, and this call does not return them.
        "messages": Capability.SESSION_UPDATES | Capability.IDEMPOTENT_IDS,
        "truncate_from": Capability.TRUNCATE,
        "truncate_all": Capability.TRUNCATE,
    },
    "fork_session": {"user_id": Capability.USER_SCOPE, "title": Capability.TITLES},
    "delete_session": {"expected_revision": Capability.REVISIONS},
    "delete_sessions": {"user_id": Capability.USER_SCOPE},
}
_PARTS: Final[dict[str, frozenset[str]]] = {
    "update_session": frozenset(_ARGUMENTS["update_session"]) - {"expected_revision"},
    "delete_sessions": frozenset({"user_id", "inactive_since"}),
}
"""The arguments of which a call needs at least one."""

Item = tuple[int, ModelCall, CancelPoint | None]
"""A handle, the call on it, and where it is cancelled."""


def claimed(item: Item, claims: Capability, longest_id: int = MAX_ID_LENGTH) -> Item | None:
    """Return the call without its unclaimed parts and with ids of the claimed length, or `None` if nothing remains."""
    handle, call, cut = item
    if call.method in _METHODS and _METHODS[call.method] not in claims:
        return None
    arguments = _shortened(_without(call.arguments, _ARGUMENTS.get(call.method, {}), claims), longest_id)
    if call.method in _PARTS and not arguments.keys() & _PARTS[call.method]:
        return None
    if isinstance(arguments.get("messages"), list):
        arguments["messages"] = [
            _shortened(_without(message, _OF_A_MESSAGE, claims), longest_id) if isinstance(message, dict) else message
            for message in arguments["messages"]
        ]
    if Capability.SEVERAL_HANDLES not in claims:
        handle = 0
    # After a cancelled write, reads have to show whether it took effect, and that it does not take effect later.
    needed = Capability.DURABLE
    if call.method in {"add_message", "add_messages"}:
        needed |= Capability.IDEMPOTENT_IDS
    if call.method in WRITES and needed not in claims:
        cut = None
    return handle, ModelCall(call.method, arguments), cut


def _without(given: Mapping[str, Any], needs: Mapping[str, Capability], claims: Capability) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in needs or needs[name] in claims}


def _shortened(given: dict[str, Any], longest: int) -> dict[str, Any]:
    """Return the arguments with valid ids cut to this length; an id that every backend rejects stays as it is."""
    return {
        name: value[:longest] if name in _IDS and isinstance(value, str) and len(value) <= MAX_ID_LENGTH else value
        for name, value in given.items()
    }
