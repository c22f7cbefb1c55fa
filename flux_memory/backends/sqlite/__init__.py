"""The SQLite backend: one connection on one thread, and a file that is watched while it is open."""
