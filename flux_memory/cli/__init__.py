"""Assembles the command line `flux-memory` from its commands."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Any, Final

import click

from flux_memory import __version__
from flux_memory.cli.backup import backup
from flux_memory.cli.check import check
from flux_memory.cli.contract import contract
from flux_memory.cli.distribute import distribute
from flux_memory.cli.failure import show_failure
from flux_memory.cli.feedback import feedback
from flux_memory.cli.migrate import migrate
from flux_memory.cli.prune import prune
from flux_memory.cli.restore import restore
from flux_memory.cli.top import top
from flux_memory.errors import FluxMemoryError
from flux_memory.masking import mask_dsns
from flux_memory.records.printing import printable

_OUTPUT_FAILURES: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Commands(click.Group):
    """Commands whose usage errors, which quote arguments and files, show no password of a DSN and no control code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            # A group without a subcommand answers with its help, which quotes no argument and has many lines.
            if error.ctx is not None and error.message == error.ctx.get_help():
                raise
            raise click.UsageError(printable(mask_dsns(error.format_message())), error.ctx) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="flux-memory")
def main() -> None:
    """Conversation memory on SQLite and PostgreSQL."""


main.add_command(check)
main.add_command(migrate)
main.add_command(distribute)
main.add_command(contract)
main.add_command(prune)
main.add_command(top)
main.add_command(feedback)
main.add_command(backup)
main.add_command(restore)


def _flush() -> None:
    """Write what the standard output has buffered: the interpreter would ignore an error at its end."""
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        # It would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A reader that wants no more, such as head, is not an error.
        if not isinstance(error, BrokenPipeError):
            raise


def run() -> None:
    """Run the program. While it exits, Ctrl-C ends it at once, without Python's traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names are of any alphabet, and the locale's may lack their letters.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            main(prog_name="flux-memory")
        finally:
            _flush()
    except OSError as error:
        # Files and networks have errors of the library; only the standard output has neither those nor a name.
        if error.errno not in _OUTPUT_FAILURES or error.filename is not None:
            raise
        show_failure(FluxMemoryError(f"the output cannot be written: {error.strerror}; write it elsewhere"))
        sys.exit(1)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
