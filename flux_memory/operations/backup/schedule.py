"""Describes a daily backup as systemd units, or as a line for crontab."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from flux_memory.errors import BackupError, InvalidInputError
from flux_memory.operations.backup.hidden import write_file
from flux_memory.operations.backup.manifest import check_name, clean_name

_TIME: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_ACCOUNT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\$?")
_SERVICE: Final = """\
[Unit]
Description=Backup of the conversation memory {name}
Wants=network-online.target
After=network-online.target postgresql.service

[Service]
Type=oneshot
User={account}
{environment}ExecStart={command}
UMask=0077
Nice=10
IOSchedulingClass=idle
TimeoutStartSec=6h
KillSignal=SIGTERM

NoNewPrivileges=yes
CapabilityBoundingSet=
PrivateDevices=yes
PrivateTmp={private}
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
ReadWritePaths={writable}
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
"""
_TEMPORARY: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - compared, not written
"""The directories that a service with `PrivateTmp=yes` has of its own, so that it would not find files there."""
_TIMER: Final = """\
[Unit]
Description=Daily backup of the conversation memory {name}

[Timer]
OnCalendar=*-*-* {at}:00
RandomizedDelaySec=10min
Persistent=yes

[Install]
WantedBy=timers.target
"""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A daily backup. All paths are absolute."""

    directory: Path
    name: str
    account: str
    at: str
    arguments: tuple[str, ...]
    """Of `flux-memory`."""
    sqlite_path: Path | None
    environment_file: Path | None

    @classmethod
    def from_options(
        cls,
        *,
        directory: Path,
        sqlite_path: str | None = None,
        environment_file: Path | None = None,
        at: str = "03:15",
        account: str | None = None,
        archive: bool = False,
        name: str | None = None,
        no_verify: bool = False,
        **keep: int,
    ) -> Self:
        """Return the schedule that the options of the command describe.

        Raises:
            FluxMemoryError: An option is invalid; the message names it.
        """
        if not _TIME.fullmatch(at):
            raise InvalidInputError(f"the time {at!r:.20} is not one of a day; write it as 03:15")
        account = _own_account() if account is None else account
        if not _ACCOUNT.fullmatch(account):
            raise InvalidInputError(f"{account!r:.60} is not the name of an account; give --account one")
        store = None if sqlite_path is None else _absolute(Path(sqlite_path), "--sqlite-path")
        chosen = check_name(name) if name else clean_name("memory" if store is None else store.stem)
        options = {
            "--sqlite-path": None if store is None else str(store),
            "--name": chosen,
            **{f"--{option.replace('_', '-')}": str(number) for option, number in keep.items()},
        }
        target = _absolute(directory, "the directory")
        arguments = ["backup", *(part for key, value in options.items() if value for part in (key, value))]
        arguments += ["--archive"] * archive + ["--no-verify"] * no_verify
        return cls(
            directory=target,
            name=chosen,
            account=account,
            at=at,
            # After the dashes nothing is an option, and no name a command.
            arguments=(*arguments, "--", str(target)),
            sqlite_path=store,
            environment_file=None if environment_file is None else _absolute(environment_file, "--environment-file"),
        )

    @property
    def unit_name(self) -> str:
        """The name of the units without their suffix."""
        return f"flux-memory-backup-{self.name}"

    def units(self) -> dict[str, str]:
        """Return the text of each unit by its file's name."""
        writable = [self.directory] if self.sqlite_path is None else [self.directory, self.sqlite_path.parent]
        needed = [*writable, Path(sys.executable)]
        file = self.environment_file
        service = _SERVICE.format(
            name=_escape(self.name),
            account=_escape(self.account),
            environment="" if file is None else f"EnvironmentFile={_escape(str(file))}\n",
            command=" ".join(_quote(word).replace("$", "$$") for word in self._command()),
            writable=" ".join(_quote(str(path)) for path in dict.fromkeys(writable)),
            private="no" if any(path.is_relative_to(place) for path in needed for place in _TEMPORARY) else "yes",
        )
        timer = _TIMER.format(name=_escape(self.name), at=self.at)
        return {f"{self.unit_name}.service": service, f"{self.unit_name}.timer": timer}

    def cron_line(self) -> str:
        """Return the line for the account's crontab; cron sends what the command prints to the account."""
        hour, minute = self.at.split(":")
        command = shlex.join(self._command(quiet=True))
        if self.environment_file is not None:
            command = f"set -a; . {shlex.quote(str(self.environment_file))}; set +a; {command}"
        # In crontab an unescaped percent sign ends the command.
        return f"{int(minute)} {int(hour)} * * * umask 077; {command}".replace("%", "\\%")

    def next_steps(self, directory: Path) -> str:
        """Return the commands that install the units."""
        files = " ".join(shlex.quote(str(directory / name)) for name in self.units())
        timer = shlex.quote(f"{self.unit_name}.timer")
        return (
            f"Install them as root: cp {files} /etc/systemd/system/ && systemctl daemon-reload && "
            f"systemctl enable --now {timer}"
        )

    def _command(self, *, quiet: bool = False) -> list[str]:
        head, *rest = self.arguments
        return [sys.executable, "-m", "flux_memory", head, *["--quiet"] * quiet, *rest]


def write_units(schedule: Schedule, directory: Path) -> list[Path]:
    """Write the units to a directory, and return their paths.

    Raises:
        BackupError: A file exists, or cannot be written.
    """
    written: list[Path] = []
    try:
        for name, text in schedule.units().items():
            write_file(directory, directory / name, text)
            written.append(directory / name)
            # systemd reads them as root; they have no secret.
            written[-1].chmod(0o644)
    except FileExistsError:
        raise BackupError(f"{directory} has {name} already; remove it, or give --name another name") from None
    except OSError as error:
        raise BackupError(
            f"{directory} cannot be written: {error.strerror or error}; give --output an existing directory"
        ) from error
    return written


def _absolute(path: Path, what: str) -> Path:
    # Without resolving links: one may lead to another file by the time of a backup.
    text = os.path.abspath(path)  # noqa: PTH100 - Path.absolute() keeps `..`
    if not text.isprintable():
        raise InvalidInputError(f"{what} has a line break or another invisible character, which no unit can name")
    return Path(text)


def _own_account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InvalidInputError("the user of this process has no name; give --account one") from None


def _escape(text: str) -> str:
    """Return a text without specifiers of systemd."""
    return text.replace("%", "%%")


def _quote(word: str) -> str:
    """Return a word as systemd reads it from a command line or a list of paths."""
    escaped = _escape(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if re.search(r"[^A-Za-z0-9_./%=:,@+-]", word) else escaped
