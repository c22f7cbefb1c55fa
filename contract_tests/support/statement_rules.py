"""Rules for statements that a database sharded by session can run, and the collection of the library's statements."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import walk_packages
from types import ModuleType
from typing import Final, NamedTuple

import flux_memory.backends.postgres
import flux_memory.health
import flux_memory.schema.postgres
import flux_memory.transfer.target
from flux_memory.backends.postgres.distributed.functions import functions
from flux_memory.backends.postgres.queries import select_count, select_page

TABLES: Final = r"(?:sessions|session_details|messages|flux_memory_\w+)"
VOLATILE: Final = re.compile(
    r"\b(?:clock_timestamp|timeofday|random|gen_random_uuid|nextval|set_config)\s*\(", re.IGNORECASE
)
SQL: Final = re.compile(r"\b(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|LOCK TABLE|TRUNCATE|ALTER TABLE)\b")
TEXT: Final = re.compile(r"'(?:[^']|'')*'|--[^\n]*")
SET_LIST: Final = re.compile(r"\bSET\b(?! LOCAL| CONSTRAINTS)")
END_OF_SET_LIST: Final = re.compile(r"\b(?:FROM|WHERE|RETURNING)\b")
ROW_LOCK: Final = re.compile(r"\bFOR (?:NO KEY UPDATE|UPDATE|KEY SHARE|SHARE)\b")
ONE_SESSION: Final = re.compile(r"\b(?:id|session_id)(?:::text)? = (?:\$1|p_session|p_original)(?!\d)")
MAX_LIMIT: Final = 2**62 - 1

Broken = Callable[[str], bool]


class Rule(NamedTuple):
    """A property of statements that a sharded database refuses, and a statement that has it."""

    is_broken: Broken
    example: str


def _blank(sql: str) -> str:
    """Remove comments and the content of texts."""
    return TEXT.sub("''", sql)


def _enclosing(sql: str, position: int) -> str:
    """Return the innermost pair of parentheses around a position, or the whole statement."""
    depth, start = 0, 0
    for place in range(position - 1, -1, -1):
        depth += (sql[place] == ")") - (sql[place] == "(")
        if depth < 0:
            start = place + 1
            break
    return sql[start : _closing(sql, start)]


def _closing(sql: str, start: int) -> int:
    """Return the position of the parenthesis that closes one before `start`, or the end."""
    depth = 0
    for place in range(start, len(sql)):
        depth += (sql[place] == "(") - (sql[place] == ")")
        if depth < 0:
            return place
    return len(sql)


def _top(sql: str) -> str:
    """Blank what is in parentheses, except for their first word."""
    depth, kept = 0, []
    for letter in sql:
        depth -= letter == ")"
        kept.append(letter if depth == 0 else " ")
        depth += letter == "("
    return "".join(kept)


def updates_by_volatile_function(sql: str) -> bool:
    """Return whether a SET list calls a volatile function."""
    sql = _blank(sql)
    for found in SET_LIST.finditer(sql):
        rest = sql[found.end() : _closing(sql, found.end())]
        end = END_OF_SET_LIST.search(_top(rest))
        if VOLATILE.search(rest[: end.start()] if end else rest):
            return True
    return False


def has_empty_target_list(sql: str) -> bool:
    """Return whether a query of the memory's tables selects no column."""
    return re.search(rf"\bSELECT\s+FROM\s+{TABLES}\b", _blank(sql)) is not None


def locks_many_sessions(sql: str) -> bool:
    """Return whether a query locks rows of sessions that it does not name by an equality."""
    sql = _blank(sql)
    return any(not ONE_SESSION.search(_enclosing(sql, found.start())) for found in ROW_LOCK.finditer(sql))


def inserts_without_returning(sql: str) -> bool:
    """Return whether an INSERT in a CTE returns nothing."""
    sql = _blank(sql)
    inserts = re.finditer(r"\bAS (?:MATERIALIZED )?\(\s*INSERT INTO\b", sql)
    return any("RETURNING" not in sql[found.end() : _closing(sql, found.end())] for found in inserts)


def limits_too_high(sql: str) -> bool:
    """Return whether a LIMIT plus an OFFSET may exceed 64 bits."""
    return any(int(limit) > MAX_LIMIT for limit in re.findall(r"\b(?:LIMIT|OFFSET)\s+(\d+)", _blank(sql)))


def has_several_statements(sql: str) -> bool:
    """Return whether a text has more than one statement."""
    return ";" in _blank(sql).strip().removesuffix(";")


RULES: Final = {
    "a volatile function in a SET list": Rule(
        updates_by_volatile_function,
        "UPDATE sessions SET updated_at = greatest(updated_at, clock_timestamp() AT TIME ZONE 'UTC') WHERE id = $1",
    ),
    "an empty target list": Rule(has_empty_target_list, "SELECT EXISTS (SELECT FROM sessions WHERE id::text = $1)"),
    "row locks of many sessions": Rule(
        locks_many_sessions,
        "WITH locked AS (SELECT id FROM sessions WHERE id::text = ANY ($1) FOR UPDATE) SELECT * FROM locked",
    ),
    "an INSERT in a CTE that returns nothing": Rule(
        inserts_without_returning,
        "WITH added AS (INSERT INTO messages (id) SELECT id FROM item) SELECT count(*) FROM item",
    ),
    "a limit of 63 bits": Rule(limits_too_high, "SELECT id FROM sessions LIMIT 9223372036854775807 OFFSET 2"),
    "several statements": Rule(has_several_statements, "DELETE FROM messages; DELETE FROM sessions"),
}


def library_statements() -> dict[str, str]:
    """Return the SQL of the library for PostgreSQL, whole statements and parts, by the name of the constant."""
    found = {}
    for module in _modules():
        for name, value in vars(module).items():
            for number, text in enumerate(_texts(value)):
                if SQL.search(text):
                    found[f"{module.__name__.removeprefix('flux_memory.')}.{name}{f'.{number}' * (number > 0)}"] = text
    found |= _function_statements()
    for user in (None, "ann"):
        for part in (None, '{"lang": "ko"}'):
            found[f"select_count({user}, {part})"] = select_count(user, part)[0]
            for before in (None, ("2026-01-01", "one")):
                sql, _ = select_page(1, 1, user=user, part=part, before=before)
                found[f"select_page({user}, {part}, {before})"] = sql
    return found


def _function_statements() -> dict[str, str]:
    """Return the statements of the functions that write to a cluster."""
    found = {}
    for name, function in functions().items():
        # The body: its declarations are no statements.
        for number, sql in enumerate(function.sql.partition("\nBEGIN\n")[2].split(";")):
            if SQL.search(sql):
                found[f"{name}.{number}"] = sql
    return found


def _modules() -> Iterator[ModuleType]:
    for package in (flux_memory.backends.postgres, flux_memory.schema.postgres, flux_memory.transfer.target):
        yield package
        for found in walk_packages(package.__path__, f"{package.__name__}."):
            yield import_module(found.name)
    yield flux_memory.health


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, tuple | list | set | frozenset):
        for each in value:
            yield from _texts(each)
