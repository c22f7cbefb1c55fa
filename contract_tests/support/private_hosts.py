"""A host name that only the name look-ups of the running event loop know, and whose address can be changed."""

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
    """Names that are looked up in a file of one's own; the machine's stays as it is."""

    def __init__(self, file: Path) -> None:
        self._file: Final = file
        self._usual: Final = Path(os.fsdecode(_HOSTS)).read_text(encoding="utf-8")

    def point(self, name: str, address: str) -> None:
        """Let a name mean an address, from now on."""
        content = f"{self._usual}\n{address} {name}\n".encode()
        # In place: another file would not be the one that is mounted. And at once: nobody finds it empty.
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)


@contextmanager
def private_hosts(file: Path) -> Iterator[PrivateHosts]:
    """Let the running event loop look names up on a thread that sees another `/etc/hosts`. Needs root.

    Args:
        file: A file to make.
    """
    hosts = PrivateHosts(file)
    hosts.point("nobody.invalid", "127.0.0.1")
    # Where the event loop resolves names, and nothing else of a test's does anything.
    with ThreadPoolExecutor(1, "look-ups", initializer=_see_another, initargs=(file,)) as look_ups:
        asyncio.get_running_loop().set_default_executor(look_ups)
        yield hosts


def _see_another(file: Path) -> None:
    """Give the calling thread mounts of its own, which end with it, and put a file over `/etc/hosts` in them."""
    libc = ctypes.CDLL(None, use_errno=True)

    def done(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())}; run this as root")

    done(libc.unshare(_CLONE_NEWNS))
    done(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    done(libc.mount(os.fsencode(file), _HOSTS, None, _MS_BIND, None))
