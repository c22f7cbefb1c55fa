-- The order guarantee: a counter on each session, a number on each message, and a key that proves it.
--
-- Messages that are there are numbered by their time, then by the order in which they were written. A message id is
-- unique within its session, so that sessions can be spread over several machines.

ALTER TABLE sessions ADD COLUMN message_count INTEGER NOT NULL DEFAULT 0;

CREATE TABLE messages_in_order (
    session_id TEXT NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
    id         TEXT NOT NULL,
    seq        INTEGER NOT NULL,
    role       TEXT NOT NULL,
    content    TEXT NOT NULL,
    metadata   TEXT DEFAULT '{}',
    created_at TEXT NOT NULL,
    PRIMARY KEY (session_id, seq),
    UNIQUE (session_id, id)
);

INSERT INTO messages_in_order (session_id, id, seq, role, content, metadata, created_at)
SELECT
    session_id,
    id,
    row_number() OVER (PARTITION BY session_id ORDER BY created_at, rowid),
    role,
    content,
    metadata,
    created_at
FROM messages
ORDER BY rowid;

DROP TABLE messages;

ALTER TABLE messages_in_order RENAME TO messages;

UPDATE sessions
SET message_count = (SELECT count(*) FROM messages WHERE session_id = sessions.id);

DROP INDEX IF EXISTS idx_sessions_user;

CREATE INDEX sessions_by_activity ON sessions(updated_at, id);

CREATE INDEX sessions_of_user_by_activity ON sessions(user_id, updated_at, id);
