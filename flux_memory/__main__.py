"""Runs the command line for `python -m flux_memory`."""

from flux_memory.cli import run

run()
