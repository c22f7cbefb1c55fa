"""Reads a source once from end to end: every problem counted, every session's digest taken, nothing changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from flux_memory.errors import MigrationError
from flux_memory.transfer.checked import RowChecker
from flux_memory.transfer.conversations import conversations
from flux_memory.transfer.digests import DigestSpool, SessionDigest
from flux_memory.transfer.problems import Kind, Problem, Tally
from flux_memory.transfer.source import RawRow, Source
from flux_memory.transfer.wire import MessageRow, SessionRow, message_digest, session_digest

_STEP: Final = 2048
"""Rows between two reports of progress."""

Advance = Callable[[int], None]


class RefusedRows(Protocol):
    """Where refused rows go."""

    def clear(self) -> None:
        """Start anew: the source is read again."""

    def add(self, table: str, row: RawRow, session: RawRow | None, problems: list[Problem]) -> None:
        """Take a row, with the session that a message belongs to."""


@dataclass
class Findings:
    """What a preflight found."""

    sessions: int = 0
    """Sessions that can be moved."""
    messages: int = 0
    """Messages that can be moved."""
    refused_sessions: int = 0
    refused_messages: int = 0
    ties: int = 0
    """Messages whose time is that of the one before, so that only the order they were written in tells them apart."""
    tallies: dict[tuple[str, Kind], Tally] = field(default_factory=dict)

    @property
    def refused(self) -> int:
        """Rows that cannot be moved."""
        return self.refused_sessions + self.refused_messages

    def add(self, table: str, row_id: str, problems: list[Problem]) -> None:
        """Count what is wrong with one row."""
        for problem in problems:
            tally = self.tallies.setdefault((table, problem.kind), Tally(table, problem.kind))
            tally.add(row_id, problem)


class _OutOfOrderError(Exception):
    """Times of mixed forms, whose text does not sort as they do."""


def preflight(
    source: Source, checker: RowChecker, spool: DigestSpool, refused: RefusedRows, advance: Advance
) -> Findings:
    """Read everything.

    Args:
        source: What to read; it learns here how it must be read.
        checker: Checks the rows.
        spool: Takes the digests of what can be moved.
        refused: Takes what cannot.
        advance: Told how many rows were read.

    Raises:
        MigrationError: The file is damaged.
    """
    while True:
        spool.clear()
        refused.clear()
        read = _Progress(advance)
        try:
            return _Preflight(source, checker, spool, refused, read).run()
        except _OutOfOrderError:
            source.by_time = True
        except sqlite3.OperationalError as error:
            if "decode to UTF-8" not in str(error) or source.tolerant:
                raise
            source.be_tolerant()
        except sqlite3.DatabaseError as error:
            raise MigrationError(
                f"the SQLite file is damaged: {error}; copy it, try the sqlite3 shell's .recover on the copy, and "
                "move that"
            ) from error
        read.take_back()


class _Progress:
    """Counts rows for the display, which need not hear of each."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._told = 0

    def tell(self, rows: int) -> None:
        self._told += rows
        self._advance(rows)

    def take_back(self) -> None:
        self._advance(-self._told)


class _Preflight:
    def __init__(
        self, source: Source, checker: RowChecker, spool: DigestSpool, refused: RefusedRows, progress: _Progress
    ) -> None:
        self._source = source
        self._checker = checker
        self._spool = spool
        self._refused = refused
        self._progress = progress
        self._found = Findings()
        self._by_text = not source.layout.numbered and not source.by_time

    def run(self) -> Findings:
        pending = 0
        for raw_session, raws in conversations(self._source):
            pending += 1 + self._conversation(raw_session, raws)
            if pending >= _STEP:
                self._progress.tell(pending)
                pending = 0
        self._progress.tell(pending)
        return self._found

    def _conversation(self, raw_session: RawRow | None, raws: Iterator[RawRow]) -> int:
        """Take a session with its messages, and return how many of these there were."""
        found = self._found
        if raw_session is None:
            problem = Problem(Kind.ORPHAN, "session_id", "there is no such session")
            return self._refuse_messages(raws, None, problem)
        session = self._checker.session(raw_session)
        if not isinstance(session, SessionRow):
            found.refused_sessions += 1
            self._refuse("sessions", str(raw_session[0]), raw_session, None, session)
            problem = Problem(Kind.SESSION_REFUSED, "session_id", "see the session's own problem")
            return self._refuse_messages(raws, raw_session, problem)
        count, refused, digest = self._messages(raw_session, raws)
        found.sessions += 1
        found.messages += count
        found.refused_messages += refused
        self._spool.append(SessionDigest(session.id, session_digest(session), count, digest))
        return count + refused

    def _messages(self, raw_session: RawRow, raws: Iterator[RawRow]) -> tuple[int, int, int]:
        count = refused = digest = 0
        check = self._checker.message
        before = (-(2**63), 0)
        for raw in raws:
            row = check(raw)
            if type(row) is not MessageRow:
                refused += 1
                self._refuse("messages", str(raw[1]), raw, raw_session, row)  # type: ignore[arg-type]
                continue
            count += 1
            digest ^= int.from_bytes(message_digest(count, row))
            if self._by_text:
                place = (row.created_at, raw[-1])
                if place < before:
                    raise _OutOfOrderError
                self._found.ties += place[0] == before[0]
                before = place
        return count, refused, digest

    def _refuse_messages(self, raws: Iterator[RawRow], session: RawRow | None, problem: Problem) -> int:
        count = 0
        for raw in raws:
            count += 1
            checked = self._checker.message(raw)
            problems = [problem, *checked] if isinstance(checked, list) else [problem]
            self._refuse("messages", str(raw[1]), raw, session, problems)
        self._found.refused_messages += count
        return count

    def _refuse(self, table: str, row_id: str, raw: RawRow, session: RawRow | None, problems: list[Problem]) -> None:
        self._found.add(table, row_id, problems)
        self._refused.add(table, raw, session, problems)
