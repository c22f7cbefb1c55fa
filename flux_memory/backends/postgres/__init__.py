"""The PostgreSQL backend: a connection pool, and statements that are retried where that is safe."""
