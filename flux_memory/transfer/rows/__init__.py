"""Rows on their way: validated, in canonical form, encoded for COPY, spooled to temporary files."""
