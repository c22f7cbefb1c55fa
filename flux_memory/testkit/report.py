"""The hooks on a clause's test: they attach its result to the report, with the cost and a reproduction of a failure."""

# ruff: noqa: PLC0415 - every pytest run imports this module, so heavy imports wait for the first clause
from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import pytest

from flux_memory.testkit.evidence.properties import (
    ADVICE,
    BACKEND,
    BACKEND_VERSION,
    CAPABILITY,
    CLAUSE,
    FACTS,
    LIMITS,
    RESULT,
    SEED,
    SERVER,
)
from flux_memory.testkit.servers.runs import SERVER_FIXTURE, VERSION_FIXTURE

if TYPE_CHECKING:
    from flux_memory.testkit.clauses import Clause

_PLUGGED_IN: Final = "test_plugged_in.py"
_BINDING: Final = "flux_memory.testkit.contract.binding"
_NEEDED_LATE: Final = ("evidence.environment", "evidence.files", "evidence.table")
_MODEL_CLAUSE: Final = "FM-MOD-001"
_MODEL: Final = "contract.model.exploration"
"""It imports Hypothesis, which is slow, for this clause only."""
_TAKES_TESTS: Final = (
    ("anyio_mode", "auto", "anyio_mode=auto", "set anyio_mode=strict and mark your own tests with pytest.mark.anyio"),
    ("trio_mode", True, "trio_mode=true", "set trio_mode=false and mark your own tests with pytest.mark.trio"),
)
"""Settings with which another plugin runs every coroutine test: name, value, how users write them, advice."""


def clause_of(item: pytest.Item) -> str | None:
    """Return the id of a test's clause, or None if the test is not a clause."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(CLAUSE)


def backend_of(item: pytest.Item) -> str:
    """Return the name of the backend that a clause is bound to."""
    binding = getattr(item, "cls", None)
    if item.path.name == _PLUGGED_IN and item.config.option.flux_memory_factory:
        return str(item.config.option.flux_memory_factory)
    name = str(getattr(binding, "backend", None) or getattr(binding, "__name__", "?"))
    # Each version of `--flux-postgres-version` has results of its own.
    callspec = getattr(item, "callspec", None)
    version = None if callspec is None else callspec.params.get(VERSION_FIXTURE)
    return f"{name} {version}" if version else name


def pytest_configure(config: pytest.Config) -> None:
    """Refuse unknown names of capabilities before any xdist worker starts."""
    if config.option.flux_without:
        from flux_memory.testkit.declarations import named_capabilities

        named_capabilities(config.option.flux_without)


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, obj: object) -> Generator[None, object, object]:
    """Warn of a binding that pytest does not collect: the clauses would be missing from a green run."""
    collected = yield
    if collected is None and _BINDING in sys.modules and isinstance(obj, type) and _is_forgotten(obj, collector):
        message = (
            f"{obj.__qualname__} is a binding, and pytest does not collect it: begin its name with Test, without "
            "__init__; of a base for other bindings, say so by __test__ = False"
        )
        warnings.warn_explicit(pytest.PytestCollectionWarning(message), None, str(collector.path), 0)
    return collected


def _is_forgotten(found: type, collector: pytest.Module | pytest.Class) -> bool:
    from flux_memory.testkit.contract.binding import Binding

    is_defined_here = found.__module__ == getattr(getattr(collector, "module", None), "__name__", None)
    return (
        is_defined_here and issubclass(found, Binding) and not found.__subclasses__() and "__test__" not in vars(found)
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Note all clauses of a binding, including those that are deselected later."""
    if (clause_id := clause_of(item)) and isinstance(binding := getattr(item, "cls", None), type):
        from flux_memory.testkit.run_evidence import RUN

        if (run := item.config.stash.get(RUN, None)) is not None:
            run.expect(backend_of(item), item.nodeid, clause_id, _clauses_of(binding))


@cache
def _clauses_of(binding: type) -> frozenset[str]:
    members = (member for base in binding.__mro__ for member in vars(base).values())
    return frozenset(member.flux_clause_id for member in members if hasattr(member, "flux_clause_id"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Attach a clause's id, backend and excuse to its item, and refuse runs that cannot check clauses."""
    clauses = [item for item in items if clause_of(item)]
    for item in clauses:
        _prepare(item, str(clause_of(item)))
    # In an xdist worker this would be an internal error, so each clause fails at its setup instead.
    if clauses and not hasattr(config, "workerinput") and (reason := _cannot_run(clauses)):
        raise pytest.UsageError(reason)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Import early, before any driver runs, the modules that only some clauses or the end of the run need.

    Python fails to compile a module if the garbage collector meets a `__del__` that raises meanwhile, and the failure
    would be reported as a clause's, or the closing table would be lost.
    """
    chosen = {clause_of(item) for item in session.items} - {None}
    if chosen and not session.config.option.collectonly:
        for name in (*_NEEDED_LATE, *([_MODEL] if _MODEL_CLAUSE in chosen else [])):
            import_module(f"flux_memory.testkit.{name}")


def _prepare(item: pytest.Item, clause_id: str) -> None:
    from flux_memory.testkit import clauses
    from flux_memory.testkit.declarations import limits_of
    from flux_memory.testkit.evidence.judge import excuse

    item.user_properties += [(CLAUSE, clause_id), (BACKEND, backend_of(item))]
    if (backend_version := getattr(getattr(item, "cls", None), "backend_version", None)) is not None:
        item.user_properties.append((BACKEND_VERSION, str(backend_version)))
    if limits := limits_of(item):
        item.user_properties.append((LIMITS, limits))
    excuse(item, clauses.CLAUSES[clause_id], clauses.CONTRACT_VERSION)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """End a clause that cannot be checked, or whose binding cannot be used."""
    if clause_of(item):
        from flux_memory.testkit.contract.preflight import preflight_of
        from flux_memory.testkit.verdicts import BindingFault

        if reason := _cannot_run([item]):
            raise BindingFault(reason)
        preflight_of(item).begin(item.nodeid)


def _cannot_run(clauses: list[pytest.Item]) -> str | None:
    return next(_obstacles(clauses), None)


def _obstacles(clauses: list[pytest.Item]) -> Iterator[str]:
    config = clauses[0].config
    yield from filter(None, map(_without_assertions, clauses))
    if not hasattr(config.option, "asyncio_mode") or find_spec("hypothesis") is None:
        yield (
            "the contract needs pytest-asyncio and hypothesis: pip install 'flux-memory[testkit]', "
            "and -p asyncio if plugins are not loaded automatically"
        )
    for setting, value, words, advice in _TAKES_TESTS:
        if _setting(config, setting) == value:
            yield f"{words} takes the contract's tests from pytest-asyncio; {advice}"
    if plugged_in := [item for item in clauses if item.path.name == _PLUGGED_IN]:
        if not config.option.flux_memory_factory:
            yield (
                "the contract has no memory to test: pass --flux-memory-factory=module:function; the function takes an "
                "empty directory (pathlib.Path) and returns a handle on the store there"
            )
        try:
            plugged_in[0].module.find_factory(config)  # type: ignore[attr-defined]
        except pytest.UsageError as error:
            yield str(error)
    # A binding refuses replaced clauses when the class is created, but they can also be replaced afterwards.
    yield from filter(None, map(_replaced, clauses))
    from flux_memory.testkit.evidence.judge import ONLY_KNOWN_FAILURE, has_other_xfail

    yield from (f"{item.nodeid}: {ONLY_KNOWN_FAILURE}" for item in clauses if has_other_xfail(item))


def _without_assertions(item: pytest.Item) -> str | None:
    from flux_memory.testkit.clauses import CLAUSES

    return _without_assertions_in(CLAUSES[str(clause_of(item))].test.__module__)


@cache
def _without_assertions_in(module: str) -> str | None:
    from flux_memory.testkit.contract import canary

    kit = canary.__name__.rpartition(".")[0]
    if module.startswith(kit):
        run = canary.assertions_run()
    else:
        # A canary has to be in the module itself; pytest's loader rewrites every module that it loads.
        loader = type(getattr(sys.modules.get(module), "__loader__", None))
        run = not sys.flags.optimize or loader.__module__.startswith("_pytest.")
    if run:
        return None
    return (
        f"the assertions of {kit if module.startswith(kit) else module} do not run, so its clauses cannot fail: Python "
        "removes them under -O and PYTHONOPTIMIZE if pytest does not rewrite them; run without both, or remove "
        "--assert=plain, register the module by pytest.register_assert_rewrite and import it after that"
    )


def _replaced(item: pytest.Item) -> str | None:
    return _replaced_in(item.cls) if isinstance(getattr(item, "cls", None), type) else None  # type: ignore[attr-defined]


@cache
def _replaced_in(binding: type) -> str | None:
    from flux_memory.testkit.declarations import refuse_replacements

    try:
        refuse_replacements(binding)
    except TypeError as error:
        return str(error)
    return None


def _setting(config: pytest.Config, name: str) -> object:
    try:
        return config.getini(name)
    except ValueError:
        # Its plugin is not loaded, or is older than the setting.
        return None


def pytest_report_teststatus(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, str] | None:
    """Show a fault of the binding as an error: the clause that met it did not fail."""
    result = dict(getattr(report, "user_properties", ())).get(RESULT)
    return ("error", "E", "ERROR") if report.failed and result and result.get("fault") else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach a clause's result; to a failure also its promise, the cost to users, the error and a reproduction."""
    report = yield
    clause_id = clause_of(item)
    if clause_id is None:
        return report
    from flux_memory.testkit.clauses import CLAUSES
    from flux_memory.testkit.evidence.judge import correct, result_of

    clause = CLAUSES[clause_id]
    funcargs: dict[str, Any] = getattr(item, "funcargs", {})
    if report.when == "setup":
        report.user_properties.append((FACTS, clause.words()))
        if (server := funcargs.get(SERVER_FIXTURE)) is not None:
            item.user_properties.append((SERVER, f"PostgreSQL {server.version}, {server.origin}"))
    store = funcargs.get("store")
    if report.when == "call" and store is not None:
        report.user_properties += [(CAPABILITY, claim) for claim in store.claims]
        report.user_properties += [
            (SEED, [f"{name} on {backend_of(item)}", seed]) for name, seed in store.seeds.items()
        ]
    reproduction = store.transcript.text() if call.excinfo is not None and store and store.transcript.calls else ""
    result = result_of(item, clause_id, call, reproduction)
    if result is not None and result.get("fault"):
        _explain_fault(item, call, report, result)
    elif report.failed and call.excinfo is not None:
        _explain_failure(item, clause, call.excinfo, report, reproduction)
    if result is not None:
        report.user_properties.append((RESULT, result))
        correct(report, clause_id, result, strict=item.config.option.flux_strict)
    return report


def _explain_failure(
    item: pytest.Item,
    clause: Clause,
    raised: pytest.ExceptionInfo[BaseException],
    report: pytest.TestReport,
    reproduction: str,
) -> None:
    """Add the promise, the cost, the error and a reproduction; of a missing call, say what to do instead of where."""
    seen = raised.exconly()
    if (advice := _advise_on_claims(item)) is not None:
        report.user_properties.append((ADVICE, advice))
        if raised.errisinstance((AttributeError, TypeError)):
            report.longrepr = f"{seen}\n{advice}"
    lines = [f"promised:  {clause.promise}", f"users lose: {clause.impact}", f"seen:      {seen:.600}"]
    if reproduction:
        lines += ["to reproduce:", "", reproduction]
    report.sections.append((f"{clause.id} does not hold for {backend_of(item)}", "\n".join(lines)))


def _advise_on_claims(item: pytest.Item) -> str | None:
    """Return what the memory lacks of its claims, as the check before the first clause found; None if nothing."""
    from flux_memory.testkit.contract.missing_calls import advise
    from flux_memory.testkit.contract.preflight import preflight_of
    from flux_memory.testkit.declarations import capabilities_of

    if not (missing := preflight_of(item).missing):
        return None
    return advise(missing, capabilities_of(item), plugged_in=item.path.name == _PLUGGED_IN)


def _explain_fault(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, result: dict[str, Any]
) -> None:
    """Say what is wrong with a binding whose fixture raised; a `BindingFault` says so itself."""
    from flux_memory.testkit.contract.preflight import preflight_of
    from flux_memory.testkit.evidence.collect import presentable
    from flux_memory.testkit.verdicts import BindingFault

    if call.excinfo is None or isinstance(call.excinfo.value, BindingFault):
        return
    if not (preflight := preflight_of(item)).has_memory_factory:
        result["reason"] = presentable(preflight.blame(call.excinfo.value))
    report.sections.append((f"not checked on {backend_of(item)}", result["reason"]))
