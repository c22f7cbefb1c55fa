"""Reads a source once: every problem counted, every session's digest taken, every good row made ready to be sent."""

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
"""Rows between two reports of progress."""
_CHUNK_MESSAGES: Final = 128
"""Messages that are checked together, whatever their sessions are."""
_CHUNK_BYTES: Final = 1024 * 1024
"""Fewer are, where they reach so many bytes."""


@dataclass
class PreflightResult:
    """What a preflight found."""

    sessions: int = 0
    """Sessions that can be moved."""
    messages: int = 0
    """Messages that can be moved."""
    refused_sessions: int = 0
    refused_messages: int = 0
    ties: int = 0
    """Messages whose time is that of the one before, so that only the order they were written in tells them apart."""
    tallies: dict[tuple[str, ProblemKind], Tally] = field(default_factory=dict)

    by_time: bool = False
    """Whether times had to be sorted by what they mean, not by their text."""
    tolerant: bool = False
    """Whether some text is not UTF-8."""

    @property
    def refused(self) -> int:
        """Rows that cannot be moved."""
        return self.refused_sessions + self.refused_messages

    def add(self, table: str, row_id: str, problems: list[Problem]) -> None:
        """Count what is wrong with one row."""
        for problem in problems:
            tally = self.tallies.setdefault((table, problem.kind), Tally(table, problem.kind))
            tally.add(row_id, problem)

    def include(self, other: PreflightResult) -> None:
        """Add what was found in the part that follows."""
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
    """Times of mixed forms, whose text does not sort as they do."""


def preflight(source: Source, validator: RowValidator, spool: Spool, advance: Advance, part: Part) -> PreflightResult:
    """Read a part of a source.

    Args:
        source: What to read; it learns here how it must be read.
        validator: Checks the rows.
        spool: Takes what can be moved, and what cannot.
        advance: Told how many rows were read.
        part: Which sessions.

    Raises:
        MigrationError: The file is damaged, or the temporary directory has no room.
    """
    while True:
        spool.clear()
        read = _RowCounter(advance)
        try:
            found = _Preflight(source, validator, spool, read, part).run()
            spool.flush()
        except _OutOfOrderError:
            source.by_time = True
        except sqlite3.OperationalError as error:
            if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF == sqlite3.SQLITE_IOERR:
                raise MigrationError(
                    f"the SQLite file cannot be read to its end: {error}; see whether somebody cut it or the disk "
                    "failed, and run again"
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
        read.take_back()


class _RowCounter:
    """Counts rows for the display, which need not hear of each."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._told = 0

    def tell(self, rows: int) -> None:
        self._told += rows
        self._advance(rows)

    def take_back(self) -> None:
        self._advance(-self._told)


class _Run(NamedTuple):
    """Messages of one session that follow one another."""

    session_id: Any
    raws: list[RawRow]
    """As the source holds them."""
    rows: Sequence[ValidMessage | list[Problem]]
    """As they were checked."""


def _validated(validator: RowValidator, raws: Iterator[RawRow]) -> Iterator[_Run]:
    """Check messages many at a time: that costs less, and most sessions are short."""
    for some in _chunks(raws):
        rows = validator.validate_messages(some)
        start = 0
        for session_id, group in groupby(some, key=itemgetter(0)):
            end = start + len(list(group))
            yield _Run(session_id, some[start:end], rows[start:end])
            start = end


def _chunks(raws: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    some: list[RawRow] = []
    size = 0
    for raw in raws:
        some.append(raw)
        size += getsizeof(raw[3])
        if len(some) >= _CHUNK_MESSAGES or size >= _CHUNK_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


class _Preflight:
    def __init__(
        self, source: Source, validator: RowValidator, spool: Spool, progress: _RowCounter, part: Part
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
                self._progress.tell(pending)
                pending = 0
        self._progress.tell(pending)
        return self._found

    def _conversation(self, raw_session: RawRow | None, runs: Iterator[_Run]) -> int:
        """Take a session with its messages, and return how many of these there were."""
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
            SessionDigest(session.id, session_digest(session), count, digest), copy_session(session, count)
        )
        return count + refused

    def _messages(self, session: ValidSession, raw_session: RawRow, runs: Iterator[_Run]) -> tuple[int, int, bytes]:
        """Take a session's messages; return how many were accepted, how many refused, and the digest."""
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
                # Refused rows have no time.
                places = [(row[4], raw[7]) for row, raw in zip(rows, raws, strict=True) if type(row) is ValidMessage]
                last = self._check_order([last, *places])
            spool, digests = prepare_messages(session_field, count + 1, accepted)
            self._spool.add_messages(spool)
            count += len(accepted)
            digest.update(digests)
        return count, refused, digest.digest()

    def _check_order(self, places: list[tuple[int, int]]) -> tuple[int, int]:
        """Check that times, and rows of one time, do not go backwards; return the last of them."""
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
