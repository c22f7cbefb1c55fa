-- What the metadata of sessions consists of, so that a filter by metadata finds its candidates by a key.
--
-- A row for each member of the object, and for each element or member of an array or an object in it; what lies deeper
-- is left to the test that follows. Texts are cut, and a number that is no 64-bit integer is '#', so that equal
-- values always have equal rows; different ones may have them, too. Triggers keep it, whoever writes.

CREATE TABLE session_metadata (
    key        TEXT NOT NULL,
    member     TEXT NOT NULL,
    value      TEXT NOT NULL,
    session_id TEXT NOT NULL,
    PRIMARY KEY (key, member, value, session_id)
) WITHOUT ROWID;

CREATE VIEW session_metadata_wanted AS
WITH
    documents (session_id, document) AS NOT MATERIALIZED (
        SELECT id, CASE WHEN json_valid(CAST(metadata AS TEXT)) THEN CAST(metadata AS TEXT) ELSE '{}' END
        FROM sessions
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

CREATE TRIGGER session_metadata_after_insert AFTER INSERT ON sessions WHEN new.metadata <> '{}' BEGIN
    INSERT OR IGNORE INTO session_metadata SELECT * FROM session_metadata_wanted WHERE session_id = new.id;
END;

CREATE TRIGGER session_metadata_before_update BEFORE UPDATE OF id, metadata ON sessions BEGIN
    DELETE FROM session_metadata
    WHERE (key, member, value, session_id) IN (SELECT * FROM session_metadata_wanted WHERE session_id = old.id);
END;

CREATE TRIGGER session_metadata_after_update AFTER UPDATE OF id, metadata ON sessions BEGIN
    INSERT OR IGNORE INTO session_metadata SELECT * FROM session_metadata_wanted WHERE session_id = new.id;
END;

CREATE TRIGGER session_metadata_before_delete BEFORE DELETE ON sessions WHEN old.metadata <> '{}' BEGIN
    DELETE FROM session_metadata
    WHERE (key, member, value, session_id) IN (SELECT * FROM session_metadata_wanted WHERE session_id = old.id);
END;

INSERT OR IGNORE INTO session_metadata
SELECT * FROM session_metadata_wanted
ORDER BY key, member, value, session_id;
