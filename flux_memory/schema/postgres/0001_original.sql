-- The original application's tables, first generation.

CREATE TABLE sessions (
    id         VARCHAR(36) PRIMARY KEY,
    title      TEXT DEFAULT '',
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    metadata   JSONB DEFAULT '{}'
);

CREATE TABLE messages (
    id         VARCHAR(36) PRIMARY KEY,
    session_id VARCHAR(36) NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
    role       TEXT NOT NULL,
    content    TEXT NOT NULL,
    metadata   JSONB DEFAULT '{}',
    created_at TIMESTAMP NOT NULL
);

CREATE INDEX idx_messages_session ON messages(session_id, created_at);
