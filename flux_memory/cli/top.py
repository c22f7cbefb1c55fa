"""The command `flux-memory top`: shows the activity of a store again and again, until it is interrupted."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from flux_memory.cli.failure import show_failure
from flux_memory.cli.store import check_store_options, choose_settings, store_options
from flux_memory.cli.values import Seconds
from flux_memory.errors import FluxMemoryError
from flux_memory.records.printing import printable

if TYPE_CHECKING:
    from flux_memory.operations.top import Activity, Reading
    from flux_memory.settings import Settings

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)


@click.command(short_help="Show a store's activity, live.")
@store_options("Show")
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=Seconds(min=0.5, max=86_400),
    help="Seconds between two readings.",
)
@click.option("--once", is_flag=True, help="Print one reading, which takes one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print each reading as one JSON object on one line.")
@click.option("--timeout", default=5.0, show_default=True, type=Seconds(min=0.1), help="Seconds that a part may take.")
def top(
    *,
    sqlite_path: str | None,
    postgres_dsn: str | None,
    interval: float,
    once: bool,
    as_json: bool,
    timeout: float,
) -> None:
    """Show sessions, messages, adds a minute, connections, locks, sizes and the lag of replicas.

    On a terminal the screen is drawn anew at each reading, until Ctrl-C; into a pipe each reading is a line. Nothing is
    written. Numbers of rows are the server's estimates. Exits with 0, with 1 if the store could not be read, and 2 for
    wrong usage.
    """
    check_store_options(sqlite_path, postgres_dsn)
    try:
        settings = choose_settings(sqlite_path, postgres_dsn)
        ended_well = asyncio.run(_watch(settings, interval, timeout, once=once, as_json=as_json))
    except FluxMemoryError as error:
        show_failure(error)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        # The ordinary end.
        return
    sys.exit(0 if ended_well else 1)


class _Screen(Protocol):
    def show(self, reading: Reading) -> None:
        """Show a reading."""

    def fail(self, error: FluxMemoryError) -> None:
        """Show that a reading failed and will be tried again."""


async def _watch(
    settings: Settings,
    interval: float,
    timeout: float,  # noqa: ASYNC109 - passed on
    *,
    once: bool,
    as_json: bool,
) -> bool:
    """Read and show until a signal ends the task; return whether a single reading succeeded."""
    from flux_memory.operations.top import with_pace  # noqa: PLC0415 - --help stays fast

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    for number in _ENDING:
        # The default for SIGTERM would leave the terminal on the other screen.
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, task.cancel)  # type: ignore[union-attr]
    activity = _open(settings, timeout)
    earlier: Reading | None = None
    try:
        if once:
            earlier = await activity.read()
            await asyncio.sleep(interval)
            _print(with_pace(await activity.read(), earlier), as_json=as_json, whole=True)
            return True
        with _make_screen(interval, as_json=as_json) as screen:
            while True:
                try:
                    reading = await activity.read()
                except FluxMemoryError as error:
                    screen.fail(error)
                    earlier = None
                else:
                    screen.show(with_pace(reading, earlier))
                    earlier = reading
                await asyncio.sleep(interval)
    finally:
        await activity.close()


def _open(settings: Settings, timeout: float) -> Activity:
    if settings.database_backend == "postgres":
        from flux_memory.operations.top.server_activity import ServerActivity  # noqa: PLC0415 - only this driver

        return ServerActivity(settings.require_postgres_dsn(), timeout)
    from flux_memory.operations.top.file_activity import FileActivity  # noqa: PLC0415 - only this driver

    return FileActivity(settings.sqlite_path, timeout)


def _print(reading: Reading, *, as_json: bool, whole: bool = False) -> None:
    from flux_memory.cli import top_view  # noqa: PLC0415 - rich costs more than --help may

    if as_json:
        click.echo(top_view.as_json(reading))
    elif whole:
        top_view.print_screen(reading)
    else:
        click.echo(top_view.as_line(reading))


def _make_screen(interval: float, *, as_json: bool) -> Any:
    if sys.stdout.isatty() and not as_json:
        return _LiveScreen(interval)
    return _Lines(as_json=as_json)


class _Lines:
    """Prints a line for each reading, and failures on standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def show(self, reading: Reading) -> None:
        _print(reading, as_json=self._as_json)

    def fail(self, error: FluxMemoryError) -> None:
        show_failure(error)

    def __enter__(self) -> _Screen:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


class _LiveScreen:
    """Draws each reading over the last one, on the terminal's other screen."""

    def __init__(self, interval: float) -> None:
        from rich.console import Console  # noqa: PLC0415 - costs more than --help may
        from rich.live import Live  # noqa: PLC0415 - costs more than --help may

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop")
        self._note = f"every {interval:g} s, Ctrl-C ends"
        self._last: Reading | None = None

    def show(self, reading: Reading) -> None:
        self._last = reading
        self._draw(self._note)

    def fail(self, error: FluxMemoryError) -> None:
        self._draw(f"FAILED  {error}; trying again")

    def _draw(self, note: str) -> None:
        from rich.text import Text  # noqa: PLC0415 - costs more than --help may

        from flux_memory.cli import top_view  # noqa: PLC0415 - rich costs more than --help may

        shown = (
            Text(printable(note)) if self._last is None else top_view.draw(self._last, self._console.width, note=note)
        )
        self._live.update(shown, refresh=True)

    def __enter__(self) -> _Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
