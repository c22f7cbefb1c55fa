"""The base class of the adapters, which refuses every call that a peer does not offer, and their common checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, Self

from flux_memory import InvalidInputError, MemoryClosedError


class _WrongTypeError(InvalidInputError, TypeError):
    """The error that the contract requires for an argument of the wrong type."""


class Adapter(ABC):
    """A memory without features. An adapter overrides what the peer offers and declares it in `capabilities`."""

    closed = False

    def check_open(self) -> None:
        """Refuse a call after `close()`, for peers that do not check it themselves."""
        if self.closed:
            raise MemoryClosedError("this handle is closed")

    def refuse(self, method: str) -> NoReturn:
        """Refuse a method that the peer lacks."""
        self.check_open()
        refuse(method)

    @abstractmethod
    async def create_session(self, title: str = "", metadata: Any = None, **given: Any) -> str: ...

    @abstractmethod
    async def add_message(
        self, session_id: str, role: str, content: str, metadata: Any = None, **given: Any
    ) -> str: ...

    @abstractmethod
    async def get_history(self, session_id: str, limit: int | None = None, **given: Any) -> list[dict[str, Any]]: ...

    @abstractmethod
    async def delete_session(self, session_id: str) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    async def add_messages(self, session_id: str, messages: Any) -> list[str]:
        self.refuse("add_messages")

    async def get_sessions(self, limit: int | None = 50, offset: int = 0, **given: Any) -> list[dict[str, Any]]:
        self.refuse("get_sessions")

    async def get_session(self, session_id: str) -> dict[str, Any] | None:
        self.refuse("get_session")

    async def count_sessions(self) -> int:
        self.refuse("count_sessions")

    async def update_session_title(self, session_id: str, title: str) -> None:
        self.refuse("update_session_title")

    async def clear_all(self) -> None:
        self.refuse("clear_all")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


def refuse(what: str) -> NoReturn:
    """Refuse a feature that the peer lacks."""
    raise InvalidInputError(f"{what} is not supported")


def refuse_given(**given: object) -> None:
    """Refuse arguments that the peer lacks; an empty text or object is the value of a record without one."""
    for name, value in given.items():
        if value:
            refuse(name)


def checked_count(name: str, value: Any) -> int:
    """Return a limit or an offset that the adapter itself applies."""
    if type(value) is not int:
        raise _WrongTypeError(f"{name} is not an int")
    if value < 0:
        raise InvalidInputError(f"{name} is negative")
    return value


def message(role: str, content: str, metadata: dict[str, Any] | None = None, message_id: str = "") -> dict[str, Any]:
    """Return a message as a record; features that the peer lacks are empty."""
    return {"id": message_id, "role": role, "content": content, "metadata": metadata or {}, "created_at": ""}


@contextmanager
def translating(errors: Mapping[type[Exception], type[Exception]]) -> Iterator[None]:
    """Translate the peer's errors to the contract's; other errors pass."""
    try:
        yield
    except tuple(errors) as error:
        raise next(ours for theirs, ours in errors.items() if isinstance(error, theirs))(str(error)) from error
