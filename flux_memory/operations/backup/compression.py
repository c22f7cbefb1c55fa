"""Opens compressed files: zstd where the interpreter or an extra has it, else gzip."""

from __future__ import annotations

import gzip
import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from typing import IO, Any, Final

from flux_memory.errors import BackupError

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_LEVELS: Final = {"gzip": 6, "zstd": 3}
_MISSING: Final = (
    "{} zstd, which this Python lacks; use Python 3.14, or: pip install 'flux-memory[zstd]'. Without it, gzip is used"
)


class Compression(StrEnum):
    """How an archive is compressed."""

    ZSTD = "zstd"
    GZIP = "gzip"

    @property
    def suffix(self) -> str:
        """The end of a file's name."""
        return ".zst" if self is Compression.ZSTD else ".gz"


def best_compression() -> Compression:
    """Return zstd if it is there, else gzip."""
    return Compression.ZSTD if _zstd_module() else Compression.GZIP


def detect(head: bytes) -> Compression | None:
    """Return the compression of a file by its first bytes, or `None` if it has none."""
    if head.startswith(_ZSTD):
        return Compression.ZSTD
    return Compression.GZIP if head.startswith(_GZIP) else None


def require(compression: Compression, what: str) -> None:
    """Refuse a compression that this interpreter lacks.

    Raises:
        BackupError: The extra is missing; the message names it.
    """
    if compression is Compression.ZSTD and _zstd_module() is None:
        raise BackupError(_MISSING.format(what))


@contextmanager
def compressing(file: IO[bytes], compression: Compression) -> Iterator[IO[bytes]]:
    """Yield a file whose bytes reach the given one compressed, with a checksum."""
    if compression is Compression.GZIP:
        # No name and no time of its own: the header says both.
        with gzip.GzipFile("", "wb", _LEVELS["gzip"], file, mtime=0) as packed:
            yield packed  # type: ignore[misc]  # a GzipFile is a binary file in all that is used
        return
    module = _zstd_module()
    assert module is not None  # noqa: S101 - `require` comes first
    if module == "zstandard":
        compressor = importlib.import_module(module).ZstdCompressor(level=_LEVELS["zstd"], write_checksum=True)
        with compressor.stream_writer(file, closefd=False) as writer:
            yield writer
        return
    zstd: Any = importlib.import_module(module)
    options = {
        zstd.CompressionParameter.compression_level: _LEVELS["zstd"],
        zstd.CompressionParameter.checksum_flag: 1,
    }
    with zstd.ZstdFile(file, "wb", options=options) as writer:
        yield writer


@contextmanager
def decompressing(file: IO[bytes], compression: Compression) -> Iterator[IO[bytes]]:
    """Yield a file with the original bytes. Reading damaged ones raises one of `damage_errors()`."""
    if compression is Compression.GZIP:
        with gzip.GzipFile("", "rb", fileobj=file) as unpacked:
            yield unpacked  # type: ignore[misc]  # as above
        return
    module = _zstd_module()
    assert module is not None  # noqa: S101 - `require` comes first
    if module == "zstandard":
        decompressor = importlib.import_module(module).ZstdDecompressor()
        with decompressor.stream_reader(file, read_across_frames=True, closefd=False) as reader:
            yield io.BufferedReader(reader, 256 * 1024)
        return
    with importlib.import_module(module).ZstdFile(file, "rb") as reader:
        yield reader


def damage_errors() -> tuple[type[Exception], ...]:
    """Return the errors that damaged compressed bytes raise."""
    found: list[type[Exception]] = [gzip.BadGzipFile, EOFError, importlib.import_module("zlib").error]
    if module := _zstd_module():
        found.append(importlib.import_module(module).ZstdError)
    return tuple(found)


def _zstd_module() -> str | None:
    for module in ("compression.zstd", "zstandard"):
        try:
            if find_spec(module) is not None:
                return module
        except ModuleNotFoundError:
            # There is no package `compression` before Python 3.14.
            continue
    return None
