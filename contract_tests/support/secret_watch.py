"""A watch over the whole run: a server's password that shows in any output fails the test that ran at the time.

For each test it searches printed and logged output, warnings, the output of `flux-memory` in other processes, and
every error of the library: str, repr, arguments, causes, and the variables of the library's frames in its traceback.
It does not search pytest's own report of a failed test, which shows the test's arguments and so the throwaway DSN. Nor
does it search frames of the test kit: an application has none, and they hold whole stores.
"""

from __future__ import annotations

import gc
import logging
import reprlib
import subprocess
import traceback
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import pytest
from click.testing import Result

import flux_memory

MARKER: Final = "m4rker-of-a-p4ssword"
"""The password for tests that need one without a server."""
MIN_CHARACTERS: Final = 8
"""Shorter passwords would match other words by chance."""
_PACKAGE: Final = str(Path(flux_memory.__file__).parent)
_KIT: Final = str(Path(_PACKAGE) / "testkit")
_MOST_CHARACTERS: Final = 10_000


class _Short(reprlib.Repr):
    """Leaves texts as they are: there are millions, and the search needs no quotes."""

    def repr1(self, x: Any, level: int) -> str:
        if type(x) is str and len(x) <= _MOST_CHARACTERS:
            return x
        return super().repr1(x, level)

    def repr_partial(self, x: partial[Any], level: int) -> str:
        # Its own text has all of its arguments, which can be many megabytes.
        return self.repr1((x.func, x.args, x.keywords), level)


# A variable can hold a huge text many times over; a DSN stands among its first characters.
_short = _Short()
_short.maxstring = _short.maxother = _MOST_CHARACTERS
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 1_000
_short.maxlevel = 20

_passwords: set[str] = {MARKER}
_findings: list[str] = []


def watch_password(text: str) -> None:
    """Add a password, or the password of a DSN, to the watch."""
    with suppress(ValueError):
        password = unquote(urlsplit(text).password or "") if "://" in text else text
        if len(password) >= MIN_CHARACTERS:
            _passwords.update((password, quote(password, safe="")))


def search_text(where: str, text: str) -> None:
    """Record a finding if a password shows."""
    for password in _passwords:
        if password in text:
            masked = text.replace(password, "<PASSWORD>")
            at = masked.index("<PASSWORD>")
            _findings.append(f"a password shows in {where}: {masked[max(0, at - 300) : at + 100]}")
            return


def search_error(error: BaseException) -> None:
    """Search everything that shows of an error: its text, its causes, and the variables of the library's frames."""
    for one in _causes(error):
        name = type(one).__name__
        search_text(f"the words of {name}", f"{one} {one!r} {one.args!r} {getattr(one, '__notes__', '')!r}")
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if _is_of_library(frame.f_code.co_filename):
                held = ", ".join(map(_short.repr, frame.f_locals.values()))
                search_text(f"a frame's variables in the traceback of {name}", held)


def _is_of_library(path: str) -> bool:
    return path.startswith(_PACKAGE) and not path.startswith(_KIT)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def take_findings() -> list[str]:
    """Return the findings and forget them."""
    found = _findings[:]
    _findings.clear()
    return found


class SecretWatch:
    """The pytest plugin that searches each test's output."""

    def pytest_configure(self) -> None:
        for name in ("flux_memory", "asyncpg"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        # At its end, an error has all its causes and its whole traceback, and waiting for it keeps no object alive.
        flux_memory.FluxMemoryError.__del__ = _search_at_end  # type: ignore[attr-defined]
        _search_instances(subprocess.CompletedProcess, _search_process)
        _search_instances(
            Result, lambda result: search_text("the output of the command line", f"{result.output} {result.stderr}")
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        for value in getattr(item, "funcargs", {}).values():
            dsn = getattr(value, "dsn", value)
            if isinstance(dsn, str) and "://" in dsn:
                watch_password(dsn)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        for title, text in report.sections:
            # Earlier phases were searched in their turn; the server's log belongs to a failure and may quote the DSN.
            if title.startswith("Captured") and title.endswith(report.when or ""):
                search_text(f"'{title}' of {item.nodeid}", text)
        if (found := take_findings()) and report.when is not None:
            report.outcome = "failed"
            report.longrepr = "\n".join([*found, str(report.longrepr or "")])
        return report

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        search_text(f"a warning of {nodeid}", str(warning_message.message))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        gc.collect()
        if found := take_findings():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            raise pytest.UsageError("\n".join(found))


def _search_at_end(error: BaseException) -> None:
    with suppress(Exception):
        search_error(error)


def _search_instances(kind: type, look_at: Any) -> None:
    make = kind.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        look_at(self)

    kind.__init__ = made  # type: ignore[misc]


def _search_process(process: subprocess.CompletedProcess[Any]) -> None:
    command = process.args if isinstance(process.args, list | tuple) else [process.args]
    if any(str(part).endswith(("flux_memory", "flux-memory")) for part in command):
        search_text("the output of the command line", f"{process.stdout!r} {process.stderr!r}")
