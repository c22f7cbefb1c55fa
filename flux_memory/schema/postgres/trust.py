"""Refuses tables, and what runs when they are used, of roles that could not act as the connection's role anyway."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from flux_memory.errors import SchemaError
from flux_memory.schema.postgres.tables import IS_OURS, MEMORY

# A superuser, the owner of the schema and that of the database decide what the names refer to, so the role trusts them
# already. A member of the role can act as it. For any other role, being able to create objects here must not be enough
# to run code with the role's rights.
_STRANGE: Final = """NOT (
    pg_catalog.pg_has_role({role}, nspowner, 'MEMBER')
    OR pg_catalog.pg_has_role({role}, me.oid, 'MEMBER')
    OR pg_catalog.pg_has_role({role}, datdba, 'MEMBER')
)"""
_ME: Final = """
    CROSS JOIN (SELECT oid FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user) AS me
    CROSS JOIN (
        SELECT datdba
        FROM pg_catalog.pg_database
        WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
    ) AS database
"""
# It runs before pg_catalog is known to be searched first, so each name is qualified.
SELECT_OPEN_SCHEMAS: Final = f"""
SELECT
    pg_catalog.quote_ident(nspname::pg_catalog.text),
    CASE WHEN grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC'
        ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)::pg_catalog.text)
    END,
    place OPERATOR(pg_catalog.<) pg_catalog.array_position(searched, 'pg_catalog'::pg_catalog.name)
FROM pg_catalog.current_schemas(TRUE) AS searched
    CROSS JOIN LATERAL pg_catalog.unnest(searched) WITH ORDINALITY AS member (name, place)
    JOIN pg_catalog.pg_namespace ON nspname OPERATOR(pg_catalog.=) member.name
    CROSS JOIN LATERAL pg_catalog.aclexplode(coalesce(nspacl, pg_catalog.acldefault('n', nspowner))) AS granted
    {_ME}
WHERE privilege_type OPERATOR(pg_catalog.=) 'CREATE'
    AND (grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid OR {_STRANGE.format(role="grantee")})
ORDER BY place
"""  # noqa: S608 - constants of ours
# Triggers, rules, policies, defaults, constraints and indexes run functions, directly or by operators. Materialized,
# the query is planned faster, at each opening.
SELECT_STRANGERS: Final = f"""
WITH memory AS (
    SELECT pg_class.oid, pg_class.oid::regclass::text AS shown, relowner, nspowner
    FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_table_is_visible(pg_class.oid) AND relname = ANY ($1::text::name[]) AND {IS_OURS}
), parts (relation, class, object) AS MATERIALIZED (
    SELECT memory.oid, 'pg_trigger'::regclass::oid, pg_trigger.oid
    FROM memory
    JOIN pg_trigger ON tgrelid = memory.oid AND NOT tgisinternal

    UNION ALL
    SELECT memory.oid, 'pg_rewrite'::regclass::oid, pg_rewrite.oid FROM memory JOIN pg_rewrite ON ev_class = memory.oid

    UNION ALL
    SELECT memory.oid, 'pg_policy'::regclass::oid, pg_policy.oid FROM memory JOIN pg_policy ON polrelid = memory.oid

    UNION ALL
    SELECT memory.oid, 'pg_attrdef'::regclass::oid, pg_attrdef.oid FROM memory JOIN pg_attrdef ON adrelid = memory.oid

    UNION ALL
    SELECT memory.oid, 'pg_class'::regclass::oid, indexrelid FROM memory JOIN pg_index ON indrelid = memory.oid

    UNION ALL
    SELECT memory.oid, 'pg_constraint'::regclass::oid, pg_constraint.oid
    FROM memory
    JOIN pg_constraint ON conrelid = memory.oid

    UNION ALL
    SELECT memory.oid, 'pg_constraint'::regclass::oid, pg_constraint.oid
    FROM memory
    JOIN pg_attribute ON attrelid = memory.oid
    JOIN pg_constraint ON contypid = atttypid AND contypid <> 0::oid
), used AS MATERIALIZED (
    SELECT relation, class, object, CASE refclassid
        WHEN 'pg_proc'::regclass::oid THEN refobjid
        WHEN 'pg_operator'::regclass::oid THEN (SELECT oprcode::oid FROM pg_operator WHERE pg_operator.oid = refobjid)
    END AS called
    FROM parts
    JOIN pg_depend ON classid = class AND objid = object
)
SELECT 'the table ' || shown, pg_get_userbyid(relowner)::text,
    pg_catalog.format('ALTER TABLE %s OWNER TO %I', shown, current_user)
FROM memory {_ME}
WHERE {_STRANGE.format(role="relowner")}

UNION ALL
SELECT DISTINCT
    pg_catalog.format('the function %s, which %s calls,', called::regprocedure, pg_describe_object(class, object, 0)),
    pg_get_userbyid(proowner)::text,
    pg_catalog.format('ALTER FUNCTION %s OWNER TO %I', called::regprocedure, current_user)
FROM used
JOIN memory ON memory.oid = relation
JOIN pg_proc ON pg_proc.oid = called {_ME}
WHERE {_STRANGE.format(role="proowner")}

UNION ALL
SELECT pg_catalog.format('the type %s of a column of %s', pg_type.oid::regtype, shown), pg_get_userbyid(typowner)::text,
    pg_catalog.format('ALTER TYPE %s OWNER TO %I', pg_type.oid::regtype, current_user)
FROM memory
JOIN pg_attribute ON attrelid = memory.oid AND attnum > 0::int2 AND NOT attisdropped
JOIN pg_type ON pg_type.oid = atttypid {_ME}
WHERE {_STRANGE.format(role="typowner")}
"""  # noqa: S608 - constants of ours
# The numbered files cannot be changed, and compare ids by `=`.
SELECT_STRANGE_OPERATORS: Final = f"""
SELECT 'the operator ' || pg_operator.oid::regoperator::text, pg_get_userbyid(oprowner)::text, pg_catalog.format(
    'ALTER OPERATOR %I.%s OWNER TO %I', nspname, substring(pg_operator.oid::regoperator::text FROM '=.*'), current_user
)
FROM pg_operator
JOIN pg_namespace ON pg_namespace.oid = oprnamespace {_ME}
WHERE oprname = '=' AND pg_operator_is_visible(pg_operator.oid) AND {_STRANGE.format(role="oprowner")}
"""  # noqa: S608 - constants of ours


class OpenSchema(NamedTuple):
    """A schema of search_path in which a role may create objects that could not act as ours anyway."""

    name: str
    grantee: str
    """The role, or PUBLIC."""
    precedes: bool
    """Whether it is searched before pg_catalog, so that what is created there replaces PostgreSQL's own."""


async def find_open_schemas(connection: Any) -> list[OpenSchema]:
    """Return the schemas of search_path in which other roles may create objects.

    Raises:
        SchemaError: One of them is searched before pg_catalog.
    """
    found = [OpenSchema(*row) for row in await connection.fetch(SELECT_OPEN_SCHEMAS)]
    for schema in found:
        if schema.precedes:
            raise SchemaError(
                f"search_path names the schema {schema.name}, in which {schema.grantee} may create functions, before "
                "pg_catalog, and they would run with your rights; remove pg_catalog from search_path, so that it is "
                "searched first"
            )
    return found


async def refuse_strangers(connection: Any, tables: str = MEMORY) -> None:
    """Raise `SchemaError` if another role made the tables, or what runs when they are used."""
    _refuse(await connection.fetch(SELECT_STRANGERS, tables))


async def refuse_strange_operators(connection: Any) -> None:
    """Raise `SchemaError` if another role made an operator that an upgrade of the tables would call."""
    _refuse(await connection.fetch(SELECT_STRANGE_OPERATORS))


def _refuse(rows: list[tuple[str, str, str]]) -> None:
    if rows:
        subject, owner, statement = max(rows)
        raise SchemaError(
            f"{subject} belongs to the role {owner}, and would run code with the rights of this role; drop it, or, if "
            f"you trust it, run {statement} as a superuser; and let only trusted roles create objects in the schema"
        )
