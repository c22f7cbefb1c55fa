"""Stops the service of the application guide under load, as deployments do: no acknowledged message is lost."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
from raw_postgres import reserve_port
from recipe_environment import PROJECT, find_recipe_files, make_recipe_environment, recipe_variables
from waiting import becomes_true

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory

PAGE: Final = PROJECT / "docs/application.md"
HEALTH: Final = PROJECT / "docs/operations/health.md"
CLIENTS: Final = 8
STARTING_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 15.0
"""Seconds within which a server without stuck requests has ended; the commands of the page allow 20."""
COMMANDS: Final = {
    "uvicorn": "uvicorn chat:app --workers 2 --timeout-graceful-shutdown 20",
    "gunicorn": "gunicorn chat:app --worker-class uvicorn_worker.UvicornWorker --workers 2 --graceful-timeout 20",
}
"""The commands of the page; the test adds the address."""
PROBES: Final = "uvicorn probes:app"


@pytest.fixture(scope="module")
def application_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the wheel and the frameworks."""
    return make_recipe_environment(tmp_path_factory, "application")


class Asker(threading.Thread):
    """A client that asks one question after another until the server is gone."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(name=name)
        self.port = port
        self.acknowledged: list[str] = []
        """Ids of questions whose whole answer arrived."""
        self.stopped = False

    def run(self) -> None:
        number = 0
        while not self.stopped:
            number += 1
            question = f"q{number}"
            try:
                text = self.ask(question)
            except (OSError, urllib.error.HTTPError):
                # Refused, or cut off: not acknowledged.
                time.sleep(0.02)
                continue
            if text == f"You said: text {number} ":
                self.acknowledged.append(question)

    def ask(self, question: str) -> str:
        data = json.dumps({"id": question, "text": f"text {question[1:]}"}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/sessions/{self.name}/messages",
            data,
            {"X-User": self.name, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())


def get(port: int, path: str) -> tuple[int, dict[str, object]]:
    """Return the status and the object of an answer; the status is 0 if the server does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


@contextmanager
def run_server(
    python: str, server: str, directory: Path, variables: dict[str, str]
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run the service as the page says; yield its port and its process."""
    for name, content in find_recipe_files(PAGE, "FastAPI").items():
        (directory / name).write_text(content)
    for name, content in find_recipe_files(HEALTH, "Probes").items():
        (directory / name).write_text(content)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program, *arguments = (COMMANDS | {"probes": PROBES})[server].split()
    address = ["--port", str(port)] if program == "uvicorn" else ["--bind", f"127.0.0.1:{port}"]
    command = [python, "-m", program, *arguments, *address]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, env=recipe_variables(**variables), stdout=log, stderr=log)
        try:
            yield port, process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def stored_ids(memory: Memory, sessions: list[str]) -> dict[str, set[str]]:
    """Return the ids of the messages of each session."""

    async def read() -> dict[str, set[str]]:
        async with memory:
            return {session: {row["id"] for row in await memory.get_history(session)} for session in sessions}

    return asyncio.run(read())


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
@pytest.mark.parametrize("server", list(COMMANDS))
def test_a_server_that_is_stopped_under_load_loses_nothing(
    application_python: str, tmp_path: Path, request: pytest.FixtureRequest, server: str, backend: str
) -> None:
    """Every answer that a client has in full is stored with its question, and the server ends by itself in time."""
    if backend == "postgres":
        dsn: str = request.getfixturevalue("flux_memory_postgres_dsn")
        variables = {"DATABASE_BACKEND": "postgres", "POSTGRES_DSN": dsn}
        memory: Memory = PostgresConversationMemory(dsn)
    else:
        variables = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/chat.db"}
        memory = ConversationMemory(tmp_path / "chat.db")
    with run_server(application_python, server, tmp_path, variables) as (port, process), ExitStack() as stack:
        clients = [Asker(port, f"client{number}") for number in range(CLIENTS)]
        for client in clients:
            client.start()
            stack.callback(setattr, client, "stopped", True)

        def is_under_load() -> bool:
            return process.poll() is not None or all(len(client.acknowledged) >= 5 for client in clients)

        assert becomes_true(is_under_load, seconds=STARTING_SECONDS)
        assert process.poll() is None, (tmp_path / "log").read_text()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        seconds = time.monotonic() - began
        code = process.poll()
        for client in clients:
            client.stopped = True
        for client in clients:
            client.join(60)
    log = (tmp_path / "log").read_text()
    assert code in {0, -signal.SIGTERM}, f"{code} after {seconds:.1f} s\n{log}"
    for trouble in ("Traceback", "never closed", "was destroyed"):
        assert trouble not in log, log
    found = stored_ids(memory, [client.name for client in clients])
    lost = {
        client.name: [
            id_
            for question in client.acknowledged
            for id_ in (question, f"{question}-answer")
            if id_ not in found[client.name]
        ]
        for client in clients
    }
    assert sum(len(client.acknowledged) for client in clients) >= 5 * CLIENTS
    assert not any(lost.values()), lost


@pytest.mark.parametrize("is_there", [True, False])
def test_the_probes_of_the_page(application_python: str, tmp_path: Path, is_there: bool) -> None:
    """While the store is away the process is alive and not ready, so that it is not restarted in vain."""
    with reserve_port() as nowhere:
        variables = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/chat.db"}
        if not is_there:
            dsn = f"postgresql://chat@127.0.0.1:{nowhere}/chat"
            variables = {"DATABASE_BACKEND": "postgres", "POSTGRES_DSN": dsn}
        with run_server(application_python, "probes", tmp_path, variables) as (port, _):
            assert becomes_true(lambda: get(port, "/live")[0] == 200, seconds=STARTING_SECONDS)
            expected = (200, {"ok": True}) if is_there else (503, {"ok": False, "error": "BackendUnavailableError"})
            assert get(port, "/ready") == expected
            assert get(port, "/live") == (200, {"ok": True})


def test_the_page_prints_the_commands_that_run_here() -> None:
    """The options of the page are those that were tested."""
    text = HEALTH.read_text(encoding="utf-8")
    for command in (*COMMANDS.values(), PROBES):
        assert command in text
