"""A conversation store as an HTTP service: `python service.py DIRECTORY --port 8080`.

Each call is a POST of a JSON object to the path of an operation. Ids are in the object, never in a URL: they may be
any text. A space is a store of its own, in a SQLite file of its own. Every write carries a request's id and is done
once, however often it is sent; each time it has the same answer.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import sqlite3
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from operations import READS, TABLES, WRITES, Rows

from flux_memory import ConflictError, FluxMemoryError, InvalidInputError, SessionNotFoundError, records

REPEATED_FOR: Final = timedelta(hours=1)
"""How long a request is known: longer than any client repeats it."""
STATUS: Final = {InvalidInputError: 400, SessionNotFoundError: 404, ConflictError: 409}


class Service:
    """The spaces in a directory. A call does not await anything, so calls run one after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._databases: dict[str, sqlite3.Connection] = {}
        self._stopped_at: datetime | None = None

    async def call(self, request: web.Request) -> web.Response:
        """Answer a call: 200 with rows, or the status of an error with its text."""
        name, body = request.match_info["operation"], await request.json()
        try:
            db = self._database(body.pop("space"))
            if name in READS:
                return web.json_response(READS[name](db, **body))
            with db:
                answer = self._write(db, WRITES[name], **body)
            return web.Response(text=answer, content_type="application/json")
        except FluxMemoryError as error:
            return web.json_response(str(error), status=STATUS.get(type(error), 500))

    def _write(self, db: sqlite3.Connection, write: Callable[..., Rows], request: str, **arguments: Any) -> str:
        now = self._stopped_at or datetime.now(UTC)
        db.execute("DELETE FROM requests WHERE done_at < ?", (records.format_time(now - REPEATED_FOR),))
        for (answer,) in db.execute("SELECT answer FROM requests WHERE id = ?", (request,)).fetchall():
            return str(answer)
        answer = json.dumps(write(db, records.format_time(now), **arguments))
        db.execute("INSERT INTO requests VALUES (?, ?, ?)", (request, records.format_time(now), answer))
        return answer

    def _database(self, space: str) -> sqlite3.Connection:
        if space not in self._databases:
            if not re.fullmatch("[a-z0-9]{1,40}", space):
                raise InvalidInputError("a space has 1 to 40 lower-case letters and digits")
            db = sqlite3.connect(self._directory / f"{space}.db", isolation_level="IMMEDIATE")
            db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; {TABLES}")
            db.create_function("contains", 2, records.contains, deterministic=True)
            self._databases[space] = db
        return self._databases[space]

    async def stop_clock(self, request: web.Request) -> web.Response:
        """Stop the clock at a time, or let it run again: for tests."""
        at = await request.json()
        self._stopped_at = at and datetime.fromisoformat(at)
        return web.json_response([])

    async def drop(self, request: web.Request) -> web.Response:
        """Delete a space: for tests."""
        space = await request.json()
        if db := self._databases.pop(space, None):
            db.close()
            (self._directory / f"{space}.db").unlink()
        return web.json_response([])


def main() -> None:
    """Serve until interrupted; with `--for-tests`, the clock can be stopped and spaces be dropped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--for-tests", action="store_true")
    arguments = parser.parse_args()
    service = Service(arguments.directory)
    app = web.Application(client_max_size=0)
    operations = "|".join([*WRITES, *READS])
    app.router.add_post(f"/call/{{operation:{operations}}}", service.call)
    if arguments.for_tests:
        app.router.add_post("/clock", service.stop_clock)
        app.router.add_post("/drop", service.drop)
    with socket.create_server(("127.0.0.1", arguments.port)) as listener:
        sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        web.run_app(app, sock=listener, print=None, access_log=None)


if __name__ == "__main__":
    main()
