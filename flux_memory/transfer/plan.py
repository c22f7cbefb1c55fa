"""The settings of a migration from SQLite to PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from flux_memory.dsn import SecretText
from flux_memory.errors import MigrationError

if TYPE_CHECKING:
    from flux_memory.transfer.target.server import Target


class OnInvalid(StrEnum):
    """How to treat invalid rows."""

    FAIL = "fail"
    QUARANTINE = "quarantine"


class Mode(StrEnum):
    """How much of a migration to run."""

    MOVE = "move"
    PREFLIGHT = "preflight"
    """Validate the source, rehearse the move, and change nothing."""
    VERIFY = "verify"
    """Compare both sides, and change nothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a migration."""

    sqlite_path: Path
    """The SQLite file; with `retry`, the quarantine file."""
    postgres_dsn: str = field(repr=False)
    mode: Mode = Mode.MOVE
    batch_size: int = 100
    """Rows per commit if the target already has rows."""
    on_invalid: OnInvalid = OnInvalid.FAIL
    quarantine_file: Path | None = None
    """Receives refused rows; required to quarantine, and never overwritten."""
    assume_timezone: tzinfo = UTC
    """The zone of times without an offset."""
    leave_behind: frozenset[str] = frozenset()
    """Unknown tables, and columns as `table.column`, to leave out."""
    retry: bool = False
    replace: bool = False
    """Make the target exactly the source; rows that only the target has are deleted."""
    restore_deleted: bool = False
    """Move also sessions that were deleted in the target since an earlier run moved them."""

    def __post_init__(self) -> None:
        # Frames hold it where an error is raised.
        object.__setattr__(self, "postgres_dsn", SecretText(self.postgres_dsn))

    @property
    def skips_deleted(self) -> bool:
        """Whether rows that were deleted in the target since an earlier run moved them are not missing there."""
        return self.mode is not Mode.VERIFY and not self.restore_deleted


def check_plan(plan: Plan) -> None:
    """Raise `MigrationError` if settings exclude each other."""
    if plan.batch_size < 1:
        raise MigrationError(f"the batch size is {plan.batch_size}; give 1 or more")
    if plan.on_invalid is OnInvalid.QUARANTINE and plan.quarantine_file is None:
        raise MigrationError("there is no quarantine file; set one to receive refused rows")
    if plan.replace and plan.retry:
        raise MigrationError("a quarantine file has only some of the rows; retry it without replacing the others")


def describe_target(target: Target, plan: Plan, shown: str) -> str:
    """Return a line on what is in the target, and what becomes of it; `shown` is its DSN without the password."""
    fate = "are kept"
    if plan.replace:
        fate = "would be replaced" if plan.mode is Mode.PREFLIGHT else "will be replaced"
    where = f"PostgreSQL {target.server_version} at {shown}"
    if target.original:
        return (
            f"Target: {where}, with the original application's tables: {target.sessions:,} sessions, "
            f"{target.messages:,} messages; the tables are upgraded in place, and the rows {fate}"
        )
    if target.sessions or target.messages:
        return f"Target: {where}, with {target.sessions:,} sessions, {target.messages:,} messages, which {fate}"
    return f"Target: {where}, empty"
