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
    Capability.IDEMPOTENT_IDS: {"add_message": ("message_id",), "add_messages": ("message_id",)},
    Capability.MESSAGE_METADATA: {"add_message": ("metadata",), "add_messages": ("metadata",)},
    Capability.CURSOR: {"get_history": ("before",)},
    Capability.SESSIONS: {"get_session": (), "get_sessions": (), "count_sessions": ()},
    Capability.SESSION_IDS: {"create_session": ("session_id",)},
    Capability.SESSION_METADATA: {"create_session": ("metadata",)},
    Capability.METADATA_FILTER: {"get_sessions": ("metadata",)},
    Capability.USER_SCOPE: {"create_session": ("user_id",), "get_sessions": ("user_id",)},
    Capability.TITLES: {"create_session": ("title",), "update_session_title": ()},
    Capability.CLEAR_ALL: {"clear_all": ()},
}
"""The calls that need a capability: always, or when one of these arguments is given."""
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
    blank = ("id",) if Capability.MESSAGE_IDS in lacks else ()
    return type(
        "Blanking", (memory,), _blank_methods(memory, blank + (_TIMES if Capability.TIMESTAMPS in lacks else ()))
    )


def _refuse(parent: Any, method: str, arguments: tuple[str, ...]) -> Callable[..., Any]:
    async def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_open()
        if not arguments:
            raise InvalidInputError(f"{method} is not supported")
        given = dict(zip(_PARAMETERS.get(method, ()), args, strict=False)) | kwargs
        elements: Any = [given]
        if method == "add_messages" and hasattr(given["messages"], "__iter__"):
            elements = list(given["messages"])
            args, kwargs = (given["session_id"], elements), {}
        for name in arguments:
            # A record without the capability has an empty title, user or object, so these are accepted.
            if any(isinstance(element, dict) and element.get(name) for element in elements):
                raise InvalidInputError(f"{name} is not supported")
        return await getattr(parent, method)(self, *args, **kwargs)

    return refusing


def _blank_methods(parent: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    def blank(row: Any, names: tuple[str, ...]) -> Any:
        return row and row | dict.fromkeys(row.keys() & names, "")

    async def get_history(self: Any, *args: Any, **kwargs: Any) -> Any:
        return [blank(row, keys) for row in await parent.get_history(self, *args, **kwargs)]

    async def get_session(self: Any, *args: Any, **kwargs: Any) -> Any:
        return blank(await parent.get_session(self, *args, **kwargs), keys[-2:] if _TIMES[0] in keys else ())

    async def get_sessions(self: Any, *args: Any, **kwargs: Any) -> Any:
        times = keys[-2:] if _TIMES[0] in keys else ()
        return [blank(row, times) for row in await parent.get_sessions(self, *args, **kwargs)]

    async def add_message(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = await parent.add_message(self, *args, **kwargs)
        return "" if "id" in keys else made

    async def add_messages(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = await parent.add_messages(self, *args, **kwargs)
        return [""] * len(made) if "id" in keys else made

    return {method.__name__: method for method in (get_history, get_session, get_sessions, add_message, add_messages)}


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
        return await super().add_message(session_id, role, content, *args, message_id=message_id, **given)  # type: ignore[misc]

    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        self._check_open()  # type: ignore[attr-defined]
        listed = isinstance(messages, Iterable) and not isinstance(messages, str | dict)
        found = list(messages) if listed else messages
        for at, message in enumerate(found if listed else ()):
            if isinstance(message, dict):
                parts = {name: message.get(name) for name in ("role", "content", "message_id")}
                _refuse_large(**{f"messages[{at}].{name}": value for name, value in parts.items()})
        return await super().add_messages(session_id, found)  # type: ignore[misc]


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
