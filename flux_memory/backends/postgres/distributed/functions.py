"""Reads the functions that write to a distributed store, and makes the statements that create and call them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from flux_memory.backends.postgres.locking import SKIPPING

PREFIX: Final = "flux_memory_1_"
"""Begins the name of each function; a release that changes a function counts up."""
SCHEMA: Final = "{schema}"
"""Stands in the functions for the schema of the tables."""

_FUNCTION: Final = re.compile(
    r"CREATE OR REPLACE FUNCTION \{schema\}\.(?P<name>\w+)\((?P<parameters>[^)]*)\).*?\$function\$;\n", re.DOTALL
)
_COMMENT: Final = re.compile(r"^ *--.*\n", re.MULTILINE)


class Function(NamedTuple):
    """A function that writes to one session."""

    name: str
    types: tuple[str, ...]
    """The types of its parameters; the session's id is `p_session`."""
    sql: str
    """The statement that creates it, with `{schema}` for the quoted schema."""

    def signature(self, schema: str) -> str:
        """Return its name with the types of its parameters; `schema` is quoted."""
        return f"{schema}.{self.name}({', '.join(self.types)})"

    def create(self, schema: str) -> str:
        """Return the statement that creates it; `schema` is quoted."""
        return self.sql.replace(SCHEMA, schema)

    def call(self, schema: str) -> str:
        """Return the statement that calls it; `schema` is quoted. A lock is the last parameter, written out."""
        locks = self.sql.partition("RETURNS")[0].rstrip().rstrip(")").rstrip().endswith("p_lock text")
        values = [f"${number}" for number in range(1, len(self.types) + 1 - locks)]
        if locks:
            values.append(f"'{SKIPPING}'")
        return f"SELECT * FROM {schema}.{self.name}({', '.join(values)})"  # noqa: S608 - quoted by the server


@cache
def functions() -> dict[str, Function]:
    """Return the functions by their name without the prefix."""
    text = _COMMENT.sub("", Path(__file__).with_name("functions.sql").read_text(encoding="utf-8"))
    found = {}
    for match in _FUNCTION.finditer(text):
        types = tuple(parameter.split()[1] for parameter in match["parameters"].split(","))
        found[match["name"].removeprefix(PREFIX)] = Function(match["name"], types, match[0])
    return found
