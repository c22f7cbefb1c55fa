"""FIFOs, links and devices in the place of a store or beside it are refused by name, and hang no process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner
from original_application import make_file_with_data

from flux_memory import ConversationMemory, FluxMemoryError
from flux_memory.cli import main

COMPANIONS: Final = ("-wal", "-shm", "-journal")
BESIDE: Final[dict[str, Callable[[Path], object]]] = {
    "a FIFO": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to a file": lambda path: path.symlink_to(__file__),
    "a directory": Path.mkdir,
}


def a_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))


IN_PLACE: Final[dict[str, Callable[[Path], object]]] = {
    "a FIFO": os.mkfifo,
    "a socket": a_socket,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to(path.with_name("elsewhere") / "chat.db"),
    "a link to a link to nothing": lambda path: (
        path.symlink_to(path.with_name("next")),
        path.with_name("next").symlink_to("nowhere"),
    ),
}


def names(directory: Path) -> list[str]:
    return sorted(str(found) for found in directory.rglob("*"))


def refused_everywhere(path: Path, *says: str) -> None:
    """A memory, the check and the migration refuse the path at once, and create nothing."""
    before = names(path.parent)

    async def use() -> str:
        memory = ConversationMemory(path)
        with pytest.raises(FluxMemoryError) as refusal:
            async with asyncio.timeout(20):
                await memory.create_session()
        await memory.close()
        return str(refusal.value)

    told = [asyncio.run(use())]
    migrate = ["migrate", "--postgres-dsn", "postgresql://nowhere.invalid/db", "--dry-run", "--sqlite-path", str(path)]
    for arguments in (["check", "--sqlite-path", str(path)], ["check", "--full", "--sqlite-path", str(path)], migrate):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1, result.output
        told.append(result.stderr)
    for message in told:
        for words in says:
            assert words in message
    assert names(path.parent) == before


@pytest.mark.parametrize("suffix", COMPANIONS)
@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("linked", [False, True])
def test_what_lies_beside_the_file_is_named(path: Path, suffix: str, kind: str, linked: bool) -> None:
    """To open a FIFO blocks for ever, in a thread that nothing can end. A linked file has its log beside the target."""
    make_file_with_data(path)
    BESIDE[kind](Path(f"{path}{suffix}"))
    store = path
    if linked:
        store = path.with_name("link.db")
        store.symlink_to(path)
    refused_everywhere(store, f"{path}{suffix} is not a regular file; find out what created it, and remove it")


@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_is_in_place_of_the_file_is_named(path: Path, kind: str) -> None:
    """A link to nothing may be a volume that is not mounted: an empty store there would hide the real one."""
    IN_PLACE[kind](path)
    says = "mount or create that, or remove the link" if "nothing" in kind else "is not a regular file"
    refused_everywhere(path, str(path), says)


@pytest.mark.asyncio
async def test_a_link_to_a_store_is_followed(path: Path) -> None:
    """Both names are one store, and the log beside the target is watched under either."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    async with ConversationMemory(path) as memory:
        session = await memory.create_session()
        async with ConversationMemory(link) as linked:
            assert await linked.get_session(session)
            os.rename(f"{path}-wal", f"{path}-moved")  # noqa: PTH104 - the loop has nothing else to do
            await asyncio.sleep(0.1)
            with pytest.raises(FluxMemoryError, match="-wal was deleted or renamed while it was open"):
                await linked.add_message(session, "user", "x")


def report(path: Path, where: Path) -> int:
    arguments = [
        "--sqlite-path",
        str(path),
        "--postgres-dsn",
        "postgresql://nowhere.invalid/db",
        "--report",
        str(where),
    ]
    result = CliRunner().invoke(main, ["migrate", "--yes", *arguments])
    assert "does not exist" in result.stderr
    return result.exit_code


def test_a_report_is_its_owners(path: Path) -> None:
    """It has ids. A report that is written again keeps the mode that its owner gave it."""
    written, before = path.with_name("report.json"), os.umask(0)
    try:
        assert report(path, written) == 1
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
        written.chmod(0o644)
        assert report(path, written) == 1
        assert stat.S_IMODE(written.stat().st_mode) == 0o644
    finally:
        os.umask(before)
    assert json.loads(written.read_text())["status"] == "failed"


@pytest.mark.parametrize("option", ["--report", "--to-sqlite", "--quarantine-file"])
def test_a_link_to_nothing_receives_no_output(path: Path, option: str) -> None:
    """Its author would choose the place of a file that holds conversations."""
    make_file_with_data(path)
    link, target = path.with_name("out"), path.with_name("target")
    link.symlink_to(target)
    source = [] if option == "--to-sqlite" else ["--sqlite-path", str(path)]
    result = CliRunner().invoke(
        main, ["migrate", "--yes", *source, "--postgres-dsn", "postgresql://nowhere.invalid/db", option, str(link)]
    )
    assert result.exit_code in {1, 2}
    assert str(link) in result.stderr.replace("\n", "")
    assert not target.exists()
