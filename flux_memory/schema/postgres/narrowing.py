"""The query for faults that matter only until version 6, where columns leave the table of sessions and ids widen."""

from __future__ import annotations

from typing import Final

from flux_memory.schema.postgres.faults import COLUMNS, KEYS

# Objects that are dropped with a column that leaves, or that keep a type from changing. Policies on ids are not among
# them: the upgrade creates them again.
DEPENDENTS: Final = """, changing AS (
    SELECT
        attributes.relation,
        attributes.attnum::int4 AS number,
        attributes.kind = 'id' AS is_id,
        attributes.name = 'sessions' AND attributes.attribute IN ('title', 'metadata') AS leaves
    FROM attributes
    LEFT JOIN misfits ON misfits.relation = attributes.relation AND misfits.attnum = attributes.attnum AND $1 < 3
    WHERE $1 < 6 AND attributes.kind IS NOT NULL AND (
        attributes.kind = 'id'
        OR attributes.name = 'sessions' AND attributes.attribute IN ('title', 'metadata')
        OR misfits.relation IS NOT NULL
    )
), dependents AS (
    SELECT
        classid,
        objid,
        objsubid,
        string_agg(pg_describe_object(refclassid, refobjid, refobjsubid), ', ' ORDER BY refobjsubid) AS details,
        pg_catalog.max(computed.relation) AS computed_in,
        pg_catalog.max(computed.attribute) AS computed
    FROM pg_depend
    LEFT JOIN changing ON refclassid = 'pg_class'::regclass::oid AND refobjid = relation AND refobjsubid = number
    LEFT JOIN pg_attrdef ON classid = 'pg_attrdef'::regclass::oid AND pg_attrdef.oid = objid
    LEFT JOIN attributes AS computed ON
        computed.relation = adrelid AND computed.attnum = adnum
        OR classid = 'pg_class'::regclass::oid AND computed.relation = objid AND computed.attnum::int4 = objsubid
    LEFT JOIN pg_class AS other ON classid = 'pg_class'::regclass::oid AND objsubid = 0 AND other.oid = objid
    WHERE CASE
        WHEN $1 < 3 AND refclassid = 'pg_constraint'::regclass::oid THEN
            EXISTS (SELECT FROM indexes WHERE constraint_id = refobjid AND name = 'messages' AND is_primary)
            AND deptype = 'n'
            AND classid <> 'pg_constraint'::regclass::oid
        WHEN changing.relation IS NULL THEN FALSE
        WHEN classid = 'pg_rewrite'::regclass::oid THEN
            NOT EXISTS (SELECT FROM pg_rewrite JOIN memory ON memory.oid = ev_class WHERE pg_rewrite.oid = objid)
        WHEN classid = 'pg_policy'::regclass::oid THEN
            leaves
            OR NOT is_id
            OR NOT EXISTS (SELECT FROM pg_policy JOIN memory ON memory.oid = polrelid WHERE pg_policy.oid = objid)
        WHEN classid = 'pg_attrdef'::regclass::oid OR objsubid <> 0 THEN computed.is_generated AND computed.kind IS NULL
        WHEN classid = ANY ('{pg_trigger,pg_proc,pg_publication_rel}'::regclass[]::oid[]) THEN TRUE
        WHEN NOT leaves THEN FALSE
        WHEN classid = 'pg_class'::regclass::oid THEN other.relkind = 'i'
            AND NOT (other.relname = 'sessions_by_metadata' AND $1 >= 3)
            AND NOT EXISTS (SELECT FROM indexes WHERE indexrelid = objid AND is_ours AND has_id IS NOT TRUE)
        WHEN classid = 'pg_constraint'::regclass::oid THEN
            NOT EXISTS (SELECT FROM indexes WHERE constraint_id = objid AND is_ours AND has_id IS NOT TRUE)
            AND EXISTS (SELECT FROM pg_constraint WHERE pg_constraint.oid = objid AND contype <> 'n')
        ELSE TRUE
    END
    GROUP BY classid, objid, objsubid
)"""
SELECT_NARROWING_FAULTS: Final = f"""{COLUMNS}{KEYS}{DEPENDENTS}
SELECT 1, 'dependent', pg_describe_object(classid, objid, objsubid), details, coalesce(CASE
    WHEN computed IS NOT NULL THEN (
        SELECT pg_catalog.format(CASE attgenerated
            WHEN 's' THEN 'ALTER TABLE %s ALTER COLUMN %I DROP EXPRESSION, ALTER COLUMN %2$I DROP NOT NULL'
            ELSE 'ALTER TABLE %s DROP COLUMN %I'
        END, attrelid::regclass, computed)
        FROM pg_attribute
        WHERE attrelid = computed_in AND attname::text = computed
    )
    WHEN classid = 'pg_rewrite'::regclass::oid THEN (
        SELECT CASE relkind
            WHEN 'v' THEN pg_catalog.format('DROP VIEW %s', ev_class::regclass)
            WHEN 'm' THEN pg_catalog.format('DROP MATERIALIZED VIEW %s', ev_class::regclass)
            ELSE pg_catalog.format('DROP RULE %I ON %s', rulename, ev_class::regclass)
        END
        FROM pg_rewrite
        JOIN pg_class ON pg_class.oid = ev_class
        WHERE pg_rewrite.oid = objid
    )
    WHEN classid = 'pg_class'::regclass::oid THEN pg_catalog.format('DROP INDEX %s', objid::regclass)
    WHEN classid = 'pg_constraint'::regclass::oid THEN (
        SELECT pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname)
        FROM pg_constraint
        WHERE pg_constraint.oid = objid
    )
    WHEN classid = 'pg_trigger'::regclass::oid THEN (
        SELECT pg_catalog.format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass)
        FROM pg_trigger
        WHERE pg_trigger.oid = objid
    )
    WHEN classid = 'pg_policy'::regclass::oid THEN (
        SELECT pg_catalog.format('DROP POLICY %I ON %s', polname, polrelid::regclass)
        FROM pg_policy
        WHERE pg_policy.oid = objid
    )
    WHEN classid = 'pg_statistic_ext'::regclass::oid THEN (
        SELECT pg_catalog.format('DROP STATISTICS %I.%I', nspname, stxname)
        FROM pg_statistic_ext
        JOIN pg_namespace ON pg_namespace.oid = stxnamespace
        WHERE pg_statistic_ext.oid = objid
    )
    WHEN classid = 'pg_proc'::regclass::oid THEN pg_catalog.format('DROP ROUTINE %s', objid::regprocedure)
    WHEN classid = 'pg_publication_rel'::regclass::oid THEN (
        SELECT pg_catalog.format('ALTER PUBLICATION %I DROP TABLE %s', pubname, prrelid::regclass)
        FROM pg_publication_rel
        JOIN pg_publication ON pg_publication.oid = prpubid
        WHERE pg_publication_rel.oid = objid
    )
END, ''), FALSE, NULL
FROM dependents

UNION ALL
SELECT 1, 'name', pg_class.oid::regclass::text, '',
    pg_catalog.format('ALTER TABLE %s RENAME TO %I', pg_class.oid::regclass, relname || '_before'), FALSE, NULL
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = current_schema()
    AND relname IN ('session_details', 'session_details_pkey', 'session_details_by_metadata')

UNION ALL
SELECT 5, 'long id', shown || '.' || attribute, '', '', FALSE,
    pg_catalog.format('SELECT EXISTS (SELECT FROM %s WHERE char_length(%I::text) > 255)', shown, attribute)
FROM attributes
WHERE kind = 'id' AND NOT (atttypid = 'varchar'::regtype::oid AND atttypmod BETWEEN 0 AND 259)
"""  # noqa: S608 - constants of ours
