"""Throwaway PostgreSQL for tests and benchmarks: on an existing server, in a container, or from local binaries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flux_memory.lazy import import_on_use

if TYPE_CHECKING:
    from flux_memory.testkit.servers.choice import start_server
    from flux_memory.testkit.servers.database import PostgresDatabase
    from flux_memory.testkit.servers.factory import DatabaseFactory
    from flux_memory.testkit.servers.recipe import DatabaseInitError
    from flux_memory.testkit.servers.rollback import Rollback
    from flux_memory.testkit.servers.running import ServerUnavailable
    from flux_memory.testkit.servers.server import Server

__all__ = [
    "DatabaseFactory",
    "DatabaseInitError",
    "PostgresDatabase",
    "Rollback",
    "Server",
    "ServerUnavailable",
    "start_server",
]

__getattr__, __dir__ = import_on_use(
    __name__,
    {
        "choice": ("start_server",),
        "database": ("PostgresDatabase",),
        "factory": ("DatabaseFactory",),
        "recipe": ("DatabaseInitError",),
        "rollback": ("Rollback",),
        "running": ("ServerUnavailable",),
        "server": ("Server",),
    },
)
