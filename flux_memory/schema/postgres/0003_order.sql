-- The order guarantee: a counter on each session, a number on each message, and a key that proves it.
--
-- Messages that are there are numbered by their time, then by the order in which they lie in the table. Every key of
-- messages begins with session_id, so that sessions can be spread over several machines. Ids compare by bytes, as
-- they do in SQLite, whatever the database's collation.

UPDATE sessions
SET title = coalesce(title, ''), metadata = coalesce(metadata, '{}'), user_id = coalesce(user_id, '')
WHERE title IS NULL OR metadata IS NULL OR user_id IS NULL;

UPDATE messages SET metadata = '{}' WHERE metadata IS NULL;

ALTER TABLE sessions ADD COLUMN message_count BIGINT NOT NULL DEFAULT 0;

ALTER TABLE messages ADD COLUMN seq BIGINT;

UPDATE messages
SET seq = numbered.seq
FROM (
    SELECT id, row_number() OVER (PARTITION BY session_id ORDER BY created_at, ctid) AS seq
    FROM messages
) AS numbered
WHERE messages.id = numbered.id;

UPDATE sessions
SET message_count = counted.messages
FROM (SELECT session_id, count(*) AS messages FROM messages GROUP BY session_id) AS counted
WHERE sessions.id = counted.session_id;

ALTER TABLE messages
    ALTER COLUMN seq SET NOT NULL,
    DROP CONSTRAINT messages_pkey,
    ADD CONSTRAINT messages_pkey PRIMARY KEY (session_id, seq),
    ADD CONSTRAINT messages_session_id_id_key UNIQUE (session_id, id);

DROP INDEX IF EXISTS idx_messages_session;

DROP INDEX IF EXISTS idx_sessions_user;

CREATE INDEX sessions_by_activity ON sessions (updated_at, id COLLATE "C");

CREATE INDEX sessions_of_user_by_activity ON sessions (user_id, updated_at, id COLLATE "C");

CREATE INDEX sessions_by_metadata ON sessions USING gin (metadata jsonb_path_ops);
