"""The project's jobs. `nox -l` lists them; arguments after `--` are passed on."""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = True
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["contract", "tests", "lint", "typecheck"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
IMAGE = "flux-memory/postgres:15"
FAULTS = "contract_tests/faults"
CONTRACT = ("contract_tests/contract/test_contract_sqlite.py", "contract_tests/contract/test_contract_postgres.py")
CLUSTER = "contract_tests/citus"
CLUSTER_SETTINGS = ("FLUX_MEMORY_CITUS_DSN", "FLUX_MEMORY_CITUS_WORKER_DSN")
TESTS = (
    *("pytest", f"--ignore={FAULTS}", f"--ignore={CLUSTER}", "-q", "-rs", "--flux-postgres-required"),
    # More processes than cores, since many tests wait. A worker that is done takes over the last of another's tests, so
    # that a module's servers start in one or two.
    *("-n", str((os.cpu_count() or 1) + 1), "--dist=worksteal"),
)


def install(session: nox.Session, group: str) -> None:
    """Install the package and a dependency group; older pip has no `--group`."""
    # Containers often forbid bytecode files. Without them, each of the tests' processes compiles the package again.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""
    own = f"{PYPROJECT['project']['name']}["
    wanted = nox.project.dependency_groups(PYPROJECT, group)
    extras = "".join("[" + each.removeprefix(own) for each in wanted if each.startswith(own))
    # A module is compiled at its first import; most modules of the packages are never imported.
    session.install("--no-compile", "-e", f".{extras}", *(each for each in wanted if not each.startswith(own)))


@nox.session
def contract(session: nox.Session) -> None:
    """Run the contract on SQLite and on a throwaway PostgreSQL, and print a table of the results."""
    install(session, "test")
    session.run("pytest", *CONTRACT, "-q", "-rs", "--flux-postgres-required", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run every test except the faults, including the contract; a missing server fails its tests."""
    install(session, "test")
    session.run(*TESTS, *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Break servers, networks, disks and processes, and print the losses. `-- --long` for all rounds."""
    install(session, "test")
    # Two: with more, a busy machine passes the deadlines of some faults. In blocks, a module's servers start once.
    parallel = ("-n", "2", "--dist=worksteal")
    session.run("pytest", FAULTS, *parallel, "-q", "-rs", "--flux-postgres-required", *session.posargs)


@nox.session
def citus(session: nox.Session) -> None:
    """Run the contract and faults on the Citus cluster that FLUX_MEMORY_CITUS_DSN and ..._WORKER_DSN name."""
    if missing := [name for name in CLUSTER_SETTINGS if not os.environ.get(name)]:
        session.error(f"there is no cluster: set {' and '.join(missing)}, as containers/citus/compose.yaml says")
    install(session, "test")
    session.run("pytest", CLUSTER, "-n", "2", "-q", "-rs", "--flux-postgres=off", *session.posargs)


@nox.session(python=PYTHONS)
def matrix(session: nox.Session) -> None:
    """Run the same tests on each supported Python."""
    install(session, "test")
    session.run(*TESTS, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure the branch coverage of the package; fails below 95 %."""
    install(session, "coverage")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", *TESTS, *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and import directions."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check types: the package strictly, and a caller's file against the public names."""
    install(session, "typecheck")
    session.run("mypy", "flux_memory", "contract_tests/library/typing_public_api.py", "noxfile.py")
    session.run("pyright", "flux_memory", "contract_tests/library/typing_public_api.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure throughput; fails if a target is missed. `-- --full` for every contender, and more."""
    install(session, "bench")
    session.run("python", "benchmarks/pool_throughput.py", *session.posargs)
    if "--full" in session.posargs:
        session.run("python", "benchmarks/call_costs.py")
        session.run("python", "benchmarks/growth.py")
        session.run("python", "benchmarks/telemetry_cost.py")
        session.run("python", "benchmarks/replica_reads.py")


@nox.session
def harness(session: nox.Session) -> None:
    """Measure throwaway PostgreSQL servers for pytest beside others; fails if one of them is faster."""
    install(session, "harness")
    session.run("python", "benchmarks/harness_cost.py", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known vulnerabilities in the dependencies and for risky code; fails if it cannot check either."""
    install(session, "audit")
    session.run("bandit", "--quiet", "--configfile", "pyproject.toml", "--recursive", "flux_memory")
    installed = Path(session.create_tmp()) / "installed.txt"
    frozen = session.run("python", "-m", "pip", "freeze", "--exclude-editable", silent=True, log=False)
    installed.write_text(str(frozen), encoding="utf-8")
    # --strict: fail if the advisory service does not know a package or does not answer.
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", f"--requirement={installed}", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Feed random input to everything that takes outside input, for two minutes; `-- --minutes=N` for more."""
    install(session, "fuzz")
    session.run("python", "contract_tests/security/fuzz.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Run 256 users while servers, networks and processes break, for two minutes; `-- --minutes=N` for more."""
    install(session, "soak")
    session.run("python", "benchmarks/soak.py", *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """Run the contract on published stores, and write their scorecard; failing clauses do not fail the session."""
    session.install("-r", "contract_tests/peers/requirements.txt", "-e", ".[testkit,embedded]")
    report = str(Path(session.create_tmp()) / "report")
    session.run(
        *("pytest", "contract_tests/peers/test_peers.py", "--confcutdir=contract_tests/peers", "-q", "--tb=no"),
        *("-W", "ignore", "--flux-postgres=local", f"--flux-report={report}", *session.posargs),
        success_codes=[0, 1],
    )
    session.run("python", "contract_tests/peers/scorecard.py", report)


@nox.session
def browser(session: nox.Session) -> None:
    """Test the HTML report in a headless Chromium; needs Debian's chromium and chromium-driver."""
    install(session, "browser")
    session.run(
        *("pytest", "contract_tests/testkit/test_evidence_page.py", "-q", "-rs", *session.posargs),
        env={"FLUX_MEMORY_REQUIRE_CHROMIUM": "1"},
    )


@nox.session(venv_backend="none")
def image(session: nox.Session) -> None:
    """Build a throwaway PostgreSQL image from Debian's packages; needs root and a Docker engine."""
    session.run("bash", "containers/postgres/build.sh", *(session.posargs or [IMAGE]), external=True)


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel and the sdist, check both, and test the wheel in an empty environment."""
    install(session, "build")
    dist = Path(session.create_tmp()) / "dist"
    for old in dist.glob("*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    empty = Path(session.create_tmp()) / "empty"
    session.run("python", "-m", "venv", "--clear", str(empty))
    python = str(empty / "bin" / "python")
    session.run(python, "-m", "pip", "install", "-q", *map(str, dist.glob("*.whl")), external=True)
    session.run(
        python, "-m", "flux_memory", "check", "--sqlite-path", str(empty / "memory.db"), "--full", external=True
    )
