"""The memories: one module for each engine, and what holds a handle together."""
