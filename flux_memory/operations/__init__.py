"""Work on a store in production; each part is imported only by the command that uses it."""
