"""Reads the hosts and ports of a DSN and of the environment."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Final
from urllib.parse import unquote

from flux_memory.errors import InvalidInputError
from flux_memory.masking import ESCAPE

Address = tuple[str, int]
"""A host name, an IP address or the directory of a Unix socket; and a port."""
_DEFAULT_PORT: Final = 5432
_HOST: Final = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<name>[^\[\]:]+))(?::(?P<port>.*))?")


def read_addresses(netloc: str, hosts: str, ports: str) -> tuple[Address, ...]:
    """Return the addresses in the order to try them; the host is empty if no place names one.

    Args:
        netloc: The hosts before the DSN's database, as written.
        hosts: The DSN's parameter `host`.
        ports: The DSN's parameter `port`.

    Raises:
        InvalidInputError: A host or a port is invalid, or given in two places.
    """
    if netloc and hosts:
        raise InvalidInputError("the DSN has hosts in two places; leave out the parameter 'host'")
    if not (netloc or hosts or os.environ.get("PGHOST")) and os.environ.get("PGSERVICE"):
        raise InvalidInputError(
            "the variable PGSERVICE is set, but service files are not read; write the host in the DSN, or unset it"
        )
    place = "the DSN" if netloc or hosts else "the variable PGHOST"
    written = netloc or hosts or os.environ.get("PGHOST", "")
    found = [_read_host(each, place, decode=bool(netloc)) for each in written.split(",")] if written else [("", "")]
    if ports and any(port for _, port in found):
        raise InvalidInputError("the DSN has ports in two places; leave out the parameter 'port'")
    if all(port for _, port in found):
        return tuple((host, int(port)) for host, port in found)
    defaults = _read_ports(ports)
    if len(defaults) not in {1, len(found)}:
        raise InvalidInputError("the numbers of ports and hosts differ; give one port, or one for each host")
    defaults *= len(found) // len(defaults)
    return tuple((host, int(port or default)) for (host, port), default in zip(found, defaults, strict=True))


def _read_host(written: str, place: str, *, decode: bool) -> tuple[str, str]:
    """Return a host, and its port or an empty text."""
    if not decode and (written.startswith("/") or _is_ipv6(written)):
        return written, ""
    if _is_ipv6(written) or _is_ipv6(written.rpartition(":")[0]):
        raise InvalidInputError(f"{place} has an IPv6 address without brackets; write it as in [::1]:5432")
    found = _HOST.fullmatch(written)
    host = found and (found["bracketed"] or found["name"])
    port = (found and found["port"]) or ""
    if decode:
        host, port = unquote(host or ""), unquote(port)
    if not host or (port and not _is_port(port)):
        advice = ESCAPE if place == "the DSN" else "correct it"
        raise InvalidInputError(f"{place} has an empty host name or an invalid port; {advice}")
    if found is not None and found["bracketed"] and not _is_ipv6(host):
        raise InvalidInputError(f"{place} has brackets around what is not an IPv6 address; {ESCAPE}")
    try:
        host.encode("idna" if not host.startswith("/") else "utf-8")
    except UnicodeError:
        raise InvalidInputError(f"{place} has an invalid host name; correct it") from None
    return host, port


def _read_ports(written: str) -> list[int]:
    """Return the ports of the DSN's parameter, or else of the environment."""
    place = "the DSN's parameter 'port'"
    if not written:
        place, written = "the variable PGPORT", os.environ.get("PGPORT", "")
    ports = written.split(",") if written else [str(_DEFAULT_PORT)]
    if not all(map(_is_port, ports)):
        advice = "correct it" if place.startswith("the DSN") else "unset it, or write the port in the DSN"
        raise InvalidInputError(f"{place} is not a port from 1 to 65535; {advice}")
    return [int(port) for port in ports]


def _is_port(text: str) -> bool:
    """Return whether a text is the number of a TCP port."""
    return re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) < 65536


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
