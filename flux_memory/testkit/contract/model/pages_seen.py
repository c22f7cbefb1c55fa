"""Pages of sessions: expected in the order of the store where times are equal, or known only to the store."""

from __future__ import annotations

from typing import Any

from flux_memory.testkit.contract.model.answers import ANY_TIME
from flux_memory.testkit.contract.model.calls import Answer, Answered, Returned


def page_as_seen(whole: Answer, expected: Answer, made: Answered) -> Answer:
    """Return the expected page, in the store's order and with the store's choice where no promise decides.

    `time_rules` checks that a page is sorted by its own times.

    Args:
        whole: All sessions that meet the filters of the call.
        expected: The page as the reference model has it.
        made: The call and the store's answer.
    """
    seen = made.answer
    if not (isinstance(whole, Returned) and isinstance(expected, Returned) and isinstance(seen, Returned)):
        return expected
    rows = {row["id"]: row for row in whole.value}
    times = [row["updated_at"] for row in rows.values()]
    following, maybe = _split(whole.value, made.call.arguments.get("before"))
    decided = not maybe and ANY_TIME not in times and len(set(times)) == len(times)
    if decided or not isinstance(seen.value, list):
        return expected
    ids = [row.get("id") if isinstance(row, dict) else None for row in seen.value]
    least = _size_of_page(len(following), made)
    most = _size_of_page(len(following) + len(maybe), made)
    if len(ids) != len(set(ids)) or not least <= len(ids) <= most or not set(ids) <= following | maybe:
        return expected
    return Returned([rows[name] for name in ids])


def _split(rows: list[dict[str, Any]], cursor: Any) -> tuple[set[Any], set[Any]]:
    """Return the ids of the sessions that follow the cursor, and of those that may."""
    if not cursor:
        return {row["id"] for row in rows}, set()
    moment = cursor["updated_at"]
    following = {row["id"] for row in rows if row["updated_at"] < moment}
    maybe = {
        row["id"]
        for row in rows
        if row["updated_at"] == ANY_TIME or (row["updated_at"] == moment and row["id"] != cursor["id"])
    }
    return following, maybe


def _size_of_page(number: int, made: Answered) -> int:
    limit, offset = made.call.arguments.get("limit", 50), made.call.arguments.get("offset", 0)
    rest: int = max(number - offset, 0)
    return rest if limit is None else min(rest, limit)
