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
    from flux_memory.operations.top import Reading

_TWO_COLUMNS: Final = 110
"""Columns of a terminal that shows two tables beside each other."""
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_LONG_TRANSACTION_SECONDS: Final = 60.0
"""Seconds after which an open transaction is shown as a problem: it keeps dead rows."""
_MANY_DEAD_ROWS: Final = 1_000
"""Dead rows below which their share means nothing."""
_FEW_DEAD_ROWS: Final = 100
"""Dead rows below which a table shows their number."""
_MUCH_DEAD: Final = 0.2
"""Share of dead rows at which autovacuum has work to do, by its defaults."""


def draw(reading: Reading, width: int, *, note: str = "") -> RenderableType:
    """Return a reading as a screen.

    Args:
        reading: The reading.
        width: Columns of the terminal.
        note: A line at the end.
    """
    left: list[RenderableType] = [_newest(reading)]
    right: list[RenderableType] = []
    for table in (_waits(reading), _applications(reading), _sizes(reading), _replicas(reading)):
        if table is not None:
            right += [table, _text("")]
    body: RenderableType
    if width >= _TWO_COLUMNS:
        grid = Table.grid(expand=True, padding=(0, 2))
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(Group(*left), Group(*right))
        body = grid
    else:
        body = Group(*right, *left)
    remarks = [_text(f"not shown: {each}", "yellow") for each in reading.missing]
    return Group(_head(reading), _text(""), body, *remarks, *([_text(note, "dim")] if note else []))


def as_line(reading: Reading) -> str:
    """Return a reading as one line of `name=value`."""
    values = {
        "sessions": reading.sessions,
        "messages": reading.messages,
        "adds/min": None if reading.adds_per_minute is None else round(reading.adds_per_minute),
        "size": _bytes(reading.size_bytes),
        "connections": reading.connections,
        "waiting": reading.waiting,
        "dead": _percent(_dead_share(reading)),
        "free": _bytes(reading.free_bytes),
        "wal": _bytes(reading.log_bytes),
        "lag": _lag(reading),
    }
    shown = " ".join(f"{name}={value}" for name, value in values.items() if value not in {None, ""})
    return printable(f"{reading.at:%Y-%m-%dT%H:%M:%SZ} {shown}")


def as_json(reading: Reading) -> str:
    """Return a reading as one JSON object on one line."""
    fields = dataclasses.asdict(reading)
    del fields["inserted"]
    return printable(json.dumps({**fields, "at": reading.at.isoformat()}))


def print_screen(reading: Reading) -> None:
    """Print a reading once, without a live display."""
    console = Console(highlight=False)
    console.print(draw(reading, console.width))


def _head(reading: Reading) -> Group:
    role = f", {reading.role}" if reading.role else ""
    first = Text.assemble(
        ("flux-memory top  ", "bold"),
        printable(f"{reading.server}{role}  {reading.at:%H:%M:%S} UTC"),
        overflow="ellipsis",
        no_wrap=True,
    )
    target = _text(reading.target, "dim")
    target.overflow, target.no_wrap = "ellipsis", True
    parts = [
        f"about {reading.sessions:,} sessions" if reading.sessions is not None else "",
        f"about {reading.messages:,} messages" if reading.messages is not None else "",
        "adds: measuring" if reading.adds_per_minute is None else f"{reading.adds_per_minute:,.0f} adds a minute",
        f"{_bytes(reading.size_bytes)}" if reading.size_bytes is not None else "",
    ]
    if reading.max_connections:
        parts.append(f"{reading.connections} of {reading.max_connections} connections")
    elif reading.connections is not None:
        parts.append(f"open in {reading.connections} other processes")
    numbers = _text(in_number("   ".join(part for part in parts if part)), "bold cyan")
    return Group(first, target, numbers, *_problems(reading))


def _problems(reading: Reading) -> list[Text]:
    found = []
    if reading.waiting:
        found.append("1 connection waits" if reading.waiting == 1 else f"{reading.waiting} connections wait")
        found[-1] += " for a lock"
    if (age := reading.oldest_transaction_seconds) is not None and age >= _LONG_TRANSACTION_SECONDS:
        found.append(f"a transaction is open for {_age(age)}, and keeps dead rows")
    dead = sum(each.dead_rows for each in reading.tables)
    if dead >= _MANY_DEAD_ROWS and (share := _dead_share(reading)) is not None and share >= _MUCH_DEAD:
        found.append(f"{_percent(share)} of the rows are dead")
    return [_text(each, "bold red") for each in found]


def _newest(reading: Reading) -> Table:
    table = _table("Newest sessions")
    table.add_column("session", overflow="ellipsis", no_wrap=True, ratio=3)
    table.add_column("user", overflow="ellipsis", no_wrap=True, ratio=2)
    table.add_column("messages", justify="right", no_wrap=True)
    table.add_column("changed", justify="right", no_wrap=True)
    for each in reading.newest:
        table.add_row(_text(each.id), _text(each.user_id), f"{each.messages:,}", f"{_age(each.age_seconds)} ago")
    if not reading.newest:
        table.add_row(_text("none", "dim"))
    return table


def _applications(reading: Reading) -> Table | None:
    if not reading.applications:
        return None
    if reading.max_connections is None:
        table = _table("Other processes with the file open")
        table.add_column("program", overflow="ellipsis", no_wrap=True)
        table.add_column("")
        for each in reading.applications:
            table.add_row(_text(each.name), _text(each.role))
        return table
    table = _table("Connections by application")
    table.add_column("application", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("role", overflow="ellipsis", no_wrap=True)
    for name in ("open", "active", "in transaction"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in reading.applications[:8]:
        counts = [each.connections, each.active, each.idle_in_transaction]
        table.add_row(
            _text(each.name or "(no name)"),
            _text(each.role),
            *("?" if count is None else str(count) for count in counts),
        )
    return table


def _waits(reading: Reading) -> Table | None:
    if not reading.waits:
        return None
    table = _table(f"Waiting for locks: {reading.waiting}", "red")
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("waits for", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("held by pid", overflow="ellipsis", no_wrap=True)
    table.add_column("since", justify="right", no_wrap=True)
    for each in reading.waits:
        holders = ", ".join(map(str, each.blocked_by))
        table.add_row(str(each.pid), _text(f"{each.what} ({each.application})"), holders, _age(each.seconds))
    return table


def _sizes(reading: Reading) -> Table | None:
    if reading.free_bytes is not None:
        table = _table("File")
        table.add_column("part")
        table.add_column("size", justify="right", no_wrap=True)
        for name, size in (
            ("pages", reading.size_bytes),
            ("of these free", reading.free_bytes),
            ("write-ahead log", reading.log_bytes),
        ):
            table.add_row(name, _bytes(size))
        return table
    if not reading.tables:
        return None
    table = _table("Tables with their indexes")
    table.add_column("table", no_wrap=True, ratio=1)
    for name in ("size", "rows, about", "dead"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in reading.tables:
        dead = each.dead_rows / max(each.rows + each.dead_rows, 1)
        shown = _percent(dead) if each.dead_rows >= _FEW_DEAD_ROWS else f"{each.dead_rows} rows"
        table.add_row(each.name, _bytes(each.size_bytes), f"{each.rows:,}", in_number(shown or ""))
    return table


def _replicas(reading: Reading) -> Table | None:
    if reading.behind_bytes is not None:
        table = _table("This standby")
        table.add_column("received and not yet replayed")
        table.add_row(_bytes(reading.behind_bytes))
        return table
    if not reading.replicas:
        return None
    table = _table("Replicas")
    table.add_column("replica", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("state", no_wrap=True)
    table.add_column("behind", justify="right", no_wrap=True)
    table.add_column("lag", justify="right", no_wrap=True)
    for each in reading.replicas:
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


def _dead_share(reading: Reading) -> float | None:
    if not reading.tables:
        return None
    dead = sum(each.dead_rows for each in reading.tables)
    return dead / max(sum(each.rows for each in reading.tables) + dead, 1)


def _lag(reading: Reading) -> str | None:
    if reading.behind_bytes is not None:
        return _bytes(reading.behind_bytes)
    known = [each.behind_bytes for each in reading.replicas if each.behind_bytes is not None]
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
