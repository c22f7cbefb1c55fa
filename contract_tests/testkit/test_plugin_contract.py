"""Tests the contract in downstream projects: both ways to plug in, with every configuration of pytest and asyncio."""

from __future__ import annotations

import inspect
import re

import pytest
from forked_runs import run_forked

from flux_memory.testkit import CLAUSES, MemoryContract, ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.under_test import StoreUnderTest

pytest_plugins = ["pytester"]

BINDING = """
    import pytest
    from flux_memory.testkit import MemoryContract, ReferenceMemory, ReferenceStore

    class TestMine(MemoryContract):
        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            return lambda: ReferenceMemory(store)
"""
ASYNC, SYNC = "FM-ORD-003", "FM-LIF-010"
"""An asynchronous clause and a synchronous one."""
BOTH = ("-k", f"{ASYNC} or {SYNC}")
PLAIN = ("-p", "no:cacheprovider", "--flux-postgres=off")


def run_pytest_process(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run pytest in its own process, which imports the plugin and the contract as a project's does."""
    return pytester.runpytest_subprocess(*PLAIN, *args)


def run_pytest(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run pytest in a process that has imported the contract, for tests of what follows the imports."""
    return run_forked(pytester, *PLAIN, *args)


@pytest.mark.parametrize("mode", ["strict", "auto"])
@pytest.mark.parametrize("scope", ["function", "class", "module", "session"])
def test_every_mode_and_default_scope(pytester: pytest.Pytester, mode: str, scope: str) -> None:
    """Clauses run alike under any settings of a project for its own asynchronous tests."""
    pytester.makepyfile(BINDING)
    pytester.makeini(
        f"""
        [pytest]
        asyncio_mode = {mode}
        asyncio_default_fixture_loop_scope = {scope}
        asyncio_default_test_loop_scope = {scope}
        filterwarnings = error
        addopts = --strict-markers --strict-config
        """
    )
    run_pytest(pytester, *BOTH).assert_outcomes(passed=2, deselected=count_other_clauses(2))


def count_other_clauses(count: int) -> int:
    """Return the number of clauses without the first `count`."""
    return sum(clause.home.startswith(MemoryContract.__module__) for clause in CLAUSES.values()) - count


def test_xdist_counts_every_clause_once(pytester: pytest.Pytester) -> None:
    """The closing table is the same as for one process."""
    pytester.makepyfile(BINDING)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error")
    result = run_pytest_process(pytester, "-n", "2", "-k", "FM-ORD or FM-DUR-999")
    assert result.ret == 0
    result.stdout.re_match_lines([r"=+ flux-memory contract \d+\.\d+ =+", r" +TestMine", r"Order and paging +21"])


def test_other_naming_conventions(pytester: pytest.Pytester) -> None:
    """A project with other naming rules for tests still collects the clauses."""
    pytester.makepyfile(check_mine=BINDING.replace("TestMine", "CheckMine"))
    pytester.makeini("[pytest]\npython_files = check_*.py\npython_classes = Check\npython_functions = check_*")
    result = run_pytest(pytester, *BOTH)
    assert result.parseoutcomes()["passed"] == 2


def test_a_binding_may_have_other_tests(pytester: pytest.Pytester) -> None:
    """A binding may have its own tests, which are not clauses."""
    pytester.makepyfile(BINDING + "\n        def test_my_very_own(self, store):\n            assert store.factory()\n")
    result = run_pytest(pytester, "-k", f"my_very_own or {ASYNC}")
    assert result.parseoutcomes()["passed"] == 2
    result.stdout.re_match_lines([r"clauses that hold +1 of 1"])


def test_the_id_is_part_of_the_node(pytester: pytest.Pytester) -> None:
    """Clauses can be selected by id, by name and by group."""
    pytester.makepyfile(BINDING)
    listed = run_pytest(pytester, "--collect-only", "-q", "-k", "FM-ORD").outlines
    assert any(line.endswith("TestMine::test_limit_takes_the_newest[FM-ORD-003]") for line in listed)


FAILING = BINDING.replace("return lambda: ReferenceMemory(store)", "return lambda: Oldest(store)").replace(
    "class TestMine",
    """class Oldest(ReferenceMemory):
        async def get_history(self, session_id, limit=None, *, before=None):
            return (await super().get_history(session_id, before=before))[:limit]

    class TestMine""",
)


def test_a_failing_clause_explains_itself(pytester: pytest.Pytester) -> None:
    """It shows the promise, the users' loss, the observation, and code that reproduces it."""
    pytester.makepyfile(FAILING)
    result = run_pytest_process(pytester, "-k", ASYNC)
    result.assert_outcomes(failed=1, deselected=count_other_clauses(1))
    result.stdout.fnmatch_lines(
        [
            "E*assert*'0'*'4'*",
            "*FM-ORD-003 does not hold for TestMine*",
            "promised:*limit*newest*",
            "users lose:*model*",
            "seen:*AssertionError*",
            "async def reproduce(memory_factory):",
            "    memory_1 = memory_factory()",
            "    session_1 = await memory_1.create_session()",
            "    for number in range(6):",
            "        await memory_1.add_message(session_1, 'user', str(number))*",
            "    await memory_1.get_history(session_1, 2)*",
            "*flux-memory contract*",
            "*Order and paging*0 of 1*",
            "*failed*1*",
        ]
    )


def test_an_error_in_another_process_comes_first(pytester: pytest.Pytester) -> None:
    """The error comes first, because a long report is cut and a traceback ends with its error."""
    pytester.makepyfile(
        """
        import os

        import pytest
        from flux_memory.testkit import MemoryContract, ReferenceMemory, ReferenceStore

        class Failing(ReferenceMemory):
            home = os.getpid()

            async def get_history(self, *arguments, **more):
                if os.getpid() != self.home:
                    raise RuntimeError("what went wrong")
                return await super().get_history(*arguments, **more)

        class TestMine(MemoryContract):
            @pytest.fixture
            def memory_factory(self, tmp_path):
                return lambda: Failing(ReferenceStore(tmp_path / "store.json"))
        """
    )
    result = run_pytest(pytester, "-k", "FM-DUR-002")
    result.stdout.fnmatch_lines(["seen: *another process failed: RuntimeError: what went wrong"])


def test_a_false_claim_is_reproduced_without_the_true_ones(pytester: pytest.Pytester) -> None:
    """The reproduction of a false claim leaves out the claims that are true."""
    binding = BINDING.replace("import MemoryContract", "import ALL, Capability, MemoryContract").replace(
        "    @pytest.fixture", "    capabilities = ALL & ~Capability.TITLES\n\n        @pytest.fixture"
    )
    pytester.makepyfile(binding)
    output = run_pytest(pytester, "-k", "FM-CAP-001").stdout.str()
    reproduction = output.partition("async def reproduce(memory_factory):")[2].partition("=====")[0]
    assert "TITLES is not claimed, and works" in output
    assert "create_session('t')" in reproduction
    assert reproduction.count("memory_factory()") == 1
    assert "add_message" not in reproduction


def test_a_skipped_clause_is_unverified(pytester: pytest.Pytester) -> None:
    """A clause that could not be checked is counted separately and says why."""
    pytester.makepyfile(BINDING)
    result = run_pytest(pytester, "-k", "FM-LIF-011")
    result.stdout.re_match_lines([r"clauses that hold +0 of 1", r"unverified +1"])
    assert re.search(r"FM-LIF-011.*corrupt_message", result.stdout.str())


def test_claims_of_another_type_are_refused(pytester: pytest.Pytester) -> None:
    """A set of strings is not a set of capabilities; the error says how to write one."""
    pytester.makepyfile(
        BINDING.replace("    @pytest.fixture", "    capabilities = {'batch'}\n\n        @pytest.fixture")
    )
    result = run_pytest(pytester, "-k", ASYNC)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*TypeError: TestMine.capabilities is a set; write ALL & ~(Capability.BATCH*"])


def test_a_missing_fixture_is_loud(pytester: pytest.Pytester) -> None:
    """A binding without a factory fails instead of being skipped."""
    pytester.makepyfile("from flux_memory.testkit import MemoryContract\nclass TestMine(MemoryContract): pass")
    result = run_pytest(pytester, "-k", ASYNC)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*fixture 'memory_factory' not found"])


def test_a_synchronous_backend_is_named(pytester: pytest.Pytester) -> None:
    """The error is about the first call, not about closing the handle."""
    synchronous = BINDING.replace(
        "class TestMine",
        """class Synchronous:
        def create_session(self, *args, **kwargs):
            return "s"

        def close(self):
            pass

    class TestMine""",
    ).replace("ReferenceMemory(store)", "Synchronous()")
    pytester.makepyfile(synchronous)
    result = run_pytest(pytester, "-k", ASYNC)
    result.assert_outcomes(failed=1, deselected=count_other_clauses(1))
    result.stdout.fnmatch_lines(["seen: *create_session() gave a str at once*"])


def test_plugged_in_by_name(pytester: pytest.Pytester) -> None:
    """`--pyargs` and a factory's name are enough: each test gets a fresh directory, each call another handle."""
    pytester.makepyfile(
        my_memories="""
        from flux_memory.testkit import ReferenceMemory, ReferenceStore

        def open_memory(path):
            assert path.is_dir()
            return ReferenceMemory(ReferenceStore(path / "store.json"))
        """
    )
    factory = "--flux-memory-factory=my_memories:open_memory"
    result = run_pytest_process(
        pytester, "--pyargs", "flux_memory.testkit.contract", factory, "-k", f"{ASYNC} or FM-CON-005"
    )
    result.assert_outcomes(passed=2, deselected=count_other_clauses(2))
    result.stdout.fnmatch_lines(["*my_memories:open_memory*"])


def test_plugged_in_without_a_name_is_a_usage_error(pytester: pytest.Pytester) -> None:
    """A run with nothing to check does not pass."""
    result = run_pytest(pytester, "--pyargs", "flux_memory.testkit.contract")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*the contract has no memory to test: pass --flux-memory-factory=module:function*"])


@pytest.mark.parametrize("name", ["nowhere:open_memory", "os:nothing", "os path", "os", "os:sep", "broken:open_memory"])
def test_a_missing_factory_is_named_once(pytester: pytest.Pytester, name: str) -> None:
    """The error repeats the option and says how to write it, and no clause runs and fails."""
    pytester.makepyfile(broken="raise RuntimeError('not today')")
    result = run_pytest(
        pytester, "--pyargs", "flux_memory.testkit.contract", f"--flux-memory-factory={name}", "-k", ASYNC
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--flux-memory-factory={name}: *write module:function*"])
    assert "flux-memory contract" not in result.stdout.str()


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_clause_replaced_after_its_class_was_made_is_refused(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    """A clause that is no longer collected cannot fail, so the run fails instead."""
    pytester.makepyfile(BINDING + "\n    TestMine.test_limit_takes_the_newest = None\n")
    result = run_pytest(pytester, "-k", "FM-ORD-001", *workers)
    assert result.ret != 0
    output = result.stdout.str() + result.stderr.str()
    assert "TestMine replaces test_limit_takes_the_newest, which is the clause FM-ORD-003" in output


def test_without_the_packages_of_the_extra(pytester: pytest.Pytester) -> None:
    """One error says what to install, instead of a failure for each clause."""
    pytester.makepyfile(BINDING)
    result = run_pytest_process(pytester, "-p", "no:asyncio", *BOTH)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pip install 'flux-memory?testkit?'*"])


def test_plugins_named_by_hand(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without plugin autoload, each missing plugin is named; with all of them given, the clauses run."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(BINDING)
    only_asyncio, only_ours, both = (
        pytester.runpytest_subprocess("-k", ASYNC, *named)
        for named in (("-p", "asyncio"), ("-p", "flux_memory"), ("-p", "flux_memory", "-p", "pytest_asyncio.plugin"))
    )
    only_asyncio.stdout.fnmatch_lines(["*the contract needs its pytest plugin: pass -p flux_memory *"])
    only_ours.stderr.fnmatch_lines(["*-p asyncio if plugins are not loaded automatically"])
    assert both.parseoutcomes()["passed"] == 1


@pytest.mark.parametrize(
    ("setting", "harmless"), [("anyio_mode=auto", "anyio_mode=strict"), ("trio_mode=true", "trio_mode=false")]
)
def test_next_to_plugins_that_run_coroutines(pytester: pytest.Pytester, setting: str, harmless: str) -> None:
    """A plugin that runs coroutines, too, leaves the clauses alone; its mode that does not is a usage error."""
    pytester.makepyfile(BINDING)
    pytester.makeconftest("""
        def pytest_addoption(parser):
            parser.addini("trio_mode", "that of pytest-trio, if it is not installed", type="bool")
    """)
    pytester.plugins.clear()
    run_pytest_process(pytester, *BOTH, "-o", harmless).assert_outcomes(passed=2, deselected=count_other_clauses(2))
    refused = run_pytest_process(pytester, *BOTH, "-o", setting)
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines([f"*{setting} takes the contract's tests from pytest-asyncio; set {harmless} *"])


def test_a_clause_that_another_plugin_runs_says_so() -> None:
    """A plugin without such a setting that takes the coroutines is named as the cause."""
    store = StoreUnderTest(lambda: ReferenceMemory(ReferenceStore()))
    clause = CLAUSES[ASYNC].test(MemoryContract(), store)
    assert inspect.iscoroutine(clause)
    with pytest.raises(pytest.fail.Exception, match="not run by pytest-asyncio: another plugin has taken it"):
        clause.send(None)


def test_no_effect_on_others(pytester: pytest.Pytester) -> None:
    """A project that does not use the kit loads none of it, and its output is unchanged."""
    pytester.makepyfile(
        """
        import sys

        def test_nothing_heavy():
            loaded = {"flux_memory.testkit.contract", "flux_memory.testkit.clauses", "asyncpg", "aiosqlite", "docker"}
            assert not loaded & sys.modules.keys()
        """
    )
    result = run_pytest_process(pytester)
    result.assert_outcomes(passed=1)
    assert "flux-memory contract" not in result.stdout.str()
