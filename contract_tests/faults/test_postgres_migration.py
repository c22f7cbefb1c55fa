"""A migration to PostgreSQL is broken from outside: what it left is no harm, and a second run completes it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Thread, Timer

import pytest
from fault_cluster import Cluster, cluster
from fault_report import Fault
from raw_postgres import execute
from transfer_memories import everything, make_random, move

from flux_memory import FluxMemoryError
from flux_memory.testkit import Proxy
from flux_memory.transfer import Status

SESSIONS, MESSAGES = 30, 2000
CLEAN = "DROP TABLE IF EXISTS messages, sessions, flux_memory_schema CASCADE"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the original application."""
    made = tmp_path_factory.mktemp("broken") / "chat.db"
    make_random(made, sessions=SESSIONS, messages=MESSAGES)
    return made


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    """A durable server of this module's own."""
    with cluster() as made:
        yield made


def ended_well(path: Path, dsn: str) -> bool:
    """Migrate, and tell whether it succeeded; whatever breaks is an error of ours."""
    try:
        return move(path, dsn, batch_size=50).status is Status.IDENTICAL
    except FluxMemoryError:
        return False


@pytest.mark.fault("migration: connection cut after any byte", backend="postgres")
def test_cut_after_any_byte(path: Path, flux_empty_database: str, fault: Fault) -> None:
    """Wherever the connection breaks, the next run goes on to exactly the same result."""
    dsn = flux_empty_database
    assert ended_well(path, dsn)
    expected = everything(dsn)
    places = fault.rounds(10, 100)
    broken = 0
    for place in places:
        asyncio.run(execute(dsn, CLEAN))
        with Proxy(dsn) as proxy:
            proxy.cut(after=1000 + place * 500_000 // len(places))
            broken += not ended_well(path, proxy.dsn)
        assert ended_well(path, dsn)
        assert everything(dsn) == expected
    assert broken >= len(places) // 2
    fault.add(rounds=len(places), acknowledged=len(places) * (SESSIONS + MESSAGES))


@pytest.mark.fault("migration: kill -9 of the server", backend="postgres")
def test_the_server_is_killed(path: Path, own: Cluster, fault: Fault) -> None:
    """Rows that are there when the server comes back are whole, and the next run adds what is missing."""
    asyncio.run(execute(own.dsn, CLEAN))
    assert ended_well(path, own.dsn)
    expected = everything(own.dsn)
    for number in fault.rounds(3, 50):
        asyncio.run(execute(own.dsn, CLEAN))
        killer = Timer(0.05 + number % 10 / 20, own.end, (signal.SIGKILL,))
        killer.start()
        ended_well(path, own.dsn)
        killer.join()
        own.start()
        assert ended_well(path, own.dsn)
        assert everything(own.dsn) == expected
        fault.add(acknowledged=SESSIONS + MESSAGES)


@pytest.mark.fault("migration: fast shutdown of the server", backend="postgres")
def test_the_server_is_shut_down_in_the_middle(path: Path, own: Cluster, fault: Fault) -> None:
    """An administrator restarts the server under a migration."""
    asyncio.run(execute(own.dsn, CLEAN))
    assert ended_well(path, own.dsn)
    expected = everything(own.dsn)
    for number in fault.rounds(2, 50):
        asyncio.run(execute(own.dsn, CLEAN))
        restarting = Thread(target=own.restart, args=(signal.SIGINT,))
        starter = Timer(0.05 + number % 10 / 20, restarting.start)
        starter.start()
        ended_well(path, own.dsn)
        starter.join()
        restarting.join()
        assert ended_well(path, own.dsn)
        assert everything(own.dsn) == expected
        fault.add(acknowledged=SESSIONS + MESSAGES)
