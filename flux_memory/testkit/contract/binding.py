"""Binds a backend to the contract: the fixtures that a subclass provides or overrides."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Final

import pytest

from flux_memory import MAX_CONTENT_BYTES, MAX_ID_LENGTH
from flux_memory.testkit.capabilities import ALL, Capability
from flux_memory.testkit.clauses import CLAUSES
from flux_memory.testkit.contract.hooks import (
    ClockAt,
    CorruptMessage,
    HoldLocks,
    ReadRaw,
    clock_of_this_process,
)
from flux_memory.testkit.contract.outages import Outage, network_outages
from flux_memory.testkit.contract.preflight import context_of_binding, preflight_of
from flux_memory.testkit.contract.routes import Proxied, Routes
from flux_memory.testkit.contract.under_test import Factory, StoreUnderTest
from flux_memory.testkit.declarations import capabilities_of, refuse_replacements
from flux_memory.testkit.timeouts import Timeouts
from flux_memory.testkit.verdicts import BindingFault

_TIMEOUTS = pytest.StashKey[Timeouts]()

_PLUGINS: Final = ("flux_memory.testkit.report", "flux_memory.testkit.run_evidence", "flux_memory_run_evidence")
"""Without one of them a clause would have no result, or the run no verdict."""
_LEAST_CONTENT_BYTES: Final = 64 * 1024
_LEAST_ID_LENGTH: Final = 24
"""The texts and ids of most clauses are shorter."""


class Binding:
    """The fixtures behind every clause. A subclass provides `memory_factory` and may override the others.

    `backend` names the column in the closing table; it defaults to the name of the class. `backend_version` is the
    version shown in the report. `capabilities` is what the backend claims; see `Capability`. `max_content_bytes` and
    `max_id_length` are smaller for a backend whose store accepts less than the library: bytes of a content, a role or a
    title, characters of an id.
    """

    backend: str | None = None
    backend_version: str | None = None
    capabilities: Capability = ALL
    max_content_bytes: int = MAX_CONTENT_BYTES
    max_id_length: int = MAX_ID_LENGTH

    def __init_subclass__(cls) -> None:
        """Reject a subclass that replaces a clause, whose claims are not a `Capability`, or whose limits do not fit."""
        super().__init_subclass__()
        refuse_replacements(cls)
        if not isinstance(cls.capabilities, Capability):
            raise TypeError(
                f"{cls.__name__}.capabilities is a {type(cls.capabilities).__name__}; "
                "write ALL & ~(Capability.BATCH | ...) with what the backend lacks"
            )
        _check_limit(cls, "max_content_bytes", _LEAST_CONTENT_BYTES, MAX_CONTENT_BYTES)
        _check_limit(cls, "max_id_length", _LEAST_ID_LENGTH, MAX_ID_LENGTH)

    @pytest.fixture
    def fresh_memory_factory(self, memory_factory: Factory) -> Factory:
        """Like `memory_factory`, for a store on which no handle has ever been opened."""
        return memory_factory

    @pytest.fixture
    def clock_at(self) -> ClockAt:
        """Return a context manager that sets the time of writes; override it if a server provides the clock."""
        return clock_of_this_process

    @pytest.fixture
    def corrupt_message(self) -> CorruptMessage | None:
        """Return an async function that damages one stored message, given its session's id and its own."""
        return None

    @pytest.fixture
    def proxied_memory_factory(self) -> Proxied | None:
        """Return the address of the store's server, and how to open a memory by another address, such as a proxy's."""
        return None

    @pytest.fixture
    def flux_routes(self, proxied_memory_factory: Proxied | None) -> Iterator[Routes | None]:
        """The kit's proxies in front of the server."""
        with nullcontext() if proxied_memory_factory is None else Routes(proxied_memory_factory) as routes:
            yield routes

    @pytest.fixture
    def read_raw(self) -> ReadRaw | None:
        """Return an async function that reads one message without the backend, given its session's id and its own.

        It returns a mapping with the `role`, `content` and `metadata` that the store holds, decoded as the backend
        means them. It may leave out `role`; a clause on another key that it leaves out is unverified. It returns None
        if the store does not have the message.
        """
        return None

    @pytest.fixture
    def hold_locks(self) -> HoldLocks | None:
        """Return an async context manager in which another client of the store holds the locks of some records.

        It takes pairs of a session's id and a message's id, which is None for the lock of the session itself.
        """
        return None

    @pytest.fixture
    def outages(self) -> Sequence[Outage]:
        """Return the outages that the binding can cause, besides those of the network of `proxied_memory_factory`."""
        return ()

    @pytest.fixture
    def flux_clause(self) -> str | None:
        """The clause's id; each clause is parametrised with its id."""
        return None

    @pytest.fixture
    def store(
        self,
        request: pytest.FixtureRequest,
        memory_factory: Factory,
        clock_at: ClockAt,
        corrupt_message: CorruptMessage | None,
        flux_clause: str | None,
    ) -> Iterator[StoreUnderTest]:
        """The store that a clause tests."""
        if missing := [name for name in _PLUGINS if not request.config.pluginmanager.hasplugin(name)]:
            pytest.fail(
                "the contract needs its pytest plugin: pass -p flux_memory if plugin autoloading is off, "
                f"and remove any -p no:{missing[0]}"
            )
        preflight = preflight_of(request.node)
        preflight.begin(request.node.nodeid)
        preflight.check_fixtures(memory_factory=memory_factory, clock_at=clock_at)
        read_raw: ReadRaw | None = request.getfixturevalue("read_raw")
        hold_locks: HoldLocks | None = request.getfixturevalue("hold_locks")
        optional = {"corrupt_message": corrupt_message, "read_raw": read_raw, "hold_locks": hold_locks}
        preflight.check_fixtures(**{name: value for name, value in optional.items() if value is not None})
        seed = str(getattr(request.config.option, "hypothesis_seed", ""))
        claimed = capabilities_of(request.node)
        # A fresh store can be expensive: a whole database.
        fresh = flux_clause is not None and CLAUSES[flux_clause].fresh
        away = flux_clause is not None and CLAUSES[flux_clause].away
        routes: Routes | None = request.getfixturevalue("flux_routes") if away else None
        fresh_factory: Factory | None = request.getfixturevalue("fresh_memory_factory") if fresh else None
        if fresh:
            preflight.check_fixtures(fresh_memory_factory=fresh_factory)
        # The check opens a handle on the store, which would no longer be fresh, and needs the clause's event loop.
        checked = fresh_factory is not memory_factory
        if flux_clause is not None and not (checked and inspect.iscoroutinefunction(CLAUSES[flux_clause].test)):
            preflight.refuse_unchecked()
        store = StoreUnderTest(
            memory_factory,
            fresh_factory=fresh_factory,
            clock_at=clock_at,
            corrupt_message=corrupt_message,
            read_raw=read_raw,
            hold_locks=hold_locks,
            outages=(*_of_network(routes, claimed), *_given_outages(request)) if away else (),
            routes=routes,
            capabilities=claimed,
            max_content_bytes=self.max_content_bytes,
            max_id_length=self.max_id_length,
            thorough=request.config.option.flux_profile == "thorough",
            seed=int(seed) if seed.isdecimal() else None,
            timeouts=request.config.stash.setdefault(_TIMEOUTS, Timeouts()),
            preflight=preflight if checked else None,
        )
        yield store
        preflight.end(finished=store.finished)


def _of_network(routes: Routes | None, claimed: Capability) -> Sequence[Outage]:
    if routes is None or Capability.OUTAGES not in claimed:
        return ()
    # Each on a route of its own, so that one does not end the other.
    (down, _), (_, silent) = (network_outages(route.proxy, route.open) for route in (routes.add(), routes.add()))
    return [replace(each, has_own_path=True) for each in (down, silent)]


def _given_outages(request: pytest.FixtureRequest) -> Sequence[Outage]:
    given = request.getfixturevalue("outages")
    if not isinstance(given, Sequence) or not all(isinstance(each, Outage) for each in given):
        raise BindingFault(
            f"the fixture outages returned {given!r:.100}: return a list of Outage(name, open, away) of "
            "flux_memory.testkit"
        )
    return [replace(each, away=partial(_away_of, each)) for each in given]


def _away_of(outage: Outage) -> AbstractAsyncContextManager[None]:
    context: AbstractAsyncContextManager[None] = context_of_binding(f"away() of {outage.name!r}", outage.away())
    return context


def _check_limit(binding: type, name: str, least: int, most: int) -> None:
    value = getattr(binding, name)
    if type(value) is not int or not least <= value <= most:
        raise TypeError(
            f"{binding.__name__}.{name} is {value!r}; give an int from {least} to {most}, or leave it out if the "
            "backend accepts as much as the library"
        )
