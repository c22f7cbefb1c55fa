"""Reads of a handle on streaming replicas: which replica may answer a read, and when the primary must."""
