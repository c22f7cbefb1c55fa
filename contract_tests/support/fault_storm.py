"""The verdict on a storm: the writes that workers sent and their answers, checked against the stored data."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Final

AFTERWARDS: Final = "afterwards"
"""The content of messages added while nothing else runs."""


@dataclass(slots=True)
class StormWrite:
    """One write with all its attempts, which share their ids; a write without ids has one attempt."""

    session: str
    contents: Sequence[str]
    began: float
    message_id: str | None = None
    acknowledged_at: float = math.inf
    open: bool = False
    """Whether an attempt was cancelled or has an unknown outcome."""

    @property
    def refused(self) -> bool:
        """Whether every attempt failed with an error that says nothing was stored."""
        return self.acknowledged_at == math.inf and not self.open

    @property
    def acknowledged(self) -> bool:
        """Whether an attempt succeeded."""
        return self.acknowledged_at < math.inf


@dataclass
class Verdict:
    """The number of violations of each promise; all must be 0."""

    lost: int = 0
    doubled: int = 0
    refused_but_stored: int = 0
    half_stored: int = 0
    from_nowhere: int = 0
    out_of_order: int = 0
    counters_wrong: int = 0
    false_conflicts: int = 0
    foreign_errors: int = 0
    hung: int = 0
    failed_at_rest: int = 0
    """Adds that failed after the fault was over."""

    def add(self, other: Verdict) -> None:
        """Add the numbers of another round."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def is_clean(self) -> bool:
        """Whether every promise held."""
        return not any(asdict(self).values())


@dataclass
class Rest:
    """The stored data at rest, read without the library."""

    messages: list[tuple[str, int, str]]
    """Session, number and content, ordered by session and number."""
    sessions: list[tuple[str, str, int, str]]
    """Id, title, message count, and the name in the metadata that identifies a created session."""


@dataclass
class Round:
    """The writes of one round."""

    sessions: list[str]
    messages: list[StormWrite] = field(default_factory=list)
    created: list[StormWrite] = field(default_factory=list)
    """Creations of sessions; their content is the name in the session's metadata."""
    titles: list[StormWrite] = field(default_factory=list)

    def judge(self, rest: Rest) -> Verdict:
        """Return the violations of this round."""
        verdict = Verdict()
        self._judge_messages(rest, verdict)
        self._judge_counters(rest, verdict)
        names = Counter(name for _, _, _, name in rest.sessions if name)
        _judge_presence(self.created, lambda sent: [names[sent.contents[0]]], verdict)
        titles = {id_: title for id_, title, _, _ in rest.sessions}
        verdict.refused_but_stored += sum(
            sent.refused and titles[sent.session] in sent.contents for sent in self.titles
        )
        return verdict

    def _judge_messages(self, rest: Rest, verdict: Verdict) -> None:
        own = set(self.sessions)
        found = Counter((session, content) for session, _, content in rest.messages if session in own)
        _judge_presence(
            self.messages, lambda sent: [found[sent.session, content] for content in sent.contents], verdict
        )
        by_content = {(sent.session, content): sent for sent in self.messages for content in sent.contents}
        histories: defaultdict[str, list[str]] = defaultdict(list)
        for session, _, content in rest.messages:
            if session in own and content != AFTERWARDS:
                histories[session].append(content)
        for session, history in histories.items():
            known = [by_content[session, content] for content in history if (session, content) in by_content]
            verdict.from_nowhere += len(history) - len(known)
            verdict.out_of_order += _out_of_order(known) + _batches_out_of_order(history, known)

    def _judge_counters(self, rest: Rest, verdict: Verdict) -> None:
        numbers: defaultdict[str, list[int]] = defaultdict(list)
        for session, number, _ in rest.messages:
            numbers[session].append(number)
        told = {id_: count for id_, _, count, _ in rest.sessions}
        for session in self.sessions:
            wrong = numbers[session] != [*range(1, len(numbers[session]) + 1)]
            verdict.counters_wrong += wrong or told[session] != len(numbers[session])


def _judge_presence(sent: Iterable[StormWrite], counts_of: Callable[[StormWrite], list[int]], verdict: Verdict) -> None:
    for one in sent:
        counts = counts_of(one)
        present = sum(count > 0 for count in counts)
        verdict.doubled += sum(count > 1 for count in counts)
        if one.acknowledged:
            verdict.lost += len(counts) - present
        elif one.refused:
            verdict.refused_but_stored += present
        else:
            verdict.half_stored += 0 < present < len(counts)


def _out_of_order(history: Sequence[StormWrite]) -> int:
    """Count messages stored before one that was acknowledged before they were sent."""
    earliest, wrong = math.inf, 0
    for sent in reversed(history):
        wrong += earliest < sent.began
        earliest = min(earliest, sent.acknowledged_at)
    return wrong


def _batches_out_of_order(history: Sequence[str], known: Sequence[StormWrite]) -> int:
    places = {content: place for place, content in enumerate(history)}
    batches = {id(sent): sent for sent in known if len(sent.contents) > 1}.values()
    wrong = 0
    for sent in batches:
        found = [places[content] for content in sent.contents if content in places]
        wrong += found != sorted(found)
    return wrong
