"""Another role that may create objects in a schema of `search_path` cannot run code with the rights of the library's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import pytest_asyncio
from original_application import POSTGRES_TABLES, make_file_with_data
from raw_postgres import connected, execute, make_original, role, rows, with_parameter

from flux_memory import PostgresConversationMemory, SchemaError
from flux_memory.health import check_methods, check_postgres
from flux_memory.testkit.servers import Server
from flux_memory.transfer import Plan, Status, migrate, migrate_back
