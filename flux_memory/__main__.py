"""`python -m flux_memory` is the command line."""

from flux_memory.cli import run

run()
