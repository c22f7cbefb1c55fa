-- The original application's second generation: sessions belong to users.

ALTER TABLE sessions ADD COLUMN user_id TEXT DEFAULT '';

CREATE INDEX idx_sessions_user ON sessions(user_id, updated_at);
