"""The migration command on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress


def run_on_terminal(columns: int, *arguments: object, typed: bytes = b"", code: int = 0) -> str:
    """Run the command on its own terminal, type input, and return its output."""
    command = [sys.executable, "-m", "flux_memory", "migrate", *map(str, arguments)]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}
    ) as process:
        os.close(theirs)
        os.write(ours, typed)
        written = b""
        with suppress(OSError):  # raised by a terminal that its process has closed
            while piece := os.read(ours, 65536):
                written += piece
    os.close(ours)
    assert process.returncode == code, written
    return written.decode()
