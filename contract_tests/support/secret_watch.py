"""A watch over the whole run: a password of a throwaway server that shows anywhere fails the test during which it did.

Looked through are, of every test: what it printed and logged, warnings, what `flux-memory` printed in a process, and
every error of ours at its end: str, repr, arguments, causes, and its traceback with the variables of our frames.
pytest's own report of a failed test is not: it shows the test's arguments, and with them the throwaway DSN.
"""

from __future__ import annotations

import gc
import logging
import reprlib
import subprocess
import traceback
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import pytest
from click.testing import Result

import flux_memory

MARKER: Final = "m4rker-of-a-p4ssword"
"""A password that tests use where they need one that no server has."""
SHORTEST: Final = 8
"""A shorter one stands by chance in other words."""
_PACKAGE: Final = str(Path(flux_memory.__file__).parent)

# A variable can hold the largest text there is, many times over; a DSN in it is among the first.
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 10_000
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 1_000
_short.maxlevel = 20

_passwords: set[str] = {MARKER}
_findings: list[str] = []


def watch(text: str) -> None:
    """Watch for a password, or for the one in a DSN."""
    with suppress(ValueError):
        password = unquote(urlsplit(text).password or "") if "://" in text else text
        if len(password) >= SHORTEST:
            _passwords.update((password, quote(password, safe="")))


def look(where: str, text: str) -> None:
    """Note it if a password shows."""
    for password in _passwords:
        if password in text:
            masked = text.replace(password, "<PASSWORD>")
            at = masked.index("<PASSWORD>")
            _findings.append(f"a password shows in {where}: {masked[max(0, at - 300) : at + 100]}")
            return


def look_at_error(error: BaseException) -> None:
    """Look at all of an error that may be shown: its words, its causes, and what our frames hold."""
    for one in _chain(error):
        name = type(one).__name__
        look(f"the words of {name}", f"{one} {one!r} {one.args!r} {getattr(one, '__notes__', '')!r}")
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if frame.f_code.co_filename.startswith(_PACKAGE):
                held = ", ".join(map(_short.repr, frame.f_locals.values()))
                look(f"a frame's variables in the traceback of {name}", held)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def taken() -> list[str]:
    """Return what was found, and begin anew."""
    found = _findings[:]
    _findings.clear()
    return found


class SecretWatch:
    """The pytest plugin."""

    def pytest_configure(self) -> None:
        for name in ("flux_memory", "asyncpg"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        # When it goes, an error has got its causes and its whole traceback; and to wait for that keeps nothing alive.
        flux_memory.FluxMemoryError.__del__ = _last_look  # type: ignore[attr-defined]
        _look_after(subprocess.CompletedProcess, _look_at_process)
        _look_after(Result, lambda result: look("the output of the command line", f"{result.output} {result.stderr}"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        for value in getattr(item, "funcargs", {}).values():
            dsn = getattr(value, "dsn", value)
            if isinstance(dsn, str) and "://" in dsn:
                watch(dsn)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        for title, text in report.sections:
            # Not those of the phases before, and not the server's own log, which a failure has got.
            if title.startswith("Captured") and title.endswith(report.when or ""):
                look(f"'{title}' of {item.nodeid}", text)
        if (found := taken()) and report.when is not None:
            report.outcome = "failed"
            report.longrepr = "\n".join([*found, str(report.longrepr or "")])
        return report

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        look(f"a warning of {nodeid}", str(warning_message.message))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        gc.collect()
        if found := taken():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            raise pytest.UsageError("\n".join(found))


def _last_look(error: BaseException) -> None:
    with suppress(Exception):
        look_at_error(error)


def _look_after(kind: type, look_at: Any) -> None:
    make = kind.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        look_at(self)

    kind.__init__ = made  # type: ignore[misc]


def _look_at_process(process: subprocess.CompletedProcess[Any]) -> None:
    command = process.args if isinstance(process.args, list | tuple) else [process.args]
    if any(str(part).endswith(("flux_memory", "flux-memory")) for part in command):
        look("the output of the command line", f"{process.stdout!r} {process.stderr!r}")
