"""Clauses on claims: a claimed capability works, an unclaimed one is rejected or absent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from flux_memory import BackendUnavailableError, FluxMemoryError, InvalidInputError, Memory, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.claimed_calls import CALLS, ClaimedCall
from flux_memory.testkit.contract.outages import RETRY_PAUSE_SECONDS, Outage, in_each
from flux_memory.testkit.contract.pace import stretched, together
from flux_memory.testkit.contract.processes import Child, Tell
from flux_memory.testkit.contract.under_test import StoreUnderTest

_AWAY_SECONDS: Final = 0.1
"""The deadline of a call while the store is unreachable."""
_BACK_SECONDS: Final = 5.0
"""Much longer than a call may overrun that deadline, or may take once the store is back, if it is near."""


class CapabilitiesContract(Binding):
    """The promises of the backend's claims."""

    @clause(
        "FM-CAP-001",
        promise="A claimed call works; an unclaimed one is missing, or raises an `InvalidInputError` that names the "
        "method or argument.",
        impact="An unsupported call appears to have worked.",
    )
    async def test_calls_are_as_claimed(self, store: StoreUnderTest) -> None:
        async def find(capability: Capability) -> str:
            # A late rejection must not spoil the following calls.
            memory = store.open()
            session = await memory.create_session()
            # A method that is missing is a false claim of the capability that brings it, and of no other.
            made = [
                each
                for each in CALLS[capability]
                if each.also in store.capabilities and (not each.also or hasattr(memory, each.method))
            ]
            found = [await _found(memory, session, each) for each in made]
            await memory.close()
            return "; ".join(dict.fromkeys(found))

        others = [capability for capability in CALLS if capability is not Capability.CLEAR_ALL]
        at_once = others if Capability.SEVERAL_HANDLES in store.capabilities else []
        known: dict[Capability, str] = dict(zip(at_once, await together(map(find, at_once)), strict=True))
        store.transcript.calls.clear()
        for capability in CALLS:
            before = len(store.transcript.calls)
            outcome = known.get(capability)
            # Again, and alone, if it is not as claimed: for the reproduction.
            if outcome is None or (outcome and not store.agrees(capability, outcome)):
                outcome = await find(capability)
            if not outcome or store.found(capability, outcome):
                # Calls that behaved as claimed do not belong in the reproduction.
                del store.transcript.calls[before:]
        store.check_claims()

    @clause(
        "FM-CAP-002",
        promise="Ids, times and several handles work if they are claimed, and only then.",
        impact="Users rely on ids or times that do not work, or two handles corrupt each other's data.",
    )
    async def test_records_and_handles_are_as_claimed(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        returned = await memory.add_message(session, "user", "text")
        (row,) = await memory.get_history(session)
        store.found(Capability.MESSAGE_IDS, "works" if returned and returned == row["id"] else "is not there")
        store.found(Capability.TIMESTAMPS, "works" if row["created_at"] else "is not there")
        store.found(Capability.SEVERAL_HANDLES, await _seen(store.open, session))
        store.check_claims()

    @clause(
        "FM-CAP-003",
        promise="Messages outlive their process, and several processes can share a store, if that is claimed, and "
        "only then.",
        impact="Conversations are lost after a restart, or with a second worker.",
    )
    def test_processes_are_as_claimed(self, store: StoreUnderTest) -> None:
        async def write(open_handle: Callable[[], Memory], tell: Tell) -> None:
            memory = open_handle()
            session = await memory.create_session()
            await memory.add_message(session, "user", "text")
            tell(session)
            if stays:
                await asyncio.Event().wait()
            await memory.close()

        def seen_after(child: Child) -> str:
            child.go()
            session = child.hear()
            if not stays:
                child.finish()
            try:
                return store.run(lambda: _seen(store.open, session))
            finally:
                if stays:
                    child.kill()

        stays = False
        store.found(Capability.DURABLE, seen_after(store.fork(write)))
        stays = True
        store.found(Capability.SEVERAL_PROCESSES, seen_after(store.fork(write)))
        store.check_claims()

    @clause(
        "FM-CAP-004",
        promise="If outages are claimed, and only then, a write in an outage raises `BackendUnavailableError` by its "
        "deadline, and calls work again afterwards.",
        impact="A service hangs with its database, or stays broken after the database returns.",
        away=True,
    )
    async def test_outages_are_as_claimed(self, store: StoreUnderTest) -> None:
        found = "is not there"
        if Capability.OUTAGES in store.capabilities or store.has_outages:
            outcomes: list[str] = []

            async def check(outage: Outage) -> None:
                async with store.open_through(outage) as memory:
                    outcomes.append(await _found_of(outage, memory))

            await in_each(store.outages(lossy=False), check)
            found = next((outcome for outcome in outcomes if outcome != "works"), "works")
        store.found(Capability.OUTAGES, found)
        store.check_claims()


async def _found_of(outage: Outage, memory: Memory) -> str:
    session, stretch = await stretched(memory.create_session())
    async with outage.away():
        try:
            with deadline(_AWAY_SECONDS):
                await asyncio.wait_for(memory.add_message(session, "user", "away"), _BACK_SECONDS)
        except BackendUnavailableError:
            pass
        except TimeoutError:
            return f"keeps waiting after the deadline ({outage.name})"
        except Exception as error:  # noqa: BLE001 - any other error is undocumented
            return f"raises {type(error).__name__} ({outage.name})"
        else:
            return "is not there"
    ends = time.monotonic() + _BACK_SECONDS * stretch
    while time.monotonic() < ends:
        try:
            with deadline(_BACK_SECONDS * stretch / 10):
                await memory.add_message(session, "user", "back")
        except BackendUnavailableError:
            # Each of several connections may be lost, and a handle may reconnect in a background task.
            await asyncio.sleep(RETRY_PAUSE_SECONDS)
            continue
        return "works"
    return f"never ends for the handle ({outage.name})"


async def _found(memory: Memory, session: str, each: ClaimedCall) -> str:
    method, argument = each.method, each.argument
    # A memory needs no code to refuse a method or an argument that it does not have.
    if not hasattr(memory, method):
        return "refused"
    try:
        await each.call(memory, session)
    except InvalidInputError as error:
        return "refused" if method in str(error) or argument in str(error) else f"{method} does not say what is wrong"
    except TypeError as error:
        missing = f"unexpected keyword argument {argument!r}" in str(error)
        return "refused" if missing else f"{method} raises {type(error).__name__}"
    except Exception as error:  # noqa: BLE001 - any other error is undocumented
        return f"{method} raises {type(error).__name__}"
    return "works"


async def _seen(open_handle: Callable[[], Memory], session: str) -> str:
    try:
        history = await open_handle().get_history(session)
    except FluxMemoryError:
        return "refused"
    except Exception as error:  # noqa: BLE001 - any other error is undocumented
        return f"raises {type(error).__name__}"
    return "works" if [row["content"] for row in history] == ["text"] else "is not there"
