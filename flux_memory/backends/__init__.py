"""The two memories, a package for each engine, and the lifecycle and deadlines that they share."""

from __future__ import annotations

import logging

# Without a handler of the application, records of the library are dropped, not printed.
logging.getLogger("flux_memory").addHandler(logging.NullHandler())
