"""Runs every recipe of the application guide as printed, in an environment with the wheel and the frameworks."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from recipe_environment import PROJECT, find_recipe_files, make_recipe_environment, recipe_variables, run_in_recipe
from waiting import becomes_true

PAGE: Final = PROJECT / "docs/application.md"
STARTING_SECONDS: Final = 60
TRIES: Final = 10


@pytest.fixture(scope="module")
def application_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the wheel and the frameworks."""
    return make_recipe_environment(tmp_path_factory, "application")


@pytest.fixture
def unpack(tmp_path: Path) -> Any:
    """A function that writes the files below a heading into the test's directory."""

    def write(heading: str, **drivers: str) -> None:
        for name, content in find_recipe_files(PAGE, heading).items():
            (tmp_path / name).write_text(content)
        for name, content in drivers.items():
            (tmp_path / f"{name}.py").write_text(content)

    return write


class Client:
    """A client of the service, as one user."""

    def __init__(self, port: int, user: str) -> None:
        self.port = port
        self.user = user

    def send(self, path: str, question: dict[str, str] | None = None) -> tuple[int, str]:
        """Send a request; return the status and the body."""
        data = None if question is None else json.dumps(question).encode()
        headers = {"X-User": self.user, "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=STARTING_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def leave_early(self, path: str, question: dict[str, str]) -> None:
        """Send a request, read the beginning of the answer, and reset the connection."""
        body = json.dumps(question).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-User: {self.user}\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=STARTING_SECONDS) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            heard = b""
            while b"You" not in heard:
                heard += connection.recv(1000)

    def history(self, session: str) -> list[dict[str, Any]]:
        """Return a session's messages."""
        status, body = self.send(f"/sessions/{session}/messages")
        return list(json.loads(body)) if status == 200 else []


def is_listening(port: int) -> bool:
    """Return whether a server listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def serve(python: str, directory: Path) -> Iterator[int]:
    """Run the service of the recipe under uvicorn; yield its port, and end it by SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-W", "error", "-m", "uvicorn", "chat:app", "--port", str(port)]
    with (directory / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=directory, env=recipe_variables(), stdout=log, stderr=log)
        try:
            assert becomes_true(lambda: server.poll() is not None or is_listening(port), seconds=STARTING_SECONDS)
            assert server.poll() is None, (directory / "log").read_text()
            yield port
            server.send_signal(signal.SIGTERM)
            assert server.wait(STARTING_SECONDS) in {0, -signal.SIGTERM}, (directory / "log").read_text()
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()


def test_fastapi(application_python: str, tmp_path: Path, unpack: Any) -> None:
    """Promise: questions and answers are stored once, of the right user, and every error has its status."""
    unpack("FastAPI")
    with serve(application_python, tmp_path) as port:
        ann, bob = Client(port, "ann"), Client(port, "bob")
        path = "/sessions/trip/messages"
        for _ in range(2):
            assert ann.send(path, {"id": "q1", "text": "Where is it warm?"}) == (200, "You said: Where is it warm? ")
        rows = ann.history("trip")
        assert [(row["id"], row["metadata"]) for row in rows] == [("q1", {}), ("q1-answer", {"finished": True})]
        assert ann.send(f"{path}?after=q1")[1].count('"role"') == 1
        assert bob.send(path)[0] == bob.send("/sessions/none/messages")[0] == 404
        status, body = bob.send(path, {"id": "q2", "text": "And cheap?"})
        assert (status, json.loads(body)["error"]) == (409, "ConflictError")
        assert Client(port, "").send(path, {"id": "q1", "text": "Where is it warm?"})[0] == 422
        status, body = ann.send(path, {"id": "q1", "text": "another text"})
        assert (status, json.loads(body)["error"]) == (409, "ConflictError")
        status, body = ann.send(path, {"id": "q3", "text": "\0"})
        assert (status, json.loads(body)["error"]) == (422, "InvalidInputError")
        assert ann.history("trip") == rows
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_an_answer_survives_its_client(application_python: str, tmp_path: Path, unpack: Any) -> None:
    """Promise: a client that disconnects in the middle of an answer does not lose what was said."""
    unpack("FastAPI")
    with serve(application_python, tmp_path) as port:
        ann = Client(port, "ann")
        for number in range(TRIES):
            question = {"id": f"q{number}", "text": "long " * 40}
            ann.leave_early(f"/sessions/s{number}/messages", question)
        for number in range(TRIES):
            assert becomes_true(lambda session=f"s{number}": len(ann.history(session)) == 2), number
            answer = ann.history(f"s{number}")[-1]
            assert answer["metadata"] == {"finished": False}
            assert answer["content"].startswith("You ")


TURNS: Final = """
import asyncio

from flux_memory import ConflictError, ConversationMemory
from turns import branch, edit, regenerate, take_turn, undo


async def main():
    replies = iter(range(100))

    async def generate(history):
        await asyncio.sleep(0.01)
        return f"answer {next(replies)} to {history[-1]['content']} after {len(history)}"

    async def said(session):
        return [(row["role"][0], row["content"]) for row in await memory.get_history(session)]

    async with ConversationMemory("chat.db") as memory:
        chat = await memory.create_session()
        await take_turn(memory, chat, "one", generate)
        assert await said(chat) == [("u", "one"), ("a", "answer 0 to one after 1")]
        await regenerate(memory, chat, generate)
        assert await said(chat) == [("u", "one"), ("a", "answer 1 to one after 1")]
        await take_turn(memory, chat, "two", generate)
        first, *_ = await memory.get_history(chat)
        copy = await branch(memory, chat, first["id"])
        assert await said(copy) == [("u", "one")]
        await regenerate(memory, copy, generate)
        assert await said(copy) == [("u", "one"), ("a", "answer 3 to one after 1")]
        await edit(memory, chat, first["id"], "uno", generate)
        assert await said(chat) == [("u", "uno"), ("a", "answer 4 to uno after 1")]
        assert [row["content"] for row in await undo(memory, chat)] == ["answer 4 to uno after 1", "uno"]
        assert await undo(memory, chat) == [] == await said(chat)
        outcomes = await asyncio.gather(
            *(take_turn(memory, chat, f"q{n}", generate) for n in range(3)), return_exceptions=True
        )
        assert all(isinstance(each, str | ConflictError) for each in outcomes)
        rows = await said(chat)
        assert len(rows) == 2 * sum(isinstance(each, str) for each in outcomes)
        assert all(rows[at][1] in rows[at + 1][1] for at in range(0, len(rows), 2)), rows
        print("done")


asyncio.run(main())
"""
PROVIDER: Final = """
import asyncio

from flux_memory import ConversationMemory
from provider import pack, read_window, unpack

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
SPOKEN = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "raw \\x00 and \\ud800", "tool_call_id": "call_1"},
    {"role": "assistant", "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {}}]},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": '["json", null]'},
]


async def main():
    async with ConversationMemory("chat.db") as memory:
        chat = await memory.create_session()
        for _ in range(2):
            await memory.add_messages(chat, [pack({**each, "id": f"msg_{at:060}"}) for at, each in enumerate(SPOKEN)])
        assert [unpack(row) for row in await memory.get_history(chat)] == SPOKEN
        for size, first in ((1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (6, 0), (7, 0)):
            rows = await read_window(memory, chat, size)
            assert unpack(rows[0]) == SPOKEN[first], size
            assert [unpack(row) for row in rows] == SPOKEN[first:]
        tools = await memory.create_session()
        await memory.add_messages(tools, [{"role": "tool", "content": "x"}] * 3)
        assert len(await read_window(memory, tools, 2)) == 3
        print("done")


asyncio.run(main())
"""
DJANGO: Final = """
import json
import threading

import django
from django.conf import settings
from django.urls import path

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="secret")
django.setup()

import views
from django.test import Client

urlpatterns = [path("ask/<session_id>", views.ask)]


def send(number, user="ann"):
    body = json.dumps({"id": f"q{number}", "text": f"text {number}"})
    answer = Client().post("/ask/chat", body, content_type="application/json", headers={"X-User": user})
    return answer.status_code, answer.json()


threads = [threading.Thread(target=send, args=(number % 10,)) for number in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert send(3) == (200, {"answer": "You said: text 3"})
assert send(3, "bob") == (404, {"error": "no such conversation"})
rows = views.memory.get_history("chat")
assert sorted(row["id"] for row in rows) == sorted(f"q{n}{end}" for n in range(10) for end in ("", "-answer")), rows
print("done")
"""
CELERY: Final = """
import contextlib
import os
import signal
import sys

import tasks
from celery import signals

folder = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
tasks.app.conf.update(broker_url="filesystem://", broker_transport_options=folder, result_backend=f"file://{os.getcwd()}/results")

if sys.argv[1:] == ["worker"]:
    @signals.task_prerun.connect
    def kill_once(**_):
        with contextlib.suppress(FileExistsError):
            open("killed", "x").close()
            os.kill(os.getpid(), signal.SIGKILL)

    tasks.app.worker_main(["worker", "--pool=prefork", "--concurrency=2", "--loglevel=WARNING", "--without-mingle"])
else:
    chats = [tasks.memory.create_session() for _ in range(5)]
    running = [tasks.answer.delay(chats[0], "a question that was undone")]
    for chat in chats:
        tasks.memory.add_message(chat, "user", "Hi", message_id="q")
        running += [tasks.answer.delay(chat, "q") for _ in range(2)]
    assert [task.get(timeout=60) for task in running] == ["", *["You said: Hi"] * 10]
    found = [[row["id"] for row in tasks.memory.get_history(chat)] for chat in chats]
    assert found == [["q", "q-answer"]] * 5, found
    assert os.path.exists("killed")
    tasks.memory.close()
    print("done")
"""
STREAMLIT: Final = """
from streamlit.testing.v1 import AppTest

for text in ("Hi", "And you?"):
    app = AppTest.from_file("streamlit_app.py", default_timeout=60).run()
    app.chat_input[0].set_value(text).run()
    assert not app.exception, app.exception
assert [each.markdown[0].value for each in app.chat_message] == ["Hi", "You said: Hi", "And you?", "You said: And you?"]
print("done")
"""


@pytest.mark.parametrize(
    ("heading", "driver"),
    [("Turns", TURNS), ("Messages", PROVIDER), ("Django", DJANGO)],
    ids=["turns", "messages", "django"],
)
def test_a_recipe_keeps_what_the_page_says(
    application_python: str, tmp_path: Path, unpack: Any, heading: str, driver: str
) -> None:
    """Promise: the functions of a recipe do what the text beside them says, also when they run at the same time."""
    unpack(heading, driver=driver)
    done = run_in_recipe(application_python, "-W", "error", "driver.py", cwd=tmp_path)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["done"]), done.stdout + done.stderr


def test_celery(application_python: str, tmp_path: Path, unpack: Any) -> None:
    """Promise: tasks that are delivered twice, also because their process was killed, store each answer once."""
    unpack("Celery", driver=CELERY)
    for folder in ("queue", "results"):
        (tmp_path / folder).mkdir()
    with (tmp_path / "log").open("w") as log:
        worker = subprocess.Popen(
            [application_python, "driver.py", "worker"], cwd=tmp_path, env=recipe_variables(), stdout=log, stderr=log
        )
        try:
            done = run_in_recipe(application_python, "driver.py", cwd=tmp_path)
            assert done.stdout.split()[-1:] == ["done"], done.stdout + done.stderr + (tmp_path / "log").read_text()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(STARTING_SECONDS) == 0
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
    assert "never closed" not in (tmp_path / "log").read_text()


def test_a_script(application_python: str, tmp_path: Path, unpack: Any) -> None:
    """Promise: the cell of a notebook also runs as a script, and leaves nothing open."""
    unpack("Notebooks and scripts")
    done = run_in_recipe(application_python, "-W", "error", "notebook.py", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_streamlit(application_python: str, tmp_path: Path, unpack: Any) -> None:
    """Promise: each run of the script, in a thread of its own, sees the conversation of the runs before."""
    unpack("Streamlit", driver=STREAMLIT)
    done = run_in_recipe(application_python, "driver.py", cwd=tmp_path)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["done"]), done.stdout + done.stderr
