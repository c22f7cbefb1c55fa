"""Kills the server in the middle of `flux-memory prune`: the run goes on when it is back."""

from __future__ import annotations

import signal
import subprocess
import sys

from fault_cluster import run_cluster
from plain_stores import PlainStore
from secret_watch import watch_password
from waiting import becomes_true

SESSIONS = 4_000
INSERT_SESSIONS = f"""
INSERT INTO sessions (id, created_at, updated_at, message_count)
SELECT 's' || number, TIMESTAMP '2026-01-01', TIMESTAMP '2026-01-01' + number * INTERVAL '1 second', 1
FROM generate_series(1, {SESSIONS}) AS number
"""
INSERT_MESSAGES = """
INSERT INTO messages (session_id, id, seq, role, content, created_at)
SELECT id, 'm', 1, 'user', 'text', created_at FROM sessions WHERE id LIKE 's%'
"""


def test_the_run_survives_a_restart_of_the_server() -> None:
    """A lost connection costs no exactness beyond the number, which is then told as a least one."""
    with run_cluster(durable=False) as cluster:
        watch_password(cluster.dsn)
        store = PlainStore(cluster.dsn)
        store.fill(1, prefix="new")
        for statement in (INSERT_SESSIONS, INSERT_MESSAGES):
            store.execute(statement)
        command = [sys.executable, "-m", "flux_memory", "prune", *store.options, "--inactive", "1d"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            assert becomes_true(lambda: store.count()[0] <= SESSIONS, seconds=60)
            cluster.restart(signal.SIGKILL)
            said, told = run.communicate(timeout=120)
        assert run.returncode == 0, said + told
        assert "\nDeleted " in said
        assert store.execute("SELECT id FROM sessions") == [("new0",)]
        assert store.count() == (1, 3)
