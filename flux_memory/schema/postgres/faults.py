"""The query that compares the tables of a PostgreSQL database with what the schema needs, fault by fault."""

from __future__ import annotations

from typing import Final

from flux_memory.schema.postgres.tables import IS_OURS

# Operands have exactly the types of an operator of pg_catalog, and functions that take more than one type are
# qualified: otherwise those that another role made in a schema of search_path could be called.
_MEMORY: Final = f"""
WITH memory AS (
    SELECT pg_class.oid, relname::text AS name, pg_class.oid::regclass::text AS shown, relnamespace, relreplident
    FROM pg_class
    WHERE pg_table_is_visible(pg_class.oid)
        AND (
            relname IN ('sessions', 'messages')
            OR relname = 'session_details' AND $1 >= 6
            OR relname = 'feedback' AND $1 >= 7
        )
        AND {IS_OURS}
)"""  # noqa: S608 - constants of ours
_ATTRIBUTES: Final = """, wanted (name, attribute, kind, required, since, until) AS (
    VALUES
        ('sessions', 'id', 'id', TRUE, 1, 99),
        ('sessions', 'title', 'text', FALSE, 1, 5),
        ('sessions', 'created_at', 'time', TRUE, 1, 99),
        ('sessions', 'updated_at', 'time', TRUE, 1, 99),
        ('sessions', 'metadata', 'json', FALSE, 1, 5),
        ('sessions', 'user_id', 'text', FALSE, 2, 99),
        ('sessions', 'message_count', 'number', TRUE, 3, 99),
        ('sessions', 'creation_id', 'uuid', FALSE, 5, 99),
        ('sessions', 'revision', 'uuid', TRUE, 6, 99),
        ('session_details', 'session_id', 'id', TRUE, 6, 99),
        ('session_details', 'title', 'text', TRUE, 6, 99),
        ('session_details', 'metadata', 'json', TRUE, 6, 99),
        ('messages', 'id', 'id', TRUE, 1, 99),
        ('messages', 'session_id', 'id', TRUE, 1, 99),
        ('messages', 'role', 'text', TRUE, 1, 99),
        ('messages', 'content', 'text', TRUE, 1, 99),
        ('messages', 'metadata', 'json', FALSE, 1, 99),
        ('messages', 'created_at', 'time', TRUE, 1, 99),
        ('messages', 'seq', 'number', TRUE, 3, 99),
        ('feedback', 'id', 'id', TRUE, 7, 99),
        ('feedback', 'session_id', 'id', TRUE, 7, 99),
        ('feedback', 'message_id', 'id', FALSE, 7, 99),
        ('feedback', 'user_id', 'text', TRUE, 7, 99),
        ('feedback', 'rating', 'small number', TRUE, 7, 99),
        ('feedback', 'comment', 'text', TRUE, 7, 99),
        ('feedback', 'corrected_answer', 'text', FALSE, 7, 99),
        ('feedback', 'metadata', 'json', TRUE, 7, 99),
        ('feedback', 'created_at', 'time', TRUE, 7, 99)
), attributes AS (
    SELECT
        memory.oid AS relation,
        memory.name,
        memory.shown,
        attnum,
        attname::text AS attribute,
        format_type(atttypid, atttypmod) AS type,
        attnotnull OR typnotnull AS is_required,
        atthasdef OR attidentity <> '' OR typdefault IS NOT NULL AS has_default,
        attidentity <> '' AS is_identity,
        attgenerated <> '' AS is_generated,
        atttypid,
        atttypmod,
        attcollation,
        coalesce((SELECT collisdeterministic FROM pg_collation WHERE pg_collation.oid = attcollation), TRUE)
            AS is_deterministic,
        typcategory,
        coalesce(nullif(typbasetype, 0::oid), atttypid) AS base,
        kind,
        required
    FROM memory
    JOIN pg_attribute ON attrelid = memory.oid AND attnum > 0::int2 AND NOT attisdropped
    JOIN pg_type ON pg_type.oid = atttypid
    LEFT JOIN wanted ON wanted.name = memory.name AND wanted.attribute = attname::text
        AND $1 BETWEEN since AND until
), misfits AS (
    SELECT
        *,
        CASE
            WHEN kind IN ('id', 'text') THEN typcategory IN ('S', 'E')
                OR base = ANY ('{smallint, integer, bigint, uuid}'::regtype[]::oid[])
            WHEN kind = 'time' THEN base = ANY ('{timestamp, timestamptz, date}'::regtype[]::oid[])
            ELSE FALSE
        END AS is_convertible,
        CASE
            WHEN kind = 'id' THEN pg_catalog.format('varchar(255) USING %I::text', attribute)
            WHEN kind = 'text' THEN pg_catalog.format('text USING %I::text', attribute)
            WHEN kind = 'json' THEN pg_catalog.format('jsonb USING %I::jsonb', attribute)
            WHEN kind = 'small number' THEN pg_catalog.format('smallint USING %I::smallint', attribute)
            WHEN kind = 'number' THEN pg_catalog.format('bigint USING %I::bigint', attribute)
            WHEN kind = 'uuid' THEN pg_catalog.format('uuid USING %I::text::uuid', attribute)
            WHEN typcategory = 'N' THEN
                pg_catalog.format('timestamp USING to_timestamp(%I) AT TIME ZONE ''UTC''', attribute)
            WHEN base = 'timestamp'::regtype::oid OR base = 'date'::regtype::oid THEN
                pg_catalog.format('timestamp USING %I::timestamp', attribute)
            ELSE pg_catalog.format('timestamp USING %I::timestamptz AT TIME ZONE ''UTC''', attribute)
        END AS conversion
    FROM attributes
    WHERE kind IS NOT NULL AND NOT CASE kind
        WHEN 'id' THEN
            (
                atttypid = 'text'::regtype::oid
                OR atttypid = 'varchar'::regtype::oid
                    AND (atttypmod = -1 OR atttypmod >= 40 AND $1 < 6 OR atttypmod >= 259)
            )
            AND is_deterministic
            AND (
                attcollation = 'pg_catalog."default"'::regcollation::oid
                OR (SELECT min(id.attcollation) = max(id.attcollation) FROM attributes AS id WHERE id.kind = 'id')
            )
        WHEN 'text' THEN
            (atttypid = 'text'::regtype::oid OR atttypid = 'varchar'::regtype::oid AND atttypmod = -1)
            AND is_deterministic
        WHEN 'time' THEN atttypid = 'timestamp'::regtype::oid AND atttypmod = -1
        WHEN 'json' THEN atttypid = 'jsonb'::regtype::oid
        WHEN 'number' THEN atttypid = 'bigint'::regtype::oid
        WHEN 'small number' THEN atttypid = 'smallint'::regtype::oid
        ELSE atttypid = 'uuid'::regtype::oid
    END
)"""
COLUMNS: Final = _MEMORY + _ATTRIBUTES
KEYS: Final = """, indexes AS (
    SELECT
        memory.oid AS relation,
        memory.name,
        memory.shown,
        indexrelid,
        owning.oid AS constraint_id,
        conname,
        coalesce(contype = 'p', FALSE) AS is_primary,
        indimmediate,
        indisunique AND indisvalid AND NOT indisexclusion AND indpred IS NULL AND indexprs IS NULL AS is_key,
        members.*
    FROM memory
    JOIN pg_index ON indrelid = memory.oid AND (indisunique OR indisexclusion)
    LEFT JOIN pg_constraint AS owning ON conindid = indexrelid AND conrelid = memory.oid
    CROSS JOIN LATERAL (
        SELECT
            string_agg(attribute, ', ' ORDER BY place) AS names,
            bool_and(kind IS NOT NULL OR number = 0::int2) AS is_ours,
            bool_or(attribute = 'id') AS has_id,
            bool_or(attribute = 'session_id') AS has_session,
            bool_or(attribute = 'seq') AS has_seq
        FROM pg_catalog.unnest(indkey::int2[]) WITH ORDINALITY AS member (number, place)
        LEFT JOIN attributes ON relation = memory.oid AND attnum = number
        WHERE place <= indnkeyatts
    ) AS members
), wanted_keys (name, names, since, until) AS (
    VALUES
        ('sessions', 'id', 1, 99),
        ('session_details', 'session_id', 6, 99),
        ('feedback', 'id', 7, 99),
        ('messages', 'id', 1, 2),
        ('messages', 'session_id, seq', 3, 99),
        ('messages', 'session_id, id', 3, 99)
), lacking_keys AS (
    SELECT
        memory.name,
        memory.shown,
        names,
        EXISTS (SELECT FROM indexes WHERE relation = memory.oid AND is_primary AND indimmediate) AS has_primary
    FROM wanted_keys
    JOIN memory ON memory.name = wanted_keys.name
    WHERE $1 BETWEEN since AND until AND NOT EXISTS (
        SELECT FROM indexes
        WHERE relation = memory.oid AND indexes.names = wanted_keys.names AND is_key
            AND (indimmediate OR memory.name = 'messages') AND (is_primary OR until = 99)
    )
), foreign_keys AS (
    SELECT
        referring.name,
        referring.shown,
        conname,
        confdeltype = 'c' AND convalidated AND confkey[1] = referred.attnum AND NOT EXISTS (
            SELECT FROM pg_trigger WHERE tgconstraint = pg_constraint.oid AND tgenabled NOT IN ('O', 'A')
        ) AS is_working
    FROM memory AS referring
    JOIN memory AS sessions ON referring.name NOT IN ('sessions', 'feedback') AND sessions.name = 'sessions'
    JOIN pg_constraint ON conrelid = referring.oid AND confrelid = sessions.oid AND contype = 'f'
    JOIN attributes ON relation = referring.oid AND attribute = 'session_id'
        AND attributes.attnum = conkey[1] AND pg_catalog.cardinality(conkey) = 1
    LEFT JOIN attributes AS referred ON referred.relation = sessions.oid AND referred.attribute = 'id'
), reference AS (
    SELECT
        memory.name,
        memory.shown,
        EXISTS (SELECT FROM foreign_keys WHERE foreign_keys.name = memory.name AND is_working) AS is_working,
        EXISTS (
            SELECT FROM misfits
            WHERE misfits.name = 'sessions' AND attribute = 'id'
                OR misfits.name = memory.name AND attribute = 'session_id'
        ) AS changes_type
    FROM memory
    WHERE memory.name NOT IN ('sessions', 'feedback')
)"""

# Each row: the rank of the statement among those of an upgrade, the kind of the fault, what has it, a detail, the
# statement that ends it, whether an upgrade runs that itself, and a query that is true where the fault is.
SELECT_FAULTS: Final = f"""{COLUMNS}{KEYS}
SELECT 1, 'rule', rulename::text, shown, pg_catalog.format('DROP RULE %I ON %s', rulename, shown), FALSE, NULL
FROM memory
JOIN pg_rewrite ON ev_class = memory.oid

UNION ALL
SELECT 1, 'extra', shown || '.' || attribute, '',
    pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', shown, attribute), FALSE, NULL
FROM attributes
WHERE kind IS NULL AND is_required AND NOT has_default AND NOT is_generated AND ($1 >= 3 OR name = 'sessions')

UNION ALL
SELECT 1, 'generated', shown || '.' || attribute, '',
    pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I DROP EXPRESSION', shown, attribute), FALSE, NULL
FROM attributes
WHERE kind IS NOT NULL AND is_generated

UNION ALL
SELECT 1, 'reserved', shown || '.' || attribute, '',
    pg_catalog.format('ALTER TABLE %s RENAME COLUMN %I TO %I', shown, attribute, attribute || '_before'), FALSE, NULL
FROM attributes
WHERE name = 'sessions' AND (attribute = 'message_count' AND $1 < 3 OR attribute = 'creation_id' AND $1 < 5
    OR attribute = 'revision' AND $1 < 6)

UNION ALL
SELECT 1, 'shared name', shown || '.' || attribute, '',
    pg_catalog.format('ALTER TABLE %s RENAME COLUMN %I TO %I', shown, attribute, attribute || '_before'), FALSE, NULL
FROM attributes
WHERE kind IS NULL AND (
    name = 'sessions' AND attribute IN ('session_id', 'title', 'metadata')
    OR name = 'session_details' AND EXISTS (
        SELECT FROM wanted WHERE wanted.name = 'sessions' AND wanted.attribute = attributes.attribute
    )
)

UNION ALL
SELECT 1, 'unique', coalesce(conname::text, indexrelid::regclass::text), shown, CASE
    WHEN conname IS NULL THEN pg_catalog.format('DROP INDEX %s', indexrelid::regclass)
    ELSE pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', shown, conname)
END, coalesce(name = 'messages' AND names = 'id' AND is_key, FALSE), NULL
FROM indexes
WHERE is_ours AND CASE name
    WHEN 'sessions' THEN has_id IS NOT TRUE
    WHEN 'feedback' THEN has_id IS NOT TRUE
    WHEN 'session_details' THEN has_session IS NOT TRUE
    ELSE (has_session AND (has_id OR has_seq)) IS NOT TRUE AND NOT (is_primary AND $1 < 3)
END

UNION ALL
SELECT 2, 'foreign key', conname::text, foreign_keys.shown,
    pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', foreign_keys.shown, conname), TRUE, NULL
FROM foreign_keys
JOIN reference ON reference.name = foreign_keys.name
WHERE NOT foreign_keys.is_working OR changes_type AND $1 < 3

UNION ALL
SELECT 2, 'feedback key', conname::text, shown, pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', shown, conname),
    FALSE, NULL
FROM memory
JOIN pg_constraint ON conrelid = memory.oid AND contype = 'f'
WHERE name = 'feedback'

UNION ALL
SELECT 1, 'missing', 'feedback', shown, '', FALSE, NULL
FROM memory
WHERE name = 'sessions' AND $1 >= 7 AND NOT EXISTS (SELECT FROM memory AS own WHERE own.name = 'feedback')

UNION ALL
SELECT 3, 'deferrable', conname::text, shown, pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', shown, conname),
    TRUE, NULL
FROM indexes
WHERE (name IN ('sessions', 'feedback') AND names = 'id' OR name = 'session_details' AND names = 'session_id')
    AND NOT indimmediate

UNION ALL
SELECT 4, 'type', shown || '.' || attribute, type, pg_catalog.format(
    '%sALTER TABLE %s ALTER COLUMN %I DROP DEFAULT, ALTER COLUMN %3$I TYPE %s',
    CASE
        WHEN is_identity THEN pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I DROP IDENTITY; ', shown, attribute)
        WHEN kind = 'time' AND NOT is_convertible AND typcategory <> 'N' THEN 'SET timezone = ''UTC''; '
    END,
    shown,
    attribute,
    conversion
), is_convertible, NULL
FROM misfits
WHERE NOT is_generated

UNION ALL
SELECT 6, 'nullable', shown || '.' || attribute, '',
    pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', shown, attribute), TRUE, NULL
FROM attributes
WHERE required AND NOT is_required

UNION ALL
SELECT 9, 'key', shown, names, pg_catalog.format(
    'ALTER TABLE %s ADD %s (%s)', shown, CASE
        WHEN has_primary OR names = 'session_id, id' THEN 'UNIQUE'
        WHEN name = 'messages' AND $1 < 3 THEN 'CONSTRAINT messages_pkey PRIMARY KEY'
        ELSE 'PRIMARY KEY'
    END, names
), TRUE, NULL
FROM lacking_keys
WHERE NOT (name = 'messages' AND has_primary AND $1 < 3)

UNION ALL
SELECT 10, 'reference', reference.shown, sessions.shown, pg_catalog.format(
    'ALTER TABLE %s ADD FOREIGN KEY (session_id) REFERENCES %s (id) ON DELETE CASCADE', reference.shown, sessions.shown
), TRUE, NULL
FROM reference
JOIN memory AS sessions ON sessions.name = 'sessions'
WHERE NOT is_working OR changes_type AND $1 < 3
"""  # noqa: S608 - constants of ours
