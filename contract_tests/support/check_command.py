"""The command `flux-memory check`, run in this process."""

from __future__ import annotations

from urllib.parse import urlsplit

from click.testing import CliRunner, Result

from flux_memory.cli import main


def run_check(*arguments: str) -> Result:
    """Run the command with these arguments."""
    return CliRunner().invoke(main, ["check", *arguments])


def password_of(dsn: str) -> str:
    """Return the password of a DSN."""
    return urlsplit(dsn).password or ""
