"""The peers' virtual environment with the packages of `peers.txt`, created once and cached."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from harness.contender_processes import BENCHMARKS

REQUIREMENTS: Final = BENCHMARKS / "peers.txt"


def directory() -> Path:
    """Return the environment's directory, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    wanted = REQUIREMENTS.read_bytes() + sys.version.encode()
    return Path(cache) / "flux-memory" / f"peers-{hashlib.sha256(wanted).hexdigest()[:12]}"


def python() -> str:
    """Return the environment's interpreter; create the environment if it is missing."""
    home = directory()
    found = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = home / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(found), "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)], check=True)
        ready.touch()
    return str(found)
