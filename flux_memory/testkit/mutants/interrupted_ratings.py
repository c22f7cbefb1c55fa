"""Memories, and clients, that break clauses on calls of feedback, and conditional deletions, that are interrupted."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of the reference model

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flux_memory import BackendUnavailableError, ConflictError, deadline
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.interrupted_removals import (
    _MakesUpReplies,
    _RefusesLate,
    _RepeatsAsNew,
    _WaitsForTheStore,
)
from flux_memory.testkit.mutants.network import _GivesUp
from flux_memory.testkit.mutants.shared import LONG_SECONDS

if TYPE_CHECKING:
    from flux_memory.testkit.reference.networked import Request


class _RefusesLostCalls(_GivesUp):
    """Says that a call of one method was not done if its reply was lost."""

    method = ""

    def _made_of(self, request: Request, error: Exception) -> Any:
        if request["call"] != self.method:
            return super()._made_of(request, error)
        raise BackendUnavailableError("the connection was lost; nothing was changed")


@caught_by("FM-NET-044")
class RepeatsFeedback(_RepeatsAsNew):
    repeated = "add_feedback"


@caught_by("FM-NET-044")
class LostFeedbackIsRefused(_RefusesLostCalls):
    method = "add_feedback"


@caught_by("FM-NET-044")
class LostDeletionsOfFeedbackAreRefused(_RefusesLostCalls):
    method = "delete_feedback"


@caught_by("FM-NET-045")
class LostFeedbackIsEmpty(_MakesUpReplies):
    method, reply = "get_feedback", ()

    async def get_feedback(self, *args: Any, **given: Any) -> Any:
        return list(await super().get_feedback(*args, **given))


@caught_by("FM-NET-045")
class LostNumbersAreZero(_MakesUpReplies):
    method = "count_feedback"
    reply = {"total": 0, "positive": 0, "negative": 0, "neutral": 0, "by_day": []}  # noqa: RUF012 - never changed


class _LosesConditions(_GivesUp):
    """Makes an error of its own of the lost reply to a conditional deletion."""

    error: type[Exception] = BackendUnavailableError
    words = "the connection was lost; nothing was removed"

    def _made_of(self, request: Request, error: Exception) -> Any:
        if request["call"] == "delete_session" and request["given"].get("expected_revision"):
            raise self.error(self.words)
        return super()._made_of(request, error)


@caught_by("FM-NET-046")
class OwnDeletionsConflict(_LosesConditions):
    error = ConflictError
    words = "the session has another revision; nothing was removed"


@caught_by("FM-NET-046")
class LostConditionalDeletionsAreRefused(_LosesConditions):
    pass


@caught_by("FM-DLN-042", reference_only=True)
class RefusedFeedbackIsStored(_RefusesLate):
    async def add_feedback(self, *args: Any, **given: Any) -> Any:
        return await self.late(super().add_feedback(*args, **given))


@caught_by("FM-DLN-043", reference_only=True)
class RatesForCallersThatAreGone(_WaitsForTheStore):
    async def add_feedback(self, *args: Any, **given: Any) -> Any:
        return await self.waited(super().add_feedback(*args, **given))


@caught_by("FM-DLN-043", reference_only=True)
class FeedbackHasNoDeadline(Sound):
    async def add_feedback(self, *args: Any, **given: Any) -> Any:
        with deadline(LONG_SECONDS):
            return await super().add_feedback(*args, **given)
