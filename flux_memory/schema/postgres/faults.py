"""The query that compares the tables of a PostgreSQL database with what the schema needs, fault by fault."""

from __future__ import annotations

from typing import Final

# Operands have exactly the types of an operator of pg_catalog, and functions that take more than one type are
# qualified: otherwise those that another role made in a schema of search_path could be called.
_COLUMNS: Final = """
WITH memory AS (
    SELECT pg_class.oid, relname::text AS name, pg_class.oid::regclass::text AS shown, relnamespace, relreplident
    FROM pg_class
    WHERE relname IN ('sessions', 'messages') AND pg_table_is_visible(pg_class.oid)
), wanted (name, attribute, kind, required, since) AS (
    VALUES
        ('sessions', 'id', 'id', TRUE, 1),
        ('sessions', 'title', 'text', FALSE, 1),
        ('sessions', 'created_at', 'time', TRUE, 1),
        ('sessions', 'updated_at', 'time', TRUE, 1),
        ('sessions', 'metadata', 'json', FALSE, 1),
        ('sessions', 'user_id', 'text', FALSE, 2),
        ('sessions', 'message_count', 'number', TRUE, 3),
        ('sessions', 'creation_id', 'uuid', FALSE, 5),
        ('messages', 'id', 'id', TRUE, 1),
        ('messages', 'session_id', 'id', TRUE, 1),
        ('messages', 'role', 'text', TRUE, 1),
        ('messages', 'content', 'text', TRUE, 1),
        ('messages', 'metadata', 'json', FALSE, 1),
        ('messages', 'created_at', 'time', TRUE, 1),
        ('messages', 'seq', 'number', TRUE, 3)
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
        required,
        since
    FROM memory
    JOIN pg_attribute ON attrelid = memory.oid AND attnum > 0::int2 AND NOT attisdropped
    JOIN pg_type ON pg_type.oid = atttypid
    LEFT JOIN wanted ON wanted.name = memory.name AND wanted.attribute = attname::text AND since <= $1
), misfits AS (
    SELECT
        *,
        CASE
            WHEN kind IN ('id', 'text') THEN typcategory IN ('S', 'E')
                OR base = ANY ('{smallint, integer, bigint, uuid}'::regtype[]::oid[])
            WHEN kind = 'time' THEN typcategory = 'D' AND base <> 'time'::regtype::oid AND base <> 'timetz'::regtype::oid
            ELSE FALSE
        END AS is_convertible,
        CASE
            WHEN kind = 'id' THEN pg_catalog.format('varchar(36) USING %I::text', attribute)
            WHEN kind = 'text' THEN pg_catalog.format('text USING %I::text', attribute)
            WHEN kind = 'json' THEN pg_catalog.format('jsonb USING %I::jsonb', attribute)
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
                OR atttypid = 'varchar'::regtype::oid AND (atttypmod = -1 OR atttypmod >= 40)
            )
            AND is_deterministic
            AND (
                attcollation = 'pg_catalog."default"'::regcollation::oid
                OR (SELECT min(each.attcollation) = max(each.attcollation) FROM attributes AS each WHERE each.kind = 'id')
            )
        WHEN 'text' THEN
            (atttypid = 'text'::regtype::oid OR atttypid = 'varchar'::regtype::oid AND atttypmod = -1)
            AND is_deterministic
        WHEN 'time' THEN atttypid = 'timestamp'::regtype::oid AND atttypmod = -1
        WHEN 'json' THEN atttypid = 'jsonb'::regtype::oid
        WHEN 'number' THEN atttypid = 'bigint'::regtype::oid
        ELSE atttypid = 'uuid'::regtype::oid
    END
)"""
_KEYS: Final = """, indexes AS (
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
        messages.shown,
        sessions.shown AS referred,
        conname,
        confdeltype = 'c' AND convalidated AND confkey[1] = referred.attnum AND NOT EXISTS (
            SELECT FROM pg_trigger WHERE tgconstraint = pg_constraint.oid AND tgenabled NOT IN ('O', 'A')
        ) AS is_working
    FROM memory AS messages
    JOIN memory AS sessions ON messages.name = 'messages' AND sessions.name = 'sessions'
    JOIN pg_constraint ON conrelid = messages.oid AND confrelid = sessions.oid AND contype = 'f'
    JOIN attributes ON relation = messages.oid AND attribute = 'session_id'
        AND attributes.attnum = conkey[1] AND pg_catalog.cardinality(conkey) = 1
    LEFT JOIN attributes AS referred ON referred.relation = sessions.oid AND referred.attribute = 'id'
), reference AS (
    SELECT
        EXISTS (SELECT FROM foreign_keys WHERE is_working) AS is_working,
        EXISTS (SELECT FROM misfits WHERE name = 'sessions' AND attribute = 'id' OR attribute = 'session_id')
            AS changes_type
)"""

# The statements of an adoption, in the order in which they run, after what no statement of ours may decide. Only tables
# of the original application have what a condition asks for: later, the keys exclude it.
SELECT_FAULTS: Final = f"""{_COLUMNS}{_KEYS}
SELECT kind, subject, detail, statement, is_repaired AND $1 < 3, condition
FROM (
    SELECT 1, 'rule', rulename::text, shown, pg_catalog.format('DROP RULE %I ON %s', rulename, shown), FALSE, NULL
    FROM memory
    JOIN pg_rewrite ON ev_class = memory.oid

    UNION ALL
    SELECT 1, 'inheritance', inhrelid::regclass::text, inhparent::regclass::text, CASE
        WHEN relispartition THEN
            pg_catalog.format('ALTER TABLE %s DETACH PARTITION %s', inhparent::regclass, inhrelid::regclass)
        ELSE pg_catalog.format('ALTER TABLE %s NO INHERIT %s', inhrelid::regclass, inhparent::regclass)
    END, FALSE, NULL
    FROM pg_inherits
    JOIN pg_class ON pg_class.oid = inhrelid
    WHERE EXISTS (SELECT FROM memory WHERE memory.oid = inhrelid OR memory.oid = inhparent)

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
    WHERE $1 < 3 AND name = 'sessions' AND attribute IN ('message_count', 'creation_id')

    UNION ALL
    SELECT 1, 'name', taken.oid::regclass::text, '',
        pg_catalog.format('ALTER TABLE %s RENAME TO %I', taken.oid::regclass, relname || '_before'), FALSE, NULL
    FROM memory
    JOIN pg_class AS taken ON taken.relnamespace = memory.relnamespace
    WHERE $1 < 3 AND CASE relname::text
        WHEN 'messages_pkey' THEN memory.name = 'messages'
            AND NOT EXISTS (SELECT FROM indexes WHERE indexrelid = taken.oid AND indexes.name = 'messages' AND is_primary)
        WHEN 'messages_session_id_id_key' THEN memory.name = 'messages'
        WHEN 'idx_messages_session' THEN memory.name = 'messages'
            AND NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = taken.oid AND indrelid = memory.oid)
        WHEN 'idx_sessions_user' THEN memory.name = 'sessions'
            AND ($1 = 1 OR NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = taken.oid AND indrelid = memory.oid))
        ELSE memory.name = 'sessions'
            AND relname IN ('sessions_by_activity', 'sessions_of_user_by_activity', 'sessions_by_metadata')
    END

    UNION ALL
    SELECT 1, 'constraint name', conname::text, memory.shown, pg_catalog.format(
        'ALTER TABLE %s RENAME CONSTRAINT %I TO %I', memory.shown, conname, conname || '_before'
    ), FALSE, NULL
    FROM memory
    JOIN pg_constraint ON conrelid = memory.oid AND conindid = 0::oid
    WHERE $1 < 3 AND name = 'messages' AND conname IN ('messages_pkey', 'messages_session_id_id_key')

    UNION ALL
    SELECT 1, 'referrer', conrelid::regclass::text, memory.shown,
        pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname), FALSE, NULL
    FROM memory
    JOIN pg_constraint ON confrelid = memory.oid AND contype = 'f'
    WHERE $1 < 3 AND conrelid NOT IN (SELECT memory.oid FROM memory)
        AND (name = 'messages' OR EXISTS (SELECT FROM misfits WHERE relation = memory.oid AND attribute = 'id'))

    UNION ALL
    SELECT DISTINCT 1, 'dependent', pg_describe_object(classid, objid, 0), pg_describe_object(refclassid, refobjid, refobjsubid),
        coalesce((
            SELECT pg_catalog.format(
                'DROP %s %s', CASE relkind WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END, pg_class.oid::regclass
            )
            FROM pg_rewrite
            JOIN pg_class ON pg_class.oid = ev_class AND relkind IN ('v', 'm')
            WHERE classid = 'pg_rewrite'::regclass::oid AND pg_rewrite.oid = objid
        ), ''), FALSE, NULL
    FROM pg_depend
    WHERE $1 < 3 AND deptype = 'n' AND classid <> 'pg_constraint'::regclass::oid AND (
        refclassid = 'pg_class'::regclass::oid
            AND EXISTS (SELECT FROM misfits WHERE relation = refobjid AND attnum::int4 = refobjsubid)
        OR refclassid = 'pg_constraint'::regclass::oid
            AND EXISTS (SELECT FROM indexes WHERE constraint_id = refobjid AND name = 'messages' AND is_primary)
    )

    UNION ALL
    SELECT 1, 'unique', coalesce(conname::text, indexrelid::regclass::text), shown, CASE
        WHEN conname IS NULL THEN pg_catalog.format('DROP INDEX %s', indexrelid::regclass)
        ELSE pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', shown, conname)
    END, coalesce(name = 'messages' AND names = 'id' AND is_key, FALSE), NULL
    FROM indexes
    WHERE is_ours AND CASE name
        WHEN 'sessions' THEN has_id IS NOT TRUE
        ELSE (has_session AND (has_id OR has_seq)) IS NOT TRUE AND NOT (is_primary AND $1 < 3)
    END

    UNION ALL
    SELECT 2, 'foreign key', conname::text, shown, pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', shown, conname),
        TRUE, NULL
    FROM foreign_keys
    CROSS JOIN reference
    WHERE NOT foreign_keys.is_working OR changes_type AND $1 < 3

    UNION ALL
    SELECT 3, 'deferrable', conname::text, shown, pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', shown, conname),
        TRUE, NULL
    FROM indexes
    WHERE name = 'sessions' AND names = 'id' AND NOT indimmediate

    UNION ALL
    SELECT 4, 'type', shown || '.' || attribute, type, pg_catalog.format(
        '%sALTER TABLE %s %sALTER COLUMN %I DROP DEFAULT, ALTER COLUMN %4$I TYPE %s',
        CASE WHEN kind = 'time' AND NOT is_convertible AND typcategory <> 'N' THEN 'SET timezone = ''UTC''; ' ELSE '' END,
        shown,
        CASE WHEN is_identity THEN pg_catalog.format('ALTER COLUMN %I DROP IDENTITY, ', attribute) ELSE '' END,
        attribute,
        conversion
    ), is_convertible, NULL
    FROM misfits
    WHERE NOT is_generated

    UNION ALL
    SELECT 5, 'long id', shown || '.' || attribute, '', '', FALSE,
        pg_catalog.format('SELECT EXISTS (SELECT FROM %s WHERE char_length(%I::text) > 36)', shown, attribute)
    FROM attributes
    WHERE kind = 'id' AND NOT (atttypid = 'varchar'::regtype::oid AND atttypmod BETWEEN 0 AND 40)

    UNION ALL
    SELECT 5, 'null', shown || '.' || attribute, '', '', FALSE,
        pg_catalog.format('SELECT EXISTS (SELECT FROM %s WHERE %I IS NULL)', shown, attribute)
    FROM attributes
    WHERE required AND NOT is_required

    UNION ALL
    SELECT 6, 'nullable', shown || '.' || attribute, '',
        pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', shown, attribute), TRUE, NULL
    FROM attributes
    WHERE required AND NOT is_required

    UNION ALL
    SELECT 7, 'duplicate', shown || '.' || names, '', '', FALSE,
        pg_catalog.format('SELECT EXISTS (SELECT FROM %s GROUP BY id::text HAVING count(*) > 1)', shown)
    FROM lacking_keys
    WHERE names = 'id'

    UNION ALL
    SELECT 8, 'orphans kept', 'orphaned_messages', '',
        'ALTER TABLE orphaned_messages RENAME TO orphaned_messages_before', FALSE,
        'SELECT to_regclass(''orphaned_messages'') IS NOT NULL AND ' || $2
    FROM reference
    WHERE NOT is_working

    UNION ALL
    SELECT 8, 'orphans', 'messages', '', $3, TRUE, 'SELECT ' || $2
    FROM reference
    WHERE NOT is_working

    UNION ALL
    SELECT 9, 'key', shown, names, pg_catalog.format(
        'ALTER TABLE %s ADD %s (%s)', shown, CASE
            WHEN has_primary THEN 'UNIQUE'
            WHEN name = 'messages' AND $1 < 3 THEN 'CONSTRAINT messages_pkey PRIMARY KEY'
            ELSE 'PRIMARY KEY'
        END, names
    ), TRUE, NULL
    FROM lacking_keys
    WHERE NOT (name = 'messages' AND has_primary AND $1 < 3)

    UNION ALL
    SELECT 9, 'key name', conname::text, shown,
        pg_catalog.format('ALTER TABLE %s RENAME CONSTRAINT %I TO messages_pkey', shown, conname), TRUE, NULL
    FROM indexes
    WHERE $1 < 3 AND name = 'messages' AND is_primary AND conname <> 'messages_pkey'

    UNION ALL
    SELECT 9, 'replica identity', shown, '',
        pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY DEFAULT', shown), TRUE, NULL
    FROM memory
    WHERE $1 < 3 AND name = 'messages' AND relreplident = 'i'

    UNION ALL
    SELECT 10, 'reference', messages.shown, sessions.shown, pg_catalog.format(
        'ALTER TABLE %s ADD FOREIGN KEY (session_id) REFERENCES %s (id) ON DELETE CASCADE', messages.shown, sessions.shown
    ), TRUE, NULL
    FROM reference
    JOIN memory AS messages ON messages.name = 'messages'
    JOIN memory AS sessions ON sessions.name = 'sessions'
    WHERE NOT is_working OR changes_type AND $1 < 3
) AS faults (rank, kind, subject, detail, statement, is_repaired, condition)
WHERE condition IS NULL OR $1 < 3
ORDER BY rank, kind, subject
"""
