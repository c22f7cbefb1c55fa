"""Tests that no password shows in an error, traceback, repr, report or output, and tests the watch itself."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import secret_watch
from raw_postgres import create_role, execute, reserve_port, with_address, with_parameter, with_user
from rich.traceback import Traceback
from secret_watch import MARKER

from flux_memory import ConversationMemory, FluxMemoryError, PostgresConversationMemory, Settings
from flux_memory.health import check_postgres
from flux_memory.transfer import Plan, migrate, migrate_back

pytest_plugins = ["pytester"]


@pytest.fixture
def file_to_move(tmp_path: Path) -> Path:
    """A file to migrate."""
    return tmp_path / "memory.db"


def printed_texts(error: BaseException) -> Iterator[str]:
    """Return everything that is printed of an error, with the variables of the package's and driver's frames."""
    yield f"{error} {error!r} {error.args!r}"
    # The frames above belong to this test, which holds the DSN.
    entries = traceback.TracebackException.from_exception(error, capture_locals=True)
    one: traceback.TracebackException | None = entries
    while one is not None:
        one.stack = traceback.StackSummary.from_list([each for each in one.stack if __file__ != each.filename])
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    yield "".join(entries.format())
    within = error.__traceback__
    while within is not None and within.tb_frame.f_code.co_filename == __file__:
        within = within.tb_next
    # What rich prints of variables, without the source lines around them: to colour those takes most of the time.
    shown = Traceback.extract(type(error), error, within, show_locals=True, locals_max_string=10_000)
    for stack in shown.stacks:
        yield stack.exc_value
        for frame in stack.frames:
            yield "\n".join(f"{name} = {node}" for name, node in (frame.locals or {}).items())


async def collect_errors(dsn: str, file_to_move: Path) -> list[FluxMemoryError]:
    """Return the error of each way to connect."""
    memory = PostgresConversationMemory(dsn, timeout=3)
    ways = [
        memory.create_session,
        memory.get_sessions,
        lambda: check_postgres(dsn, 3),
        lambda: migrate_back(dsn, file_to_move),
        lambda: migrate(Plan(sqlite_path=file_to_move, postgres_dsn=dsn, retry=True)),
    ]
    errors = []
    for way in ways:
        try:
            await way()
        except FluxMemoryError as error:
            errors.append(error)
    await memory.close()
    return errors


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "broken", ["wrong password", "closed port", "no database", "TLS demanded", "unknown parameter", "no rights"]
)
async def test_no_traceback_with_variables_shows_the_password(
    flux_empty_database: str, file_to_move: Path, broken: str
) -> None:
    """Tools that print variables of frames, as rich does, show no password of the library or the driver."""
    async with create_role(flux_empty_database, password=MARKER) as dsn:
        with reserve_port() as port:
            dsns = {
                "wrong password": with_user(dsn, str(urlsplit(dsn).username), f"{MARKER}-x"),
                "closed port": with_address(dsn, port=port),
                "no database": with_address(dsn, database="no_such_database"),
                "TLS demanded": with_parameter(dsn, "sslmode=require"),
                "unknown parameter": with_parameter(dsn, "no_such_parameter=1"),
                "no rights": dsn,
            }
            if broken == "no rights":
                await execute(flux_empty_database, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
            errors = await collect_errors(dsns[broken], file_to_move)
    assert len(errors) >= 3
    for error in errors:
        for text in printed_texts(error):
            assert MARKER not in text


def test_a_password_in_a_variable_shows_in_both_kinds_of_traceback() -> None:
    """The tests above see a variable of a frame that is not theirs, also inside a list."""
    planted = f"def fail():\n    held = [{{'dsn': {MARKER!r}}}]\n    raise ValueError(len(held))\n"
    names: dict[str, Any] = {}
    exec(compile(planted, "planted.py", "exec"), names)
    with pytest.raises(ValueError, match="1") as caught:
        names["fail"]()
    said, *with_variables = printed_texts(caught.value)
    assert MARKER not in said
    assert [text.count(MARKER) for text in with_variables if MARKER in text] == [1, 1]


@pytest.mark.parametrize(
    "written", ["postgresql://u:{}@h:port/db", "postgresql://u:{}@h/db#x", "mysql://u:{}@h/db", "host=h password={}"]
)
def test_a_refused_dsn_shows_nowhere(written: str) -> None:
    """The frames that parsed a refused DSN hold neither it nor its parts."""
    with pytest.raises(FluxMemoryError) as caught:
        PostgresConversationMemory(written.format(MARKER))
    for text in printed_texts(caught.value):
        assert MARKER not in text


@pytest.mark.parametrize("kind", [ConversationMemory, PostgresConversationMemory])
def test_a_handle_that_was_refused_has_a_repr(kind: Any) -> None:
    """A traceback with variables also shows the half-built handle."""
    assert repr(kind.__new__(kind)) == f"{kind.__name__}('not opened')"


def test_no_repr_shows_the_password(file_to_move: Path) -> None:
    """Handles, settings and plans end up in logs; their reprs contain no password."""
    dsn = f"postgresql://user:{MARKER}@host/db"
    settings = Settings(database_backend="postgres", postgres_dsn=dsn, database_url=dsn)  # type: ignore[arg-type]
    for value in (
        PostgresConversationMemory(dsn),
        settings,
        settings.require_postgres_dsn(),
        Plan(sqlite_path=file_to_move, postgres_dsn=dsn),
    ):
        assert MARKER not in f"{value!r}"
        assert MARKER not in repr(vars(value) if hasattr(value, "_life") else value)
    assert settings.require_postgres_dsn() == dsn


LEAKS = {
    "print": "print('postgresql://u:' + PASSWORD)",
    "log": "import logging; logging.getLogger('flux_memory').debug('at %s', PASSWORD)",
    "warning": "import warnings; warnings.warn(PASSWORD)",
    "an error": "from flux_memory import SchemaError as E\n    try: raise E(PASSWORD)\n    except E: pass",
    "a cause": (
        "from flux_memory import SchemaError\n"
        "    try:\n"
        "        try: raise ValueError(PASSWORD)\n"
        "        except ValueError as error: raise SchemaError('x') from error\n"
        "    except SchemaError: pass"
    ),
    "a variable of a frame": (
        "from flux_memory import FluxMemoryError, records\n"
        "    try: records.check_new_message('user', PASSWORD + '\\0', {}, None)\n"
        "    except FluxMemoryError: pass"
    ),
    "the command line": (
        "import subprocess, sys\n"
        "    subprocess.run([sys.executable, '-m', 'flux_memory', PASSWORD], capture_output=True, check=False)"
    ),
}


SHOWN_LATER: Final = "warning"
"""Pytest records a warning after the report of its test, so that the watch fails the one after it, or the run."""


def run_with_watch(pytester: pytest.Pytester, leaks: Iterable[str]) -> pytest.RunResult:
    """Run a test for each leak, named by its number, and a test without one, under the watch."""
    pytester.makeconftest(
        f"import sys; sys.path.insert(0, {str(Path(secret_watch.__file__).parent)!r})\n"
        "from secret_watch import SecretWatch\n"
        "def pytest_configure(config): config.pluginmanager.register(SecretWatch())\n"
    )
    tests = [f"def test_{number}():\n    {LEAKS[leak]}\n" for number, leak in enumerate(leaks)]
    pytester.makepyfile(
        f"from secret_watch import watch_password\nPASSWORD = 'inner-{MARKER[::-1]}'\nwatch_password(PASSWORD)\n"
        + "".join([*tests, "def test_nothing():\n    pass\n"])
    )
    return pytester.runpytest_subprocess("-q", "-rA", "-W", "default", "-p", "no:cacheprovider")


def test_the_password_watch_fails_each_test_that_shows_one(pytester: pytest.Pytester) -> None:
    """A password in any watched place fails the test that ran at the time, and no other."""
    leaks = [leak for leak in LEAKS if leak != SHOWN_LATER]
    result = run_with_watch(pytester, leaks)
    printed = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=len(leaks), passed=1)
    assert "PASSED test_the_password_watch_fails_each_test_that_shows_one.py::test_nothing" in printed
    assert printed.count("a password shows in") >= len(leaks)


@pytest.mark.parametrize("leaks", [(), (SHOWN_LATER,)], ids=["nothing", SHOWN_LATER])
def test_the_password_watch_fails_a_run(pytester: pytest.Pytester, leaks: tuple[str, ...]) -> None:
    """A password that shows after the report of its test fails the run; without one the run passes."""
    result = run_with_watch(pytester, leaks)
    printed = result.stdout.str() + result.stderr.str()
    assert ("a password shows in" in printed) is bool(leaks), printed
    assert (result.ret != 0) is bool(leaks)
