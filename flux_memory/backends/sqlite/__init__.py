"""The backend for SQLite: one file, one connection, one thread."""
