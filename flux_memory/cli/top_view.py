"""Draws a reading of `flux-memory top`: a screen for a terminal of any width, one line elsewhere, or JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flux_memory.cli.failure import in_number
from flux_memory.records.printing import printable

if TYPE_CHECKING:
    from flux_memory.operations.top import Snapshot

_TWO_COLUMNS: Final = 110
"""Columns of a terminal that shows two tables beside each other."""
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_LONG_TRANSACTION_SECONDS: Final = 60.0
"""Seconds after which an open transaction is shown as a problem: it keeps dead rows."""
_MANY_DEAD_ROWS: Final = 1_000
"""Dead rows below which their share means nothing."""
_MUCH_DEAD: Final = 0.2
"""Share of dead rows at which autovacuum has work to do, by its defaults."""


def draw(snapshot: Snapshot, width: int, *, note: str = "") -> RenderableType:
    """Return a reading as a screen.

    Args:
        snapshot: The reading.
        width: Columns of the terminal.
        note: A line at the end.
    """
    left = [_newest(snapshot)]
    right = [
        each for each in (_waits(snapshot), _applications(snapshot), _sizes(snapshot), _replicas(snapshot)) if each
    ]
    body: RenderableType
    if width >= _TWO_COLUMNS:
        grid = Table.grid(expand=True, padding=(0, 2))
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(Group(*left), Group(*right))
        body = grid
    else:
        body = Group(*right, *left)
    remarks = [_text(f"not shown: {each}", "yellow") for each in snapshot.missing]
    return Group(_head(snapshot), _text(""), body, *remarks, *([_text(note, "dim")] if note else []))


def as_line(snapshot: Snapshot) -> str:
    """Return a reading as one line of `name=value`."""
    values = {
        "sessions": snapshot.sessions,
        "messages": snapshot.messages,
        "adds/min": None if snapshot.adds_per_minute is None else round(snapshot.adds_per_minute),
        "size": _bytes(snapshot.size_bytes),
        "connections": snapshot.connections,
        "waiting": snapshot.waiting,
        "dead": _percent(_dead_share(snapshot)),
        "free": _bytes(snapshot.free_bytes),
        "wal": _bytes(snapshot.log_bytes),
        "lag": _lag(snapshot),
    }
    shown = " ".join(f"{name}={value}" for name, value in values.items() if value not in {None, ""})
    return printable(f"{snapshot.at:%Y-%m-%dT%H:%M:%SZ} {shown}")


def as_json(snapshot: Snapshot) -> str:
    """Return a reading as one JSON object on one line."""
    fields = dataclasses.asdict(snapshot)
    del fields["inserted"]
    return printable(json.dumps({**fields, "at": snapshot.at.isoformat()}))


def print_screen(snapshot: Snapshot) -> None:
    """Print a reading once, without a live display."""
    console = Console(highlight=False)
    console.print(draw(snapshot, console.width))


def _head(snapshot: Snapshot) -> Group:
    role = f", {snapshot.role}" if snapshot.role else ""
    first = Text.assemble(
        ("flux-memory top  ", "bold"),
        printable(f"{snapshot.server}{role}  {snapshot.at:%H:%M:%S} UTC"),
        overflow="ellipsis",
        no_wrap=True,
    )
    target = _text(snapshot.target, "dim")
    target.overflow, target.no_wrap = "ellipsis", True
    parts = [
        f"about {snapshot.sessions:,} sessions" if snapshot.sessions is not None else "",
        f"about {snapshot.messages:,} messages" if snapshot.messages is not None else "",
        "adds: measuring" if snapshot.adds_per_minute is None else f"{snapshot.adds_per_minute:,.0f} adds a minute",
        f"{_bytes(snapshot.size_bytes)}" if snapshot.size_bytes is not None else "",
    ]
    if snapshot.max_connections:
        parts.append(f"{snapshot.connections} of {snapshot.max_connections} connections")
    elif snapshot.connections is not None:
        parts.append(f"open in {snapshot.connections} other processes")
    numbers = _text(in_number("   ".join(part for part in parts if part)), "bold cyan")
    return Group(first, target, numbers, *_problems(snapshot))


def _problems(snapshot: Snapshot) -> list[Text]:
    found = []
    if snapshot.waiting:
        found.append("1 connection waits" if snapshot.waiting == 1 else f"{snapshot.waiting} connections wait")
        found[-1] += " for a lock"
    if (age := snapshot.oldest_transaction_seconds) is not None and age >= _LONG_TRANSACTION_SECONDS:
        found.append(f"a transaction is open for {_age(age)}, and keeps dead rows")
    dead = sum(each.dead_rows for each in snapshot.tables)
    if dead >= _MANY_DEAD_ROWS and (share := _dead_share(snapshot)) is not None and share >= _MUCH_DEAD:
        found.append(f"{_percent(share)} of the rows are dead")
    return [_text(each, "bold red") for each in found]


def _newest(snapshot: Snapshot) -> Table:
    table = _table("Newest sessions")
    table.add_column("session", overflow="ellipsis", no_wrap=True, ratio=3)
    table.add_column("user", overflow="ellipsis", no_wrap=True, ratio=2)
    table.add_column("messages", justify="right", no_wrap=True)
    table.add_column("changed", justify="right", no_wrap=True)
    for each in snapshot.newest:
        table.add_row(_text(each.id), _text(each.user_id), f"{each.messages:,}", f"{_age(each.age_seconds)} ago")
    if not snapshot.newest:
        table.add_row(_text("none", "dim"))
    return table


def _applications(snapshot: Snapshot) -> Table | None:
    if not snapshot.applications:
        return None
    if snapshot.max_connections is None:
        table = _table("Other processes with the file open")
        table.add_column("program", overflow="ellipsis", no_wrap=True)
        table.add_column("")
        for each in snapshot.applications:
            table.add_row(_text(each.name), _text(each.role))
        return table
    table = _table("Connections by application")
    table.add_column("application", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("role", overflow="ellipsis", no_wrap=True)
    for name in ("open", "active", "in transaction"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in snapshot.applications[:8]:
        counts = [each.connections, each.active, each.idle_in_transaction]
        table.add_row(
            _text(each.name or "(no name)"),
            _text(each.role),
            *("?" if count is None else str(count) for count in counts),
        )
    return table


def _waits(snapshot: Snapshot) -> Table | None:
    if not snapshot.waits:
        return None
    table = _table(f"Waiting for locks: {snapshot.waiting}", "red")
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("waits for", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("held by pid", overflow="ellipsis", no_wrap=True)
    table.add_column("since", justify="right", no_wrap=True)
    for each in snapshot.waits:
        holders = ", ".join(map(str, each.blocked_by))
        table.add_row(str(each.pid), _text(f"{each.what} ({each.application})"), holders, _age(each.seconds))
    return table


def _sizes(snapshot: Snapshot) -> Table | None:
    if snapshot.free_bytes is not None:
        table = _table("File")
        table.add_column("part")
        table.add_column("size", justify="right", no_wrap=True)
        for name, size in (
            ("pages", snapshot.size_bytes),
            ("of these free", snapshot.free_bytes),
            ("write-ahead log", snapshot.log_bytes),
        ):
            table.add_row(name, _bytes(size))
        return table
    if not snapshot.tables:
        return None
    table = _table("Tables with their indexes")
    table.add_column("table", no_wrap=True, ratio=1)
    for name in ("size", "rows, about", "dead"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in snapshot.tables:
        dead = each.dead_rows / max(each.rows + each.dead_rows, 1)
        table.add_row(each.name, _bytes(each.size_bytes), f"{each.rows:,}", _percent(dead))
    return table


def _replicas(snapshot: Snapshot) -> Table | None:
    if snapshot.behind_bytes is not None:
        table = _table("This standby")
        table.add_column("received and not yet replayed")
        table.add_row(_bytes(snapshot.behind_bytes))
        return table
    if not snapshot.replicas:
        return None
    table = _table("Replicas")
    table.add_column("replica", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("state", no_wrap=True)
    table.add_column("behind", justify="right", no_wrap=True)
    table.add_column("lag", justify="right", no_wrap=True)
    for each in snapshot.replicas:
        lag = "" if each.behind_seconds is None else f"{each.behind_seconds:.3f} s"
        table.add_row(_text(each.name), each.state, _bytes(each.behind_bytes), lag)
    return table


def _table(title: str, style: str = "bold") -> Table:
    return Table(
        title=title, title_justify="left", title_style=style, header_style="dim", box=None, expand=True, pad_edge=False
    )


def _text(words: str, style: str = "") -> Text:
    # Not markup: an id may contain brackets, or control codes.
    return Text(printable(words), style=style)


def _dead_share(snapshot: Snapshot) -> float | None:
    if not snapshot.tables:
        return None
    dead = sum(each.dead_rows for each in snapshot.tables)
    return dead / max(sum(each.rows for each in snapshot.tables) + dead, 1)


def _lag(snapshot: Snapshot) -> str | None:
    if snapshot.behind_bytes is not None:
        return _bytes(snapshot.behind_bytes)
    known = [each.behind_bytes for each in snapshot.replicas if each.behind_bytes is not None]
    return _bytes(max(known)) if known else None


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def _bytes(size: float | None) -> str:
    if size is None:
        return ""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.0f}{_UNITS[unit]}" if unit == 0 else f"{size:.1f}{_UNITS[unit]}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
