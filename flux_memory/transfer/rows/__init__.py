"""What happens to a row between the two databases: validate, canonicalize, encode for COPY, spool, digest."""
