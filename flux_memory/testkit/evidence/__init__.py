"""Evidence: what a run found out about each clause, as JSON, Markdown, a page and a badge, and what changed since."""
