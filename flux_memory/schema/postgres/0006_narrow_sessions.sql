-- An add writes a session's row anew, and an entry in each of its indexes. Titles and metadata, which only other calls
-- change, lie in a table of their own, so that an add costs the same with metadata of any size.
--
-- Each change of a session or of its messages gives the session a revision that no session had before. The default is
-- for rows that migrations and other programs insert; the library makes the revisions of its own writes.
--
-- Ids of other systems have up to 80 characters. Widening changes the catalogue only.

CREATE TABLE session_details (
    session_id VARCHAR(255) NOT NULL,
    title      TEXT NOT NULL DEFAULT '',
    metadata   JSONB NOT NULL DEFAULT '{}'
);

INSERT INTO session_details (session_id, title, metadata)
SELECT id, coalesce(title, ''), coalesce(metadata, '{}') FROM sessions;

-- The index on metadata is dropped with its column.
ALTER TABLE sessions
    DROP COLUMN title,
    DROP COLUMN metadata,
    ALTER COLUMN id TYPE VARCHAR(255),
    ADD COLUMN revision UUID NOT NULL DEFAULT gen_random_uuid();

ALTER TABLE messages
    ALTER COLUMN id TYPE VARCHAR(255),
    ALTER COLUMN session_id TYPE VARCHAR(255);

ALTER TABLE session_details
    ADD CONSTRAINT session_details_pkey PRIMARY KEY (session_id),
    ADD CONSTRAINT session_details_session_id_fkey FOREIGN KEY (session_id) REFERENCES sessions(id) ON DELETE CASCADE;

-- A filter by metadata reads all of what its index has not sorted in yet: 4 MB, as PostgreSQL has it, cost milliseconds.
CREATE INDEX session_details_by_metadata ON session_details USING gin (metadata jsonb_path_ops)
    WITH (gin_pending_list_limit = 128);
