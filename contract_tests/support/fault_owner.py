"""A worker of a storm with sessions of its own: it knows their content, so that each answer has one right value."""

from __future__ import annotations

import random

from fault_storm import Ending, Summary, Workers

from flux_memory.testkit.histories import Recorder


class Owner:
    """Changes one session after the other, each until the outcome of a call is not known.

    Args:
        memory: The handle that all workers share.
        workers: The workers of the round.
        summary: Counts wrong answers.
    """

    def __init__(self, memory: Recorder, workers: Workers, summary: Summary) -> None:
        self._memory = memory
        self._workers = workers
        self._summary = summary
        self._session = ""
        self._ids: list[str] = []
        self._revision: str | None = None
        """The revision of the last read, if nothing has changed the session since."""

    async def work(self, rng: random.Random) -> None:
        """Make calls until the round ends."""
        while not self._workers.stopping:
            self._session, self._ids, self._revision = self._workers.number(), [], None
            ending, _ = await self._workers.make(rng, "create_session", self._create)
            while ending == "acknowledged" and not self._workers.stopping:
                steps = (self._add, self._pop, self._update, self._stale, self._read)
                ending = await rng.choices(steps, (4, 3, 4, 1, 2))[0](rng)

    async def _create(self) -> str:
        return await self._memory.create_session(session_id=self._session)

    async def _add(self, rng: random.Random) -> Ending:
        batch = self._workers.batch(rng.randrange(1, 4))
        add = self._memory.add_messages
        ending, ids = await self._workers.make(rng, "add_messages", lambda: add(self._session, batch))
        if ending == "acknowledged":
            self._ids += ids
            self._revision = None
        return self._is_known(ending)

    async def _pop(self, rng: random.Random) -> Ending:
        ending, popped = await self._workers.make(rng, "pop_message", lambda: self._memory.pop_message(self._session))
        if ending == "acknowledged":
            wanted = self._ids.pop() if self._ids else None
            self._expect("popped another message", popped and popped["id"], wanted)
            if wanted is not None:
                self._revision = None
        return self._is_known(ending)

    async def _update(self, rng: random.Random) -> Ending:
        if self._revision is None:
            return await self._read(rng)
        expected, cut = self._revision, rng.randrange(len(self._ids) + 1)
        batch = self._workers.batch(rng.randrange(3))
        ending, updated = await self._workers.make(
            rng,
            "update_session",
            lambda: self._memory.update_session(
                self._session,
                expected_revision=expected,
                title=self._workers.number(),
                truncate_from=self._ids[cut] if cut < len(self._ids) else None,
                messages=batch,
            ),
        )
        if ending == "acknowledged":
            self._ids = [*self._ids[:cut], *(str(one.get("message_id")) for one in batch)]
            self._revision = updated["revision"]
            self._expect("updated another state", updated["message_count"], len(self._ids))
        return self._is_known(ending)

    async def _stale(self, rng: random.Random) -> Ending:
        """Expect a revision that the session never had."""
        ending, _ = await self._workers.make(
            rng,
            "stale update",
            lambda: self._memory.update_session(self._session, expected_revision="another", title="never"),
            "conflict",
        )
        if ending == "acknowledged":
            self._summary.add_broken("overwritten", f"session {self._session!r} had another revision")
        return "acknowledged" if ending == "conflict" else self._is_known(ending)

    async def _read(self, rng: random.Random) -> Ending:
        ending, history = await self._workers.make(rng, "get_history", lambda: self._memory.get_history(self._session))
        if ending == "acknowledged":
            self._expect("read another history", [message["id"] for message in history], self._ids)
        if (found := await self._workers.read_session(rng, self._session)) is not None:
            self._expect("counted wrong", found["message_count"], len(self._ids))
            if self._revision is not None:
                self._expect("changed by a refused call", found["revision"], self._revision)
            self._revision = found["revision"]
        return "acknowledged"

    def _is_known(self, ending: Ending) -> Ending:
        return "acknowledged" if ending == "refused" else ending

    def _expect(self, kind: str, found: object, wanted: object) -> None:
        if found != wanted:
            self._summary.add_broken(kind, f"session {self._session!r}: {found!r} instead of {wanted!r}")
