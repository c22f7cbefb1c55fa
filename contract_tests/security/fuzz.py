"""Fuzzes every target for a given time: `python contract_tests/security/fuzz.py --minutes=10` (`nox -s fuzz`).

Half of each target's time goes to hypothesis and half to atheris, which is guided by coverage and has wheels for
Linux only. Prints the number of inputs tried. An input that breaks a target ends the run and is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

TARGETS = ("public_api", "dsn_parser", "dsn_and_environment", "configuration", "legacy_file", "quarantine_file")
DSN = "FLUX_MEMORY_FUZZ_DSN"


def main() -> int:
    """Run every target in its own process, on one server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="for all targets together")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; may be repeated")
    parser.add_argument("--engine", choices=("hypothesis", "atheris"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        return _fuzz(options.target[0], options.engine, options.minutes * 60)
    from flux_memory.testkit.servers import start_server  # noqa: PLC0415 - not needed in the processes that fuzz

    targets = options.target or TARGETS
    engines = ["hypothesis", *(["atheris"] if importlib.util.find_spec("atheris") else [])]
    if len(engines) == 1:
        sys.stdout.write("atheris is not installed: hypothesis alone\n")
    share = options.minutes / len(targets) / len(engines)
    failed = []
    with start_server("local") as server, tempfile.TemporaryDirectory(prefix="fm-fuzz-") as directory:
        for target in targets:
            for engine in engines:
                command = [sys.executable, __file__, f"--engine={engine}", f"--target={target}", f"--minutes={share}"]
                environment = {**os.environ, DSN: server.create_database(), "TMPDIR": directory}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                printed = done.stdout + done.stderr
                found = re.search(r"tried: (\d+)", printed)
                sys.stdout.write(f"{target:<16} {engine:<11} {int(found[1]) if found else 0:>10,} inputs tried")
                sys.stdout.write("\n" if done.returncode == 0 else f"; FAILED\n{printed[-8_000:]}\n")
                sys.stdout.flush()
                if done.returncode != 0 or found is None:
                    failed.append(f"{target} by {engine}")
    sys.stdout.write(f"FAILED: {', '.join(failed)}\n" if failed else "No harm done.\n")
    return len(failed)


def _fuzz(target: str, engine: str, seconds: float) -> int:
    """Fuzz one target in this process, and print the number of inputs."""
    if engine == "atheris":
        import atheris  # noqa: PLC0415 - optional

        with atheris.instrument_imports(include=["flux_memory"]):
            import flux_memory.transfer  # noqa: F401, PLC0415 - instrumented here
    import fuzz_targets  # noqa: PLC0415 - after atheris

    test = fuzz_targets.TARGETS[target]
    deadline = time.monotonic() + seconds

    def tell() -> None:
        sys.stdout.write(f"tried: {fuzz_targets.tried[target]}\n")
        sys.stdout.flush()

    def take(data: bytes) -> None:
        test.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]
        if time.monotonic() > deadline:
            tell()
            # libFuzzer exits the process itself and skips the rest of this function.
            os._exit(0)

    with tempfile.TemporaryDirectory(prefix="fm-fuzz-") as directory:
        fuzz_targets.place.open(Path(directory), os.environ[DSN])
        try:
            if engine == "atheris":
                atheris.Setup([sys.argv[0], "-timeout=30", "-rss_limit_mb=4096", "-max_len=4096"], take)
                atheris.Fuzz()
            while time.monotonic() < deadline:
                test()
        finally:
            tell()
            fuzz_targets.place.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
