"""Runs pytest in processes forked from one that has imported pytest and the contract: imports are most of a run.

A forked run has its own interpreter state, directory, environment, `sys.path` and output, and ends as any process. It
loads plugins, configuration and test files as `python -m pytest` does. Tests of what a run imports, and of options of
the interpreter, need `runpytest_subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import pytest

BINDING: Final = """
import pytest
from flux_memory.testkit import MemoryContract, ReferenceMemory, ReferenceStore

class TestBinding(MemoryContract):
    @pytest.fixture
    def memory_factory(self):
        store = ReferenceStore()
        return lambda: ReferenceMemory(store)
"""
"""A run of this binding imports the contract, with rewritten assertions."""
WARMING: Final = (
    *("-q", "-k", "FM-ORD-001", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:anyio"),
    *("--flux-postgres=off", "-o", "asyncio_default_fixture_loop_scope=function"),
)


def run_forked(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run pytest as `pytester.runpytest_subprocess` does, in a forked process.

    Raises:
        RuntimeError: the process that forks has ended.
    """
    plugins = [f"-p{plugin}" for plugin in pytester.plugins]
    if any(name.startswith("COVERAGE_") for name in os.environ):
        # A process measures itself from its start.
        return pytester.runpytest_subprocess(*args)
    began = time.monotonic()
    files = [pytester.path / "stdout", pytester.path / "stderr"]
    directory = tempfile.mkdtemp(prefix="runpytest-", dir=pytester.path)
    returned = _start_parent().ask(
        {
            "args": [*plugins, f"--basetemp={directory}", *args],
            "directory": str(Path.cwd()),
            "environment": dict(os.environ),
            "files": list(map(str, files)),
        }
    )
    out, err = (file.read_text(encoding="utf-8").splitlines() for file in files)
    print(*out, sep="\n")
    print(*err, sep="\n", file=sys.stderr)
    return pytest.RunResult(returned, out, err, time.monotonic() - began)


class _Parent:
    """The process that forks, seen from the tests."""

    def __init__(self) -> None:
        # The first test that needs it may have set variables of pytest, and its directory is not ours.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parent,
        )

    def ask(self, request: dict[str, Any]) -> int:
        """Let it fork a run; return the run's exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that forks runs of pytest has ended with code {self._process.wait()}")
        return int(answer)

    def close(self) -> None:
        """End it: its input ends."""
        self._process.communicate()


@functools.cache
def _start_parent() -> _Parent:
    parent = _Parent()
    atexit.register(parent.close)
    return parent


def _serve() -> None:
    """Fork a run for each request, and answer with its exit code; end with the input."""
    # Runs print on 1 and 2, and read nothing.
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    installed = [place for place in sys.path[1:] if place not in own]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "test_binding.py").write_text(BINDING, encoding="utf-8")
        if pytest.main([*WARMING, "--rootdir", directory, directory]) != 0:
            raise RuntimeError("the run that imports the contract failed")
    # A run would print what is left in the buffer once more.
    sys.stdout.flush()
    sys.modules.pop("test_binding", None)
    gc.collect()
    gc.freeze()
    for line in requests:
        child = os.fork()
        if child == 0:
            requests.close()
            answers.close()
            _run(json.loads(line), installed)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _run(request: dict[str, Any], installed: list[str]) -> None:
    """Become the run: this process ends with it."""
    for number, name in enumerate(request["files"], 1):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    own = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [request["directory"], *own, *installed]
    sys.argv = [pytest.__file__, *request["args"]]
    random.seed()
    sys.exit(pytest.console_main())


if __name__ == "__main__":
    _serve()
