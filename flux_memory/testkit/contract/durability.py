"""Clauses on acknowledged writes: across handles, processes and `kill -9`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

from flux_memory import ConflictError, Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.processes import Tell, run_together
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, contents

OpenHandle = Callable[[], Memory]

PROCESSES = 3
"""More processes than this machine is likely to have cores, so that they interrupt each other."""
KILLED_AFTER = (12, 5, 1)
"""Acknowledged writes before a process is killed; several, as a backend that writes late may have written one."""


class DurabilityContract(Binding):
    """The promises once a call has returned."""

    @clause(
        "FM-DUR-001",
        promise="An acknowledged write is still there after the store is closed and reopened.",
        impact="A restart loses messages.",
        needs=Capability.BATCH
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.USER_SCOPE
        | Capability.TITLES,
    )
    async def test_a_reopened_store_has_it(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session("t", {"k": 1.0}, user_id="u")
        await add_numbered(memory, session, range(3))
        await memory.add_messages(session, numbered(3, 4))
        await memory.update_session_title(session, "new")
        gone = await memory.create_session()
        await memory.delete_session(gone)
        before = await memory.get_sessions(), await memory.get_history(session)
        await memory.close()
        reopened = store.open()
        assert (await reopened.get_sessions(), await reopened.get_history(session)) == before
        await add_numbered(reopened, session, [5])
        assert contents(await reopened.get_history(session)) == list("012345")

    @clause(
        "FM-DUR-002",
        promise="Another process sees an acknowledged write, and this process sees what the other one wrote.",
        impact="A service with several workers shows a user different conversations from one request to the next.",
        needs=Capability.TITLES | Capability.DURABLE,
    )
    def test_another_process_sees_it(self, store: StoreUnderTest) -> None:
        async def write() -> str:
            memory = store.open()
            session = await memory.create_session("t")
            await add_numbered(memory, session, range(3))
            return session

        session = store.run(write)

        async def read_and_answer(open_handle: OpenHandle, tell: Tell) -> None:
            async with open_handle() as memory:
                tell(contents(await memory.get_history(session)))
                await memory.add_message(session, "assistant", "answer")

        ((seen,),) = run_together(store.fork(read_and_answer))
        assert seen == ["0", "1", "2"]
        assert contents(store.run(lambda: store.open().get_history(session))) == ["0", "1", "2", "answer"]

    @clause(
        "FM-DUR-003",
        promise="An acknowledged write survives `kill -9` of the process that wrote it.",
        impact="A crashing worker loses the end of a conversation.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.SESSIONS | Capability.DURABLE,
    )
    def test_kill_9_loses_nothing_acknowledged(self, store: StoreUnderTest) -> None:
        async def create() -> list[str]:
            memory = store.open()
            return [await memory.create_session() for _ in KILLED_AFTER]

        async def write_for_ever(session: str, open_handle: OpenHandle, tell: Tell) -> None:
            memory = open_handle()
            for number in itertools.count():
                tell(await memory.add_message(session, "user", str(number)))
                tell((await memory.add_messages(session, numbered(number, number)))[1])

        acknowledged: dict[str, list[str]] = {}
        for session, heard in zip(store.run(create), KILLED_AFTER, strict=True):
            child = store.fork(partial(write_for_ever, session))
            child.go()
            acknowledged[session] = [child.hear() for _ in range(heard)]
            acknowledged[session] += child.kill()

        async def check() -> None:
            memory = store.open()
            for session, told in acknowledged.items():
                history = await memory.get_history(session)
                found = await memory.get_session(session)
                ids = [row["id"] for row in history]
                assert [made for made in ids if made in set(told)] == told
                assert found is not None
                assert found["message_count"] == len(ids)
                # Three messages per round: one add, and a batch that is complete or absent.
                assert len(ids) % 3 in {0, 1}
                await add_numbered(memory, session, [-1])

        store.run(check)

    @clause(
        "FM-DUR-004",
        promise="First use may race: several processes on a new store all succeed.",
        impact="A service with several processes fails on its first start.",
        fresh=True,
        needs=Capability.SESSIONS | Capability.DURABLE | Capability.SEVERAL_HANDLES | Capability.SEVERAL_PROCESSES,
    )
    def test_processes_race_to_first_use(self, store: StoreUnderTest) -> None:
        async def start(open_handle: OpenHandle, tell: Tell) -> None:
            async with open_handle() as memory:
                session = await memory.create_session()
                await memory.add_message(session, "user", "first")
                tell(session)

        sessions = run_together(*(store.fork(start, fresh=True) for _ in range(PROCESSES + 1)))

        async def check() -> None:
            memory = store.open_fresh()
            assert sorted([row["id"]] for row in await memory.get_sessions()) == sorted(sessions)
            assert {row["message_count"] for row in await memory.get_sessions()} == {1}

        store.run(check)

    @clause(
        "FM-DUR-005",
        promise="Processes that add concurrently lose nothing and see one order, in which each process's messages "
        "keep theirs.",
        impact="Messages of users who are served by different processes are lost or shuffled.",
        needs=Capability.MESSAGE_IDS
        | Capability.SESSIONS
        | Capability.DURABLE
        | Capability.SEVERAL_HANDLES
        | Capability.SEVERAL_PROCESSES,
    )
    def test_processes_add_at_the_same_time(self, store: StoreUnderTest) -> None:
        session = store.run(lambda: store.open().create_session())

        async def write(open_handle: OpenHandle, tell: Tell) -> None:
            async with open_handle() as memory:
                tell(await add_numbered(memory, session, range(8)))

        written = [ids for (ids,) in run_together(*(store.fork(write) for _ in range(PROCESSES)))]

        async def check() -> None:
            memory = store.open()
            ids = [row["id"] for row in await memory.get_history(session)]
            found = await memory.get_session(session)
            assert found is not None
            assert found["message_count"] == len(ids) == PROCESSES * 8
            for own in written:
                assert [made for made in ids if made in own] == own

        store.run(check)

    @clause(
        "FM-DUR-006",
        promise="Ids made in forked processes are all different.",
        impact="Two workers make the same id, and a message is mistaken for a retry of another.",
        needs=Capability.MESSAGE_IDS | Capability.SEVERAL_HANDLES | Capability.SEVERAL_PROCESSES,
    )
    def test_forked_processes_make_different_ids(self, store: StoreUnderTest) -> None:
        async def warm_up() -> str:
            memory = store.open()
            session = await memory.create_session()
            await add_numbered(memory, session, range(2))
            return session

        session = store.run(warm_up)

        async def write(open_handle: OpenHandle, tell: Tell) -> None:
            async with open_handle() as memory:
                tell([await memory.create_session(), *await add_numbered(memory, session, range(3))])

        made = [made for (ids,) in run_together(*(store.fork(write) for _ in range(PROCESSES))) for made in ids]
        assert len(set(made)) == PROCESSES * 4

    @clause(
        "FM-DUR-007",
        promise="Processes that send the same message with one `message_id` store it once; different content raises "
        "`ConflictError`.",
        impact="A message retried through another worker is stored twice.",
        needs=Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.DURABLE
        | Capability.SEVERAL_HANDLES
        | Capability.SEVERAL_PROCESSES,
    )
    def test_processes_retry_once(self, store: StoreUnderTest) -> None:
        session = store.run(lambda: store.open().create_session())

        async def write(open_handle: OpenHandle, tell: Tell) -> None:
            async with open_handle() as memory:
                for number in range(4):
                    await memory.add_message(session, "user", "text", message_id=str(number))
                try:
                    await memory.add_message(session, "user", "another", message_id="0")
                except ConflictError:
                    tell("conflict")

        assert run_together(*(store.fork(write) for _ in range(PROCESSES))) == [["conflict"]] * PROCESSES
        rows = store.run(lambda: store.open().get_history(session))
        assert [(row["id"], row["content"]) for row in rows] == [(str(number), "text") for number in range(4)]
