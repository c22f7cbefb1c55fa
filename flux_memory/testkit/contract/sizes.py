"""Clauses on sizes: contents, metadata and histories of many megabytes, which a store must not cut."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from random import Random
from typing import Any, Final

from flux_memory import MAX_METADATA_BYTES, Memory
from flux_memory.testkit.capabilities import NOTHING, Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle, contents

KIB: Final = 1 << 10
MIB: Final = 1 << 20

_TEXT: Final = b64encode(Random(0).randbytes(3 * MIB // 4)).decode() + "and no power of 2"  # noqa: S311 - no secret
"""Repeated, it differs in each chunk of any usual size. No store compresses it, which takes longer than to store it."""

PART: Final = "0123456789abcde\n" * (1 << 16)
"""One MiB of text."""
PARTS: Final = 17
"""Messages of one part each: more MiB than stores commonly allow in a request, a document or a response."""

USUAL_CAPS: Final = (64 * KIB, MIB, 4 * MIB, 16 * MIB)
"""Bytes at which columns, documents, packets or requests of usual stores end."""
POWERS: Final = tuple(1 << power for power in range(8, 27))
"""Bytes of every size class up to the limit of the library."""
LARGEST_HISTORY: Final = 65 * MIB
"""Bytes of a history."""
MOST_PARTS: Final = 128
"""Messages of that history on a store with a low limit."""


class SizesContract(Binding):
    """The promises for texts of any size up to the limits."""

    @clause(
        "FM-LIM-012",
        promise="A batch and a history of many megabytes (17 MiB) are stored and returned complete.",
        impact="Conversations with long documents lose messages, or cannot be read any more.",
        needs=NOTHING,
    )
    async def test_many_megabytes(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        texts = _parts_of(PART, store.max_content_bytes)
        if Capability.BATCH in store.capabilities:
            await memory.add_messages(session, [{"role": "user", "content": text} for text in texts])
        else:
            for text in texts:
                await memory.add_message(session, "user", text)
        for limit in (None, len(texts) - 1):
            # Compared outside the assert: pytest would spend minutes on showing the difference.
            history = contents(await memory.get_history(session, limit))
            same = history == texts[-limit:] if limit else history == texts
            assert same, f"{limit=}: {len(history)} messages of {sum(map(len, history))} characters, not those stored"

    @clause(
        "FM-AMT-003",
        promise="Content of any size up to the limit is returned unchanged through any handle, by the byte: around 64 "
        "KiB, 1 MiB, 4 MiB and 16 MiB, also if a character lies across such a size.",
        impact="A long document ends in the middle of a sentence, or of a character.",
        needs=NOTHING,
    )
    async def test_contents_around_usual_caps(self, store: StoreUnderTest) -> None:
        await _check_contents(
            store, *_two_handles(store), [size for cap in USUAL_CAPS for size in _around(cap, few=cap > MIB)]
        )

    @clause(
        "FM-AMT-009",
        promise="A large text is whole through each call that carries it: an update's title and messages, a fork with "
        "its title, a look-up and a pop, above 64 KiB, 1 MiB and 16 MiB.",
        impact="A long document that was stored whole is cut when the conversation is edited, copied or taken back.",
        needs=Capability.SESSION_UPDATES | Capability.SESSIONS | Capability.TITLES,
    )
    async def test_large_texts_through_each_call(self, store: StoreUnderTest) -> None:
        memory = store.open()
        for cap in (64 * KIB, MIB, 16 * MIB):
            text = (_TEXT * 17)[: min(cap + 1, store.max_content_bytes)]
            # The largest title takes as long as all the others together.
            whole = cap <= MIB or store.includes("a title of 16 MiB")
            title = text if whole else "title"
            session = await memory.create_session()
            batch: Any = [{"role": "user", "content": text}]
            returned: list[Any] = [await memory.update_session(session, title=title, messages=batch)]
            returned.append(await memory.get_session(session))
            (stored,) = await memory.get_history(session)
            if Capability.FORK in store.capabilities:
                # The text of the title, and of the original's.
                for given in ({"title": title}, {}) if whole else ({},):
                    fork = await memory.fork_session(session, **given)
                    returned.append(await memory.get_session(fork))
                    (copied,) = await memory.get_history(fork)
                    same = copied == stored
                    assert same, f"the copy of a message of {len(text)} characters has {len(copied['content'])}"
            same = stored["content"] == text and all(row["title"] == title for row in returned)
            assert same, f"an update or a fork did not keep {len(text)} characters"
            if Capability.MESSAGE_LOOKUP in store.capabilities:
                same = await memory.get_message(session, stored["id"]) == stored
                assert same, f"the look-up of a message of {len(text)} characters"
            if Capability.POP in store.capabilities:
                same = await memory.pop_message(session) == stored
                assert same, f"the pop of a message of {len(text)} characters"
            await memory.delete_session(session)

    @clause(
        "FM-AMT-004",
        promise="A message may be as large as the limit, and a history larger (65 MiB): it is returned complete, "
        "through any handle.",
        impact="Once a conversation is too large for one response, its oldest or newest messages are missing.",
        needs=NOTHING,
        thorough=True,
    )
    async def test_a_history_beyond_64_megabytes(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        limit = store.max_content_bytes
        largest, part = text_of(limit), text_of(min(limit, MIB))
        texts = [largest, *[part] * min((LARGEST_HISTORY - limit) // len(part), MOST_PARTS)]
        for text in texts:
            await memory.add_message(session, "user", text)
        found = contents(await another_handle(store, memory).get_history(session))
        assert len(found) == len(texts)
        for returned, text in zip(found, texts, strict=True):
            same = returned == text
            assert same, f"{len(returned):,} characters returned of a content of {len(text):,} characters"

    @clause(
        "FM-AMT-005",
        promise="Metadata of any size up to the limit (16 MiB) is returned unchanged through any handle, of messages "
        "and of sessions.",
        impact="The sources of an answer are lost, or the session that holds them cannot be listed any more.",
        needs=Capability.MESSAGE_METADATA,
        thorough=True,
    )
    async def test_metadata_around_usual_caps(self, store: StoreUnderTest) -> None:
        await _check_metadata(store, *_two_handles(store), [*_around(USUAL_CAPS[0]), _most_metadata(store)])

    @clause(
        "FM-AMT-006",
        promise="Content is returned unchanged just below, at and above each power of two up to the limit.",
        impact="Contents of one size, and of no other, come back empty or cut.",
        needs=NOTHING,
        thorough=True,
    )
    async def test_contents_of_every_size(self, store: StoreUnderTest) -> None:
        memory, reader = _two_handles(store)
        for power in POWERS:
            await _check_contents(store, memory, reader, list(_around(power)))

    @clause(
        "FM-AMT-007",
        promise="Metadata and titles are returned unchanged just below, at and above each power of two up to the "
        "limit.",
        impact="A title or metadata of one size, and of no other, comes back empty or cut.",
        needs=Capability.MESSAGE_METADATA | Capability.SESSIONS | Capability.TITLES,
        thorough=True,
    )
    async def test_metadata_and_titles_of_every_size(self, store: StoreUnderTest) -> None:
        memory, reader = _two_handles(store)
        for power in POWERS:
            await _check_metadata(store, memory, reader, list(_around(power)))
            session: str | None = None
            for size in _around(power):
                if size > store.max_content_bytes:
                    continue
                title = text_of(size)
                if session is None:
                    session = await memory.create_session(title)
                else:
                    await memory.update_session_title(session, title)
                for row in (await reader.get_session(session), *await reader.get_sessions()):
                    assert row is not None
                    same = row["title"] == title
                    assert same, f"{len(row['title']):,} characters returned of a title of {size:,} bytes"
            if session is not None:
                await memory.delete_session(session)


def _two_handles(store: StoreUnderTest) -> tuple[Memory, Memory]:
    memory = store.open()
    return memory, another_handle(store, memory)


def text_of(size: int) -> str:
    """Return a text of this many bytes; its fifth and fourth last bytes are one character."""
    start = size - len("\u00e9end".encode())
    return (_TEXT * (start // len(_TEXT) + 1))[:start] + "\u00e9end"


def _around(cap: int, *, few: bool = False) -> Iterator[int]:
    """Yield sizes around a cap; the last one has a character across it, and more characters than the cap."""
    if not few:
        yield from (cap - 1, cap)
    yield cap + 4


async def _check_contents(store: StoreUnderTest, memory: Memory, reader: Memory, sizes: list[int]) -> None:
    session = await memory.create_session()
    for size in sizes:
        if size > store.max_content_bytes:
            continue
        text = text_of(size)
        await memory.add_message(session, "user", text)
        (message,) = await reader.get_history(session, 1)
        same = message["content"] == text
        assert same, f"{len(message['content']):,} characters returned of a content of {size:,} bytes"
    await _forget(store, memory, session)


async def _check_metadata(store: StoreUnderTest, memory: Memory, reader: Memory, sizes: list[int]) -> None:
    session = await memory.create_session()
    for size in sizes:
        if size > _most_metadata(store):
            continue
        metadata = {"k": text_of(size - len('{"k":""}'))}
        await memory.add_message(session, "user", "text", metadata)
        (message,) = await reader.get_history(session, 1)
        _check_same("a message", message["metadata"], metadata, size)
        if Capability.SESSIONS | Capability.SESSION_METADATA in store.capabilities:
            other = await memory.create_session(metadata=metadata)
            listed = [row for row in await reader.get_sessions() if row["id"] == other]
            for row in (await reader.get_session(other), *listed):
                assert row is not None
                _check_same("a session", row["metadata"], metadata, size)
            await memory.delete_session(other)
    await _forget(store, memory, session)


def _most_metadata(store: StoreUnderTest) -> int:
    return min(MAX_METADATA_BYTES, store.max_content_bytes)


def _check_same(owner: str, found: dict[str, Any], metadata: dict[str, Any], size: int) -> None:
    same = found == metadata
    assert same, f"{len(str(found)):,} characters returned of {size:,} bytes of metadata of {owner}"


async def _forget(store: StoreUnderTest, memory: Memory, session: str) -> None:
    """Delete a session, so that the store does not grow by the sum of all sizes."""
    if Capability.SESSIONS in store.capabilities:
        await memory.delete_session(session)


def _parts_of(part: str, most: int) -> list[str]:
    """Return `PARTS` times a text of ASCII characters, in numbered texts of at most so many bytes each."""
    size = min(len(part), most - 16)
    return [f"{number} {part[:size]}" for number in range(PARTS * len(part) // size)]
