"""The two memories, a package for each engine, and the lifecycle and deadlines that they share."""
