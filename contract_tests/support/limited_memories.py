"""Variants of the reference model that lack capabilities and refuse the calls that need them."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Final

from outage_stores import Switch, SwitchedMemory

from flux_memory import BackendUnavailableError, InvalidInputError, Memory
from flux_memory.testkit import Capability, ReferenceMemory, ReferenceStore
from flux_memory.testkit.reference.networked import NetworkedMemory

_REFUSED: Final[dict[Capability, dict[str, tuple[str, ...]]]] = {
    Capability.BATCH: {"add_messages": ()},
    Capability.IDEMPOTENT_IDS: {
        "add_message": ("message_id",),
        "add_messages": ("message_id",),
        "update_session": ("message_id",),
    },
    Capability.MESSAGE_METADATA: {
        "add_message": ("metadata",),
        "add_messages": ("metadata",),
        "update_session": ("metadata",),
    },
    Capability.CURSOR: {"get_history": ("before",)},
    Capability.SESSIONS: {"get_session": (), "get_sessions": (), "count_sessions": ()},
    Capability.SESSION_IDS: {"create_session": ("session_id",), "fork_session": ("new_session_id",)},
    Capability.SESSION_METADATA: {
        "create_session": ("metadata",),
        "update_session": ("merge_metadata", "remove_metadata"),
    },
    Capability.METADATA_FILTER: {"get_sessions": ("metadata",), "count_sessions": ("metadata",)},
    Capability.USER_SCOPE: {
        "create_session": ("user_id",),
        "add_message": ("user_id",),
        "add_messages": ("user_id",),
        "fork_session": ("user_id",),
        "get_sessions": ("user_id",),
        "count_sessions": ("user_id",),
        "delete_sessions": ("user_id",),
    },
    Capability.TITLES: {
        "create_session": ("title",),
        "update_session": ("title",),
        "update_session_title": (),
        "fork_session": ("title",),
    },
    Capability.CLEAR_ALL: {"clear_all": ()},
    Capability.MESSAGE_LOOKUP: {"get_message": ()},
    Capability.FORWARD_CURSOR: {"get_history": ("after",)},
    Capability.CREATE_ON_ADD: {"add_message": ("create",), "add_messages": ("create",)},
    Capability.REVISIONS: {"update_session": ("expected_revision",), "delete_session": ("expected_revision",)},
    Capability.SESSION_UPDATES: {"update_session": ("title", "merge_metadata", "remove_metadata", "messages")},
    Capability.TRUNCATE: {"update_session": ("truncate_from", "truncate_all")},
    Capability.POP: {"pop_message": ()},
    Capability.FORK: {"fork_session": ()},
    Capability.LIST_CURSOR: {"get_sessions": ("before", "with_metadata")},
    Capability.COUNT_FILTER: {"count_sessions": ("user_id", "metadata")},
    Capability.RETENTION: {"delete_sessions": ()},
    Capability.FEEDBACK: {"add_feedback": (), "get_feedback": (), "count_feedback": (), "delete_feedback": ()},
}
"""The calls that need a capability: always, or when one of these arguments is given, of the call or of a message."""
_UNSET: Final[dict[str, Any]] = {"with_metadata": True}
"""Arguments whose default is not empty."""
SMALL_CONTENT_BYTES: Final = 64 * 1024
SMALL_ID_LENGTH: Final = 24
_OWN_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""An id that the memory itself may have made; it is longer than the limit for those of callers."""
_PARAMETERS: Final = {
    "create_session": ("title", "metadata"),
    "add_message": ("session_id", "role", "content", "metadata"),
    "add_messages": ("session_id", "messages"),
    "get_history": ("session_id", "limit"),
    "get_sessions": ("limit", "offset"),
    "update_session": ("session_id",),
}
_TIMES: Final = ("created_at", "updated_at")


def limited_factory(lacks: Capability, directory: Path, switch: Switch | None = None) -> Callable[[], Memory]:
    """Return a factory of handles on one store that lack some capabilities, behind a switch if one is given."""
    store = ReferenceStore(None if Capability.DURABLE in lacks else directory / "reference.json")
    memory: Any = SwitchedMemory if switch else ReferenceMemory
    if lacks & (Capability.SEVERAL_HANDLES | Capability.SEVERAL_PROCESSES):
        alone = Capability.SEVERAL_HANDLES in lacks
        shared = {"lock": directory / "lock", "alone": alone, "held": []}
        memory = type("Exclusive", (_Exclusive, memory), shared)
    memory = _limited(memory, lacks)
    return lambda: memory(store, *([switch] if switch else []))


def limited_client(lacks: Capability) -> Any:
    """Return a class of clients of the networked reference model that lack some capabilities."""
    return _limited(NetworkedMemory, lacks)


def _limited(memory: Any, lacks: Capability) -> Any:
    for capability in lacks:
        members = {name: _refuse(memory, name, given) for name, given in _REFUSED.get(capability, {}).items()}
        memory = type(f"No{str(capability.name).title()}", (memory,), members)
    memory = type("Small", (_Small, memory), {})
    return type("Blanking", (memory,), _blank_methods(memory, lacks))


def _refuse(parent: Any, method: str, arguments: tuple[str, ...]) -> Callable[..., Any]:
    async def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_open()
        if not arguments:
            raise InvalidInputError(f"{method} is not supported")
        given = dict(zip(_PARAMETERS.get(method, ()), args, strict=False)) | kwargs
        elements: Any = [given]
        batch = given.get("messages")
        if isinstance(batch, Iterable) and not isinstance(batch, str | dict):
            elements += (given := given | {"messages": list(batch)})["messages"]
            args, kwargs = (), given
        for name in arguments:
            # A record without the capability has an empty title, user or object, so these are accepted.
            if any(isinstance(each, dict) and _is_set(name, each, method) for each in elements):
                raise InvalidInputError(f"{name} is not supported")
        return await getattr(parent, method)(self, *args, **kwargs)

    return refusing


def _is_set(name: str, given: dict[str, Any], method: str) -> bool:
    value = given.get(name)
    if name in _UNSET:
        return name in given and value != _UNSET[name]
    # For a change, an empty title or object is a value.
    return value is not None if method == "update_session" and name in {"title", "merge_metadata"} else bool(value)


def _blank_methods(parent: Any, lacks: Capability) -> dict[str, Any]:
    ids = ("id",) if Capability.MESSAGE_IDS in lacks else ()
    times = _TIMES if Capability.TIMESTAMPS in lacks else ()
    blank_message = _blank(*ids, *times)
    blank_session = _blank(*times, *(("revision",) if Capability.REVISIONS in lacks else ()))
    no_id = "" if ids else None

    def wrapped(method: str, change: Callable[[Any], Any]) -> Callable[..., Any]:
        async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            found = await getattr(parent, method)(self, *args, **kwargs)
            return [change(each) for each in found] if isinstance(found, list) else change(found)

        return call

    def blank_id(made: str) -> str:
        return made if no_id is None else no_id

    messages = dict.fromkeys(("get_history", "get_message", "pop_message"), blank_message)
    sessions = dict.fromkeys(("get_session", "get_sessions", "update_session"), blank_session)
    added = dict.fromkeys(("add_message", "add_messages"), blank_id)
    return {method: wrapped(method, change) for method, change in (messages | sessions | added).items()}


def _blank(*names: str) -> Callable[[Any], Any]:
    return lambda row: row and row | dict.fromkeys(row.keys() & names, "")


class _Small:
    """Accepts the shortest texts and ids that a binding may state."""

    async def create_session(self, title: Any = "", *args: Any, session_id: Any = None, **given: Any) -> Any:
        self._check_open()  # type: ignore[attr-defined]
        _refuse_large(title=title, session_id=session_id)
        return await super().create_session(title, *args, session_id=session_id, **given)  # type: ignore[misc]

    async def update_session_title(self, session_id: Any, title: Any) -> None:
        self._check_open()  # type: ignore[attr-defined]
        _refuse_large(title=title)
        await super().update_session_title(session_id, title)  # type: ignore[misc]

    async def add_message(
        self, session_id: Any, role: Any, content: Any, *args: Any, message_id: Any = None, **given: Any
    ) -> Any:
        self._check_open()  # type: ignore[attr-defined]
        _refuse_large(role=role, content=content, message_id=message_id)
        _refuse_large(session_id=session_id if given.get("create") else None)
        return await super().add_message(session_id, role, content, *args, message_id=message_id, **given)  # type: ignore[misc]

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        self._check_open()  # type: ignore[attr-defined]
        _refuse_large(session_id=session_id if given.get("create") else None)
        return await super().add_messages(session_id, _refuse_large_batch(messages), **given)  # type: ignore[misc]

    async def update_session(self, session_id: Any, *, title: Any = None, messages: Any = (), **given: Any) -> Any:
        self._check_open()  # type: ignore[attr-defined]
        _refuse_large(title=title)
        batch = _refuse_large_batch(messages)
        return await super().update_session(session_id, title=title, messages=batch, **given)  # type: ignore[misc]

    async def fork_session(
        self, session_id: Any, *, new_session_id: Any = None, title: Any = None, **given: Any
    ) -> Any:
        self._check_open()  # type: ignore[attr-defined]
        _refuse_large(new_session_id=new_session_id, title=title)
        return await super().fork_session(  # type: ignore[misc]
            session_id, new_session_id=new_session_id, title=title, **given
        )


def _refuse_large_batch(messages: Any) -> Any:
    if not isinstance(messages, Iterable) or isinstance(messages, str | dict):
        return messages
    found = list(messages)
    for at, message in enumerate(found):
        if isinstance(message, dict):
            parts = {name: message.get(name) for name in ("role", "content", "message_id")}
            _refuse_large(**{f"messages[{at}].{name}": value for name, value in parts.items()})
    return found


def _refuse_large(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, str):
            continue
        if name.endswith("_id") and len(value) > SMALL_ID_LENGTH and not _OWN_ID.fullmatch(value):
            raise InvalidInputError(f"{name} has more than {SMALL_ID_LENGTH} characters")
        if not name.endswith("_id") and len(value.encode(errors="surrogatepass")) > SMALL_CONTENT_BYTES:
            raise InvalidInputError(f"{name} has more than {SMALL_CONTENT_BYTES} bytes")


class _Exclusive:
    """Refuses a second handle, or a second process, by a lock on a file."""

    lock: ClassVar[Path]
    alone: ClassVar[bool]
    held: ClassVar[list[Any]]
    """The open handles of this process."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)  # calls the reference model
        if self.alone and self.held:
            raise BackendUnavailableError("the store is in use by another handle")
        self._file = self.held[0]._file if self.held else self.lock.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise BackendUnavailableError("the store is in use by another process") from None
        self.held.append(self)

    async def close(self) -> None:
        await super().close()  # type: ignore[misc]  # calls the reference model
        if self in self.held:
            self.held.remove(self)
        if not self.held:
            self._file.close()
