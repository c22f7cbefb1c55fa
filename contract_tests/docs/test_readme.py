"""Tests that the documentation is true: code blocks run as printed, and everything they name exists."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import click
import pytest
from _pytest.fixtures import FixtureFunctionDefinition

import flux_memory
from flux_memory.cli import main
from flux_memory.testkit import CLAUSES, MemoryContract
from flux_memory.testkit.capabilities import MEANING
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.servers import Server

PROJECT: Final = Path(__file__).parents[2]
README: Final = PROJECT / "README.md"
TEST_KIT: Final = PROJECT / "docs/test-kit.md"
PAGES: Final = [README, PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md", *sorted(PROJECT.glob("docs/**/*.md"))]
RECIPES: Final = (PROJECT / "docs/throwaway-postgresql.md", PROJECT / "docs/application.md", PROJECT / "docs/agents.md")
"""Their code has tests of its own, in environments with the packages that it uses."""
COMMAND_FILES: Final = [*PAGES, PROJECT / ".github/workflows/ci.yml", PROJECT / ".ci/run"]

MY_BACKEND: Final = """
from flux_memory import ConversationMemory


class MyMemory(ConversationMemory):
    pass
"""
MY_FACTORY: Final = """
from mypackage import MyMemory


def open_memory(path):
    return MyMemory(path / "chat.db")
"""
FEW_CLAUSES: Final = ("-q", "-p", "no:cacheprovider", "-k", "FM-SES")
"""Keeps the contract's own plugins out; these tests look at the printed output, not at the contract."""
HANG_SECONDS: Final = 600
"""Seconds after which a program hangs; a busy machine takes minutes for the tests of the docs."""

THE_SERVERS_WORDS: Final = {
    "permission denied for schema public",
    "no schema has been selected to create in",
}
"""Messages of PostgreSQL itself that are headings of the troubleshooting page."""


def find_blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def find_programs() -> dict[str, str]:
    """Return the code blocks that are whole programs, by name."""
    return {
        f"{page.stem}-{number}": code
        for page in PAGES
        for number, code in enumerate(find_blocks(page, "python"), 1)
        if page not in RECIPES and "asyncio.run(" in code
    }


def base_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without variables that configure memories or pytest."""
    ours = ("DATABASE_", "POSTGRES_", "FLUX_MEMORY_", "PYTEST_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def run_python(place: Path, *arguments: str, **variables: str) -> str:
    """Run Python in a directory and return its output; fail if it fails."""
    environment, command = base_environment(**variables), [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_block_is_twenty_lines_and_prints_what_the_readme_says(tmp_path: Path) -> None:
    """The README opens with a short program and shows its exact output."""
    code, output = find_blocks(README, "python")[0], find_blocks(README, "text")[0]
    assert len(code.splitlines()) <= 20
    assert run_python(tmp_path, "-W", "error", "-c", code) == output
    assert (tmp_path / "data" / "sqlite.db").exists()


def test_the_first_block_prints_the_same_on_postgresql(tmp_path: Path, flux_empty_database: str) -> None:
    """The same program runs on the other backend with a change of the environment only."""
    code, output = find_blocks(README, "python")[0], find_blocks(README, "text")[0]
    variables = {"DATABASE_BACKEND": "postgres", "POSTGRES_DSN": flux_empty_database}
    for name in variables:
        assert any(f"export {name}=" in block for block in find_blocks(README, "sh"))
    assert run_python(tmp_path, "-W", "error", "-c", code, **variables) == output
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("code", find_programs().values(), ids=find_programs())
def test_every_program_of_the_docs_runs_as_printed(code: str, tmp_path: Path) -> None:
    """A reader can paste any program of the docs into a file and run it."""
    run_python(tmp_path, "-W", "error", "-c", code)


def test_the_class_of_the_readme_plugs_a_backend_in(tmp_path: Path) -> None:
    """The printed test class runs the contract on a reader's backend."""
    (code,) = (block for block in find_blocks(README, "python") if "MemoryContract" in block)
    (tmp_path / "mypackage.py").write_text(MY_BACKEND)
    (tmp_path / "test_mine.py").write_text(code)
    assert " passed" in run_python(tmp_path, "-m", "pytest", *FEW_CLAUSES)


def test_the_command_of_the_readme_plugs_a_backend_in(tmp_path: Path) -> None:
    """The printed command runs the contract on the memory that a function opens."""
    (command,) = (block for block in find_blocks(README, "sh") if block.startswith("pytest --pyargs"))
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text(MY_BACKEND)
    (package / "testing.py").write_text(MY_FACTORY)
    assert " passed" in run_python(tmp_path, "-m", *shlex.split(command), *FEW_CLAUSES, PYTHONPATH=str(tmp_path))


def test_the_tests_of_the_docs_pass(tmp_path: Path, flux_postgres_server: Server) -> None:
    """A reader who pastes one of the tests into a file has a test that runs."""
    pages = [page for page in PAGES if page not in RECIPES]
    pasted = [block for page in pages for block in find_blocks(page, "python") if "def test_" in block]
    for number, block in enumerate(pasted):
        (tmp_path / f"test_pasted_{number}.py").write_text(block)
    printed = run_python(tmp_path, "-m", "pytest", "-q", f"--flux-postgres={flux_postgres_server.dsn}")
    assert f"{len(pasted)} passed" in printed


def test_the_bindings_of_the_test_kits_page_are_valid(tmp_path: Path) -> None:
    """Each binding collects every clause, and all of its declarations are accepted."""
    (tmp_path / "mypackage.py").write_text(MY_BACKEND)
    bindings = [block for block in find_blocks(TEST_KIT, "python") if "MemoryContract" in block]
    for number, block in enumerate(bindings):
        (tmp_path / f"test_binding_{number}.py").write_text(block)
    printed = run_python(tmp_path, "-m", "pytest", "--collect-only", "-q")
    assert f"{len(bindings) * len(kit_clause_ids())} tests collected" in printed


def test_the_outages_of_the_test_kits_page_work(tmp_path: Path, flux_postgres_server: Server) -> None:
    """Following the page, a store behind the kit's proxy can be made unreachable, and the clauses that need it run."""
    (block,) = (block for block in find_blocks(TEST_KIT, "python") if "def outages" in block)
    (tmp_path / "test_binding.py").write_text(block)
    dsn = f"--flux-postgres={flux_postgres_server.dsn}"
    printed = run_python(tmp_path, "-m", "pytest", "-q", "-k", "FM-CAP-004 or FM-DLN-004", dsn)
    assert "2 passed" in printed


def kit_clause_ids() -> list[str]:
    """Return the ids of the kit's own clauses."""
    return [each.id for each in CLAUSES.values() if each.home.startswith(MemoryContract.__module__)]


def test_the_test_kits_page_has_every_capability_and_every_fixture() -> None:
    """The page describes everything that can be declared about a backend."""
    page = TEST_KIT.read_text()
    for capability, meaning in MEANING.items():
        assert f"| `{capability.name}` | {meaning} |" in page
    fixtures = {
        name
        for name, member in vars(Binding).items()
        if isinstance(member, FixtureFunctionDefinition) and name not in {"store", "flux_clause", "flux_routes"}
    }
    assert "corrupt_message" in fixtures
    assert {name for name in fixtures | {"memory_factory"} if f"| `{name}` |" not in page} == set()


@pytest.fixture(scope="module")
def pytests_help(pytestconfig: pytest.Config) -> str:
    """What `pytest --help` prints in the project."""
    return run_python(PROJECT, "-m", "pytest", "--help", "--rootdir", str(pytestconfig.rootpath))


def test_every_option_of_the_kit_is_in_the_readme(pytests_help: str) -> None:
    """Users find options on the page, not in `pytest --help`."""
    options = set(re.findall(r"^ +(--flux-[a-z-]+)", pytests_help, re.MULTILINE))
    assert "--flux-strict" in options
    assert {option for option in options if f"`{option}" not in README.read_text()} == set()


def test_the_readme_lists_every_method_with_its_arguments() -> None:
    """The table of the API matches the protocol."""
    told = re.findall(r"^\| `(\w+)(\(.*?\))` \|", README.read_text(), re.MULTILINE)
    methods = {
        name: function
        for name, function in vars(flux_memory.Memory).items()
        if inspect.iscoroutinefunction(function) and not name.startswith("_")
    }
    signatures = {}
    for name, function in methods.items():
        _, *parameters = inspect.signature(function).parameters.values()
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        signatures[name] = str(inspect.Signature(bare)).replace("'", '"')
    assert dict(told) == signatures


def test_options_of_pytest_in_the_readme_exist(pytests_help: str) -> None:
    """pytest knows every --flux option that a page or the CI names."""
    named = {option for page in COMMAND_FILES for option in re.findall(r"--flux-[a-z-]+", page.read_text())}
    assert named
    assert {option for option in named if not re.search(rf"{option}[= \n]", pytests_help)} == set()


def test_options_of_the_command_line_exist() -> None:
    """The program accepts every `flux-memory` command that a page prints."""
    lines = [
        line
        for page in PAGES
        for block in find_blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("flux-memory ")
    ]
    assert lines
    for line in lines:
        _, name, *arguments = shlex.split(line)
        context, command = main.make_context("flux-memory", [name, *arguments]), main.commands[name]
        if isinstance(command, click.Group):
            name, *arguments = arguments
            command = command.commands[name]
        with suppress(click.BadParameter):  # the file of an example need not exist
            command.make_context(name, arguments, parent=context)


def test_sessions_of_nox_that_are_named_exist() -> None:
    """The noxfile has every session that a page or the CI names."""
    tree = ast.parse((PROJECT / "noxfile.py").read_text())
    sessions = {
        each.name
        for each in tree.body
        if isinstance(each, ast.FunctionDef) and any("session" in ast.unparse(one) for one in each.decorator_list)
    }
    named = {
        name
        for page in COMMAND_FILES
        for names in re.findall(r"nox -s ((?:[a-z]+ ?)+)", page.read_text())
        for name in names.split()
    }
    assert {"contract", "tests"} <= named
    assert named <= sessions


def heading_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub creates them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    """No link of a page is dead: both the file and the heading exist."""
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in heading_anchors(target), link


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    """Readers only find guides that are linked."""
    text = README.read_text()
    # A folder's README links the folder's pages.
    pages = [page.relative_to(PROJECT) for page in (*PROJECT.glob("docs/*.md"), *PROJECT.glob("docs/*/README.md"))]
    assert [page for page in pages if f"]({page})" not in text] == []


def test_messages_on_the_troubleshooting_page_are_the_codes_own() -> None:
    """A search for an error's text finds its heading, so each heading occurs in the code."""
    words = {
        node.value
        for source in PROJECT.glob("flux_memory/**/*.py")
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    page = (PROJECT / "docs/troubleshooting.md").read_text()
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    told = [
        part.strip() for line in headings for quoted in re.findall(r"`(.*?)`", line) for part in quoted.split("...")
    ]
    assert len(told) > len(headings) > 0
    unknown = [part for part in told if part not in THE_SERVERS_WORDS and not any(part in each for each in words)]
    assert unknown == []
