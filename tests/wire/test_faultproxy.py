"""The proxy that the faults are made with: every toxic, seen from both ends of a real connection."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faultproxy import NONE, Acks, FaultProxy, Toxics

ACK = b'MSG _INBOX.a.4 1 43\r\n{"stream":"trading-events", "seq":1234567}\n\r\n'


class Far:
    """A server that accepts, and the connections that it accepted."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]

    def accept(self) -> socket.socket:
        connection, _ = self.listener.accept()
        connection.settimeout(5)
        return connection


class Ends:
    """A proxy, and the two ends of connections through it."""

    def __init__(self) -> None:
        self.far = Far()
        self.proxy = FaultProxy(self.far.port)
        self._open: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """(our end, the server's)."""
        before = self.proxy.state().connected
        near = socket.create_connection(("127.0.0.1", self.proxy.port), 5)
        far = self.far.accept()
        while self.proxy.state().connected == before:
            time.sleep(0.001)
        self._open += [near, far]
        return near, far

    def close(self) -> None:
        self.proxy.close()
        for one in (*self._open, self.far.listener):
            one.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def read(end: socket.socket, size: int, timeout_s: float = 5.0) -> bytes:
    """So many bytes, or what came until the end of them or the timeout."""
    end.settimeout(timeout_s)
    data = b""
    with contextlib.suppress(TimeoutError):
        while len(data) < size and (more := end.recv(size - len(data))):
            data += more
    return data


def fill(end: socket.socket) -> int:
    """Write until nothing goes out any more; how many bytes did."""
    end.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 50_000_000:
            sent += end.send(b"x" * 65536)
    return sent


class TestForwarding:
    """Without toxics, and with those that only delay."""

    def test_bytes_and_ends_pass_both_ways(self, ends: Ends) -> None:
        """A megabyte each way at once, whole and in order; the end of one way leaves the other open."""
        near, far = ends.connect()
        sent = bytes(range(256)) * 4096
        threading.Thread(target=near.sendall, args=(sent,)).start()
        threading.Thread(target=far.sendall, args=(sent[::-1],)).start()
        assert read(far, len(sent)) == sent
        assert read(near, len(sent)) == sent[::-1]
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        far.sendall(b"still")
        assert read(near, 5) == b"still"
        state = ends.proxy.state()
        assert (state.up_bytes, state.down_bytes, state.accepted) == (len(sent), len(sent) + 5, 1)

    def test_latency(self, ends: Ends) -> None:
        """Each piece comes that much later, and the pieces stay in order whatever the jitter."""
        near, far = ends.connect()
        ends.proxy.set(up=Toxics(latency_s=0.2, jitter_s=0.1))
        began = time.monotonic()
        for number in range(50):
            near.sendall(b"%02d" % number)
            time.sleep(0.002)
        assert read(far, 2) == b"00"
        assert time.monotonic() - began > 0.09
        assert read(far, 98) == b"".join(b"%02d" % number for number in range(1, 50))

    def test_rate_and_slices(self, ends: Ends) -> None:
        """100 kB at 100 kB a second take a second, in pieces."""
        near, far = ends.connect()
        ends.proxy.set(down=Toxics(rate_bytes_s=100_000, slice_bytes=1000))
        began = time.monotonic()
        far.sendall(b"x" * 100_000)
        assert len(read(near, 1000)) == 1000
        assert time.monotonic() - began < 0.9
        assert len(read(near, 99_000)) == 99_000
        assert time.monotonic() - began > 0.95

    def test_a_slow_close(self, ends: Ends) -> None:
        """The end comes later than the bytes."""
        near, far = ends.connect()
        ends.proxy.set(up=Toxics(close_delay_s=0.3))
        near.sendall(b"last")
        near.close()
        began = time.monotonic()
        assert read(far, 4) == b"last"
        assert far.recv(1) == b""
        assert time.monotonic() - began > 0.25


class TestLosing:
    """Toxics after which a connection is of no use."""

    def test_a_reset_after_so_many_bytes(self, ends: Ends) -> None:
        """Exactly so many pass, then both ends are reset."""
        near, far = ends.connect()
        ends.proxy.set(up=Toxics(reset_after_bytes=1000))
        near.sendall(b"x" * 5000)
        with pytest.raises(ConnectionResetError):
            read(far, 5000)
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        assert ends.proxy.state().up_bytes == 1000
        assert ends.proxy.state().resets == 1

    def test_a_server_that_never_speaks(self, ends: Ends) -> None:
        """Connections are accepted, what is sent vanishes; afterwards such a connection is reset, a new one serves."""
        ends.proxy.set(up=Toxics(discard=True), down=Toxics(discard=True))
        near, far = ends.connect()
        far.sendall(b"INFO {}\r\n")
        near.sendall(b"CONNECT {}\r\n")
        assert read(near, 1, 0.2) == read(far, 1, 0.1) == b""
        ends.proxy.clear()
        with pytest.raises(ConnectionResetError):
            read(near, 1)
        near, far = ends.connect()
        far.sendall(b"INFO")
        assert read(near, 4) == b"INFO"

    def test_what_is_held_comes_after_its_sender_has_gone(self, ends: Ends) -> None:
        """Held for the open connection only: a newer one overtakes it, and what was held comes later, whole."""
        near, far = ends.connect()
        ends.proxy.set(up=Toxics(hold=True), open_only=True)
        near.sendall(b"old")
        near.close()
        assert read(far, 1, 0.2) == b""
        newer, other = ends.connect()
        newer.sendall(b"new")
        assert read(other, 3) == b"new"
        ends.proxy.set(up=NONE)
        assert read(far, 3) == b"old"
        assert far.recv(1) == b""

    def test_a_stall_is_nobody_who_reads(self, ends: Ends) -> None:
        """The sender's window fills up and nothing else happens; afterwards everything comes."""
        near, far = ends.connect()
        ends.proxy.set(up=Toxics(stall=True))
        sent = fill(near)
        assert 0 < sent < 50_000_000
        assert read(far, 1, 0.1) == b""
        ends.proxy.clear()
        assert len(read(far, sent)) == sent

    def test_a_reset_on_demand_and_a_server_that_is_not_there(self, ends: Ends) -> None:
        """Every connection is reset; with no server behind it a connection is closed at once."""
        near, far = ends.connect()
        ends.proxy.reset()
        for end in (near, far):
            with pytest.raises(ConnectionResetError):
                read(end, 1)
        ends.far.listener.close()
        again = socket.create_connection(("127.0.0.1", ends.proxy.port), 5)
        with contextlib.suppress(ConnectionResetError):
            assert again.recv(1) == b""
        again.close()


class TestAcknowledgements:
    """The cut behind the k-th of them."""

    def test_nothing_passes_behind_the_last_one(self, ends: Ends) -> None:
        """Two pass, wherever the pieces end; then nothing in either direction, until it is over: then a reset."""
        near, far = ends.connect()
        ends.proxy.cut_after_acks(2)
        sent = b"PING\r\n" + ACK + b'MSG a.r1 1 12\r\n{"type":"x"}\r\n' + ACK + b"PONG\r\n" + ACK
        for place in range(0, len(sent), 7):
            far.sendall(sent[place : place + 7])
        state = ends.proxy.await_cut()
        near.sendall(b"HPUB")
        assert read(near, len(sent), 0.3) == sent[: sent.rfind(b"PONG")]
        assert read(far, 1, 0.1) == b""
        assert state.acks == 2
        ends.proxy.clear()
        with pytest.raises(ConnectionResetError):
            read(near, 1)

    def test_what_is_one(self) -> None:
        """Neither another message of JetStream's, nor one that looks like one inside another."""
        acks = Acks()
        inner = b'MSG a 1 %d\r\n{"type":"y", "x":' % (len(ACK) + 16) + ACK + b"\r\n"
        assert acks.feed(b"INFO {}\r\n" + inner[:20]) == []
        assert acks.feed(inner[20:]) == []
        assert acks.feed(ACK + ACK[:-1]) == [len(ACK)]
        assert acks.feed(ACK[-1:]) == [1]
