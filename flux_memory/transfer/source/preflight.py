"""Reads a source once: counts problems, computes digests of sessions, and spools valid rows for the load."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from sys import getsizeof
from typing import Any, Final, NamedTuple

from flux_memory.errors import MigrationError
from flux_memory.transfer.progress import Advance
from flux_memory.transfer.rows.pgcopy import (
    MessagesDigest,
    ValidMessage,
    ValidSession,
    copy_details,
    copy_field,
    copy_session,
    prepare_messages,
    session_digest,
)
from flux_memory.transfer.rows.problems import Problem, ProblemKind, Tally
from flux_memory.transfer.rows.raw import RawRow
from flux_memory.transfer.rows.spool import RefusedRow, SessionDigest, Spool
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.conversations import group_by_session
from flux_memory.transfer.source.reader import Part, Source

_PROGRESS_ROWS: Final = 2048
"""Rows between two progress reports."""
_CHUNK_MESSAGES: Final = 128
"""Messages validated together, across sessions."""
_CHUNK_BYTES: Final = 1024 * 1024
"""A chunk also ends at this size of its contents."""


@dataclass
class PreflightResult:
    """Counts of valid and refused rows."""

    sessions: int = 0
    """Valid sessions."""
    messages: int = 0
    """Valid messages."""
    refused_sessions: int = 0
    refused_messages: int = 0
    feedback: int = 0
    """Valid entries of feedback."""
    refused_feedback: int = 0
    ties: int = 0
    """Messages with the time of their predecessor; only rowids give their order."""
    tallies: dict[tuple[str, ProblemKind], Tally] = field(default_factory=dict)

    by_time: bool = False
    """Whether the source had to sort times by value, not by text."""
    tolerant: bool = False
    """Whether the source has text that is not UTF-8."""

    @property
    def refused(self) -> int:
        """Refused rows."""
        return self.refused_sessions + self.refused_messages + self.refused_feedback

    def add(self, table: str, row_id: str, problems: list[Problem]) -> None:
        """Count the problems of one row."""
        for problem in problems:
            tally = self.tallies.setdefault((table, problem.kind), Tally(table, problem.kind))
            tally.add(row_id, problem)

    def include(self, other: PreflightResult) -> None:
        """Add the result of the next part."""
        self.sessions += other.sessions
        self.messages += other.messages
        self.refused_sessions += other.refused_sessions
        self.refused_messages += other.refused_messages
        self.ties += other.ties
        self.by_time |= other.by_time
        self.tolerant |= other.tolerant
        for key, tally in other.tallies.items():
            self.tallies.setdefault(key, Tally(*key)).include(tally)


class _OutOfOrderError(Exception):
    """The text of the times does not sort as the times do, since their forms are mixed."""


def preflight(source: Source, validator: RowValidator, spool: Spool, advance: Advance, part: Part) -> PreflightResult:
    """Read a part of a source.

    Args:
        source: The source; `by_time` and `tolerant` are set on it as needed.
        validator: Validates the rows.
        spool: Receives valid and refused rows.
        advance: Called with the number of rows read; negative before rows are read again.
        part: The sessions to read.

    Raises:
        MigrationError: The file is damaged, or the temporary directory is full.
    """
    while True:
        spool.clear()
        progress = _ProgressReporter(advance)
        try:
            found = _Preflight(source, validator, spool, progress, part).run()
            spool.flush()
        except _OutOfOrderError:
            source.by_time = True
        except sqlite3.OperationalError as error:
            if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF == sqlite3.SQLITE_IOERR:
                raise MigrationError(
                    f"the SQLite file cannot be read to its end: {error}; check that it was not truncated and that "
                    "the disk works, and run again"
                ) from error
            if "decode to UTF-8" not in str(error) or source.tolerant:
                raise
            source.be_tolerant()
        except sqlite3.DatabaseError as error:
            raise MigrationError(
                f"the SQLite file is damaged: {error}; copy it, try the sqlite3 shell's .recover on the copy, and "
                "move that"
            ) from error
        else:
            found.by_time, found.tolerant = source.by_time, source.tolerant
            return found
        progress.take_back()


class _ProgressReporter:
    """Reports progress, and takes it back before rows are read again."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._reported = 0

    def report(self, rows: int) -> None:
        self._reported += rows
        self._advance(rows)

    def take_back(self) -> None:
        self._advance(-self._reported)


class _Run(NamedTuple):
    """Consecutive messages of one session."""

    session_id: Any
    raws: list[RawRow]
    """As stored in the source."""
    rows: Sequence[ValidMessage | list[Problem]]
    """The validated messages, or their problems."""


def _validated(validator: RowValidator, raws: Iterator[RawRow]) -> Iterator[_Run]:
    """Validate messages in chunks across sessions, since most sessions are too short for the fast path to pay off."""
    for chunk in _chunks(raws):
        rows = validator.validate_messages(chunk)
        start = 0
        for session_id, group in groupby(chunk, key=itemgetter(0)):
            end = start + len(list(group))
            yield _Run(session_id, chunk[start:end], rows[start:end])
            start = end


def _chunks(raws: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    chunk: list[RawRow] = []
    size = 0
    for raw in raws:
        chunk.append(raw)
        size += sum(map(getsizeof, raw[:6]))
        if len(chunk) >= _CHUNK_MESSAGES or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _Preflight:
    def __init__(
        self, source: Source, validator: RowValidator, spool: Spool, progress: _ProgressReporter, part: Part
    ) -> None:
        self._source = source
        self._validator = validator
        self._spool = spool
        self._progress = progress
        self._part = part
        self._found = PreflightResult()
        self._by_text = not source.layout.numbered and not source.by_time

    def run(self) -> PreflightResult:
        pending = 0
        messages = _validated(self._validator, self._source.messages(self._part))
        for raw_session, runs in group_by_session(self._source.sessions(self._part), messages):
            pending += self._conversation(raw_session, runs) + (raw_session is not None)
            if pending >= _PROGRESS_ROWS:
                self._progress.report(pending)
                pending = 0
        self._progress.report(pending)
        return self._found

    def _conversation(self, raw_session: RawRow | None, runs: Iterator[_Run]) -> int:
        """Spool a session with its messages; return the number of messages."""
        found = self._found
        if raw_session is None:
            problem = Problem(ProblemKind.ORPHAN, "session_id", "there is no such session")
            return self._refuse_messages(runs, None, problem)
        session = self._validator.validate_session(raw_session)
        if not isinstance(session, ValidSession):
            found.refused_sessions += 1
            self._refuse("sessions", str(raw_session[0]), raw_session, None, session)
            problem = Problem(ProblemKind.SESSION_REFUSED, "session_id", "see the session's own problem")
            return self._refuse_messages(runs, raw_session, problem)
        count, refused, digest = self._messages(session, raw_session, runs)
        found.sessions += 1
        found.messages += count
        found.refused_messages += refused
        self._spool.add_session(
            SessionDigest(session.id, session_digest(session), count, digest),
            copy_session(session, count),
            copy_details(session),
        )
        return count + refused

    def _messages(self, session: ValidSession, raw_session: RawRow, runs: Iterator[_Run]) -> tuple[int, int, bytes]:
        """Spool a session's messages; return the numbers of accepted and refused ones, and the digest."""
        count = refused = 0
        digest = MessagesDigest()
        session_field = copy_field(session.id)
        last = (-(2**63), 0)
        for _, raws, rows in runs:
            accepted = [row for row in rows if type(row) is ValidMessage]
            if len(accepted) < len(raws):
                refused += len(raws) - len(accepted)
                for raw, row in zip(raws, rows, strict=True):
                    if isinstance(row, list):
                        self._refuse("messages", str(raw[1]), raw, raw_session, row)
            if self._by_text:
                # Refused rows have no valid time.
                places = [(row[4], raw[7]) for row, raw in zip(rows, raws, strict=True) if type(row) is ValidMessage]
                last = self._check_order([last, *places])
            spool, digests = prepare_messages(session_field, count + 1, accepted)
            self._spool.add_messages(spool)
            count += len(accepted)
            digest.update(digests)
        return count, refused, digest.digest()

    def _check_order(self, places: list[tuple[int, int]]) -> tuple[int, int]:
        """Raise if times, or rowids within a time, decrease; return the last place."""
        if places != sorted(places):
            raise _OutOfOrderError
        times = [time for time, _ in places]
        self._found.ties += len(times) - len(set(times))
        return places[-1]

    def _refuse_messages(self, runs: Iterator[_Run], session: RawRow | None, problem: Problem) -> int:
        count = 0
        for _, raws, rows in runs:
            count += len(raws)
            for raw, row in zip(raws, rows, strict=True):
                problems = [problem, *row] if isinstance(row, list) else [problem]
                self._refuse("messages", str(raw[1]), raw, session, problems)
        self._found.refused_messages += count
        return count

    def _refuse(self, table: str, row_id: str, raw: RawRow, session: RawRow | None, problems: list[Problem]) -> None:
        self._found.add(table, row_id, problems)
        self._spool.refuse(RefusedRow(table, raw, session, problems))
