"""Inspects the tables of a PostgreSQL database, and repairs those of the original application.

Opening a memory, `check` and a migration run the same inspection. Keys count by their columns, not by their names.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Final, NamedTuple

from flux_memory.errors import SchemaError
from flux_memory.schema import NARROWED, NUMBERED, WITH_FEEDBACK, history
from flux_memory.schema.postgres.adoption import SELECT_ADOPTION_FAULTS
from flux_memory.schema.postgres.faults import SELECT_FAULTS
from flux_memory.schema.postgres.narrowing import SELECT_NARROWING_FAULTS

# Ranked last: other statements use the name that the table still has.
SELECT_TAKEN_NAMES: Final = """
SELECT 11, CASE relkind WHEN 'i' THEN 'name' ELSE 'used name' END, pg_class.oid::regclass::text, '',
    pg_catalog.format(
        'ALTER %s %s RENAME TO %I',
        CASE relkind WHEN 'i' THEN 'INDEX' WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END,
        pg_class.oid::regclass, relname::text || '_before'
    ), FALSE, NULL
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = current_schema() AND relname IN (
    'feedback', 'feedback_pkey', 'feedback_by_time', 'feedback_of_session_by_time', 'feedback_of_message_by_time',
    'feedback_of_user_by_time'
)

UNION ALL
-- A table has a type of its own name; an enumeration or a domain is in its way, too.
SELECT 11, 'used name', pg_type.oid::regtype::text, '',
    pg_catalog.format('ALTER TYPE %s RENAME TO feedback_before', pg_type.oid::regtype), FALSE, NULL
FROM pg_type
JOIN pg_namespace ON pg_namespace.oid = typnamespace
WHERE nspname = current_schema() AND typname = 'feedback' AND typrelid = 0
"""
SELECT_OBSTACLES: Final = """
SELECT pg_catalog.format(
    '%s belongs to the role %I, and only its owner may upgrade it; run flux-memory check --full as that role',
    pg_class.oid::regclass, pg_get_userbyid(relowner)
)
FROM pg_class
WHERE relname IN ('sessions', 'messages', 'flux_memory_schema') AND pg_table_is_visible(pg_class.oid)
    AND NOT pg_has_role(relowner, 'USAGE')

UNION ALL
SELECT pg_catalog.format(
    'the role may not create objects in the schema %I, as the upgrade does; run GRANT CREATE ON SCHEMA %1$I TO %I',
    nspname, current_user
)
FROM pg_namespace
WHERE nspname = current_schema() AND NOT has_schema_privilege(pg_namespace.oid, 'CREATE')

UNION ALL
SELECT pg_catalog.format(
    'the tables are in the schema %I, and the upgrade would create another in %I; name %1$I first in search_path',
    nspname, current_schema()
)
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relname = 'sessions' AND pg_table_is_visible(pg_class.oid) AND nspname <> current_schema()

UNION ALL
SELECT pg_catalog.format(
    'a policy may hide rows of %s from the upgrade; run ALTER TABLE %1$s NO FORCE ROW LEVEL SECURITY, upgrade, and '
    'then force it again', pg_class.oid::regclass
)
FROM pg_class
WHERE relname IN ('sessions', 'messages') AND pg_table_is_visible(pg_class.oid) AND row_security_active(pg_class.oid)
"""

_SENTENCES: Final = {
    "rule": "the rule {subject} of {detail} replaces statements",
    "inheritance": "{subject} inherits from {detail}, and keys do not",
    "extra": "{subject} is NOT NULL without a default, so no row can be added",
    "generated": "{subject} is a generated column",
    "reserved": "{subject} has the name of a column that the upgrade adds",
    "shared name": "{subject} has the name of a column of the table that is joined to it",
    "name": "{subject} has the name of a table or an index that the upgrade creates",
    "used name": "{subject} has the name of a table that the upgrade creates; if a program uses it, keep it, and give "
    "flux-memory a schema of its own",
    "constraint name": "the constraint {subject} of {detail} has the name of a key that the upgrade creates",
    "referrer": "{subject} refers to {detail}, whose key the upgrade replaces",
    "dependent": "{subject} depends on {detail}, which the upgrade changes; drop it, and create it again afterwards",
    "unique": "the unique key {subject} of {detail} refuses rows that the memory has to store",
    "feedback key": "the foreign key {subject} of {detail} refuses or removes feedback on sessions that are gone",
    "missing": "the table {subject} is missing beside {detail}; restore it from a backup",
    "foreign key": "the foreign key {subject} of {detail} is disabled, not validated or without ON DELETE CASCADE",
    "deferrable": "the key {subject} of {detail} is deferrable",
    "type": "{subject} is of type {detail}",
    "long id": "{subject} has values longer than 255 characters; shorten them",
    "null": "{subject} has a NULL; give each row a value",
    "nullable": "{subject} may be NULL",
    "duplicate": "{subject} has a value that occurs twice; make each unique",
    "orphans kept": "messages without a session have to move to {subject}, and it exists",
    "key": "{subject} has no key on ({detail})",
    "reference": "{subject} has no foreign key to {detail} that deletes its rows with their session",
}


class Fault(NamedTuple):
    """A difference between the tables and what the schema needs."""

    kind: str
    subject: str
    detail: str
    statement: str
    """The statement that ends it; empty if no statement can."""
    is_repaired: bool
    """Whether an upgrade runs the statement itself."""


async def find_faults(connection: Any, version: int) -> list[Fault]:
    """Return the faults of tables of a version, 0 if there are none, that an upgrade repairs, in the order of repair.

    Raises:
        SchemaError: The tables have faults that it does not repair; the message has the statements that do.
    """
    rows = [*await connection.fetch(SELECT_FAULTS, version)]
    if version < NARROWED:
        rows += await connection.fetch(SELECT_NARROWING_FAULTS, version)
    if version < WITH_FEEDBACK:
        rows += await connection.fetch(SELECT_TAKEN_NAMES)
    if 0 < version < NUMBERED:
        rows += await connection.fetch(SELECT_ADOPTION_FAULTS, version)
    faults = []
    for _, kind, subject, detail, statement, is_repaired, condition in sorted(rows, key=itemgetter(0, 1, 2)):
        if condition is None or await connection.fetchval(condition):
            faults.append(Fault(kind, subject, detail, statement, is_repaired and version < NUMBERED))
    refused = [fault for fault in faults if not fault.is_repaired]
    if refused:
        sentences = "; ".join(_SENTENCES[fault.kind].format(**fault._asdict()) for fault in refused)
        statements = "; ".join(fault.statement for fault in refused if fault.statement)
        advice = f". Run as their owner: {statements}; then retry" if statements else ", then retry"
        raise SchemaError(f"the tables are not what flux-memory needs: {sentences}{advice}")
    return faults


async def missing_keys(connection: Any) -> list[str]:
    """Return the statements that create the keys which the current schema has and the tables lack."""
    rows = await connection.fetch(SELECT_FAULTS, history("postgres")[-1].version)
    return [statement for _, kind, _, _, statement, *_ in rows if kind in {"key", "reference"}]


async def refuse_obstacles(connection: Any) -> None:
    """Raise `SchemaError` if the role may not upgrade the tables that are there."""
    for (obstacle,) in await connection.fetch(SELECT_OBSTACLES):
        raise SchemaError(obstacle)
