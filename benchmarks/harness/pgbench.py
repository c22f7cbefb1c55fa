"""The ceiling of PostgreSQL: pgbench sending the library's own statements, prepared."""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from flux_memory.backends.postgres.adds import ADD_MESSAGE
from flux_memory.backends.postgres.queries import SELECT_HISTORY, select_page
from flux_memory.testkit.servers.binaries import find_binaries
from harness import samples


def _random_session(id_of: Callable[[int], str], count: int) -> str:
    return f"\\set session random({id_of(0)}, {id_of(count - 1)})\n"


_RANDOM_ID: Final = "\\set id random(1000000000000000000, 8999999999999999999)\n"
_ADD: Final = (ADD_MESSAGE, ("session", "id", "role", "content", "metadata", "revision"))
_SCRIPTS: Final = {
    "add": (_random_session(samples.short_session, samples.SHORT_SESSIONS["postgres"]) + _RANDOM_ID, *_ADD),
    "hot": (_random_session(samples.short_session, 1) + _RANDOM_ID, *_ADD),
    "history": (
        _random_session(samples.long_session, samples.LONG_SESSIONS),
        SELECT_HISTORY,
        ("session", "limit"),
    ),
    "list": ("", select_page(samples.HISTORY_LIMIT, 0)[0], ("limit", "offset")),
}
"""By work: the commands that set the variables of a call, the statement, and the variables for $1, $2, ..."""

_WARM_UP_SECONDS: Final = 0.5
"""Seconds for each connection to prepare the statement, and for the server to fill its catalogue caches."""


def program() -> str:
    """Return the path of pgbench: beside the server's programs, or on the path.

    Raises:
        FileNotFoundError: pgbench is not installed.
    """
    beside = find_binaries().directory / "pgbench"
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    found = str(beside) if beside.exists() else shutil.which("pgbench") or next(map(str, reversed(debian)), None)
    if found is None:
        raise FileNotFoundError("pgbench is not installed; it comes with PostgreSQL's server packages")
    return found


class Pgbench:
    """Runs a script against a database that the library made and filled.

    pgbench has no warm-up, and its run time includes connecting. So it runs for longer and logs each call; only calls
    in a window in the middle count.
    """

    def __init__(self, dsn: str, directory: Path) -> None:
        self._dsn = dsn
        self._directory = directory
        self._program = program()
        self._sample = samples.samples(0, 1)[0]
        self._connecting: dict[int, float] = {}

    def versions(self) -> dict[str, str]:
        said = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=True).stdout
        return {"pgbench": said.split()[2]}

    def measure(self, task: dict[str, Any]) -> dict[str, Any]:
        clients = task["concurrency"]
        path = self._directory / f"{task['work']}.sql"
        path.write_text(script(task["work"]), encoding="utf-8")
        if clients not in self._connecting:
            began = time.monotonic()
            self._run(path, clients, "-t", "1")
            self._connecting[clients] = time.monotonic() - began
        seconds = math.ceil(1.5 * self._connecting[clients] + _WARM_UP_SECONDS + task["seconds"])
        for old in self._directory.glob("calls.*"):
            old.unlink()
        before = _cpu_of_children()
        self._run(path, clients, "-T", str(seconds), "-l", f"--log-prefix={self._directory / 'calls'}")
        return _figure(self._directory, task["seconds"], _cpu_of_children() - before)

    def _run(self, script: Path, clients: int, *options: str) -> None:
        command = [self._program, "-M", "prepared", "-n", "-c", str(clients), "-f", str(script), *options]
        command += ["-j", str(min(clients, os.cpu_count() or 1))]
        for name, value in self._variables().items():
            command += ["-D", f"{name}={value}"]
        done = subprocess.run([*command, self._dsn], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"pgbench failed: {done.stderr.strip()[:500]}")

    def _variables(self) -> dict[str, str]:
        role, content, _ = self._sample
        return {
            "role": role,
            "content": content,
            "metadata": samples.as_json(self._sample),
            "revision": "00000000-0000-4000-8000-000000000000",
            "limit": str(samples.HISTORY_LIMIT),
            "offset": "0",
        }


def script(work: str) -> str:
    """Return pgbench's script: the library's statement with variables for its parameters."""
    prelude, statement, names = _SCRIPTS[work]
    # pgbench substitutes :NAME in literals, too; the planner folds this expression back into one constant.
    text = re.sub(r":(?=[A-Z])", "' || chr(58) || '", statement.strip())
    text = re.sub(r"\$(\d+)", lambda match: f":{names[int(match[1]) - 1]}", text)
    return f"{prelude}{text};\n"


def _figure(directory: Path, seconds: float, cpu: float) -> dict[str, Any]:
    ends: list[float] = []
    taken: list[int] = []
    for log in directory.glob("calls.*"):
        for line in log.read_text(encoding="ascii").splitlines():
            _, _, micros, _, second, fraction = line.split()[:6]
            ends.append(int(second) + int(fraction) / 1e6)
            taken.append(int(micros))
    begin = min(ends) + _WARM_UP_SECONDS
    end = begin + seconds
    if max(ends) < end:
        # It connected more slowly than before: measure the rest, at least the second half.
        end = max(ends)
        begin = min(begin, (min(ends) + end) / 2)
    measured = sorted(micros for at, micros in zip(ends, taken, strict=True) if begin <= at <= end)
    calls = len(measured)
    return {
        "calls": calls,
        "ops": calls / (end - begin),
        **{f"p{part}_us": float(measured[(calls - 1) * part // 100]) for part in (50, 95, 99)},
        "cpu_us": cpu / len(ends) * 1e6,
        "rss_mb": None,
        "errors": 0,
        "first_error": None,
    }


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
