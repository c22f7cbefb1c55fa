"""Tests migrations to PostgreSQL that a fault interrupts: they leave no damage, and a second run completes them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread, Timer
from typing import Final

import pytest
from fault_cluster import Cluster
from fault_migration import CLEAN, MESSAGES, SESSIONS, migrate_succeeds, prepare_target
from fault_report import Fault
from postgres_proxy import PostgresProxy
from raw_postgres import execute
from transfer_memories import OTHER, Trigger, make_random_file, read_target

from flux_memory import BackendUnavailableError
from flux_memory.transfer import Plan, migrate
from flux_memory.transfer.target import watchdog

TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the original application."""
    made = tmp_path_factory.mktemp("broken") / "chat.db"
    make_random_file(made, sessions=SESSIONS, messages=MESSAGES)
    return made


@pytest.mark.fault("migration: connection cut after any byte", backend="postgres")
def test_cut_after_any_byte(path: Path, flux_empty_database: str, fault: Fault) -> None:
    """After a break at any byte, the next run reaches exactly the same result."""
    dsn = flux_empty_database
    assert migrate_succeeds(path, dsn)
    expected = read_target(dsn)
    places = fault.rounds(10, 100)
    broken = 0
    for place in places:
        asyncio.run(execute(dsn, CLEAN))
        with PostgresProxy(dsn) as proxy:
            proxy.cut(after=1000 + place * 500_000 // len(places))
            broken += not migrate_succeeds(path, proxy.dsn)
        assert migrate_succeeds(path, dsn)
        assert read_target(dsn) == expected
    assert broken >= len(places) // 2
    fault.add(rounds=len(places), acknowledged=len(places) * (SESSIONS + MESSAGES))


@pytest.mark.fault("migration: kill -9 of the server", backend="postgres")
def test_the_server_is_killed(path: Path, own_server: Cluster, fault: Fault) -> None:
    """Rows present after the server's recovery are complete, and the next run adds the missing ones."""
    asyncio.run(execute(own_server.dsn, CLEAN))
    assert migrate_succeeds(path, own_server.dsn)
    expected = read_target(own_server.dsn)
    for number in fault.rounds(3, 50):
        asyncio.run(execute(own_server.dsn, CLEAN))
        killer = Timer(0.05 + number % 10 / 20, own_server.end, (signal.SIGKILL,))
        killer.start()
        migrate_succeeds(path, own_server.dsn)
        killer.join()
        own_server.start()
        assert migrate_succeeds(path, own_server.dsn)
        assert read_target(own_server.dsn) == expected
        fault.add(acknowledged=SESSIONS + MESSAGES)


@pytest.mark.fault("migration: fast shutdown of the server", backend="postgres")
def test_the_server_is_shut_down_in_the_middle(path: Path, own_server: Cluster, fault: Fault) -> None:
    """An administrator restarts the server during a migration."""
    asyncio.run(execute(own_server.dsn, CLEAN))
    assert migrate_succeeds(path, own_server.dsn)
    expected = read_target(own_server.dsn)
    for number in fault.rounds(2, 50):
        asyncio.run(execute(own_server.dsn, CLEAN))
        restarting = Thread(target=own_server.restart, args=(signal.SIGINT,))
        starter = Timer(0.05 + number % 10 / 20, restarting.start)
        starter.start()
        migrate_succeeds(path, own_server.dsn)
        starter.join()
        restarting.join()
        assert migrate_succeeds(path, own_server.dsn)
        assert read_target(own_server.dsn) == expected
        fault.add(acknowledged=SESSIONS + MESSAGES)


def run_on_new_loop(work: Callable[[], object]) -> None:
    """Run work that needs its own event loop on a thread."""
    thread = Thread(target=work)
    thread.start()
    thread.join()


def silence_network(proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swallow everything from now on; timeouts are short for the test."""
    proxy.silence()
    monkeypatch.setattr(watchdog, "PROBE_TIMEOUT_SECONDS", 0.3)


BREAKS: Final[dict[str, Callable[[PostgresProxy, str, pytest.MonkeyPatch], None]]] = {
    "black hole": lambda proxy, _, monkeypatch: silence_network(proxy, monkeypatch),
    "connections reset": lambda proxy, _, __: proxy.reset(),
    "reply to COMMIT lost": lambda proxy, _, __: proxy.lose_reply_to("query", containing=b"COMMIT"),
    "pg_terminate_backend": lambda _, dsn, __: run_on_new_loop(lambda: asyncio.run(execute(dsn, TERMINATE))),
}
PHASES: Final = {
    "black hole": ("Preflight", "Load", "Load beside others", "Keys", "Verify"),
    "connections reset": ("Load", "Load beside others", "Verify"),
    "reply to COMMIT lost": ("Load", "Load beside others"),
    "pg_terminate_backend": ("Load", "Load beside others", "Verify"),
}


@pytest.mark.parametrize(
    ("break_", "phase"),
    [
        pytest.param(one, phase, marks=pytest.mark.fault(f"migration: {one}", backend="postgres"), id=f"{one}, {phase}")
        for one, phases in PHASES.items()
        for phase in phases
    ],
)
def test_the_network_breaks_in_each_phase(
    path: Path, flux_empty_database: str, fault: Fault, monkeypatch: pytest.MonkeyPatch, break_: str, phase: str
) -> None:
    """An error comes in bounded time, though the driver would wait forever; the next run stores each row once."""
    for _ in fault.rounds(1, 10):
        took = break_in_phase(path, flux_empty_database, monkeypatch, break_, phase)
        fault.add(acknowledged=SESSIONS + MESSAGES, call=took)


def break_in_phase(path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch, break_: str, phase: str) -> float:
    """Break a migration, complete it, and return the seconds that the broken one took to end."""
    name, _, others = phase.partition(" ")
    before = [OTHER] if others else []
    asyncio.run(execute(dsn, CLEAN))
    asyncio.run(prepare_target(dsn, before))
    assert migrate_succeeds(path, dsn)
    expected = read_target(dsn)
    asyncio.run(execute(dsn, CLEAN))
    asyncio.run(prepare_target(dsn, before))
    with monkeypatch.context() as patch, PostgresProxy(dsn) as proxy:
        patch.setattr(watchdog, "PROBE_INTERVAL_SECONDS", 0.1)
        trigger = Trigger(
            name, lambda: BREAKS[break_](proxy, dsn, patch), after_rows=500 if name in {"Preflight", "Load"} else 0
        )
        began = time.monotonic()
        with pytest.raises(BackendUnavailableError) as caught:
            asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=proxy.dsn, batch_size=50), trigger))
        took = time.monotonic() - began
    assert trigger.acted
    assert ("nothing has come back" in str(caught.value)) is (break_ == "black hole")
    assert migrate_succeeds(path, dsn)
    assert read_target(dsn) == expected
    return took
