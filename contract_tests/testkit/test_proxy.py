"""Tests the proxy with a server of one line: each break happens at its byte, in its direction, and only there."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from flux_memory.testkit import Proxy

SECONDS = 5.0


class Upper(socketserver.StreamRequestHandler):
    """Answers each line with its upper case, and keeps it."""

    def handle(self) -> None:
        for line in self.rfile:
            self.server.heard.append(line)  # type: ignore[attr-defined]
            self.wfile.write(line.upper())


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    address: tuple[str, int]
    heard: list[bytes]

    def handle_error(self, *_: object) -> None:
        """A client that is gone is not an error here."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Upper) as made:
        made.heard = []
        made.address = ("127.0.0.1", made.server_address[1])
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.address) as made:
        yield made


def connect(proxy: Proxy) -> Any:
    return closing(socket.create_connection(proxy.address, timeout=SECONDS))


def ask(client: socket.socket, text: bytes) -> bytes:
    """Send a line and return what arrives of its answer."""
    client.sendall(text + b"\n")
    got = b""
    while not got.endswith(b"\n") and (piece := client.recv(100)):
        got += piece
    return got


def test_the_url_of_a_server_leads_through_the_proxy() -> None:
    """User, path and query stay; the port is the proxy's."""
    with Proxy("redis://ann:secret@127.0.0.1/3?a=b") as proxy:
        assert proxy.dsn == f"redis://ann:secret@127.0.0.1:{proxy.port}/3?a=b"
    with pytest.raises(ValueError, match="has no port"):
        Proxy("strange://127.0.0.1/")


@pytest.mark.parametrize("how", ["reset", "close", "half-close"])
def test_a_request_is_cut_at_its_byte(server: Server, proxy: Proxy, how: Any) -> None:
    """The server gets the bytes before, the client an end, and the next connection works."""
    with connect(proxy) as client:
        assert ask(client, b"one") == b"ONE\n"
        proxy.cut(2, "request", how)
        try:
            assert ask(client, b"two") == b""
        except ConnectionResetError:
            assert how == "reset"
    with connect(proxy) as client:
        assert ask(client, b"three") == b"THREE\n"
    assert b"two\n" not in server.heard


@pytest.mark.parametrize("how", ["reset", "close", "half-close"])
def test_a_reply_is_cut_at_its_byte(server: Server, proxy: Proxy, how: Any) -> None:
    """The server has processed the request, and the client gets the bytes before."""
    with connect(proxy) as client:
        assert ask(client, b"one") == b"ONE\n"
        proxy.cut(2, "reply", how)
        client.sendall(b"two\n")
        got = client.recv(100)
        assert got == b"TW"
        try:
            assert client.recv(100) == b""
        except ConnectionResetError:
            assert how == "reset"
    assert server.heard == [b"one\n", b"two\n"]


def test_the_end_of_a_half_closed_connection_reaches_the_server(server: Server, proxy: Proxy) -> None:
    """The client hears nothing more, the server still does, and neither keeps the connection."""
    with connect(proxy) as client:
        proxy.cut(0, "reply", "half-close")
        assert ask(client, b"one") == b""
        client.sendall(b"two\n")
    ends = time.monotonic() + SECONDS
    while proxy.connections and time.monotonic() < ends:
        time.sleep(0.001)
    assert proxy.connections == 0
    assert server.heard == [b"one\n", b"two\n"]


def test_a_silent_cut_is_no_end(server: Server, proxy: Proxy) -> None:
    """The client hears nothing any more until the network is healed, which resets the connection."""
    with connect(proxy) as client, connect(proxy) as other:
        proxy.cut(0, "reply", "silence")
        client.sendall(b"one\n")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(100)
        assert ask(other, b"two") == b"TWO\n"
        proxy.heal()
        client.settimeout(SECONDS)
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    assert server.heard == [b"one\n", b"two\n"]


def test_the_reply_of_a_later_exchange_is_lost(server: Server, proxy: Proxy) -> None:
    """Earlier exchanges pass; the server processes the one whose reply is lost."""
    with connect(proxy) as client:
        assert ask(client, b"one") == b"ONE\n"
        proxy.lose_reply(2)
        assert ask(client, b"two") == b"TWO\n"
        with pytest.raises(ConnectionResetError):
            ask(client, b"three")
    with connect(proxy) as client:
        assert ask(client, b"four") == b"FOUR\n"
    assert server.heard == [b"one\n", b"two\n", b"three\n", b"four\n"]


def test_held_replies_arrive_later(server: Server, proxy: Proxy) -> None:
    """They are neither lost nor sooner there than the hold ends."""
    with connect(proxy) as client:
        proxy.hold()
        client.sendall(b"one\n")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.settimeout(SECONDS)
        proxy.heal()
        assert client.recv(100) == b"ONE\n"
    assert server.heard == [b"one\n"]


def test_idle_connections_are_closed_in_order(proxy: Proxy) -> None:
    """The client reads the end of the stream, without an error; refused ones are an error until the network heals."""
    with connect(proxy) as client, connect(proxy) as other:
        assert (ask(client, b"one"), ask(other, b"two")) == (b"ONE\n", b"TWO\n")
        proxy.hang_up()
        assert client.recv(100) == other.recv(100) == b""
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.heal()
    with connect(proxy) as client:
        assert ask(client, b"three") == b"THREE\n"


def test_traffic_is_counted_in_turns(proxy: Proxy) -> None:
    """A request and its reply are a turn each."""
    with connect(proxy) as client:
        with proxy.watch() as turns:
            ask(client, b"one")
            ask(client, b"three")
        assert turns == [("request", 4), ("reply", 4), ("request", 6), ("reply", 6)]


def test_a_delayed_reply_takes_both_ways(proxy: Proxy) -> None:
    """A delay or a low rate changes no byte."""
    with connect(proxy) as client:
        proxy.delay(0.01)
        assert ask(client, b"one") == b"ONE\n"
        proxy.slow(10_000)
        assert ask(client, b"two") == b"TWO\n"
