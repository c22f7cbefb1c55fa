"""Tests that a cut or altered backup is refused before anything changes."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from backup_stores import MakeStore, Store, back_up, fill, restore, run_command

from flux_memory.errors import BackupError, FluxMemoryError
from flux_memory.operations.backup import Compression
from flux_memory.operations.backup.manifest import manifest_path


@pytest.mark.parametrize("archive", [False, True], ids=["as it is", "archive"])
def test_a_cut_or_altered_file_is_refused(store: Store, make_store: MakeStore, backups: Path, *, archive: bool) -> None:
    """Each cut and each flipped byte is found by the manifest, and the target keeps its rows."""
    backup = back_up(store, backups, archive=archive)
    whole = backup.read_bytes()
    target = make_store("sqlite")
    target.use(lambda memory: fill(memory, users=1, seed=3))
    before = target.rows()
    rng = random.Random(5)
    for cut in (0, 1, 17, len(whole) // 2, len(whole) - 1):
        backup.write_bytes(whole[:cut])
        with pytest.raises(BackupError, match=r"is cut off|is neither|is damaged"):
            restore(backup, target, replace=True)
    for _ in range(12):
        at = rng.randrange(20, len(whole))
        backup.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
        with pytest.raises(BackupError, match="was altered"):
            restore(backup, target, replace=True)
    assert target.rows() == before


def test_an_archive_alone_proves_itself(make_store: MakeStore, backups: Path) -> None:
    """Without its manifest, a cut or altered archive is refused by its own end and digests."""
    source, target = make_store("sqlite"), make_store("sqlite")
    source.use(fill)
    backup = back_up(source, backups, archive=True, compression=Compression.GZIP)
    manifest_path(backup).unlink()
    lines = gzip.decompress(backup.read_bytes()).splitlines(keepends=True)

    def refused(name: str, data: bytes, says: str) -> None:
        damaged = backups / f"{name}.jsonl.gz"
        damaged.write_bytes(data)
        with pytest.raises(BackupError, match=says):
            restore(damaged, target)
        assert target.sqlite_path is not None
        assert not target.sqlite_path.exists()

    whole = backup.read_bytes()
    for cut in (len(whole) // 3, len(whole) - 4):
        refused(f"cut-{cut}", whole[:cut], "cut off|damaged")
    refused("no end", gzip.compress(b"".join(lines[:-1])), "is cut off after line")
    refused("one message less", gzip.compress(b"".join([*lines[:8], *lines[9:]])), "messages became|differs")
    changed = lines[10].replace(b'"role":"', b'"role":"x')
    refused("one letter", gzip.compress(b"".join([*lines[:10], changed, *lines[11:]])), "the content of some messages")
    refused("order", gzip.compress(b"".join([*lines[:2], lines[20], *lines[2:]])), "out of place")
    refused("more", gzip.compress(b"".join([*lines, lines[5]])), "bytes follow its end")
    refused("later", gzip.compress(lines[0].replace(b'archive": 1', b'archive": 9') + b"x"), "archive format '9'")
    refused("another", gzip.compress(b"hello\n"), "not an archive of flux-memory")
    restore(backup, target)
    assert target.rows() == source.rows()


def test_a_copy_or_a_dump_needs_its_manifest(store: Store, make_store: MakeStore, backups: Path) -> None:
    """A copy or a dump without a manifest is restored only on request, and a dump is then not called proven."""
    backup = back_up(store, backups)
    manifest_path(backup).unlink()
    target = make_store("postgres" if store.postgres_dsn else "sqlite")
    with pytest.raises(BackupError, match=r"has no manifest .* beside it"):
        restore(backup, target)
    report = restore(backup, target, needs_manifest=False)
    assert report.outcome == ("unproven" if store.postgres_dsn else "restored")
    assert target.rows() == store.rows()


@pytest.mark.parametrize("kind", [Compression.GZIP, Compression.ZSTD])
def test_damaged_compressed_bytes_are_named(make_store: MakeStore, backups: Path, kind: Compression) -> None:
    """Without a manifest, each cut is refused, and each flipped bit that changes what the compressed file holds."""
    source, target = make_store("sqlite"), make_store("sqlite")
    source.use(fill)
    backup = back_up(source, backups, archive=True, compression=kind)
    manifest_path(backup).unlink()
    whole = backup.read_bytes()
    rng = random.Random(11)
    damaged = [whole[: rng.randrange(4, len(whole))] for _ in range(10)]
    for _ in range(30):
        # The ten bytes of gzip's header, and the time in it, are not rows.
        at = rng.randrange(10, len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
    assert target.sqlite_path is not None
    harmless = 0
    for data in damaged:
        backup.write_bytes(data)
        with suppress(BackupError):
            restore(backup, target)
            # Some bits change nothing: those that fill up the last byte, or a distance to an earlier copy of a text.
            assert target.rows() == source.rows()
            target.sqlite_path.unlink()
            harmless += 1
        assert not target.sqlite_path.exists()
    assert harmless <= 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"flux_memory_backup": 2}, "has the format '2'"),
        ({"kind": "dump"}, "is not the dump"),
        ({"size": "x"}, "another type"),
        ({"contents": {}}, "no count or no digest"),
        ({"created_at": "yesterday"}, "is not the manifest"),
    ],
)
def test_a_wrong_manifest_is_refused(
    make_store: MakeStore, backups: Path, change: dict[str, object], says: str
) -> None:
    """A manifest of another file, or of a later version, is refused with its reason."""
    source = make_store("sqlite")
    source.use(fill)
    backup = back_up(source, backups)
    record = json.loads(manifest_path(backup).read_text())
    manifest_path(backup).write_text(json.dumps(record | change))
    with pytest.raises(BackupError, match=says):
        restore(backup, make_store("sqlite"))


def test_what_is_not_a_backup_is_refused(tmp_path: Path, make_store: MakeStore, backups: Path) -> None:
    """A text file, a manifest, a directory and a missing file are each named."""
    source = make_store("sqlite")
    source.use(fill)
    backup = back_up(source, backups)
    (tmp_path / "note.txt").write_text("hello")
    for path, says in (
        (tmp_path / "note.txt", "is neither a SQLite file"),
        (manifest_path(backup), "is the manifest of a backup"),
        (tmp_path, "directory|regular"),
        (tmp_path / "missing", "does not exist"),
    ):
        with pytest.raises(FluxMemoryError, match=says):
            restore(path, make_store("sqlite"))
    result = run_command("restore", backup, "--sqlite-path", backup)
    assert (result.exit_code, "is the backup itself" in result.output) == (1, True)
    shutil.copy(backup, tmp_path / "alone.db")
    assert run_command("restore", tmp_path / "alone.db", "--sqlite-path", tmp_path / "x.db").exit_code == 1
