"""What may become of the current PostgreSQL tables after the first use, and its refusal, world by world."""

from __future__ import annotations

from typing import Final

from original_worlds import CASCADE, NO_KEY, NO_REFERENCE, NO_SESSION_KEY, REFERENCE, messages, sessions


def details(*changes: str) -> str:
    """A change of the table of titles and metadata."""
    return f"ALTER TABLE session_details {', '.join(changes)};"


NO_DETAILS_KEY: Final = details("DROP CONSTRAINT session_details_pkey")
NO_DETAILS_REFERENCE: Final = details("DROP CONSTRAINT session_details_session_id_fkey")

CURRENT: Final = {
    "no foreign key": (NO_REFERENCE, "ALTER TABLE messages ADD FOREIGN KEY .* ON DELETE CASCADE; then retry"),
    "foreign key without CASCADE": (NO_REFERENCE + messages(REFERENCE), "ON DELETE CASCADE; then retry"),
    "foreign key not validated": (NO_REFERENCE + messages(f"{CASCADE} NOT VALID"), "ON DELETE CASCADE; then retry"),
    "foreign key disabled": (messages("DISABLE TRIGGER ALL"), "DROP CONSTRAINT messages_session_id_fkey; ALTER TABLE"),
    "cascade disabled": (sessions("DISABLE TRIGGER ALL"), "ON DELETE CASCADE; then retry"),
    "no key": (NO_KEY, r"ADD PRIMARY KEY \(session_id, seq\)"),
    "no key of ids": (messages("DROP CONSTRAINT messages_session_id_id_key"), r"ADD UNIQUE \(session_id, id\)"),
    "no key of sessions": (NO_SESSION_KEY, r"ADD PRIMARY KEY \(id\)"),
    "deferrable key of sessions": (NO_SESSION_KEY + sessions("ADD PRIMARY KEY (id) DEFERRABLE"), "is deferrable"),
    "the original's key": (messages("ADD CONSTRAINT own UNIQUE (id)"), "ALTER TABLE messages DROP CONSTRAINT own"),
    "short content": (messages("ALTER COLUMN content TYPE varchar(999)"), "messages.content is of type character vary"),
    "NULL is allowed": (messages("ALTER COLUMN content DROP NOT NULL"), "ALTER COLUMN content SET NOT NULL; then"),
    "required column of the user's": (
        messages("ADD COLUMN tenant text NOT NULL DEFAULT 'x'") + messages("ALTER COLUMN tenant DROP DEFAULT"),
        "ALTER TABLE messages ALTER COLUMN tenant DROP NOT NULL; then retry",
    ),
    "rule": ("CREATE RULE keep AS ON DELETE TO sessions DO INSTEAD NOTHING", "DROP RULE keep ON sessions; then"),
    "short ids": (
        messages("ALTER COLUMN id TYPE varchar(36)"),
        r"messages.id TYPE varchar\(255\)|messages.id is of type",
    ),
    "short ids of details": (
        details("ALTER COLUMN session_id TYPE varchar(254)"),
        "session_details.session_id is of type",
    ),
    "NULL as a revision is allowed": (sessions("ALTER COLUMN revision DROP NOT NULL"), "revision SET NOT NULL; then"),
    "NULL as a title is allowed": (details("ALTER COLUMN title DROP NOT NULL"), "session_details.title may be NULL"),
    "short titles of details": (
        details("ALTER COLUMN title TYPE varchar(80)"),
        "session_details.title is of type char",
    ),
    "no key of details": (NO_DETAILS_KEY, r"ALTER TABLE session_details ADD PRIMARY KEY \(session_id\); then retry"),
    "deferrable key of details": (
        NO_DETAILS_KEY + details("ADD PRIMARY KEY (session_id) DEFERRABLE"),
        "session_details_pkey .* is deferrable",
    ),
    "no foreign key of details": (
        NO_DETAILS_REFERENCE,
        "ALTER TABLE session_details ADD FOREIGN KEY .* ON DELETE CASCADE;",
    ),
    "foreign key of details without CASCADE": (
        NO_DETAILS_REFERENCE + details(REFERENCE),
        "session_details DROP CONSTRAINT .* ON DELETE CASCADE; then retry",
    ),
    "foreign key of details disabled": (details("DISABLE TRIGGER ALL"), "ALTER TABLE session_details ADD FOREIGN KEY"),
    "unique titles": (details("ADD CONSTRAINT own UNIQUE (title)"), "ALTER TABLE session_details DROP CONSTRAINT own"),
    "titles in the table of sessions": (
        sessions("ADD COLUMN title text"),
        "ALTER TABLE sessions RENAME COLUMN title TO title_before; then retry",
    ),
    "users in the table of details": (
        details("ADD COLUMN user_id text"),
        "ALTER TABLE session_details RENAME COLUMN user_id TO user_id_before; then retry",
    ),
    "rule of details": (
        "CREATE RULE keep AS ON UPDATE TO session_details DO INSTEAD NOTHING",
        "DROP RULE keep ON session_details; then",
    ),
    "required column of details": (
        details("ADD COLUMN tenant text NOT NULL DEFAULT 'x'") + details("ALTER COLUMN tenant DROP DEFAULT"),
        "ALTER TABLE session_details ALTER COLUMN tenant DROP NOT NULL; then retry",
    ),
}
