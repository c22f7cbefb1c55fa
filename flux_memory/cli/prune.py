"""The command `flux-memory prune`: deletes inactive sessions, or those of a user, and says what remains of them."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import click

from flux_memory.cli.failure import in_number, show_failure
from flux_memory.cli.store import check_store_options, choose_settings, store_options
from flux_memory.cli.values import Seconds
from flux_memory.errors import FluxMemoryError, InvalidInputError
from flux_memory.records.printing import printable

if TYPE_CHECKING:
    from datetime import timedelta

    from flux_memory.operations.prune import Doomed, PruneCriteria, Pruned, PrunedStore
    from flux_memory.settings import Settings

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)
_LINE_SECONDS: Final = 10.0
"""Seconds between two lines of progress where there is no terminal."""


@click.command(short_help="Delete inactive sessions, or those of a user.")
@store_options("Prune")
@click.option("--inactive", metavar="AGE", help="Sessions without a change for this long: 90d, 12h, 4w.")
@click.option("--user", metavar="ID", help="Sessions of this user; without --inactive all of them, and the feedback.")
@click.option("--dry-run", is_flag=True, help="Count the sessions and their messages, and change nothing.")
@click.option("--vacuum", is_flag=True, help="Also remove the remains of deleted rows from the tables or the file.")
@click.option("--timeout", default=60.0, show_default=True, type=Seconds(min=0.1), help="Seconds that a step may take.")
@click.option("--yes", is_flag=True, help="Skip the confirmation, which only a terminal asks for.")
def prune(**options: Any) -> None:
    """Delete sessions and their messages, oldest first, while applications go on writing.

    Exits with 0 if no session that meets the criteria is left, 1 if it failed or was interrupted, 2 for wrong usage.
    An interrupted run says how many sessions are gone; the same command goes on where it ended. A session that is used
    meanwhile stays.
    """
    _check_usage(options)
    age = None if options["inactive"] is None else _read_age(options["inactive"])
    ending = _Ending()
    before = {number: signal.getsignal(number) for number in _ENDING}
    try:
        asyncio.run(_run(choose_settings(options["sqlite_path"], options["postgres_dsn"]), options, age, ending))
    except FluxMemoryError as error:
        # The step that failed may have deleted some.
        ending.at_once = True
        show_failure(error)
        _say(ending.told(), err=True)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        ending.asked = True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ending.asked and not ending.is_done:
        _say(f"Interrupted. {ending.told()}", err=True)
        sys.exit(1)


def _check_usage(options: dict[str, Any]) -> None:
    check_store_options(options["sqlite_path"], options["postgres_dsn"])
    for name in ("inactive", "user"):
        # An unset shell variable gives an empty option.
        if options[name] == "":
            raise click.UsageError(f"--{name} is empty; give it a value, or leave it out")
    if options["inactive"] is None and options["user"] is None:
        raise click.UsageError("give --inactive, --user or both: without a criterion nothing is deleted")
    if options["dry_run"] and options["vacuum"]:
        raise click.UsageError("--dry-run and --vacuum exclude each other; leave one out")


def _read_age(text: str) -> timedelta:
    from flux_memory.operations.prune import parse_duration  # noqa: PLC0415 - --help stays fast

    try:
        return parse_duration(text)
    except InvalidInputError as error:
        raise click.BadParameter(str(error), param_hint="--inactive") from error


@dataclass
class _Ending:
    """Ends the command on a signal: after the step that runs, or at once on a second signal or outside the steps."""

    asked: bool = False
    in_steps: bool = False
    at_once: bool = False
    """Whether a step may have ended in the middle."""
    pruned: Pruned | None = None
    is_done: bool = False
    """Whether everything was done that was asked for; a later signal interrupts nothing."""

    def listen(self) -> None:
        """Take the signals; call it in the task to cancel."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end(*_: object) -> None:
            self.at_once = self.at_once or self.asked or not self.in_steps
            self.asked = True
            if self.at_once and task is not None and not task.done():
                loop.call_soon_threadsafe(task.cancel)

        for number in _ENDING:
            signal.signal(number, end)

    def told(self) -> str:
        """Return how far the run got."""
        if self.pruned is None:
            return "Nothing was deleted."
        if self.pruned.finished:
            return f"All {self.pruned.sessions:,} sessions are deleted. For --vacuum run the same command again."
        is_exact = self.pruned.is_exact and not self.at_once
        if not is_exact and not self.pruned.sessions:
            return "Some sessions may be deleted; run the same command again to go on."
        least = "" if is_exact else "At least "
        return f"{least}{self.pruned.sessions:,} sessions are deleted; run the same command again to go on."


async def _run(settings: Settings, options: dict[str, Any], age: timedelta | None, ending: _Ending) -> None:
    from flux_memory.factory import create_memory  # noqa: PLC0415 - --help stays fast
    from flux_memory.operations.prune import PruneCriteria, Pruned  # noqa: PLC0415 - --help stays fast
    from flux_memory.operations.prune import prune as run_steps  # noqa: PLC0415 - --help stays fast

    ending.listen()
    async with _open_store(settings, options["timeout"]) as store, create_memory(settings) as memory:
        await store.check_schema()
        since = None if age is None else await store.read_clock() - age
        criteria = PruneCriteria(options["user"], since)
        doomed = await store.count(criteria)
        _describe(store, criteria, doomed)
        if options["dry_run"]:
            _say("Nothing was changed: run again without --dry-run to delete them.")
            return
        if (doomed.sessions or doomed.feedback) and sys.stdin.isatty() and not options["yes"]:
            # A question that waits in the terminal's driver ends at once.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            click.confirm("Delete them?", abort=True)
            ending.listen()
        ending.pruned, ending.in_steps = Pruned(), True
        with _Progress(doomed.sessions) as progress:
            await run_steps(
                memory,
                store,
                criteria,
                ending.pruned,
                step_seconds=options["timeout"],
                advance=progress.advance,
                must_stop=lambda: ending.asked,
            )
        ending.in_steps = False
        if not ending.pruned.finished:
            return
        feedback = " and the user's feedback" * criteria.erases_feedback
        least = "" if ending.pruned.is_exact else "at least "
        _say(f"Deleted {least}{ending.pruned.sessions:,} sessions, messages included{feedback}.")
        if options["vacuum"]:
            await _vacuum(store)
        elif ending.pruned.sessions or doomed.feedback:
            _say(store.remains)
        ending.is_done = True


@asynccontextmanager
async def _open_store(settings: Settings, timeout: float) -> AsyncIterator[PrunedStore]:  # noqa: ASYNC109 - passed on
    if settings.database_backend == "postgres":
        from flux_memory.operations.prune.server_store import PrunedServer  # noqa: PLC0415 - only this driver
        from flux_memory.operations.server_connection import connect_to_server  # noqa: PLC0415 - only this driver

        async with connect_to_server(settings.require_postgres_dsn(), timeout, reconnects=True) as server:
            yield PrunedServer(server)
    else:
        from flux_memory.operations.prune.file_store import PrunedFile  # noqa: PLC0415 - only this driver

        yield PrunedFile(settings.sqlite_path, timeout)


async def _vacuum(store: PrunedStore) -> None:
    _say("Vacuuming ...")
    result = await store.vacuum()
    for sentence in result.done:
        _say(f"  {sentence}")
    _say(f"  {result.before / 1e6:,.1f} MB before, {result.after / 1e6:,.1f} MB now")
    for sentence in result.left:
        _say(f"  remains: {sentence}")


def _describe(store: PrunedStore, criteria: PruneCriteria, doomed: Doomed) -> None:
    wanted = [] if criteria.user_id is None else [f"of the user {criteria.user_id!r}"]
    if criteria.inactive_since is not None:
        wanted.append(f"without a change since {criteria.inactive_since:%Y-%m-%d %H:%M:%S %Z}")
    _say(f"Store   {store.shown}")
    _say(f"Found   {doomed.sessions:,} sessions, {doomed.messages:,} messages, {', '.join(wanted)}")
    if criteria.erases_feedback:
        _say(f"        {doomed.feedback:,} entries of feedback of this user")
    if doomed.hidden_by:
        _say(f"        row-level security on {', '.join(doomed.hidden_by)} may hide others from this role, which stay")


def _say(line: str, *, err: bool = False) -> None:
    click.echo(printable(in_number(line)), err=err)


class _Progress:
    """A bar on a terminal, and a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        from rich.console import Console  # noqa: PLC0415 - costs more than --help may
        from rich.progress import (  # noqa: PLC0415 - costs more than --help may
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._shown = Progress(
            "Deleting",
            BarColumn(),
            MofNCompleteColumn(),
            "sessions",
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._total = total
        self._done = 0
        self._task = self._shown.add_task("", total=total)
        self._told = time.monotonic()

    def advance(self, sessions: int) -> None:
        """Count sessions."""
        self._done += sessions
        self._shown.advance(self._task, sessions)
        if self._shown.disable and time.monotonic() - self._told >= _LINE_SECONDS:
            self._told = time.monotonic()
            _say(f"{self._done:,} of {self._total:,} sessions are deleted ...", err=True)

    def __enter__(self) -> Self:
        self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.stop()
