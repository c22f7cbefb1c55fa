"""The query for faults that matter only where the original application's tables are upgraded."""

from __future__ import annotations

from typing import Final

from flux_memory.schema.postgres.faults import COLUMNS, KEYS
from flux_memory.schema.postgres.narrowing import DEPENDENTS

HAS_ORPHANS: Final = """EXISTS (
    SELECT 1 FROM messages WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.id::text = messages.session_id::text)
)"""
# On one line, since a check shows it.
MOVE_ORPHANS: Final = (
    "CREATE TABLE orphaned_messages (LIKE messages); WITH moved AS (DELETE FROM messages WHERE NOT EXISTS ("
    "SELECT 1 FROM sessions WHERE sessions.id::text = messages.session_id::text) RETURNING *) "
    "INSERT INTO orphaned_messages SELECT * FROM moved"
)
# A unique key on the id alone, or a name that a file creates.
SELECT_ADOPTION_FAULTS: Final = f"""{COLUMNS}{KEYS}{DEPENDENTS}
SELECT 1, 'inheritance', inhrelid::regclass::text, inhparent::regclass::text, CASE
    WHEN relispartition THEN
        pg_catalog.format('ALTER TABLE %s DETACH PARTITION %s', inhparent::regclass, inhrelid::regclass)
    ELSE pg_catalog.format('ALTER TABLE %s NO INHERIT %s', inhrelid::regclass, inhparent::regclass)
END, FALSE, NULL
FROM pg_inherits
JOIN pg_class ON pg_class.oid = inhrelid
WHERE EXISTS (SELECT FROM memory WHERE memory.oid = inhrelid OR memory.oid = inhparent)

UNION ALL
SELECT 1, 'name', taken.oid::regclass::text, '',
    pg_catalog.format('ALTER TABLE %s RENAME TO %I', taken.oid::regclass, relname || '_before'), FALSE, NULL
FROM memory
JOIN pg_class AS taken ON taken.relnamespace = memory.relnamespace
WHERE NOT EXISTS (SELECT FROM dependents WHERE classid = 'pg_class'::regclass::oid AND objid = taken.oid)
    AND CASE relname::text
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
WHERE name = 'messages' AND conname IN ('messages_pkey', 'messages_session_id_id_key')

UNION ALL
SELECT 1, 'referrer', conrelid::regclass::text, memory.shown,
    pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname), FALSE, NULL
FROM memory
JOIN pg_constraint ON confrelid = memory.oid AND contype = 'f'
WHERE conrelid NOT IN (SELECT memory.oid FROM memory)
    AND (name = 'messages' OR EXISTS (SELECT FROM misfits WHERE relation = memory.oid AND attribute = 'id'))

UNION ALL
SELECT 5, 'null', shown || '.' || attribute, '', '', FALSE,
    pg_catalog.format('SELECT EXISTS (SELECT FROM %s WHERE %I IS NULL)', shown, attribute)
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
    'SELECT to_regclass(''orphaned_messages'') IS NOT NULL AND {HAS_ORPHANS}'
FROM reference
WHERE name = 'messages' AND NOT is_working

UNION ALL
SELECT 8, 'orphans', 'messages', '', '{MOVE_ORPHANS}', TRUE, 'SELECT {HAS_ORPHANS}'
FROM reference
WHERE name = 'messages' AND NOT is_working

UNION ALL
SELECT 9, 'key name', conname::text, shown,
    pg_catalog.format('ALTER TABLE %s RENAME CONSTRAINT %I TO messages_pkey', shown, conname), TRUE, NULL
FROM indexes
WHERE name = 'messages' AND is_primary AND conname <> 'messages_pkey'

UNION ALL
SELECT 9, 'replica identity', shown, '',
    pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY DEFAULT', shown), TRUE, NULL
FROM memory
WHERE name = 'messages' AND relreplident = 'i'
"""  # noqa: S608 - constants of ours
