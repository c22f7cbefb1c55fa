"""Evidence: the result of each clause in a run, as JSON, Markdown, a page and a badge, and the diff of two runs."""
