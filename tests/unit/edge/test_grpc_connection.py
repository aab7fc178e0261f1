"""One gRPC connection on a Clock: what waits, what is given up when, and that nothing is ever left."""

import random
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.http.capacity import Capacity
from gatewayd.push.grpc import ANSWER_S, FLUSH_BYTES, HELLO_S, IDLE_S, LINGER_S, SILENCE_S, STALL_S, Connection
from gatewayd.push.grpc_calls import DELIVERY_S, MESSAGE_S
from gatewayd.push.grpc_server import GrpcServer
from gatewayd.push.h2limits import REFUSED_STREAM
from gatewayd.push.h2wire import MAX_STREAMS, frames_agree
from gatewayd.push.health import Health
from gatewayd.schemas import edge_v1_pb2 as pb
from gatewayd.sessions.endings import SHUTTING_DOWN
from gatewayd.sessions.envelope import read_protobuf, write_protobuf
from tests.fakes.hub import FakeHub, make_event
from tests.fakes.pushing import FakeConnection, Pushing
from tests.h2peer import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    GRPC,
    HEADERS,
    PING,
    PREFACE,
    RESET,
    Frame,
    block,
    frame,
    head,
    message,
    settings,
    update,
)

SUBSCRIBE = "/gatewayd.edge.v1.EdgeGateway/SubscribeEvents"
WATCH = "/grpc.health.v1.Health/Watch"
HELLO = PREFACE + settings()
SWEEP_S = 1.0


def envelope(message_type: str, payload: bytes = b"payload") -> bytes:
    """A framed request; both methods' are the same bytes."""
    return message(
        pb.ExecuteCommandRequest(
            protocol_version="v1",
            device_session_id="device-1",
            message_type=message_type,
            timestamp_ms=1_700_000_000_000,
            request_id="request-1",
            payload_bytes=payload,
            payload_hash=b"h" * 32,
            signature=b"s" * 64,
        ).SerializeToString()
    )


def command(stream: int, message_type: str = "echo", payload: bytes = b"payload") -> bytes:
    """A whole command."""
    return head(stream) + frame(DATA, END_STREAM, stream, envelope(message_type, payload))


def subscription(stream: int) -> bytes:
    """A whole request for events."""
    return head(stream, path=SUBSCRIBE) + frame(DATA, END_STREAM, stream, envelope("events"))


def frames(data: bytes) -> list[Frame]:
    """Whole frames, taken apart."""
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        found.append(Frame(data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def kinds(data: bytes) -> list[tuple[int, int]]:
    """The kinds and streams of frames."""
    return [(one.kind, one.stream) for one in frames(data)]


class Transport(FakeConnection):
    """A transport that can be paused; `reading` says whether it is not."""

    def __init__(self, protocol: Any) -> None:
        self.reading = True
        super().__init__(protocol)

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def loseConnection(self) -> None:
        self.lose()


class Client:
    """A client of a server on a Clock."""

    def __init__(self, world: Pushing, server: GrpcServer, sent: bytes = HELLO) -> None:
        protocol = server.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1000))
        assert protocol is not None
        self.world = world
        self.connection: Connection = protocol
        self.transport = Transport(protocol)
        self.say(sent)

    def say(self, data: bytes) -> bytes:
        """Send; what comes back in this turn."""
        self.connection.dataReceived(data)
        self.world.soon.turn()
        return self.transport.take()


class Case(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _failures(self, no_logged_failures: list[LogEvent]) -> None:
        self.failures = no_logged_failures

    def setUp(self) -> None:
        self.world = Pushing()
        self.hub = FakeHub()
        self.server = self.make()

    def make(self, **bounds: Any) -> GrpcServer:
        """A server."""
        health = Health()
        health.set(True)
        return GrpcServer(
            read_envelope=read_protobuf,
            write_reply=write_protobuf,
            execute=self.hub.execute,
            subscribe=self.hub.subscribe,
            health=health,
            clock=self.world.clock,
            soon=self.world.soon,
            **bounds,
        )

    def client(self, sent: bytes = HELLO) -> Client:
        """A connection that has begun; what came back is read."""
        client = Client(self.world, self.server, sent)
        client.transport.take()
        return client


class TimeTests(Case):
    def test_hello(self) -> None:
        """Nothing, half of the preface, or a preface without settings: cut after the time for it."""
        for sent in (b"", PREFACE[:10], PREFACE):
            client = self.client(sent)
            self.world.advance(HELLO_S - 0.5)
            self.assertFalse(client.transport.aborted)
            self.world.advance(0.5 + 2 * SWEEP_S)
            self.assertTrue(client.transport.aborted, sent)
        self.assertEqual(self.server.open, 0)

    def test_idle(self) -> None:
        """Without a call for long, a client is told to go, and cut when it does not."""
        client = self.client(HELLO + command(1))
        self.world.advance(IDLE_S - 10)
        self.assertEqual(client.transport.sent, b"")
        client.say(command(3))
        self.world.advance(IDLE_S - 10)
        self.assertEqual(client.transport.sent, b"")
        self.world.advance(10 + 2 * SWEEP_S)
        (end,) = frames(client.transport.sent)
        self.assertEqual((end.kind, end.code), (GOAWAY, 0))
        self.assertTrue(client.transport.half_closed)
        self.world.advance(LINGER_S + SWEEP_S)
        self.assertTrue(client.transport.aborted)

    def test_silence(self) -> None:
        """A client with a stream that says nothing is asked, and cut when it does not answer."""
        client = self.client()
        self.world.advance(100)
        client.say(subscription(1))
        for _ in range(5):
            self.world.advance(SILENCE_S + 2 * SWEEP_S)
            (ping,) = frames(client.transport.take())
            self.assertEqual((ping.kind, ping.flags), (PING, 0))
            client.say(frame(PING, ACK, 0, ping.payload))
        self.world.advance(SILENCE_S + 2 * SWEEP_S)
        self.assertFalse(client.transport.aborted)
        self.world.advance(ANSWER_S + SWEEP_S)
        self.assertTrue(client.transport.aborted)
        self.assertEqual(self.hub.streams[0].gone_for, ["lost"])

    def test_stall(self) -> None:
        """A client that reads nothing of what was sent is cut, one that reads in time is not."""
        reads, stalls = self.client(HELLO + subscription(1)), self.client(HELLO + subscription(1))
        for client in (reads, stalls):
            client.connection.pauseProducing()
        self.world.advance(STALL_S - 5)
        reads.connection.resumeProducing()
        self.world.advance(5 + 2 * SWEEP_S)
        self.assertEqual((reads.transport.aborted, stalls.transport.aborted), (False, True))
        self.assertEqual(self.server.closed_for, {"stalled": 1})

    def test_a_message_that_never_comes(self) -> None:
        """A head without its message is ended with DEADLINE_EXCEEDED, and told to stop."""
        client = self.client(HELLO + head(1) + frame(DATA, 0, 1, b"\0\0\0\1\0" + b"x" * 100))
        self.assertEqual(self.server.receiving, 105)
        self.world.advance(MESSAGE_S - 1)
        self.assertNotIn((HEADERS, 1), kinds(client.transport.take()))
        self.world.advance(1.5)
        self.assertEqual(kinds(client.transport.take()), [(HEADERS, 1), (RESET, 1)])
        self.assertEqual((self.server.calls, self.server.receiving), (0, 0))

    def test_an_answer_that_nobody_reads(self) -> None:
        """A reply that is larger than the window is kept for a minute."""
        client = self.client(PREFACE + settings((4, 100)) + command(1, "big", b"5000"))
        for _ in range(5):
            client.say(frame(PING, 0, 0, bytes(8)))
            self.world.advance((DELIVERY_S - 1) / 5)
        self.assertEqual(self.server.calls, 1)
        self.world.advance(2)
        self.assertEqual(self.server.calls, 0)
        self.assertEqual(frames(client.transport.take())[-1].flags & END_STREAM, END_STREAM)


class FlowTests(Case):
    def test_one_write_a_turn(self) -> None:
        """One event to 100 streams of a connection is one write."""
        client = self.client(HELLO + b"".join(subscription(n) for n in range(1, 200, 2)))
        self.hub.publish(make_event(1))
        self.assertEqual(client.transport.writes, [])
        self.world.soon.turn()
        self.assertEqual(len(client.transport.writes), 1)
        self.assertEqual(kinds(client.transport.take()), [(DATA, n) for n in range(1, 200, 2)])

    def test_much_in_a_turn(self) -> None:
        """What is more than the transport likes to hold is written before the turn ends: it may pause then."""
        client = self.client(PREFACE + settings((4, 1 << 20)) + update(0, 1 << 20) + subscription(1))
        client.transport.room = 40_000
        (stream,) = self.hub.streams
        for number in range(100):
            stream.publish(make_event(number, b"p" * 1000))
        self.assertTrue(client.connection.blocked)
        self.assertLess(len(client.transport.sent), 80_000)
        self.assertGreater(len(stream.queue), 20)

    def test_blocked(self) -> None:
        """While the transport is full one event is taken and nothing is read; then all goes on in order."""
        client = self.client(HELLO + subscription(1))
        (stream,) = self.hub.streams
        client.connection.pauseProducing()
        self.assertFalse(client.transport.reading)
        self.assertEqual(client.say(command(3)), b"")
        for number in range(1, 4):
            stream.publish(make_event(number))
        self.assertEqual(len(stream.queue), 2)
        client.connection.resumeProducing()
        self.world.soon.turn()
        self.assertTrue(client.transport.reading)
        sent = client.transport.take()
        self.assertEqual(
            [sent.index(b"event-%d" % number) for number in range(1, 4)],
            sorted(sent.index(b"event-%d" % number) for number in range(1, 4)),
        )
        self.assertIn((DATA, 3), kinds(sent))

    def test_blocked_again(self) -> None:
        """What waits goes out until the transport is full again, and the rest waits on."""
        client = self.client(PREFACE + settings((4, 1 << 20)) + update(0, 1 << 20) + subscription(1) + subscription(3))
        client.say(subscription(5))
        client.connection.pauseProducing()
        self.hub.publish(make_event(1, b"p" * (FLUSH_BYTES // 2)))
        self.assertEqual(list(client.connection.waiting), [1, 3, 5])
        client.transport.take()
        client.transport.room = 10
        client.connection.resumeProducing()
        self.assertTrue(client.connection.blocked)
        self.assertEqual(list(client.connection.waiting), [5])
        client.connection.resumeProducing()
        self.world.soon.turn()
        sent = kinds(client.transport.take())
        self.assertEqual(list(dict.fromkeys(sent)), [(DATA, 1), (DATA, 3), (DATA, 5)])

    def test_windows(self) -> None:
        """A stream that is full keeps none but itself; its window, or the connection's, lets it go on."""
        size = len(make_event(0).grpc_message)
        client = self.client(PREFACE + settings((4, 2 * size)) + subscription(1) + subscription(3))
        one, three = self.hub.streams
        for number in range(1, 5):
            self.hub.publish(make_event(number))
        self.world.soon.turn()
        self.assertEqual(kinds(client.transport.take()), [(DATA, 1), (DATA, 3)])
        self.assertEqual((len(one.queue), len(three.queue)), (2, 2))
        self.assertEqual(kinds(client.say(update(3, 10_000))), [(DATA, 3)] * 3)
        self.assertEqual(kinds(client.say(update(1, size))), [(DATA, 1)])
        self.assertEqual(kinds(client.say(settings((4, 4 * size)))), [(4, 0), (DATA, 1), (DATA, 1)])
        self.assertEqual((len(one.queue), len(three.queue)), (0, 0))

    def test_the_connection_s_window(self) -> None:
        """When the connection's window is open again, all streams that wait go on."""
        client = self.client(PREFACE + settings((4, 1 << 20)) + b"".join(subscription(n) for n in (1, 3, 5)))
        for number in range(1, 80):
            self.hub.publish(make_event(number, b"p" * 300))
        self.world.soon.turn()
        client.transport.take()
        self.assertEqual({len(stream.queue) > 10 for stream in self.hub.streams}, {True})
        got = kinds(client.say(update(0, 1 << 20)))
        self.assertEqual({stream for kind, stream in got if kind == DATA}, {1, 3, 5})
        self.assertEqual({len(stream.queue) for stream in self.hub.streams}, {0})

    def test_an_event_is_not_cut(self) -> None:
        """What fits a window as a whole is sent whole or not at all; what fits none is cut."""
        small, large = make_event(1), make_event(2, b"p" * 2000)
        size = len(small.grpc_message)
        client = self.client(PREFACE + settings((4, 2 * size - 1)) + subscription(1))
        (stream,) = self.hub.streams
        stream.publish(small)
        self.world.soon.turn()
        self.assertEqual(client.transport.take(), b"")
        (whole,) = frames(client.say(update(1, 1)))
        self.assertEqual(whole.payload, small.grpc_message)
        client.say(update(1, size))
        stream.publish(large)
        self.world.soon.turn()
        sent = client.transport.take() + client.say(update(1, 400)) + client.say(update(1, 5000))
        self.assertEqual(b"".join(one.payload for one in frames(sent)), large.grpc_message)
        self.assertEqual([len(one.payload) for one in frames(sent)][:2], [size, 400])

    def test_overflow_needs_no_window(self) -> None:
        """The status of a stream whose window is closed goes out at once, and what waited does not."""
        client = self.client(PREFACE + settings((4, 0)) + subscription(1))
        (stream,) = self.hub.streams
        for number in range(300):
            stream.publish(make_event(number))
        self.world.soon.turn()
        self.assertEqual(kinds(client.transport.take()), [(HEADERS, 1)])
        self.assertEqual((self.server.calls, client.connection.waiting), (0, {}))
        self.assertEqual(client.say(update(1, 10_000)), b"")

    def test_frames_of_h2(self) -> None:
        """When frames are not written by hand, the same bytes come."""
        seen = []
        for by_hand in (True, False):
            self.server.by_hand = by_hand
            client = self.client(HELLO + subscription(1))
            self.hub.streams[-1].publish(make_event(1))
            self.hub.streams[-1].publish(make_event(2, b"p" * 40_000))
            self.world.soon.turn()
            seen.append(client.transport.take())
        self.assertTrue(frames_agree())
        self.assertEqual(seen[0], seen[1])
        self.assertEqual(len(frames(seen[0])), 4)

    def test_turns(self) -> None:
        """Of a megabyte at once a connection works off a little in each turn; meanwhile nothing more is read."""
        body = envelope("echo", b"p" * 50_000)
        client = self.client()
        data = head(1) + b"".join(
            frame(DATA, END_STREAM if at + 16_000 >= len(body) else 0, 1, body[at : at + 16_000])
            for at in range(0, len(body), 16_000)
        )
        client.connection.dataReceived(data)
        self.assertFalse(client.transport.reading)
        self.assertEqual(self.hub.executed, [])
        turns = 0
        while not self.hub.executed:
            waiting, self.world.soon.waiting = self.world.soon.waiting, []
            for function in waiting:
                function()
            turns += 1
            self.assertLess(turns, 20)
        self.assertGreater(turns, 2)
        self.world.soon.turn()
        self.assertTrue(client.transport.reading)


class BoundsTests(Case):
    def test_streams(self) -> None:
        """The 101st call is refused so that the client may send it again, and the connection goes on."""
        many = b"".join(command(n, "never") for n in range(1, 2 * MAX_STREAMS, 2))
        client = self.client(HELLO + many)
        self.assertEqual(self.server.calls, MAX_STREAMS)
        (refused,) = [one for one in frames(client.say(head(201))) if one.kind == RESET]
        self.assertEqual((refused.stream, refused.code), (201, REFUSED_STREAM))
        client.say(frame(RESET, 0, 1, bytes(3) + b"\x08"))
        self.assertIn((DATA, 203), kinds(client.say(command(203))))

    def test_connections(self) -> None:
        """There are so many connections and no more, whoever they are of; one that ends makes room."""
        self.server = self.make(capacity=Capacity(2, 2))
        first, _ = self.client(), self.client()
        addr = IPv4Address("TCP", "192.0.2.9", 1)
        self.assertIsNone(self.server.buildProtocol(addr))
        first.transport.lose()
        self.assertIsNotNone(self.server.buildProtocol(addr))
        self.assertEqual((self.server.open, self.server.capacity.refused), (1, 1))

    def test_clients(self) -> None:
        """On a socket for IPv4 and IPv6 each IPv4 client is counted for itself."""
        self.server = self.make(capacity=Capacity(10, 1))
        for number in (1, 2):
            connection = self.server.buildProtocol(IPv6Address("TCP", f"::ffff:192.0.2.{number}", 1))
            assert connection is not None
            self.assertEqual(connection.peer, f"192.0.2.{number}")
            self.server.opened(connection)
        self.assertIsNone(self.server.buildProtocol(IPv4Address("TCP", "192.0.2.1", 2)))
        self.assertIsNotNone(self.server.buildProtocol(IPv4Address("TCP", "192.0.2.3", 2)))

    def test_reports(self) -> None:
        """However many connections are closed for one reason, there is one line a minute."""
        logged: list[LogEvent] = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        for _ in range(3):
            self.client(b"GET / HTTP/1.1\r\n\r\n")
        self.world.advance(61)
        self.client(b"GET / HTTP/1.1\r\n\r\n")
        lines = [event for event in logged if event.get("event") == "grpc.connection_closed"]
        self.assertEqual([line["count"] for line in lines], [1, 4])

    def test_what_is_kept_of_a_peer(self) -> None:
        """Of ended streams and of header fields that we sent little is remembered, whatever the peer allows."""
        client = self.client(PREFACE + settings((1, 1 << 30)) + update(0, 1 << 24))
        for n in range(1, 3000, 2):
            client.say(command(n))
        machine = client.connection.wire._h2
        self.assertLessEqual(machine.encoder.header_table_size, 4096)
        self.assertLessEqual(len(machine._closed_streams), 512)
        self.assertLessEqual(len(machine.streams), 2)

    def test_bodies_behind_refusals(self) -> None:
        """A client whose calls are refused before their messages are there is not taken for one that floods."""
        client = self.client()
        for n in range(1, 300, 2):
            self.assertIn((HEADERS, n), kinds(client.say(head(n, path="/no"))))
            client.say(frame(DATA, END_STREAM, n, envelope("echo")))
        self.assertIn((DATA, 301), kinds(client.say(command(301))))


class EndTests(Case):
    def test_a_stream_that_comes_too_late(self) -> None:
        """What is being opened for a client that goes is given up; a stream that comes all the same is given back."""
        client = self.client(HELLO + head(1, path=SUBSCRIBE) + frame(DATA, END_STREAM, 1, envelope("never")))
        client.say(head(3, path=SUBSCRIBE) + frame(DATA, END_STREAM, 3, envelope("stubborn")))
        client.say(frame(RESET, 0, 1, bytes(3) + b"\x08"))
        self.assertEqual(self.hub.cancelled, 1)
        self.assertEqual(client.say(frame(RESET, 0, 3, bytes(3) + b"\x08")), b"")
        self.assertEqual(self.hub.streams[0].gone_for, ["client"])

    def test_watchers(self) -> None:
        """Who watches hears that the gateway stops, and nothing afterwards."""
        watch = frame(DATA, END_STREAM, 1, b"\0\0\0\0\0")
        client = self.client(HELLO + head(1, path=WATCH) + watch)
        self.server.leave()
        self.world.soon.turn()
        sent = frames(client.transport.take())
        self.assertEqual([(one.kind, one.payload[-1:]) for one in sent][:1], [(DATA, b"\2")])
        self.assertEqual([one.kind for one in sent], [DATA, GOAWAY, HEADERS])
        self.server.health.set(True)
        self.world.soon.turn()
        self.assertEqual((client.transport.take(), client.transport.half_closed), (b"", True))

    def test_the_connection_goes(self) -> None:
        """With the connection everything on it is given up."""
        watch = head(5, path=WATCH) + frame(DATA, END_STREAM, 5, b"\0\0\0\0\0")
        client = self.client(HELLO + subscription(1) + command(3, "never") + watch + head(7))
        self.assertEqual(self.server.calls, 4)
        client.transport.reset()
        self.assertEqual((self.hub.streams[0].gone_for, self.hub.cancelled), (["lost"], 1))
        self.server.health.set(False)
        self.assertEqual((self.server.calls, self.server.open), (0, 0))

    def test_leaving(self) -> None:
        """GOAWAY names the last call that is served; a later one is refused; the last end closes the connection."""
        client = self.client(HELLO + subscription(1) + command(3))
        idle = self.client()
        self.server.leave()
        (end,) = frames(client.transport.take())
        self.assertEqual((end.kind, end.code, end.payload[:4]), (GOAWAY, 0, b"\0\0\0\3"))
        self.assertTrue(idle.transport.half_closed)
        self.assertIn((HEADERS, 5), kinds(client.say(command(5))))
        self.assertEqual(len(self.hub.executed), 1)
        self.assertFalse(client.transport.half_closed)
        self.hub.close()
        self.world.soon.turn()
        self.assertEqual(kinds(client.transport.sent)[-1], (HEADERS, 1))
        self.assertTrue(client.transport.half_closed)

    def test_a_client_that_leaves(self) -> None:
        """A client that has said GOAWAY keeps its calls, and is closed after the last of them."""
        client = self.client(HELLO + subscription(1) + frame(GOAWAY, 0, 0, bytes(8)))
        self.assertIsNone(client.transport.half_closed or None)
        self.hub.publish(make_event(1))
        self.world.soon.turn()
        self.assertEqual(kinds(client.transport.take()), [(DATA, 1)])
        self.hub.streams[0].end(SHUTTING_DOWN)
        self.world.soon.turn()
        self.assertTrue(client.transport.half_closed)

    def test_stop(self) -> None:
        """Calls have half of the time, the connections the other half; then what is left is cut."""
        client = self.client(HELLO + command(1, "never"))
        stopped = Deferred.fromCoroutine(self.server.stop(4.0))
        self.world.advance(1.5)
        self.assertEqual(self.server.calls, 1)
        self.world.advance(1.0)
        self.assertEqual((self.server.calls, self.hub.cancelled), (0, 1))
        self.world.advance(2.0)
        self.assertTrue(client.transport.aborted)
        self.assertIsNone(self.successResultOf(stopped))

    def test_bytes_behind_the_end(self) -> None:
        """What comes behind the last GOAWAY is dropped, up to a bound."""
        client = self.client(HELLO + frame(PING, 0, 0, bytes(3)))
        self.assertTrue(client.transport.half_closed)
        self.assertEqual(client.say(bytes(200_000)), b"")
        self.assertFalse(client.transport.aborted)
        client.say(bytes(200_000))
        self.assertTrue(client.transport.aborted)


class AnythingTests(Case):
    def test_nothing_is_left(self) -> None:
        """
        Whatever a client sends, in whatever pieces, however the hub and the transport behave meanwhile: nothing raises,
        and when the connection is gone, nothing of it is left anywhere.
        """
        for seed in range(150):
            self.setUp()
            self._talk(random.Random(seed))
            self.assertEqual((self.server.calls, self.server.receiving, self.server.open), (0, 0, 0), seed)
            self.assertEqual(self.hub.cancelled, len(self.hub.pending), seed)
            self.assertTrue(all(stream.gone_for or stream.ended for stream in self.hub.streams), seed)
        self.assertEqual(self.failures, [])

    def _talk(self, chance: random.Random) -> None:
        self.server.by_hand = chance.random() < 0.7
        client = self.client()
        highest, connection = 1, client.connection
        for _ in range(chance.randrange(1, 60)):
            if client.transport.half_closed or client.transport.gone:
                break
            data, highest = _something(chance, highest)
            cut = chance.randrange(1, len(data) + 1)
            client.say(data[:cut])
            if cut < len(data) and not client.transport.gone:
                client.say(data[cut:])
            step = chance.randrange(30)
            if step == 0:
                self.hub.publish(make_event(1, b"p" * chance.choice([10, 20_000])))
            elif step == 1:
                self.world.advance(chance.choice([0.25, 6, 25]))
            elif step == 2 and not client.transport.gone:
                connection.pauseProducing()
            elif step in (3, 4) and not client.transport.gone:
                connection.resumeProducing()
            elif step == 5:
                self.hub.close(100)
            elif step == 6 and chance.random() < 0.2:
                self.server.leave()
        client.transport.lose()
        self.world.soon.turn()


BODIES = [envelope(kind) for kind in ("echo", "never", "limited", "no.route")] + [b"", b"\1\0\0\0\0", b"\0\xff\0\0\0"]
SETTINGS = [(1, 0), (1, 1 << 30), (3, 5), (4, 0), (4, 10), (4, 300), (4, 1 << 20), (5, 16384), (5, 20_000), (99, 1)]


def _something(chance: random.Random, highest: int) -> tuple[bytes, int]:
    """Mostly sense; and the highest stream so far."""
    stream = max(1, highest - 2 * chance.randrange(4))
    path = chance.choice([SUBSCRIBE, WATCH, "/no", GRPC[2][1]])
    match chance.randrange(16):
        case 0 | 1 | 2 | 3:
            return head(highest + 2, path=path), highest + 2
        case 4 | 5 | 6:
            return head(highest + 2, path=path) + frame(DATA, 1, highest + 2, chance.choice(BODIES)), highest + 2
        case 7 | 8:
            return frame(DATA, chance.choice([0, 1]), stream, chance.choice(BODIES)), highest
        case 9:
            return frame(RESET, 0, stream, bytes(4)), highest
        case 10 | 11:
            return update(chance.choice([0, stream]), chance.choice([1, 300, 70_000])), highest
        case 12:
            return settings(chance.choice(SETTINGS)), highest
        case 13:
            return frame(PING, chance.choice([0, 1]), 0, bytes(8)), highest
        case 14:
            strange = frame(chance.randrange(20), 0, stream, b"12345")
            return chance.choice([frame(GOAWAY, 0, 0, bytes(8)), strange]), highest
    return frame(HEADERS, chance.choice([1, 4, 5]), stream, block(GRPC)[: chance.randrange(60)]), highest
