"""Variants of the reference model that lack capabilities and refuse the calls that need them."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
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
