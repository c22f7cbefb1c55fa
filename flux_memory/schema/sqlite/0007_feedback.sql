-- Ratings of answers. An entry may name a session and a message that do not exist, or no longer, so there are no foreign
-- keys. It keeps the owner that its session had, so that it can be erased with the user after the session is gone.

CREATE TABLE feedback (
    id               TEXT NOT NULL PRIMARY KEY,
    session_id       TEXT NOT NULL,
    message_id       TEXT,
    user_id          TEXT NOT NULL DEFAULT '',
    rating           INTEGER NOT NULL CHECK (rating IN (-1, 0, 1)),
    comment          TEXT NOT NULL DEFAULT '',
    corrected_answer TEXT,
    metadata         TEXT NOT NULL DEFAULT '{}',
    created_at       TEXT NOT NULL
);

CREATE INDEX feedback_by_time ON feedback(created_at, id);

CREATE INDEX feedback_of_session_by_time ON feedback(session_id, created_at, id);

CREATE INDEX feedback_of_message_by_time ON feedback(message_id, created_at, id);

CREATE INDEX feedback_of_user_by_time ON feedback(user_id, created_at, id);
