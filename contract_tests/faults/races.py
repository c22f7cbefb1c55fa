"""Races: 24 concurrent pops beside adds, and 20 updates that expect one revision, on four handles, with exact counts.

    python contract_tests/faults/races.py --engine postgres --seconds 1800 --seed 1

Each round races on two new sessions, in a random order, and then compares the answers with the store: no message is
popped twice or lost, and exactly one update is made. Prints a summary as JSON; the exit code is 1 if a count was wrong.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support")]

import click
from fault_cluster import run_cluster

from flux_memory import (
    ConflictError,
    ConversationMemory,
    Memory,
    Message,
    PostgresConversationMemory,
    Session,
    deadline,
)

HANDLES: Final = 4
POPS: Final = 24
UPDATES: Final = 20
MOST_ADDS: Final = 8
MOST_AT_FIRST: Final = 32
"""Messages of a session before its race; also fewer than there are pops."""
ROUND_SECONDS: Final = 60.0
"""Deadline of each call of a round."""


@dataclass
class Tally:
    """Counts of the races of one run."""

    engine: str
    seed: int
    rounds: int = 0
    pops: int = 0
    updates: int = 0
    cpu_seconds: float = 0.0
    """CPU of this process, without the server's."""
    wrong: list[str] = field(default_factory=list)
    """A sentence for each wrong count; there must be none."""


@dataclass(frozen=True)
class Race:
    """What one round has raced for."""

    session: str
    at_first: list[str]
    """Ids of the messages before the race, oldest first."""
    added: list[str]
    popped: list[Message | None]
    updated: list[Session | ConflictError]

    def list_wrong_pops(self, left: Sequence[str]) -> list[str]:
        """Compare the popped messages with the ids that are left in the history."""
        popped = [each["id"] for each in self.popped if each is not None]
        known = {*self.at_first, *self.added}
        wrong = [f"{each} was popped {times} times" for each, times in Counter(popped).items() if times > 1]
        wrong += [f"{each} was popped and is still stored" for each in popped if each in left]
        wrong += [f"{each} is lost" for each in known.difference(popped, left)]
        wrong += [f"{each} came from nowhere" for each in {*popped, *left} - known]
        kept = [each for each in self.at_first if each in left]
        if kept != self.at_first[: len(kept)] or list(left[: len(kept)]) != kept:
            wrong.append(f"an older message was popped before a newer one, or the order has changed: {left}")
        if len(popped) < min(len(self.popped), len(self.at_first)):
            wrong.append(f"{len(popped)} pops of {len(self.popped)} found one of {len(self.at_first)} messages")
        return wrong

    def list_wrong_updates(self, now: Session, appended: Sequence[str]) -> list[str]:
        """Compare the updates' answers with the session and with the ids of its messages."""
        made = [each for each in self.updated if not isinstance(each, ConflictError)]
        if len(made) != 1:
            return [f"{len(made)} of {len(self.updated)} updates of one revision were made"]
        wrong = []
        if made[0] != now:
            wrong.append(f"the update returned {made[0]}, and the session is {now}")
        if list(appended) != [now["title"]]:
            wrong.append(f"the update {now['title']} was made, and the messages are {appended}")
        return wrong


async def race(handles: Sequence[Memory], chance: random.Random, name: str) -> Race:
    """Race for a session's messages and for another session's revision, both of them new."""
    first = [f"first-{number}" for number in range(chance.randrange(MOST_AT_FIRST + 1))]
    added = [f"added-{number}" for number in range(chance.randrange(MOST_ADDS + 1))]
    updated = f"{name}-updated"
    for each in (name, updated):
        await handles[0].create_session(session_id=each)
    await handles[0].add_messages(name, [{"role": "user", "content": each, "message_id": each} for each in first])
    session = await handles[0].get_session(updated)
    assert session is not None

    async def update(number: int) -> Session | ConflictError:
        title = f"update-{number}"
        try:
            return await handles[number % HANDLES].update_session(
                updated,
                expected_revision=session["revision"],
                title=title,
                messages=[{"role": "user", "content": title, "message_id": title}],
            )
        except ConflictError as lost:
            return lost

    calls: list[Callable[[], Awaitable[Any]]] = [
        *(lambda number=number: handles[number % HANDLES].pop_message(name) for number in range(POPS)),
        *(
            lambda each=each, number=number: handles[number % HANDLES].add_message(name, "user", each, message_id=each)
            for number, each in enumerate(added)
        ),
        *(lambda number=number: update(number) for number in range(UPDATES)),
    ]
    order = chance.sample(range(len(calls)), len(calls))
    answers = dict(zip(order, await asyncio.gather(*(calls[place]() for place in order)), strict=True))
    ends = [answers[place] for place in range(len(calls))]
    return Race(name, first, added, ends[:POPS], ends[-UPDATES:])


async def judge(handles: Sequence[Memory], one: Race) -> list[str]:
    """Return what is wrong in the store after a race; a later message must find its place at the end."""
    last = await handles[-1].add_message(one.session, "user", "afterwards", message_id="last")
    left = [each["id"] for each in await handles[1].get_history(one.session)]
    wrong = [] if left[-1:] == [last] else [f"the message that was added last is not at the end: {left}"]
    wrong += one.list_wrong_pops([each for each in left if each != last])
    session = await handles[2].get_session(f"{one.session}-updated")
    assert session is not None
    appended = await handles[1].get_history(session["id"])
    return wrong + one.list_wrong_updates(session, [each["content"] for each in appended])


async def run(engine: str, make: Callable[[], Memory], seed: int, goes_on: Callable[[Tally], bool]) -> Tally:
    """Race round after round while `goes_on` says so; each handle comes from `make`."""
    tally = Tally(engine, seed)
    chance = random.Random(seed)
    began = time.process_time()
    async with AsyncExitStack() as stack:
        handles = [await stack.enter_async_context(make()) for _ in range(HANDLES)]
        while goes_on(tally):
            with deadline(ROUND_SECONDS):
                one = await race(handles, chance, f"round-{tally.rounds}")
                wrong = await judge(handles, one)
                for session in (one.session, f"{one.session}-updated"):
                    await handles[3].delete_session(session)
            tally.wrong += [f"round {tally.rounds}: {sentence}" for sentence in wrong]
            tally.rounds += 1
            tally.pops += POPS
            tally.updates += UPDATES
    tally.cpu_seconds = round(time.process_time() - began, 1)
    return tally


@click.command(help=__doc__)
@click.option("--engine", type=click.Choice(["postgres", "sqlite"]), required=True)
@click.option("--seconds", type=float, default=60.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def main(engine: str, seconds: float, seed: int) -> None:
    """Race, and print the tally."""
    with ExitStack() as stack:
        make: Callable[[], Memory]
        if engine == "postgres":
            make = partial(PostgresConversationMemory, stack.enter_context(run_cluster(durable=False)).dsn)
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            make = partial(ConversationMemory, Path(directory) / "chat.db")
        until = time.monotonic() + seconds
        tally = asyncio.run(run(engine, make, seed, lambda _: time.monotonic() < until))
    click.echo(json.dumps(asdict(tally), indent=2))
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    main()
