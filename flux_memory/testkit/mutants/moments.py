"""Memories that break clauses on times far from today."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from flux_memory import InvalidInputError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_older(text: str, days: int) -> bool:
    """Return whether a time is more than this many days ago."""
    return datetime.fromisoformat(text) < datetime.now(UTC) - timedelta(days=days)


@caught_by("FM-TIM-030", reference_only=True)
class PurgesWhenOpened(Sound):
    """Deletes the sessions of which nothing was heard for 30 days."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        with store.writing() as sessions:
            for session in [each for each in sessions.values() if is_older(each["updated_at"], 30)]:
                del sessions[session["id"]]


@caught_by("FM-TIM-030", reference_only=True)
class PurgesYearsAfterAWrite(Sound):
    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(*args, **kwargs)
        with self._store.writing() as sessions:
            for session in [each for each in sessions.values() if is_older(each["updated_at"], 3_650)]:
                del sessions[session["id"]]
        return made


@caught_by("FM-TIM-030")
class ListsAYear(Sound):
    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        return [row for row in await super().get_sessions(*args, **kwargs) if not is_older(row["updated_at"], 365)]


@caught_by("FM-TIM-030")
class ReadsNinetyDays(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return [row for row in await super().get_history(*args, **kwargs) if not is_older(row["created_at"], 90)]


@caught_by("FM-TIM-030")
class ForgetsIdsAfterAMonth(Sound):
    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        old = [row["id"] for row in await super().get_history(session_id) if is_older(row["created_at"], 30)]
        return await super().add_message(
            session_id, *args, message_id=None if message_id in old else message_id, **kwargs
        )


class _ChangesTimes(Sound):
    """Changes each time that it returns."""

    def change(self, moment: datetime) -> datetime:
        raise NotImplementedError

    def _changed(self, row: Any) -> Any:
        names = row.keys() & {"created_at", "updated_at"}
        moments = {name: self.change(datetime.fromisoformat(row[name])) for name in names}
        return row | {name: moment.isoformat(timespec="microseconds") for name, moment in moments.items()}

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return [self._changed(row) for row in await super().get_history(*args, **kwargs)]

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and self._changed(row)

    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        return [self._changed(row) for row in await super().get_sessions(*args, **kwargs)]


@caught_by("FM-TIM-031")
class SignedSecondsOf32Bits(_ChangesTimes):
    def change(self, moment: datetime) -> datetime:
        seconds = (moment - _EPOCH).total_seconds()
        return _EPOCH + timedelta(seconds=(seconds + 2**31) % 2**32 - 2**31)


@caught_by("FM-TIM-031")
class UnsignedSecondsOf32Bits(_ChangesTimes):
    def change(self, moment: datetime) -> datetime:
        return _EPOCH + timedelta(seconds=(moment - _EPOCH).total_seconds() % 2**32)


@caught_by("FM-TIM-031")
class StopsIn2038(_ChangesTimes):
    """Like a column of type TIMESTAMP."""

    def change(self, moment: datetime) -> datetime:
        return min(moment, datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC))


@caught_by("FM-TIM-031")
class NoLeapDay(_ChangesTimes):
    def change(self, moment: datetime) -> datetime:
        return moment.replace(day=28) if (moment.month, moment.day) == (2, 29) else moment


@caught_by("FM-TIM-032")
class StoresLocalTime(_ChangesTimes):
    """Stores the time of the process's zone without its offset: an hour of autumn is there once."""

    def change(self, moment: datetime) -> datetime:
        return moment.astimezone().replace(tzinfo=None, fold=0).astimezone(UTC)


@caught_by("FM-TIM-032")
class ReadsWithTheOffsetOfToday(_ChangesTimes):
    """Stores the time of the process's zone, and converts it by the offset that the zone has now."""

    def change(self, moment: datetime) -> datetime:
        offset = datetime.now().astimezone().utcoffset()
        return moment.astimezone().replace(tzinfo=UTC) - (offset or timedelta())


@caught_by("FM-TIM-033")
class ListsByTheDigitsOfSeconds(Sound):
    """Sorts times as text of a number."""

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        rows = await super().get_sessions(None, **filters)
        rows.sort(key=lambda row: str(datetime.fromisoformat(row["updated_at"]).timestamp()), reverse=True)
        return rows[offset : offset + limit]


@caught_by("FM-TIM-033")
class ListsByCreation(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        rows = await super().get_sessions(None, **filters)
        rows.sort(key=lambda row: row["id"], reverse=True)
        return rows[offset : offset + limit]


class _ConnectsAgain(Sound):
    """Uses another connection for each call beside others."""

    under_way = 0

    async def connected(self, call: Any) -> tuple[Any, bool]:
        """Return the result of a call, and whether it was made on the first connection."""
        first = not self.under_way
        self.under_way += 1
        try:
            await asyncio.sleep(0)
            return await call, first
        finally:
            self.under_way -= 1


@caught_by("FM-TIM-034")
class LaterConnectionsReadInTokyo(_ConnectsAgain):
    async def get_session(self, *args: Any) -> Any:
        found, first = await self.connected(super().get_session(*args))
        return found if first or not found else found | {"created_at": _in_japan(found["created_at"])}


@caught_by("FM-TIM-034", reference_only=True)
class LaterConnectionsWriteInTokyo(_ConnectsAgain):
    async def create_session(self, *args: Any, **given: Any) -> Any:
        made, first = await self.connected(super().create_session(*args, **given))
        with self._store.writing() as sessions:
            if not first:
                sessions[made]["created_at"] = _in_japan(sessions[made]["created_at"])
        return made


def _in_japan(moment: str) -> str:
    return (datetime.fromisoformat(moment) + timedelta(hours=9)).isoformat(timespec="microseconds")


@caught_by("FM-TIM-060")
class ComparesInAnotherZone(Sound):
    """Converts a time to the zone of the process, which the last time of the calendar does not have."""

    async def delete_sessions(self, *, user_id: Any = None, inactive_since: Any = None) -> Any:
        if isinstance(inactive_since, datetime) and inactive_since.utcoffset() is not None:
            inactive_since = inactive_since.astimezone(timezone(timedelta(hours=1)))
        return await super().delete_sessions(user_id=user_id, inactive_since=inactive_since)


@caught_by("FM-TIM-060")
class ClampsToTheCalendar(Sound):
    async def delete_sessions(self, *, user_id: Any = None, inactive_since: Any = None) -> Any:
        try:
            return await super().delete_sessions(user_id=user_id, inactive_since=inactive_since)
        except InvalidInputError:
            if not isinstance(inactive_since, datetime) or inactive_since.utcoffset() is None:
                raise
            last = datetime.max.replace(tzinfo=UTC)
            return await super().delete_sessions(user_id=user_id, inactive_since=last)
