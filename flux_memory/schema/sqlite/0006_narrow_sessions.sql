-- An add writes a session's row anew. What only `update_session` changes lies in a table of its own, so that an add
-- costs the same whatever the metadata.
--
-- Each change of a session or of its messages gives the session a revision that no session had before. The trigger is
-- for rows that migrations and other programs insert; the library makes the revisions of its own writes.

CREATE TABLE session_details (
    session_id TEXT NOT NULL PRIMARY KEY REFERENCES sessions(id) ON DELETE CASCADE,
    title      TEXT NOT NULL DEFAULT '',
    metadata   TEXT NOT NULL DEFAULT '{}'
);

INSERT INTO session_details (session_id, title, metadata)
SELECT id, coalesce(title, ''), coalesce(metadata, '{}') FROM sessions ORDER BY rowid;

DROP TRIGGER session_metadata_after_insert;

DROP TRIGGER session_metadata_before_update;

DROP TRIGGER session_metadata_after_update;

DROP TRIGGER session_metadata_before_delete;

DROP VIEW session_metadata_wanted;

ALTER TABLE sessions DROP COLUMN title;

ALTER TABLE sessions DROP COLUMN metadata;

ALTER TABLE sessions ADD COLUMN revision TEXT NOT NULL DEFAULT '';

UPDATE sessions SET revision = lower(hex(randomblob(16)));

CREATE TRIGGER sessions_first_revision AFTER INSERT ON sessions WHEN new.revision = '' BEGIN
    UPDATE sessions SET revision = lower(hex(randomblob(16))) WHERE id = new.id;
END;

-- The triggers say ON CONFLICT DO NOTHING: an OR IGNORE would give way to the conflict clause of the statement that fires
-- them.

CREATE VIEW session_metadata_wanted AS
WITH
    documents (session_id, document) AS NOT MATERIALIZED (
        SELECT session_id, CASE WHEN json_valid(CAST(metadata AS TEXT)) THEN CAST(metadata AS TEXT) ELSE '{}' END
        FROM session_details
    ),
    nodes (key, member, type, atom, session_id) AS NOT MATERIALIZED (
        SELECT outermost.key, '', outermost.type, outermost.atom, session_id
        FROM documents, json_each(document) AS outermost
        UNION ALL
        SELECT
            outermost.key,
            CASE outermost.type WHEN 'array' THEN '[]' ELSE '.' || substr(nested.key, 1, 100) END,
            nested.type,
            nested.atom,
            session_id
        FROM
            documents,
            json_each(document) AS outermost,
            json_each(CASE WHEN outermost.type IN ('array', 'object') THEN outermost.value ELSE '[]' END) AS nested
    )
SELECT
    substr(key, 1, 100) AS key,
    member,
    CASE
        WHEN type = 'text' THEN '"' || substr(atom, 1, 100)
        WHEN type = 'integer' AND typeof(atom) = 'integer' THEN CAST(atom AS TEXT)
        WHEN type IN ('integer', 'real') THEN '#'
        ELSE type
    END AS value,
    session_id
FROM nodes
WHERE typeof(key) = 'text';

CREATE TRIGGER session_metadata_after_insert AFTER INSERT ON session_details WHEN new.metadata <> '{}' BEGIN
    INSERT INTO session_metadata SELECT * FROM session_metadata_wanted WHERE session_id = new.session_id
    ON CONFLICT DO NOTHING;
END;

CREATE TRIGGER session_metadata_before_update BEFORE UPDATE OF session_id, metadata ON session_details BEGIN
    DELETE FROM session_metadata
    WHERE (key, member, value, session_id) IN (SELECT * FROM session_metadata_wanted WHERE session_id = old.session_id);
END;

CREATE TRIGGER session_metadata_after_update AFTER UPDATE OF session_id, metadata ON session_details BEGIN
    INSERT INTO session_metadata SELECT * FROM session_metadata_wanted WHERE session_id = new.session_id
    ON CONFLICT DO NOTHING;
END;

CREATE TRIGGER session_metadata_before_delete BEFORE DELETE ON session_details WHEN old.metadata <> '{}' BEGIN
    DELETE FROM session_metadata
    WHERE (key, member, value, session_id) IN (SELECT * FROM session_metadata_wanted WHERE session_id = old.session_id);
END;
