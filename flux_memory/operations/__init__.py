"""Holds the work of the operator's commands; each module is imported only when it is used."""
