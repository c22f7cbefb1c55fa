"""Tests the evidence of a downstream run: the report, the contract version that binds it, and the closing table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from forked_runs import run_forked

from flux_memory.testkit import CLAUSES, CONTRACT_VERSION, MemoryContract
from flux_memory.testkit.evidence.document import Evidence, NotEvidence, Result, read_evidence, verdict
from flux_memory.testkit.versions import check_pin, is_binding, parse_version

pytest_plugins = ["pytester"]

PLAIN = ("-p", "no:cacheprovider", "--flux-postgres=off")
FILES = ["badge.svg", "contract.html", "contract.json", "contract.md"]
OURS = [each.id for each in CLAUSES.values() if each.home.startswith(MemoryContract.__module__)]

# A small contract that has every outcome at once; the kit's own clauses do not run in it.
CLAUSES_OF_THEIR_OWN = """
    import os
    import pytest
    from flux_memory.testkit import ReferenceMemory, ReferenceStore, clause
    from flux_memory.testkit.contract.binding import Binding

    class Contract(Binding):
        @clause("FM-ORD-901", promise="Holds `always`.", impact="Nothing.")
        async def test_holds(self, store):
            await store.open().create_session()

        @clause("FM-ORD-902", promise="Fails | always.", impact="Everything <b>.")
        async def test_fails(self, store):
            memory = store.open()
            session = await memory.create_session("the title")
            assert await memory.get_history(session) == ["postgresql://me:s3cret@host/db", "\\ud800"]

        @clause("FM-ORD-903", promise="Cannot be checked.", impact="Certainty.")
        async def test_unverified(self, store):
            pytest.skip("no fixture can do it")

        @clause("FM-ORD-904", promise="Is newer.", impact="Nothing yet.", since="1.1")
        async def test_newer(self, store):
            await store.open().create_session(1)

        @clause("FM-ORD-905", promise="Is newer and holds.", impact="Nothing yet.", since="1.1")
        async def test_newer_and_holds(self, store):
            await store.open().create_session()

        @clause("FM-ORD-906", promise="Ends the process.", impact="The run.")
        def test_ends(self, store):
            if "ENDING" in os.environ:
                os._exit(3)

        @pytest.mark.usefixtures("untidy")
        @clause("FM-ORD-907", promise="Is cleared up after.", impact="The next one.")
        async def test_cleared_up(self, store):
            await store.open().create_session()

    @pytest.fixture
    def untidy():
        yield
        1 / 0

    class TestMine(Contract):
        backend = "Mine"
        backend_version = "mine 4.2"

        @pytest.fixture
        def memory_factory(self):
            shared = ReferenceStore()
            return lambda: ReferenceMemory(shared)

    def test_seeded(record_property):
        record_property("flux_seed", ["model", 42])

    @pytest.mark.parametrize("name", ["Late", "Lost"])
    def test_mutant(name, record_property):
        record_property("flux_mutant", name)
        assert name == "Late"
"""

INI = "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\nxfail_strict = true\n"
ALL_BUT_THE_LAST = ("--flux-report=report", "-k", "not FM-ORD-906")
"""A run of every clause but the one that ends the process."""


@pytest.fixture
def contract_project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with its own contract."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(test_mine=CLAUSES_OF_THEIR_OWN)
    pytester.makeini(INI)
    return pytester


@pytest.fixture(scope="module")
def report_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of such a project, for tests that only read it."""
    place = tmp_path_factory.mktemp("reported")
    (place / "test_mine.py").write_text(textwrap.dedent(CLAUSES_OF_THEIR_OWN))
    (place / "pytest.ini").write_text(INI)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", *PLAIN, *ALL_BUT_THE_LAST]
    subprocess.run(command, cwd=place, env=environment, capture_output=True, check=False, timeout=120)
    return place / "report"


def run_project(contract_project: pytest.Pytester, *args: str) -> pytest.RunResult:
    return run_forked(contract_project, *PLAIN, *args)


def results_by_id(evidence: Evidence) -> dict[str, Result]:
    return {clause.id: result for clause, result in evidence.results_of("Mine") if result.outcome != "not run"}


@pytest.mark.parametrize("options", [[], ["-n2"]], ids=["one process", "xdist"])
def test_a_report_has_every_clause(contract_project: pytest.Pytester, options: list[str]) -> None:
    """The JSON has every clause with outcome, time, reason and reproduction, merged from all workers."""
    run_project(contract_project, *ALL_BUT_THE_LAST, *options)
    evidence = read_evidence(contract_project.path / "report")
    assert sorted(path.name for path in (contract_project.path / "report").iterdir()) == FILES
    assert (evidence.contract, evidence.pinned) == (CONTRACT_VERSION, None)
    results = results_by_id(evidence)
    assert {clause_id[-3:]: result.outcome for clause_id, result in results.items()} == {
        "901": "held",
        "902": "failed",
        "903": "unverified",
        "904": "advisory",
        "905": "held",
        "907": "failed",
    }
    assert results["FM-ORD-901"].seconds > 0
    assert results["FM-ORD-901"].reason == results["FM-ORD-901"].reproduction == ""
    assert "create_session('the title')" in results["FM-ORD-902"].reproduction
    assert results["FM-ORD-903"].reason == "no fixture can do it"
    assert results["FM-ORD-904"].reason.endswith("(since 1.1, binding from the next minor version on)")
    assert "ZeroDivisionError" in results["FM-ORD-907"].reason
    assert results["FM-ORD-902"].test.endswith("::TestMine::test_fails[FM-ORD-902]")
    (backend,) = evidence.backends
    assert (backend.name, backend.version, backend.server) == ("Mine", "mine 4.2", None)
    assert backend.isolation_seconds is not None
    assert 0 < backend.isolation_seconds < backend.seconds
    assert evidence.seeds["model"] == "42"
    assert evidence.mutants is not None
    assert (evidence.mutants.caught, evidence.mutants.total, evidence.mutants.survivors) == (1, 2, ["Lost"])
    assert {"flux-memory", "Python", "pytest", "SQLite", "system", "workers"} <= evidence.environment.keys()
    assert evidence.environment["workers"] == ("2" if options else "1")


def test_the_seed_of_the_model_is_in_the_report(pytester: pytest.Pytester) -> None:
    """A reader of a random finding can repeat the run: the report has the requested seed."""
    pytester.makepyfile(
        """
        import pytest
        from flux_memory.testkit import MemoryContract, ReferenceMemory, ReferenceStore

        class TestMine(MemoryContract):
            @pytest.fixture
            def memory_factory(self):
                store = ReferenceStore()
                return lambda: ReferenceMemory(store)
        """
    )
    pytester.makeini(INI)
    pytester.plugins.clear()
    run_project(pytester, "-k", "FM-MOD-001", "--flux-report=report", "--hypothesis-seed=7")
    assert read_evidence(pytester.path / "report").seeds["model on TestMine"] == "7"


def test_a_clause_that_did_not_run_is_not_a_pass(report_directory: Path) -> None:
    """A deselected clause is in the report as not run, and the verdict is not a pass."""
    evidence = read_evidence(report_directory)
    assert {clause.id for clause, result in evidence.results_of("Mine") if result.outcome == "not run"} == set(OURS)
    text, outcome = verdict([Result("held"), Result("not run")])
    assert (text, outcome) == ("1 of 2 not run", "not run")
    assert verdict([Result("held"), Result("unverified"), Result("not run")])[1] == "unverified"
    assert verdict([Result("failed"), Result("held"), Result("not claimed")])[0] == "1 of 2 failed"
    assert verdict([Result("held"), Result("advisory")]) == ("1 hold, 1 advisory", "held")


def test_no_password_and_no_odd_character_gets_into_a_report(report_directory: Path) -> None:
    """A DSN in a failure loses its password, unencodable characters are escaped, and markup stays text."""
    for name in FILES:
        text = (report_directory / name).read_bytes().decode()
        assert "s3cret" not in text
        assert name == "badge.svg" or "postgresql://me:***@host/db" in text.replace("\\*", "*")
    page = (report_directory / "contract.html").read_text()
    assert "Everything &lt;b&gt;." in page
    assert "<code>always</code>" in page
    assert "Fails \\| always." in (report_directory / "contract.md").read_text()


def test_the_badge_is_an_image(report_directory: Path) -> None:
    """The badge is well-formed SVG with the version and the verdict in its title."""
    root = ET.fromstring((report_directory / "badge.svg").read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.findtext("{*}title") == f"flux-memory contract {CONTRACT_VERSION}: 2 of {len(OURS) + 6} failed"


def test_a_worker_that_dies_fails_its_clause(
    contract_project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clause that kills its process has failed in the report; it does not count as not run."""
    monkeypatch.setenv("ENDING", "1")
    run_project(contract_project, "--flux-report=report", "-n1", "-k", "FM-ORD-901 or FM-ORD-906")
    ended = results_by_id(read_evidence(contract_project.path / "report"))["FM-ORD-906"]
    assert ended.outcome == "failed"
    assert "crashed" in ended.reason


def test_a_clause_is_advisory_in_the_version_that_adds_it(contract_project: pytest.Pytester) -> None:
    """A failing new clause is shown and does not fail the run; one that holds is held, under any xfail_strict."""
    result = run_project(contract_project, "-k", "FM-ORD-904 or FM-ORD-905")
    assert result.ret == 0
    result.stdout.re_match_lines(
        [r"advisory +1", r"advisory: FM-ORD-904 on Mine: .*\(since 1\.1, binding from the next minor version on\)"]
    )


NEXT_MINOR = "import flux_memory.testkit.clauses as clauses\nclauses.CONTRACT_VERSION = '{}'"


@pytest.mark.parametrize(
    ("version", "options", "fails"),
    [
        ("1.1", [], False),
        ("1.1", ["--flux-contract=1.0"], False),
        ("1.1", ["--flux-contract=1.1"], True),
        ("1.2", [], True),
        ("1.2", ["--flux-contract=1.0"], False),
        ("1.2", ["--flux-contract=1.1", "-n1"], True),
    ],
)
def test_a_pin_holds_a_backend_to_a_version(
    contract_project: pytest.Pytester, version: str, options: list[str], fails: bool
) -> None:
    """A pinned run is judged by that version; without a pin, a clause binds from the next minor version on."""
    contract_project.makeconftest(NEXT_MINOR.format(version))
    result = run_project(contract_project, "-k", "FM-ORD-904", *options)
    assert (result.ret == 1) is fails
    result.assert_outcomes(**{"failed" if fails else "xfailed": 1}, deselected=0 if "-n1" in options else 9)


@pytest.mark.parametrize("pin", ["2.0", "1.7", "1", "one", "1.0.0"])
def test_a_pin_that_cannot_be_honoured_is_refused(contract_project: pytest.Pytester, pin: str) -> None:
    """A mistyped version, or a contract that this release does not have, stops the run."""
    result = run_project(contract_project, f"--flux-contract={pin}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--flux-contract: *"])


def test_a_report_that_cannot_be_written_stops_the_run(contract_project: pytest.Pytester) -> None:
    """The run stops before the first test, not after the last."""
    (contract_project.path / "report").write_text("a file")
    result = run_project(contract_project, "--flux-report=report")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--flux-report: *"])


def test_a_run_without_a_clause_says_so(pytester: pytest.Pytester) -> None:
    """Nothing is written that would look like evidence."""
    pytester.makepyfile("def test_other(): pass")
    result = run_project(pytester, "--flux-report=report")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["flux-memory: report in *report: nothing: the run had no clause"])
    assert list((pytester.path / "report").iterdir()) == []


def test_the_table_shows_the_cost_of_isolation(contract_project: pytest.Pytester) -> None:
    """The run prints the median time of a clause's setup and teardown."""
    run_project(contract_project, "-k", "FM-ORD-901").stdout.re_match_lines([r"isolation, median ms +\d+\.\d"])


def test_the_json_is_read_back_as_it_was(report_directory: Path, tmp_path: Path) -> None:
    """Reading a report loses nothing; keys of later releases are ignored."""
    text = (report_directory / "contract.json").read_text(encoding="utf-8")
    evidence = read_evidence(report_directory / "contract.json")
    assert evidence.to_json() == text
    data = json.loads(text)
    data["later"] = data["clauses"][0]["later"] = 1
    (tmp_path / "contract.json").write_text(json.dumps(data))
    assert read_evidence(tmp_path) == evidence


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1, "clauses": []}', '{"format": 1, "clauses": 3, "mutants": {}}', "\xff"]
)
def test_another_file_is_not_evidence(tmp_path: Path, content: str) -> None:
    """The error names the file and says that it is not a report."""
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(NotEvidence, match=r"other\.json is not what --flux-report writes"):
        read_evidence(path)


def test_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    """A report in a later format is refused with advice."""
    path = tmp_path / "contract.json"
    path.write_text('{"format": 2, "clauses": []}')
    with pytest.raises(NotEvidence, match="update flux-memory"):
        read_evidence(tmp_path)


def test_versions() -> None:
    """Versions compare as numbers; the clauses that a major version starts with bind at once."""
    assert parse_version("1.10") > parse_version("1.9")
    assert is_binding("1.0", current="1.0", pinned=None)
    assert is_binding("2.0", current="2.0", pinned=None)
    assert not is_binding("1.1", current="1.0", pinned=None)
    assert not is_binding("1.10", current="1.10", pinned=None)
    check_pin("1.2", "1.10")
    with pytest.raises(ValueError, match=r"has the contract 1\.0 to 1\.10, not 1\.11"):
        check_pin("1.11", "1.10")
