"""Throwaway PostgreSQL for tests and benchmarks: on an existing server, in a container, or from local binaries."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from flux_memory.testkit.servers.choice import start_server
    from flux_memory.testkit.servers.running import ServerUnavailable
    from flux_memory.testkit.servers.server import Server

__all__ = ["Server", "ServerUnavailable", "start_server"]

_HOME: Final = {"Server": "server", "ServerUnavailable": "running", "start_server": "choice"}


def __getattr__(name: str) -> Any:
    # Lazy, because every pytest run imports this package for the fixtures.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
