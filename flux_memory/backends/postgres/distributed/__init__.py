"""The writes of a store that Citus distributes by session: each runs on the server that holds its session."""
