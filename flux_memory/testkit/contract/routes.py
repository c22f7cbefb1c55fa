"""Routes to a store's server: each is a proxy that can break, with handles through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from flux_memory import Memory
from flux_memory.testkit.proxy import Address, Proxy
from flux_memory.testkit.verdicts import BindingFault


@dataclass(frozen=True, slots=True)
class Proxied:
    """A server, and how to open a handle on the store by another address of it.

    Proxied("mysql://ann@127.0.0.1:3306/chat", MyMemory)
    Proxied(("127.0.0.1", 3306), lambda address: MyMemory(*address, "chat"))
    """

    server: str | Address
    """The server's URL, or its host and port."""
    open: Callable[[Any], Memory]
    """Opens another handle, given the URL with the host and port of a proxy, or the proxy's host and port."""


class Route:
    """One way to the server: a proxy of its own, and handles through it."""

    def __init__(self, proxied: Proxied) -> None:
        self.proxy = Proxy(proxied.server)
        self._proxied = proxied

    def open(self) -> Memory:
        """Open another handle over this route."""
        return self._proxied.open(self.proxy.dsn or self.proxy.address)


class Routes:
    """The routes of one test, closed at its end."""

    def __init__(self, proxied: Proxied) -> None:
        if not isinstance(proxied, Proxied):
            raise TypeError(
                f"proxied_memory_factory returned a {type(proxied).__name__}; "
                "return Proxied(server, open) with the server's URL, or its host and port, and a function that opens a "
                "memory by such an address"
            )
        self._proxied = proxied
        self._made: list[Route] = []

    def add(self) -> Route:
        """Return another route."""
        try:
            self._made.append(Route(self._proxied))
        except ValueError as error:
            raise BindingFault(f"the server of proxied_memory_factory cannot be used: {error}") from error
        return self._made[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for route in self._made:
            route.proxy.close()
