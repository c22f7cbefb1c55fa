"""Tests `flux-memory top` as a process: in a pipe, on a terminal, while its store is away, and wrong usage."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from plain_stores import PlainStore

from flux_memory.cli import main


@contextmanager
def run_in_background(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "flux_memory", "top", *arguments]
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_a_pipe_each_reading_is_a_line(path: Path, number: signal.Signals) -> None:
    """A signal ends it in order, without a traceback."""
    store = PlainStore(str(path))
    store.fill(3)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with run_in_background(*store.options, "--interval", "0.5", **pipes) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().decode() for _ in range(3)]
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, b"")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ sessions=3 messages=9 size=\S+ connections=0 free=\S+ wal=0B\n", lines[0]
    )
    assert " adds/min=0 " in lines[2]


def test_readings_go_on_when_the_store_is_back(path: Path) -> None:
    """A store that is away is reported, and read again once it is there."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with run_in_background("--sqlite-path", str(path), "--interval", "0.5", **pipes) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline().startswith(b"FAILED  the file ")
        PlainStore(str(path)).fill(3)
        assert b"sessions=3" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("columns", [40, 120])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_terminal_is_left_as_it_was(path: Path, columns: int, number: signal.Signals) -> None:
    """The other screen is left and the cursor shown."""
    PlainStore(str(path)).fill(3)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
    written = b""
    with run_in_background(
        "--sqlite-path", str(path), stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}
    ) as process:
        os.close(theirs)
        while b"Ctrl-C ends" not in written:
            assert select.select([ours], [], [], 60)[0], written
            written += os.read(ours, 65536)
        process.send_signal(number)
        with suppress(OSError):  # raised by a terminal that its process has closed
            while piece := os.read(ours, 65536):
                written += piece
        assert process.wait(30) == 0
    os.close(ours)
    assert written.count(b"\x1b[?1049h") == 1
    assert b"\x1b[?1049l" in written[-60:]
    assert b"\x1b[?25h" in written[-60:]
    assert b"Traceback" not in written


@pytest.mark.parametrize(
    "arguments", [("--interval", "0"), ("--interval", "nan"), ("--timeout", "0"), ("--sqlite-path", "")]
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Mistakes in the options exit with 2."""
    assert CliRunner().invoke(main, ["top", "--once", *arguments]).exit_code == 2
