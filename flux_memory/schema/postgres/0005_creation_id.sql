-- A session knows the attempt that created it. Where the reply to `create_session` is lost, the retry recognises its own
-- row by this id, which no other attempt has, even if the session was renamed meanwhile.

ALTER TABLE sessions ADD COLUMN creation_id UUID;
