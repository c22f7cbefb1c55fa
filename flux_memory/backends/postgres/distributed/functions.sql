-- The writes of one session, each as a function that runs on the server which holds the session.
--
-- {schema} is the schema of the tables. Each function locks the session's row before it reads anything else, and each of
-- its statements sees what is committed when it begins. Every statement names the session, so that none leaves the server;
-- an INSERT in a CTE would be planned for all servers.
--
-- A release that changes a function gives it a new name: processes of both releases may run side by side. The last
-- parameter of a change is ' SKIP LOCKED', or empty where the call waits for the session's row.
--
-- A custom plan costs no more than a generic one, of which Citus 13.2 keeps another part with each execution (100 kB of
-- memory for an add).

-- Returns FALSE for a session that does not exist or has another owner, and fails for the id of a stored message:
-- `add_messages` decides these cases.
CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_add_message(
    p_session varchar, p_id text, p_role text, p_content text, p_metadata text, p_revision text, p_owner text
) RETURNS SETOF boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $function$
#variable_conflict use_column
DECLARE
    now_utc CONSTANT timestamp := clock_timestamp() AT TIME ZONE 'UTC';
    number bigint;
    changed_at timestamp;
BEGIN
    UPDATE {schema}.sessions
    SET message_count = message_count + 1, updated_at = greatest(updated_at, now_utc), revision = p_revision::uuid
    WHERE id = p_session AND (p_owner = '' OR coalesce(user_id, '') = p_owner)
    RETURNING message_count, updated_at INTO number, changed_at;
    IF FOUND THEN
        INSERT INTO {schema}.messages (session_id, id, seq, role, content, metadata, created_at)
        VALUES (p_session, p_id, number, p_role, p_content, p_metadata::jsonb, changed_at);
        RETURN NEXT TRUE;
    ELSE
        RETURN NEXT FALSE;
    END IF;
END
$function$;

CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_add_messages(
    p_session varchar, p_calls text, p_ids text, p_roles text, p_contents text, p_metadatas text, p_revision text,
    p_claiming text, p_claimed text, p_lock text
) RETURNS TABLE (found boolean, locked boolean, refused text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $function$
#variable_conflict use_column
DECLARE
    now_utc CONSTANT timestamp := clock_timestamp() AT TIME ZONE 'UTC';
    -- Not in a statement, which would read the text for each row.
    ids CONSTANT text[] := p_ids::text[];
    number bigint;
    added bigint;
    owner text;
    changed_at timestamp;
    stored_ids text[];
    differing jsonb;
    foreign_calls int[];
BEGIN
    IF p_lock = '' THEN
        SELECT message_count, coalesce(user_id, ''), greatest(updated_at, now_utc) INTO number, owner, changed_at
        FROM {schema}.sessions
        WHERE id = p_session
        FOR NO KEY UPDATE;
    ELSE
        SELECT message_count, coalesce(user_id, ''), greatest(updated_at, now_utc) INTO number, owner, changed_at
        FROM {schema}.sessions
        WHERE id = p_session
        FOR NO KEY UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        PERFORM 1 FROM {schema}.sessions WHERE id = p_session;
        RETURN QUERY SELECT FALSE, FOUND AND p_lock <> '', '[[],{}]'::text;
        RETURN;
    END IF;
    SELECT coalesce(array_agg(claim.call), '{}') INTO foreign_calls
    FROM unnest(p_claiming::int[], p_claimed::text[]) AS claim (call, user_id)
    WHERE claim.user_id <> owner;
    SELECT coalesce(array_agg(id), '{}'), coalesce(
        jsonb_object_agg(id, jsonb_build_array(role, content, coalesce(metadata, '{}'))), '{}'
    )
    INTO stored_ids, differing
    FROM {schema}.messages
    WHERE session_id = p_session AND id = ANY (ids);
    IF cardinality(stored_ids) = 0 THEN
        differing := '{}';
    ELSE
        SELECT coalesce(jsonb_object_agg(wrong.call, wrong.id), '{}') INTO differing
        FROM (
            SELECT DISTINCT ON (given.call) given.call, given.id
            FROM unnest(p_calls::int[], p_ids::text[], p_roles::text[], p_contents::text[], p_metadatas::text[])
                WITH ORDINALITY AS given (call, id, role, content, metadata, position)
            WHERE given.id = ANY (stored_ids)
                AND differing -> given.id IS DISTINCT FROM
                    jsonb_build_array(given.role, given.content, given.metadata::jsonb)
            ORDER BY given.call, given.position
        ) AS wrong;
    END IF;
    INSERT INTO {schema}.messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT
        p_session,
        given.id,
        number + row_number() OVER (ORDER BY given.position),
        given.role,
        given.content,
        given.metadata::jsonb,
        changed_at
    FROM unnest(p_calls::int[], p_ids::text[], p_roles::text[], p_contents::text[], p_metadatas::text[])
        WITH ORDINALITY AS given (call, id, role, content, metadata, position)
    WHERE given.id <> ALL (stored_ids) AND NOT differing ? given.call::text AND given.call <> ALL (foreign_calls);
    GET DIAGNOSTICS added = ROW_COUNT;
    IF added > 0 THEN
        UPDATE {schema}.sessions
        SET message_count = number + added, updated_at = changed_at, revision = p_revision::uuid
        WHERE id = p_session;
    END IF;
    RETURN QUERY SELECT TRUE, FALSE, jsonb_build_array(to_jsonb(foreign_calls), differing)::text;
END
$function$;

-- Adds of many sessions on one server, all or none: one that waits for a lock, or has a stored message's id, fails them
-- all, and each is sent alone. NULL if another server holds one of the shards by now: a write to two servers would be a
-- commit in two phases. One UPDATE visits the shards one by one, and its text is read for each, so that it is short.
CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_add_to_sessions(
    p_session varchar, p_shards text, p_counts text, p_revisions text, p_owners text, p_sessions text, p_ids text,
    p_roles text, p_contents text, p_metadatas text
) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
SET lock_timeout = '50ms' AS $function$
#variable_conflict use_column
DECLARE
    now_utc CONSTANT timestamp := clock_timestamp() AT TIME ZONE 'UTC';
    counts CONSTANT jsonb := p_counts;
    revisions CONSTANT jsonb := p_revisions;
    owners CONSTANT jsonb := p_owners;
    wanted CONSTANT varchar[] := ARRAY (SELECT jsonb_object_keys(p_counts::jsonb));
    found_ids text[] := '{}';
    befores bigint[] := '{}';
    times timestamp[] := '{}';
    changed record;
BEGIN
    PERFORM 1
    FROM unnest(p_shards::bigint[]) AS used (shard)
    LEFT JOIN pg_dist_placement ON shardid = used.shard AND shardstate = 1
    WHERE groupid IS DISTINCT FROM (SELECT groupid FROM pg_dist_local_group);
    IF FOUND THEN
        RETURN NEXT NULL;
        RETURN;
    END IF;
    FOR changed IN
        UPDATE {schema}.sessions
        SET message_count = message_count + (counts ->> id)::int,
            updated_at = greatest(updated_at, now_utc),
            revision = (revisions ->> id)::uuid
        WHERE id = ANY (wanted) AND coalesce(coalesce(user_id, '') = owners ->> id, TRUE)
        RETURNING id, message_count, updated_at
    LOOP
        found_ids := found_ids || changed.id::text;
        befores := befores || changed.message_count - (counts ->> changed.id)::int;
        times := times || changed.updated_at;
    END LOOP;
    IF cardinality(found_ids) > 0 THEN
        INSERT INTO {schema}.messages (session_id, id, seq, role, content, metadata, created_at)
        SELECT
            session.id,
            given.id,
            session.before + row_number() OVER (PARTITION BY session.id ORDER BY given.position),
            given.role,
            given.content,
            given.metadata::jsonb,
            session.changed_at
        FROM unnest(p_sessions::text[], p_ids::text[], p_roles::text[], p_contents::text[], p_metadatas::text[])
            WITH ORDINALITY AS given (session_id, id, role, content, metadata, position)
        JOIN unnest(found_ids, befores, times) AS session (id, before, changed_at) ON session.id = given.session_id;
    END IF;
    RETURN NEXT to_jsonb(found_ids)::text;
END
$function$;

CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_create_session(
    p_session varchar, p_user text, p_title text, p_metadata text, p_creation text, p_revision text
) RETURNS SETOF boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $function$
DECLARE
    now_utc CONSTANT timestamp := clock_timestamp() AT TIME ZONE 'UTC';
BEGIN
    INSERT INTO {schema}.sessions (id, user_id, created_at, updated_at, message_count, creation_id, revision)
    VALUES (p_session, p_user, now_utc, now_utc, 0, p_creation::uuid, p_revision::uuid)
    ON CONFLICT (id) DO NOTHING;
    IF FOUND THEN
        INSERT INTO {schema}.session_details (session_id, title, metadata)
        VALUES (p_session, p_title, p_metadata::jsonb);
        RETURN NEXT TRUE;
    END IF;
END
$function$;

CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_create_with_messages(
    p_session varchar, p_user text, p_revision text, p_ids text, p_roles text, p_contents text, p_metadatas text
) RETURNS SETOF boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $function$
DECLARE
    now_utc CONSTANT timestamp := clock_timestamp() AT TIME ZONE 'UTC';
BEGIN
    INSERT INTO {schema}.sessions (id, user_id, created_at, updated_at, message_count, revision)
    VALUES (p_session, p_user, now_utc, now_utc, cardinality(p_ids::text[]), p_revision::uuid)
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    INSERT INTO {schema}.session_details (session_id, title, metadata) VALUES (p_session, '', '{}');
    INSERT INTO {schema}.messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT p_session, given.id, given.position, given.role, given.content, given.metadata::jsonb, now_utc
    FROM unnest(p_ids::text[], p_roles::text[], p_contents::text[], p_metadatas::text[])
        WITH ORDINALITY AS given (id, role, content, metadata, position);
    RETURN NEXT TRUE;
END
$function$;

CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_update_title(
    p_session varchar, p_title text, p_revision text, p_lock text
) RETURNS TABLE (outcome text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $function$
DECLARE
    now_utc CONSTANT timestamp := clock_timestamp() AT TIME ZONE 'UTC';
BEGIN
    IF p_lock = '' THEN
        PERFORM 1 FROM {schema}.sessions WHERE id = p_session FOR NO KEY UPDATE;
    ELSE
        PERFORM 1 FROM {schema}.sessions WHERE id = p_session FOR NO KEY UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        PERFORM 1 FROM {schema}.sessions WHERE id = p_session;
        RETURN QUERY SELECT CASE WHEN FOUND THEN 'locked' ELSE 'missing' END;
        RETURN;
    END IF;
    INSERT INTO {schema}.session_details (session_id, title, metadata)
    VALUES (p_session, p_title, '{}')
    ON CONFLICT (session_id) DO UPDATE SET title = excluded.title;
    UPDATE {schema}.sessions
    SET updated_at = greatest(updated_at, now_utc), revision = p_revision::uuid
    WHERE id = p_session;
    RETURN QUERY SELECT 'done'::text;
END
$function$;

CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_pop_message(
    p_session varchar, p_revision text, p_lost boolean, p_lock text
) RETURNS TABLE (outcome text, id text, role text, content text, metadata text, created_at text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $function$
#variable_conflict use_column
DECLARE
    now_utc CONSTANT timestamp := clock_timestamp() AT TIME ZONE 'UTC';
    current record;
    newest record;
    verdict text;
BEGIN
    IF p_lock = '' THEN
        SELECT revision INTO current FROM {schema}.sessions WHERE id = p_session FOR NO KEY UPDATE;
    ELSE
        SELECT revision INTO current FROM {schema}.sessions WHERE id = p_session FOR NO KEY UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        PERFORM 1 FROM {schema}.sessions WHERE id = p_session;
        outcome := CASE WHEN FOUND THEN 'locked' ELSE 'missing' END;
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT messages.id, messages.seq, messages.role, messages.content, messages.metadata, messages.created_at
    INTO newest
    FROM {schema}.messages
    WHERE session_id = p_session
    ORDER BY seq DESC
    LIMIT 1;
    verdict := CASE
        WHEN current.revision = p_revision::uuid THEN 'applied'
        WHEN p_lost THEN 'unknown'
        WHEN newest.seq IS NULL THEN 'empty'
        WHEN jsonb_typeof(coalesce(newest.metadata, '{}')) = 'object'
            AND newest.created_at BETWEEN '0001-01-01'::timestamp AND '9999-12-31 23:59:59.999999'::timestamp
            THEN 'done'
        ELSE 'damaged'
    END;
    IF verdict = 'done' THEN
        DELETE FROM {schema}.messages WHERE session_id = p_session AND seq = newest.seq;
        UPDATE {schema}.sessions
        SET message_count = message_count - 1, updated_at = greatest(updated_at, now_utc), revision = p_revision::uuid
        WHERE id = p_session;
    END IF;
    outcome := verdict;
    id := newest.id;
    role := newest.role;
    content := newest.content;
    metadata := newest.metadata::text;
    created_at := rtrim(to_char(newest.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD');
    RETURN NEXT;
END
$function$;

CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_update_session(
    p_session varchar, p_revision text, p_lost boolean, p_expected text, p_title text, p_merge text, p_remove text,
    p_truncate_from text, p_truncate_all boolean, p_ids text, p_roles text, p_contents text, p_metadatas text,
    p_max_bytes integer, p_lock text
) RETURNS TABLE (
    outcome text, taken text, id text, user_id text, title text, created_at text, updated_at text, metadata text,
    revision text, message_count bigint
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $function$
#variable_conflict use_column
DECLARE
    now_utc CONSTANT timestamp := clock_timestamp() AT TIME ZONE 'UTC';
    ids CONSTANT text[] := p_ids::text[];
    current record;
    old_title text;
    old_metadata jsonb;
    new_metadata jsonb;
    cut bigint;
    taken_id text;
    stored_ids text[] := '{}';
    removed bigint := 0;
    added bigint;
    last bigint;
    changed_at timestamp;
    verdict text;
    item record;
    found_row record;
BEGIN
    IF p_lock = '' THEN
        SELECT * INTO current FROM {schema}.sessions WHERE id = p_session FOR NO KEY UPDATE;
    ELSE
        SELECT * INTO current FROM {schema}.sessions WHERE id = p_session FOR NO KEY UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        PERFORM 1 FROM {schema}.sessions WHERE id = p_session;
        outcome := CASE WHEN FOUND THEN 'locked' ELSE 'missing' END;
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT details.title, details.metadata INTO old_title, old_metadata
    FROM {schema}.session_details AS details
    WHERE session_id = p_session;
    old_title := coalesce(old_title, '');
    old_metadata := coalesce(old_metadata, '{}');
    IF p_truncate_all THEN
        cut := 0;
    ELSIF p_truncate_from IS NOT NULL THEN
        SELECT seq INTO cut FROM {schema}.messages WHERE session_id = p_session AND id = p_truncate_from;
    END IF;
    FOR found_row IN
        SELECT messages.id, messages.role, messages.content, messages.metadata
        FROM {schema}.messages
        WHERE session_id = p_session AND id = ANY (ids) AND seq < coalesce(cut, 9223372036854775807)
    LOOP
        stored_ids := stored_ids || found_row.id::text;
    END LOOP;
    IF cardinality(stored_ids) > 0 THEN
        FOR item IN
            SELECT given.*
            FROM unnest(p_ids::text[], p_roles::text[], p_contents::text[], p_metadatas::text[])
                WITH ORDINALITY AS given (id, role, content, metadata, position)
            WHERE given.id = ANY (stored_ids)
            ORDER BY given.position
        LOOP
            PERFORM 1
            FROM {schema}.messages
            WHERE session_id = p_session AND id = item.id AND role = item.role AND content = item.content
                AND coalesce(metadata, '{}') = item.metadata::jsonb;
            IF NOT FOUND THEN
                taken_id := item.id;
                EXIT;
            END IF;
        END LOOP;
    END IF;
    new_metadata := CASE
        WHEN jsonb_typeof(old_metadata) <> 'object' THEN NULL
        WHEN p_merge IS NOT NULL THEN (old_metadata - p_remove::text[]) || p_merge::jsonb
        WHEN p_remove <> '{}' THEN old_metadata - p_remove::text[]
    END;
    verdict := CASE
        WHEN current.revision = p_revision::uuid THEN 'applied'
        WHEN p_lost AND p_expected IS NULL THEN 'unknown'
        WHEN current.revision::text <> p_expected THEN 'conflict'
        WHEN p_truncate_from IS NOT NULL AND cut IS NULL THEN 'no message'
        WHEN taken_id IS NOT NULL THEN 'taken'
        WHEN current.user_id IS NULL
            OR jsonb_typeof(old_metadata) <> 'object'
            OR current.created_at NOT BETWEEN '0001-01-01'::timestamp AND '9999-12-31 23:59:59.999999'::timestamp
            OR current.updated_at NOT BETWEEN '0001-01-01'::timestamp AND '9999-12-31 23:59:59.999999'::timestamp
            THEN 'damaged'
        WHEN p_merge IS NOT NULL AND octet_length(new_metadata::text) > p_max_bytes THEN 'too large'
        ELSE 'done'
    END;
    last := current.message_count;
    changed_at := current.updated_at;
    IF verdict = 'done' THEN
        changed_at := greatest(current.updated_at, now_utc);
        IF cut IS NOT NULL THEN
            DELETE FROM {schema}.messages WHERE session_id = p_session AND seq >= cut;
            GET DIAGNOSTICS removed = ROW_COUNT;
        END IF;
        last := last - removed;
        IF p_title IS NOT NULL OR new_metadata IS NOT NULL THEN
            INSERT INTO {schema}.session_details (session_id, title, metadata)
            VALUES (p_session, coalesce(p_title, old_title), coalesce(new_metadata, old_metadata))
            ON CONFLICT (session_id) DO UPDATE SET title = excluded.title, metadata = excluded.metadata;
        END IF;
        IF p_ids <> '{}' THEN
            INSERT INTO {schema}.messages (session_id, id, seq, role, content, metadata, created_at)
            SELECT
                p_session,
                given.id,
                last + row_number() OVER (ORDER BY given.position),
                given.role,
                given.content,
                given.metadata::jsonb,
                changed_at
            FROM unnest(p_ids::text[], p_roles::text[], p_contents::text[], p_metadatas::text[])
                WITH ORDINALITY AS given (id, role, content, metadata, position)
            WHERE given.id <> ALL (stored_ids);
            GET DIAGNOSTICS added = ROW_COUNT;
            last := last + added;
        END IF;
        UPDATE {schema}.sessions
        SET message_count = last, updated_at = changed_at, revision = p_revision::uuid
        WHERE id = p_session;
    END IF;
    outcome := verdict;
    taken := taken_id;
    id := current.id;
    user_id := current.user_id;
    title := coalesce(p_title, old_title);
    created_at := rtrim(to_char(current.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD');
    updated_at := rtrim(to_char(changed_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD');
    metadata := CASE
        WHEN verdict IN ('done', 'damaged') THEN coalesce(new_metadata, old_metadata)::text
        WHEN verdict = 'applied' THEN old_metadata::text
    END;
    revision := p_revision;
    message_count := last;
    RETURN NEXT;
END
$function$;

CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_delete_session(
    p_session varchar, p_expected text, p_lock text
) RETURNS TABLE (outcome text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $function$
DECLARE
    current record;
BEGIN
    IF p_lock = '' THEN
        SELECT revision INTO current FROM {schema}.sessions WHERE id = p_session FOR UPDATE;
    ELSE
        SELECT revision INTO current FROM {schema}.sessions WHERE id = p_session FOR UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        PERFORM 1 FROM {schema}.sessions WHERE id = p_session;
        RETURN QUERY SELECT CASE WHEN FOUND THEN 'locked' ELSE 'missing' END;
    ELSIF current.revision::text <> p_expected THEN
        RETURN QUERY SELECT 'conflict'::text;
    ELSE
        DELETE FROM {schema}.sessions WHERE id = p_session;
        RETURN QUERY SELECT CASE WHEN FOUND THEN 'done' ELSE 'kept' END;
    END IF;
END
$function$;

CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_delete_matching(
    p_session varchar, p_owner text, p_inactive_since text, p_lock text
) RETURNS TABLE (outcome text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $function$
DECLARE
    current record;
BEGIN
    IF p_lock = '' THEN
        SELECT user_id, updated_at INTO current FROM {schema}.sessions WHERE id = p_session FOR UPDATE;
    ELSE
        SELECT user_id, updated_at INTO current FROM {schema}.sessions WHERE id = p_session FOR UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        PERFORM 1 FROM {schema}.sessions WHERE id = p_session;
        RETURN QUERY SELECT CASE WHEN FOUND THEN 'locked' ELSE 'missing' END;
    ELSIF p_owner IS NOT NULL AND current.user_id IS DISTINCT FROM p_owner
        OR current.updated_at >= p_inactive_since::timestamp
    THEN
        RETURN QUERY SELECT 'conflict'::text;
    ELSE
        DELETE FROM {schema}.sessions WHERE id = p_session;
        RETURN QUERY SELECT CASE WHEN FOUND THEN 'done' ELSE 'kept' END;
    END IF;
END
$function$;

-- The copy's server reads the original, which may be on another one. The original's row stays locked until the copy is
-- complete, so that the copy is never half of a change. Messages keep their numbers, of which another program may have
-- deleted some, so the counter is the last number.
CREATE OR REPLACE FUNCTION {schema}.flux_memory_1_fork_session(
    p_original varchar, p_through text, p_session varchar, p_user text, p_title text, p_creation text, p_revision text
) RETURNS TABLE (is_stored boolean, is_found boolean, found_last boolean, is_own boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $function$
#variable_conflict use_column
DECLARE
    now_utc CONSTANT timestamp := clock_timestamp() AT TIME ZONE 'UTC';
    original record;
    details record;
    taken_by uuid;
    last bigint := 9223372036854775807;
    newest bigint := 0;
BEGIN
    SELECT user_id, updated_at INTO original FROM {schema}.sessions WHERE id = p_original FOR SHARE;
    IF NOT FOUND THEN
        PERFORM 1 FROM {schema}.sessions WHERE id = p_session AND creation_id = p_creation::uuid;
        RETURN QUERY SELECT FALSE, FALSE, p_through IS NULL, FOUND;
        RETURN;
    END IF;
    IF p_through IS NOT NULL THEN
        SELECT seq INTO last FROM {schema}.messages WHERE session_id = p_original AND id = p_through;
        IF NOT FOUND THEN
            PERFORM 1 FROM {schema}.sessions WHERE id = p_session AND creation_id = p_creation::uuid;
            RETURN QUERY SELECT FALSE, TRUE, FALSE, FOUND;
            RETURN;
        END IF;
    END IF;
    SELECT title, metadata INTO details FROM {schema}.session_details WHERE session_id = p_original;
    SELECT coalesce(max(seq), 0) INTO newest
    FROM {schema}.messages
    WHERE session_id = p_original AND seq <= last;
    INSERT INTO {schema}.sessions (id, user_id, created_at, updated_at, message_count, creation_id, revision)
    VALUES (
        p_session, coalesce(p_user, original.user_id), greatest(original.updated_at, now_utc),
        greatest(original.updated_at, now_utc), newest, p_creation::uuid, p_revision::uuid
    )
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        SELECT creation_id INTO taken_by FROM {schema}.sessions WHERE id = p_session;
        RETURN QUERY SELECT FALSE, TRUE, TRUE, coalesce(taken_by = p_creation::uuid, FALSE);
        RETURN;
    END IF;
    INSERT INTO {schema}.session_details (session_id, title, metadata)
    VALUES (p_session, coalesce(p_title, details.title, ''), coalesce(details.metadata, '{}'));
    INSERT INTO {schema}.messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT p_session, id, seq, role, content, metadata, created_at
    FROM {schema}.messages
    WHERE session_id = p_original AND seq <= last;
    RETURN QUERY SELECT TRUE, TRUE, TRUE, FALSE;
END
$function$;
