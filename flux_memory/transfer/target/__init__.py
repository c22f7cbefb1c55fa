"""Loads rows into a PostgreSQL memory, and verifies them there."""
