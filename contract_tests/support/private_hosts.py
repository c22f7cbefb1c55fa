"""A host name that only the running event loop resolves, to an address that a test can change."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_CLONE_NEWNS: Final = 0x0002_0000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x4_0000
_HOSTS: Final = b"/etc/hosts"


class PrivateHosts:
    """Host names in a private file; the machine's own file stays unchanged."""

    def __init__(self, file: Path) -> None:
        self._file: Final = file
        self._usual: Final = Path(os.fsdecode(_HOSTS)).read_text(encoding="utf-8")

    def point(self, name: str, address: str) -> None:
        """Let a name resolve to an address from now on."""
        content = f"{self._usual}\n{address} {name}\n".encode()
        # Written in place, because a new file would not be the mounted one, and in one write, so it is never empty.
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)


@contextmanager
def use_private_hosts(file: Path) -> Iterator[PrivateHosts]:
    """Let the running event loop resolve names on a thread that sees a different `/etc/hosts`. Needs root.

    Args:
        file: The path of the file to create.
    """
    hosts = PrivateHosts(file)
    hosts.point("nobody.invalid", "127.0.0.1")
    # The event loop resolves names on its default executor; a test uses it for nothing else.
    with ThreadPoolExecutor(1, "look-ups", initializer=_mount_hosts, initargs=(file,)) as look_ups:
        asyncio.get_running_loop().set_default_executor(look_ups)
        yield hosts


def _mount_hosts(file: Path) -> None:
    """Give the calling thread its own mounts, which end with it, and mount a file over `/etc/hosts`."""
    libc = ctypes.CDLL(None, use_errno=True)

    def done(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())}; run this as root")

    done(libc.unshare(_CLONE_NEWNS))
    done(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    done(libc.mount(os.fsencode(file), _HOSTS, None, _MS_BIND, None))
