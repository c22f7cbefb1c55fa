"""The backend for PostgreSQL: a pool, and statements that are run again where that is safe."""
