"""Reads a SQLite memory without changing it, and validates each row."""
