"""The target of a migration whose tables Citus distributes by session."""
