"""The contract in other people's projects: both ways to plug in, under every configuration of pytest and asyncio."""

from __future__ import annotations

import re

import pytest

from flux_memory.testkit import CLAUSES, MemoryContract

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
"""A clause that is a coroutine, and one that is not."""
BOTH = ("-k", f"{ASYNC} or {SYNC}")
PLAIN = ("-p", "no:cacheprovider", "--flux-postgres=off")


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run pytest in a process of its own: what an entry point does to a run can be seen there only."""
    return pytester.runpytest_subprocess(*PLAIN, *args)


@pytest.mark.parametrize("mode", ["strict", "auto"])
@pytest.mark.parametrize("scope", ["function", "class", "module", "session"])
def test_every_mode_and_default_scope(pytester: pytest.Pytester, mode: str, scope: str) -> None:
    """Clauses run alike whatever a project has set for its own asynchronous tests."""
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
    run(pytester, *BOTH).assert_outcomes(passed=2, deselected=ids_less(2))


def ids_less(count: int) -> int:
    """How many clauses there are besides so many."""
    return sum(clause.home.startswith(MemoryContract.__module__) for clause in CLAUSES.values()) - count


def test_xdist_counts_every_clause_once(pytester: pytest.Pytester) -> None:
    """The closing table is that of one process, wherever the clauses ran."""
    pytester.makepyfile(BINDING)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error")
    result = run(pytester, "-n", "2", "-k", "FM-ORD or FM-DUR-999")
    assert result.ret == 0
    result.stdout.re_match_lines([r"=+ flux-memory contract \d+\.\d+ =+", r" +TestMine", r"Order and paging +13"])


def test_other_naming_conventions(pytester: pytest.Pytester) -> None:
    """A project that names its tests otherwise collects the clauses all the same."""
    pytester.makepyfile(check_mine=BINDING.replace("TestMine", "CheckMine"))
    pytester.makeini("[pytest]\npython_files = check_*.py\npython_classes = Check\npython_functions = check_*")
    result = run(pytester, *BOTH)
    assert result.parseoutcomes()["passed"] == 2


def test_own_tests_beside_the_clauses(pytester: pytest.Pytester) -> None:
    """A binding may have tests of its own, which are no clauses."""
    pytester.makepyfile(BINDING + "\n        def test_my_very_own(self, store):\n            assert store.factory()\n")
    result = run(pytester, "-k", f"my_very_own or {ASYNC}")
    assert result.parseoutcomes()["passed"] == 2
    result.stdout.re_match_lines([r"clauses that hold +1 of 1"])


def test_the_id_is_part_of_the_node(pytester: pytest.Pytester) -> None:
    """Clauses are selected by id, by name and by group."""
    pytester.makepyfile(BINDING)
    listed = run(pytester, "--collect-only", "-q", "-k", "FM-ORD").outlines
    assert any(line.endswith("TestMine::test_limit_takes_the_newest[FM-ORD-003]") for line in listed)


FAILING = BINDING.replace("return lambda: ReferenceMemory(store)", "return lambda: Oldest(store)").replace(
    "class TestMine",
    """class Oldest(ReferenceMemory):
        async def get_history(self, session_id, limit=None, *, before=None):
            return (await super().get_history(session_id, before=before))[:limit]

    class TestMine""",
)


def test_a_failing_clause_explains_itself(pytester: pytest.Pytester) -> None:
    """It says what was promised, what users lose, what was seen, and code that shows it again."""
    pytester.makepyfile(FAILING)
    result = run(pytester, "-k", ASYNC)
    result.assert_outcomes(failed=1, deselected=ids_less(1))
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
            "    await memory_1.add_message(session_1, 'user', '0')",
            "    await memory_1.get_history(session_1, 2)*",
            "*flux-memory contract*",
            "*Order and paging*0 of 1*",
            "*failed*1*",
        ]
    )


def test_what_another_process_met_is_seen_first(pytester: pytest.Pytester) -> None:
    """The report is cut where it is long, and a traceback has its error at the end."""
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
    result = run(pytester, "-k", "FM-DUR-002")
    result.stdout.fnmatch_lines(["seen: *another process failed: RuntimeError: what went wrong"])


def test_a_false_claim_is_reproduced_without_the_true_ones(pytester: pytest.Pytester) -> None:
    """What is as claimed is no part of what shows that something else is not."""
    binding = BINDING.replace("import MemoryContract", "import ALL, Capability, MemoryContract").replace(
        "    @pytest.fixture", "    capabilities = ALL & ~Capability.TITLES\n\n        @pytest.fixture"
    )
    pytester.makepyfile(binding)
    output = run(pytester, "-k", "FM-CAP-001").stdout.str()
    reproduction = output.partition("async def reproduce(memory_factory):")[2].partition("=====")[0]
    assert "TITLES is not claimed, and works" in output
    assert "create_session('t')" in reproduction
    assert reproduction.count("memory_factory()") == 1
    assert "add_message" not in reproduction


def test_a_skipped_clause_is_unverified(pytester: pytest.Pytester) -> None:
    """What could not be checked is counted apart and says why."""
    pytester.makepyfile(BINDING)
    result = run(pytester, "-k", "FM-LIF-011")
    result.stdout.re_match_lines([r"clauses that hold +0 of 1", r"unverified +1"])
    assert re.search(r"FM-LIF-011.*corrupt_message", result.stdout.str())


def test_claims_of_another_type_are_refused(pytester: pytest.Pytester) -> None:
    """A set of words is no set of capabilities; the error says how to write one."""
    pytester.makepyfile(
        BINDING.replace("    @pytest.fixture", "    capabilities = {'batch'}\n\n        @pytest.fixture")
    )
    result = run(pytester, "-k", ASYNC)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*TypeError: TestMine.capabilities is a set; write ALL & ~(Capability.BATCH*"])


def test_a_missing_fixture_is_loud(pytester: pytest.Pytester) -> None:
    """A binding without a factory fails; it is not passed over."""
    pytester.makepyfile("from flux_memory.testkit import MemoryContract\nclass TestMine(MemoryContract): pass")
    result = run(pytester, "-k", ASYNC)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*fixture 'memory_factory' not found"])


def test_a_backend_without_coroutines_is_told_so(pytester: pytest.Pytester) -> None:
    """The first call is what is seen, not that its handle cannot be closed either."""
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
    result = run(pytester, "-k", ASYNC)
    result.assert_outcomes(failed=1, deselected=ids_less(1))
    result.stdout.fnmatch_lines(["seen: *create_session() gave a str at once*"])


def test_plugged_in_by_name(pytester: pytest.Pytester) -> None:
    """`--pyargs` and a factory's name are enough: each test gets a fresh directory, each call one more handle."""
    pytester.makepyfile(
        my_memories="""
        from flux_memory.testkit import ReferenceMemory, ReferenceStore

        def open_memory(path):
            assert path.is_dir()
            return ReferenceMemory(ReferenceStore(path / "store.json"))
        """
    )
    factory = "--flux-memory-factory=my_memories:open_memory"
    result = run(pytester, "--pyargs", "flux_memory.testkit.contract", factory, "-k", f"{ASYNC} or FM-CON-005")
    result.assert_outcomes(passed=2, deselected=ids_less(2))
    result.stdout.fnmatch_lines(["*my_memories:open_memory*"])


def test_plugged_in_without_a_name_is_a_usage_error(pytester: pytest.Pytester) -> None:
    """Nothing to check is not a green run."""
    result = run(pytester, "--pyargs", "flux_memory.testkit.contract")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*the contract has no memory to test: pass --flux-memory-factory=module:callable*"])


@pytest.mark.parametrize("name", ["nowhere:open_memory", "os:nothing", "os path", "os", "os:sep", "broken:open_memory"])
def test_a_factory_that_is_not_there_is_named_once(pytester: pytest.Pytester, name: str) -> None:
    """The error repeats the option and says how to write it, and no clause is run and called failed."""
    pytester.makepyfile(broken="raise RuntimeError('not today')")
    result = run(pytester, "--pyargs", "flux_memory.testkit.contract", f"--flux-memory-factory={name}", "-k", ASYNC)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--flux-memory-factory={name}: *write module:callable*"])
    assert "flux-memory contract" not in result.stdout.str()


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_clause_replaced_after_its_class_was_made_is_refused(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    """What is no longer collected cannot fail: the run says so instead of ending green."""
    pytester.makepyfile(BINDING + "\n    TestMine.test_limit_takes_the_newest = None\n")
    result = run(pytester, "-k", "FM-ORD-001", *workers)
    assert result.ret != 0
    output = result.stdout.str() + result.stderr.str()
    assert "TestMine replaces test_limit_takes_the_newest, which is the clause FM-ORD-003" in output


def test_without_what_the_extra_brings(pytester: pytest.Pytester) -> None:
    """One error that says what to install, and not one failure for each clause."""
    pytester.makepyfile(BINDING)
    result = run(pytester, "-p", "no:asyncio", *BOTH)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pip install 'flux-memory?testkit?'*"])


def test_plugins_named_by_hand(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pytest loads no plugins by itself, each missing one is named; all named, the clauses run."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(BINDING)
    only_asyncio, only_ours, both = (
        pytester.runpytest_subprocess("-k", ASYNC, *named)
        for named in (("-p", "asyncio"), ("-p", "flux_memory"), ("-p", "flux_memory", "-p", "pytest_asyncio.plugin"))
    )
    only_asyncio.stdout.fnmatch_lines(["*the contract needs its pytest plugin: pass -p flux_memory *"])
    only_ours.stderr.fnmatch_lines(["*-p asyncio if plugins are not loaded automatically"])
    assert both.parseoutcomes()["passed"] == 1


def test_next_to_anyio(pytester: pytest.Pytester) -> None:
    """A plugin that runs coroutines too leaves the clauses alone, and its mode that does not is refused in words."""
    pytester.makepyfile(BINDING)
    run(pytester, *BOTH).assert_outcomes(passed=2, deselected=ids_less(2))
    refused = run(pytester, *BOTH, "-o", "anyio_mode=auto")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*anyio_mode=auto takes the contract's tests from pytest-asyncio*"])


def test_no_effect_on_others(pytester: pytest.Pytester) -> None:
    """A project that does not use the kit loads none of it, and its runs look as before."""
    pytester.makepyfile(
        """
        import sys

        def test_nothing_heavy():
            loaded = {"flux_memory.testkit.contract", "flux_memory.testkit.clauses", "asyncpg", "aiosqlite", "docker"}
            assert not loaded & sys.modules.keys()
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=1)
    assert "flux-memory contract" not in result.stdout.str()
