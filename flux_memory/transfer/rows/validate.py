"""Validates source rows by the library's limits: each becomes a row to move or a list of problems."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from typing import Final

from flux_memory.records.limits import MAX_CONTENT_BYTES, MAX_ID_LENGTH, MAX_USER_ID_LENGTH
from flux_memory.records.ratings import RATINGS
from flux_memory.transfer.rows.canonical import Canonicalizer
from flux_memory.transfer.rows.pgcopy import ValidMessage, ValidSession
from flux_memory.transfer.rows.postgres_time import all_microseconds, microseconds, time_text
from flux_memory.transfer.rows.problems import InvalidValueError, Problem, ProblemKind
from flux_memory.transfer.rows.ratings import ValidFeedback
from flux_memory.transfer.rows.raw import RawRow

_SURELY_SMALL_CHARS: Final = MAX_CONTENT_BYTES // 4
_NEW: Final = tuple.__new__
"""Creates a named tuple without the cost of its Python constructor."""


class RowValidator:
    """Validates rows; remembers key orders and templates of metadata between them.

    Args:
        naive: The zone of times without an offset.
    """

    def __init__(self, naive: tzinfo) -> None:
        self._naive = naive
        self._json = Canonicalizer()

    def validate_session(self, raw: RawRow) -> ValidSession | list[Problem]:
        """Validate a session."""
        id_, user_id, title, metadata, created_at, updated_at, repeated, _ = raw
        problems = _RowProblems()
        valid = ValidSession(
            problems.id(id_, repeated),
            problems.text("user_id", "" if user_id is None else user_id, max_length=MAX_USER_ID_LENGTH),
            problems.text("title", "" if title is None else title),
            self._metadata(problems, metadata),
            self._time(problems, "created_at", created_at),
            self._time(problems, "updated_at", updated_at),
        )
        return problems.found or valid

    def validate_messages(self, raws: Sequence[RawRow]) -> list[ValidMessage] | list[ValidMessage | list[Problem]]:
        """Validate messages, without regard to their sessions."""
        try:
            return self._validate_columns(raws)
        except ValueError:
            return [self.validate_message(raw) for raw in raws]

    def _validate_columns(self, raws: Sequence[RawRow]) -> list[ValidMessage]:
        """Validate messages column by column, the fast path for ordinary rows.

        Raises:
            ValueError: A message may be invalid, or needs the slow path.
        """
        _, ids, roles, contents, metadata, times, repeated, _ = zip(*raws, strict=True)
        texts = (*ids, *roles, *contents)
        if (
            any(repeated)
            or {type(text) for text in (*texts, *metadata)} != {str}
            or not 0 < min(map(len, ids)) <= max(map(len, ids)) <= MAX_ID_LENGTH
            or not min(map(len, roles))
            or max(map(len, texts)) > _SURELY_SMALL_CHARS
        ):
            raise ValueError
        count = len(raws)
        encoded = "\0".join((*texts, *self._json.all_canonical(metadata))).encode().split(b"\0")
        if len(encoded) != 4 * count:
            raise ValueError
        columns = (encoded[:count], encoded[count : 2 * count], encoded[2 * count : 3 * count], encoded[3 * count :])
        return [_NEW(ValidMessage, row) for row in zip(*columns, all_microseconds(times, self._naive), strict=True)]

    def validate_message(self, raw: RawRow) -> ValidMessage | list[Problem]:
        """Validate a message, without regard to its session."""
        _, id_, role, content, metadata, created_at, repeated, _ = raw
        problems = _RowProblems()
        valid = ValidMessage(
            problems.id(id_, repeated),
            problems.role(role),
            problems.text("content", content),
            self._metadata(problems, metadata),
            self._time(problems, "created_at", created_at),
        )
        return problems.found or valid

    def validate_feedback(self, raw: RawRow, *, repeated: bool) -> ValidFeedback | list[Problem]:
        """Validate an entry of feedback.

        Args:
            raw: The row, without the fields after its own.
            repeated: Whether an earlier row has the same id.
        """
        id_, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at = raw
        problems = _RowProblems()
        if type(rating) is not int or rating not in RATINGS:
            problems.add(ProblemKind.BAD_RATING, "rating", f"{rating!r:.40}; -1, 0 and 1 are allowed")
        texts = (
            problems.id(id_, repeated),
            problems.text("session_id", session_id, max_length=MAX_ID_LENGTH),
            None if message_id is None else problems.text("message_id", message_id, max_length=MAX_ID_LENGTH),
            problems.text("user_id", "" if user_id is None else user_id, max_length=MAX_USER_ID_LENGTH),
            problems.text("comment", "" if comment is None else comment),
            None if corrected_answer is None else problems.text("corrected_answer", corrected_answer),
            self._metadata(problems, metadata),
        )
        moment = self._time(problems, "created_at", created_at)
        if problems.found:
            return problems.found
        own, session, message, user, said, corrected, extra = (
            None if text is None else text.decode() for text in texts
        )
        return ValidFeedback(
            own or "", session or "", message, user or "", rating, said or "", corrected, extra or "", time_text(moment)
        )

    def _metadata(self, problems: _RowProblems, value: object) -> bytes:
        raw = problems.text("metadata", "{}" if value is None else value)
        if problems.has("metadata"):
            return raw
        try:
            return self._json.canonical(raw.decode()).encode()
        except InvalidValueError as error:
            problems.add(error.kind, "metadata", str(error))
        except UnicodeEncodeError:
            problems.add(ProblemKind.LONE_SURROGATE, "metadata", "a lone surrogate, which is not text")
        return b""

    def _time(self, problems: _RowProblems, column: str, value: object) -> int:
        try:
            return microseconds(value, self._naive)
        except ValueError as error:
            problems.add(ProblemKind.BAD_TIMESTAMP, column, str(error))
            return 0


class _RowProblems:
    """Collects the problems of one row."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, kind: ProblemKind, column: str, detail: str) -> None:
        self.found.append(Problem(kind, column, detail))

    def has(self, column: str) -> bool:
        return any(problem.column == column for problem in self.found)

    def id(self, value: object, repeated: object) -> bytes:
        if value is None:
            self.add(ProblemKind.NULL_ID, "id", "NULL")
            return b""
        if repeated:
            self.add(ProblemKind.DUPLICATE_ID, "id", "another row has this id and came first")
        text = self.text("id", value)
        length = len(text.decode()) if not self.has("id") else 1
        if not 1 <= length <= MAX_ID_LENGTH:
            self.add(ProblemKind.BAD_LENGTH_ID, "id", f"{length} characters; 1 to {MAX_ID_LENGTH} are allowed")
        return text

    def role(self, value: object) -> bytes:
        if value == "":
            self.add(ProblemKind.EMPTY_ROLE, "role", "empty")
        return self.text("role", value)

    def text(self, column: str, value: object, *, max_length: int | None = None) -> bytes:
        if type(value) is not str:
            self.add(*_not_text(column, value))
            return b""
        if (at := value.find("\x00")) >= 0:
            self.add(ProblemKind.NUL, column, f"at offset {at}")
        try:
            raw = value.encode()
        except UnicodeEncodeError as error:
            self.add(_encoding_problem(value), column, f"at offset {error.start}")
            return b""
        if len(raw) > MAX_CONTENT_BYTES:
            self.add(ProblemKind.TOO_LARGE, column, f"{len(raw):,} bytes; {MAX_CONTENT_BYTES:,} are allowed")
        if max_length is not None and len(value) > max_length:
            self.add(ProblemKind.TOO_LARGE, column, f"{len(value)} characters; {max_length} are allowed")
        return raw


def _not_text(column: str, value: object) -> Problem:
    if value is None:
        return Problem(ProblemKind.NULL, column, "NULL")
    if isinstance(value, bytes):
        return Problem(ProblemKind.BLOB, column, f"{len(value)} bytes")
    return Problem(ProblemKind.NOT_TEXT, column, f"{value!r:.40}")


def _encoding_problem(value: str) -> ProblemKind:
    """Distinguish an encoded surrogate from bytes that are not UTF-8 at all."""
    try:
        value.encode("utf-8", "surrogateescape").decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return ProblemKind.BAD_UTF8
    return ProblemKind.LONE_SURROGATE
