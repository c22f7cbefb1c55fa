-- Ratings of answers. An entry may name a session and a message that do not exist, or no longer, so there are no foreign
-- keys, and the table can be spread over several machines by its id. An entry keeps the owner that its session had, so
-- that it can be erased with the user after the session is gone. Ids compare by bytes, as they do in SQLite.

CREATE TABLE feedback (
    id               VARCHAR(255) PRIMARY KEY,
    session_id       VARCHAR(255) NOT NULL,
    message_id       VARCHAR(255),
    user_id          TEXT NOT NULL DEFAULT '',
    rating           SMALLINT NOT NULL CHECK (rating IN (-1, 0, 1)),
    comment          TEXT NOT NULL DEFAULT '',
    corrected_answer TEXT,
    metadata         JSONB NOT NULL DEFAULT '{}',
    created_at       TIMESTAMP NOT NULL
);

CREATE INDEX feedback_by_time ON feedback (created_at, id COLLATE "C");

CREATE INDEX feedback_of_session_by_time ON feedback (session_id, created_at, id COLLATE "C");

CREATE INDEX feedback_of_message_by_time ON feedback (message_id, created_at, id COLLATE "C");

CREATE INDEX feedback_of_user_by_time ON feedback (user_id, created_at, id COLLATE "C");
