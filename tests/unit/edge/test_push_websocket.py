"""One WebSocket without a socket: its envelope, its events, its commands, its deadlines and its ends."""

import json
import socket
from typing import Any

from twisted.internet.defer import fail
from zope.interface.verify import verifyObject

from gatewayd.push.api import IOutlet
from gatewayd.push.outlet import DROPPED_BYTES, JOINED_BYTES, UNREAD_BYTES
from gatewayd.push.websocket import COMMANDS, Services, WebSocketStream
from gatewayd.sessions.endings import (
    AUTHENTICATION_FAILED,
    NO_ROUTE,
    OVERFLOWED,
    REVOKED,
    SHUTTING_DOWN,
    UNAVAILABLE_NOW,
    Ending,
)
from gatewayd.sessions.envelope import read_json, write_json
from tests.fakes.pushing import FakeConnection, Pushing, PushingCase
from tests.fakes.subscribing import FakeHub, FakeStream, envelope_members, reply
from tests.websockets import BINARY, CLOSE, PING, PONG, TEXT, Frame, close, frame, frames_in, text

HEAD = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class WebSocketCase(PushingCase):
    def setUp(self) -> None:
        self.world = Pushing()
        self.hub = FakeHub()

    def connect(self, **changed: Any) -> tuple[WebSocketStream, FakeConnection]:
        """A WebSocket whose handshake is answered."""
        services = Services(
            changed.pop("subscribe", self.hub.subscribe),
            changed.pop("execute", self.hub.execute),
            read_json,
            write_json,
        )
        stream = WebSocketStream(self.world.connections, services, HEAD)
        connection = FakeConnection(stream)
        self.world.soon.turn()
        self.assertEqual(connection.take(), HEAD)
        return stream, connection

    def say(self, connection: FakeConnection, *messages: bytes) -> list[Frame]:
        """Have the client send these; gives what it gets for it."""
        for message in messages:
            connection.protocol.dataReceived(message)
        self.world.soon.turn()
        return frames_in(connection.take())

    def opened(self, **changed: Any) -> tuple[FakeStream, FakeConnection]:
        """An open stream whose first event was read."""
        _, connection = self.connect(**changed)
        (first,) = self.say(connection, envelope())
        self.assertEqual(json.loads(first.payload)["event_type"], "gateway.server_time")
        (stream,) = self.hub.streams
        return stream, connection

    def assert_closed(self, connection: FakeConnection, frames: list[Frame], code: int, reason: str) -> None:
        """The last frame is a close frame with this; the connection goes on to its end by itself."""
        self.assertEqual((frames[-1].opcode, frames[-1].code, frames[-1].reason), (CLOSE, code, reason))
        self.world.advance(3.25)
        self.assertTrue(connection.gone or connection.half_closed)
        self.world.advance(3.25)
        self.assertTrue(connection.gone)
        self.assertEqual(self.world.connections.open, 0)


def envelope(session: str = "session-1", request_id: str = "request-1", **changed: object) -> bytes:
    """A signed envelope as a client's frame."""
    return text(json.dumps(envelope_members(session, request_id, **changed)))


class OpeningTests(WebSocketCase):
    def test_interface(self) -> None:
        """It is an outlet, and says which."""
        stream, connection = self.connect()
        self.assertTrue(verifyObject(IOutlet, stream))
        self.assertEqual(stream.transport, "websocket")
        self.assertIs(connection.producer, stream)

    def test_narrow(self) -> None:
        """Little is kept for a client that does not read: here, in the kernel, and not for long."""
        _, connection = self.connect()
        self.assertEqual(connection.bufferSize, 32768)
        self.assertIn((socket.SOL_SOCKET, socket.SO_SNDBUF, 32768), connection.handle.options)
        self.assertIn((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000), connection.handle.options)

    def test_first_envelope(self) -> None:
        """The first message is checked and opens a stream, whose first event comes behind the handshake's answer."""
        stream, connection = self.opened()
        self.assertEqual(stream.envelope.device_session_id, "session-1")
        self.assertEqual(stream.envelope.trace_id, "trace-1")
        event = self.hub.event("trade", b"\0\xff", "1-0")
        self.hub.publish(event)
        self.world.soon.turn()
        self.assertEqual(connection.take(), event.websocket_frame)

    def test_refused(self) -> None:
        """What is refused ends with its close code, its words, and the time to come back."""
        later = Ending("limit", 8, 1008, "slow down", 1500)
        for ending, code, reason in (
            (AUTHENTICATION_FAILED, 4001, "authentication failed"),
            (REVOKED, 4003, "device session is revoked"),
            (UNAVAILABLE_NOW, 1013, "the gateway cannot check sessions now"),
            (later, 1008, "slow down; retry_after_ms=1500"),
        ):
            self.hub.endings["session-1"] = ending
            _, connection = self.connect()
            self.assert_closed(connection, self.say(connection, envelope()), code, reason)
        self.assertEqual(self.hub.ever, [])

    def test_malformed(self) -> None:
        """A first message that is no envelope ends 1008 and names the member; nothing of it is shown."""
        for message, reason in (
            (text("hello"), "envelope is not one object in strict JSON"),
            (text("[" * 60_000), "envelope is not one object in strict JSON"),
            (envelope(request_id="a b"), "request_id is missing or malformed"),
            (envelope(signature="A"), "signature is missing or malformed"),
        ):
            _, connection = self.connect()
            self.assert_closed(connection, self.say(connection, message), 1008, reason)

    def test_no_envelope(self) -> None:
        """Whoever sends no message within 5 s is closed, also one that pings or trickles."""
        _, silent = self.connect()
        _, trickling = self.connect()
        for _ in range(5):
            trickling.protocol.dataReceived(frame(PING))
            self.world.advance(1.0)
        self.world.advance(1.0)
        for connection in (silent, trickling):
            last = [each for each in frames_in(connection.take()) if each.opcode is CLOSE]
            self.assert_closed(connection, last, 1008, "no envelope came in time")

    def test_checking_takes_its_time(self) -> None:
        """Once an envelope is there the 5 s are over; a client that leaves meanwhile gives its attempt up."""
        self.hub.holds = True
        _, connection = self.connect()
        self.say(connection, envelope())
        self.world.advance(7.0)
        self.assertEqual(connection.take(), b"")
        connection.lose()
        self.assertEqual(self.hub.cancelled, 1)
        self.assertEqual(self.world.connections.open, 0)

    def test_opened_late(self) -> None:
        """A stream that is opened in spite of the cancellation is given back."""
        self.hub.holds = True
        self.hub.opens_late = True
        _, connection = self.connect()
        self.say(connection, envelope())
        connection.lose()
        (stream,) = self.hub.ever
        self.assertEqual(stream.reasons, ["client"])

    def test_bug(self) -> None:
        """A failure nobody expected is logged, and the client is told nothing of it."""
        _, connection = self.connect(subscribe=lambda *_: fail(ZeroDivisionError("secret")))
        self.assert_closed(connection, self.say(connection, envelope()), 1011, "internal error")
        self.assert_failed("push_open_failed")

    def test_opened_while_full(self) -> None:
        """A stream that opens while the client does not read waits until it does."""
        self.hub.holds = True
        _, connection = self.connect()
        self.say(connection, envelope())
        connection.producer.pauseProducing()
        self.hub.release()
        self.world.soon.turn()
        self.assertEqual(connection.take(), b"")
        connection.producer.resumeProducing()
        self.world.soon.turn()
        self.assertEqual(len(frames_in(connection.take())), 1)


class EventTests(WebSocketCase):
    def test_joined(self) -> None:
        """The events of one turn are one write, in order, the shared frames themselves."""
        _, connection = self.opened()
        events = [self.hub.event("trade", b"x", f"{i}-0") for i in range(20)]
        for event in events:
            self.hub.publish(event)
        self.assertEqual(connection.writes, [])
        self.world.soon.turn()
        self.assertEqual(connection.writes, [b"".join(event.websocket_frame for event in events)])
        connection.take()
        self.hub.publish(events[0])
        self.world.soon.turn()
        self.assertIs(connection.writes[0], events[0].websocket_frame)

    def test_the_last_of_a_turn(self) -> None:
        """It is written at once, and behind what waits with that; a transport that is full then is noticed."""
        stream, connection = self.opened()
        one, two, three = (self.hub.event("trade", b"x", f"{i}-0") for i in range(3))
        self.assertTrue(stream.outlet.send(one, last=True))
        self.assertIs(connection.writes[0], one.websocket_frame)
        connection.take()
        self.assertTrue(stream.outlet.send(two))
        self.assertTrue(stream.outlet.send(three, last=True))
        self.assertEqual(connection.writes, [])
        self.world.soon.turn()
        self.assertEqual(connection.writes, [two.websocket_frame + three.websocket_frame])
        connection.take()
        connection.room = 10
        self.assertFalse(stream.outlet.send(one, last=True))
        self.assertFalse(stream.outlet.send(two, last=True))

    def test_full(self) -> None:
        """A client that does not read stops the hub after a bounded number of bytes; it goes on where it was."""
        stream, connection = self.opened()
        connection.room = 100_000
        events = [self.hub.event("trade", b"x" * 3000, f"{i}-0") for i in range(200)]
        for event in events:
            self.hub.publish(event)
        size = len(events[0].websocket_frame)
        self.assertLess(len(connection.sent), 100_000 + JOINED_BYTES + 2 * size)
        self.assertFalse(stream.ready)
        self.world.soon.turn()
        stopped_at = len(connection.sent)
        self.world.advance(5.0)
        self.assertEqual(len(connection.sent), stopped_at)
        connection.producer.resumeProducing()
        self.world.soon.turn()
        positions = [json.loads(each.payload)["position"] for each in frames_in(connection.take())]
        self.assertEqual(positions, [event.position for event in events])

    def test_replay_is_written_as_it_comes(self) -> None:
        """Much in one turn is written in pieces: a full transport is noticed before everything was taken."""
        _, connection = self.opened()
        for i in range(100):
            self.hub.publish(self.hub.event("trade", b"x" * 3000, f"{i}-0"))
        self.assertGreater(len(connection.writes), 5)

    def test_overflow(self) -> None:
        """The hub's overflow is 4008; when the close frame cannot leave the connection is reset soon."""
        stream, connection = self.opened()
        connection.producer.pauseProducing()
        stream.close(OVERFLOWED)
        self.world.soon.turn()
        (last,) = frames_in(connection.take())
        self.assertEqual((last.code, last.reason), (4008, "push stream overflowed"))
        self.world.advance(3.25)
        self.assertTrue(connection.aborted)
        self.assertEqual(stream.reasons, [])

    def test_close(self) -> None:
        """What was sent goes out before the close frame; the client's own close frame ends it."""
        stream, connection = self.opened()
        event = self.hub.event("trade", b"x", "1-0")
        self.hub.publish(event)
        stream.close(Ending("shutdown", 14, 1012, "gateway is shutting down", 2500))
        self.world.soon.turn()
        _, last = frames_in(connection.take())
        self.assertEqual((last.code, last.reason), (1012, "gateway is shutting down; retry_after_ms=2500"))
        self.assertFalse(connection.half_closed)
        self.assertEqual(self.say(connection, frame(PING), envelope(), close(1012)), [])
        self.assertTrue(connection.half_closed)
        connection.lose()
        self.assertEqual((stream.reasons, self.world.connections.open), ([], 0))
        self.assertEqual(self.hub.commands, [])

    def test_close_is_not_answered(self) -> None:
        """A client that reads the close frame and says nothing gets FIN behind it, and a reset only after that."""
        stream, connection = self.opened()
        stream.close(REVOKED)
        self.world.advance(3.25)
        self.assertTrue(connection.half_closed)
        self.assertFalse(connection.aborted)
        self.world.advance(3.25)
        self.assertTrue(connection.aborted)

    def test_closed_twice(self) -> None:
        """One close frame is sent, whoever else ends the connection too."""
        stream, connection = self.opened()
        stream.close(REVOKED)
        stream.outlet.close(SHUTTING_DOWN)
        stream.outlet.retire()
        self.assertEqual([each.code for each in self.say(connection, frame(3))], [4003])
        self.assertTrue(connection.half_closed)


class ClientTests(WebSocketCase):
    def test_gone(self) -> None:
        """FIN is the client's leaving, a reset a loss; the hub is told once."""
        for end, reason in ((FakeConnection.lose, "client"), (FakeConnection.reset, "lost")):
            stream, connection = self.opened()
            end(connection)
            self.assertEqual(stream.reasons, [reason])
        self.assertEqual(self.world.connections.open, 0)

    def test_client_closes(self) -> None:
        """A close frame is answered with its code and without its words; the hub knows at once."""
        for sent, code in ((close(1000, "bye"), 1000), (close(4999), 4999), (close(), None)):
            stream, connection = self.opened()
            (answer,) = self.say(connection, sent)
            self.assertEqual((answer.opcode, answer.code, answer.payload[2:]), (CLOSE, code, b""))
            self.assertTrue(connection.half_closed)
            self.assertEqual(stream.reasons, ["client"])
            connection.lose()

    def test_ping(self) -> None:
        """A client's ping is answered with its payload, also before it has said who it is."""
        _, connection = self.connect()
        (pong,) = self.say(connection, frame(PING, b"hello"))
        self.assertEqual((pong.opcode, pong.payload), (PONG, b"hello"))

    def test_silence(self) -> None:
        """After 20 s of silence it is pinged; whoever answers stays, whoever does not is gone 10 s later."""
        stream, connection = self.opened()
        for _ in range(3):
            self.world.advance(19.0)
            self.assertEqual(connection.take(), b"")
            self.world.advance(2.0)
            (ping,) = frames_in(connection.take())
            self.assertEqual((ping.opcode, ping.payload), (PING, b""))
            self.world.advance(8.0)
            connection.protocol.dataReceived(frame(PONG))
        self.world.advance(21.0)
        connection.take()
        self.world.advance(8.0)
        self.assertFalse(connection.gone)
        self.world.advance(3.0)
        self.assertTrue(connection.aborted)
        self.assertEqual(stream.reasons, ["idle"])

    def test_breaches(self) -> None:
        """What the frames' reader refuses ends with its code; the hub is told, and what still comes is dropped."""
        for sent, code in (
            (frame(TEXT, b"x", mask=None), 1002),
            (frame(BINARY, b"x"), 1003),
            (text(b"\xff"), 1007),
            (frame(PING) * 120, 1008),
            (text("x" * 65537), 1009),
        ):
            stream, connection = self.opened()
            answer = self.say(connection, sent)[-1]
            self.assertEqual((answer.opcode, answer.code), (CLOSE, code))
            self.assertTrue(connection.half_closed)
            self.assertEqual(stream.reasons, ["protocol"])
            self.assertEqual(self.say(connection, frame(PING), envelope()), [])
            connection.lose()

    def test_flood_after_the_end(self) -> None:
        """A client that goes on sending after the end is reset."""
        _, connection = self.opened()
        self.say(connection, frame(BINARY, b"x"))
        for _ in range(DROPPED_BYTES // 65536):
            connection.protocol.dataReceived(b"x" * 65536)
            self.assertFalse(connection.gone)
        connection.protocol.dataReceived(b"x")
        self.assertTrue(connection.aborted)

    def test_stop(self) -> None:
        """A stop ends what is no open stream yet, and leaves open streams to the hub."""
        stream, connection = self.opened()
        _, waiting = self.connect()
        self.hub.holds = True
        _, checking = self.connect()
        self.say(checking, envelope())
        stopped = self.world.connections.stop(5.0)
        self.assertEqual(self.hub.cancelled, 1)
        for each in (waiting, checking):
            (last,) = self.say(each)
            self.assertEqual(last.code, 1012)
            self.say(each, close(1012))
            each.lose()
        self.assertEqual(self.say(connection), [])
        self.assertNoResult(stopped)
        stream.close(SHUTTING_DOWN)
        connection.lose()
        self.successResultOf(stopped)


class CommandTests(WebSocketCase):
    def test_command(self) -> None:
        """A further envelope is a command; its signed reply is a message of its own, told by `result_code`."""
        _, connection = self.opened()
        self.assertEqual(self.say(connection, envelope(request_id="r-2", message_type="user.command")), [])
        self.assertEqual(self.hub.commands[0].message_type, "user.command")
        self.hub.executing[0].callback(reply("r-2", b"\0\xff"))
        (answer,) = self.say(connection)
        members = json.loads(answer.payload)
        self.assertEqual(
            (members["request_id"], members["result_code"], members["payload_bytes"]), ("r-2", "ok", "AP8")
        )
        self.assertNotIn("event_type", members)

    def test_order(self) -> None:
        """Replies come as they are ready, beside events."""
        _, connection = self.opened()
        self.say(connection, *(envelope(request_id=f"r-{i}") for i in range(3)))
        self.hub.executing[2].callback(reply("r-2"))
        self.hub.publish(self.hub.event("trade", b"x", "1-0"))
        self.hub.executing[0].callback(reply("r-0"))
        members = [json.loads(each.payload) for each in self.say(connection)]
        self.assertEqual([each.get("request_id") for each in members], ["r-2", "", "r-0"])

    def test_refused(self) -> None:
        """A refused command is answered with the reason and its request_id; the stream stays."""
        _, connection = self.opened()
        self.say(connection, envelope(request_id="r-2"))
        self.hub.executing[0].callback(NO_ROUTE)
        (answer,) = self.say(connection)
        error = {"code": "no_route", "message": "no route for this message type"}
        self.assertEqual(json.loads(answer.payload), {"request_id": "r-2", "error": error})
        (answer,) = self.say(connection, text("{}"))
        self.assertEqual(json.loads(answer.payload)["error"]["code"], "malformed")
        self.assertNotIn("request_id", json.loads(answer.payload))
        self.assertEqual(len(self.hub.streams), 1)

    def test_bound(self) -> None:
        """So many commands are under way at once, further ones are refused until one is answered."""
        _, connection = self.opened()
        for i in range(COMMANDS):
            self.assertEqual(self.say(connection, envelope(request_id=f"r-{i}")), [])
        (answer,) = self.say(connection, envelope(request_id="r-x"))
        members = json.loads(answer.payload)
        self.assertEqual((members["request_id"], members["error"]["code"]), ("r-x", "limit"))
        self.hub.executing[0].callback(reply("r-0"))
        self.assertEqual(len(self.say(connection, envelope(request_id="r-y"))), 1)
        self.assertEqual(len(self.hub.commands), COMMANDS + 1)

    def test_before_the_stream(self) -> None:
        """A command may be sent while the first envelope is being checked."""
        self.hub.holds = True
        _, connection = self.connect()
        self.say(connection, envelope() + envelope(request_id="r-2"))
        self.hub.executing[0].callback(reply("r-2"))
        self.assertEqual(json.loads(self.say(connection)[0].payload)["request_id"], "r-2")

    def test_client_leaves(self) -> None:
        """A command whose client has gone is carried out, and answered to nobody."""
        _, connection = self.opened()
        self.say(connection, envelope(request_id="r-2"))
        connection.lose()
        self.hub.executing[0].callback(reply("r-2"))
        self.world.soon.turn()
        self.assertEqual(connection.take(), b"")

    def test_fault(self) -> None:
        """A command that fails as nothing should is logged and answered without a word of why."""
        _, connection = self.opened(execute=lambda *_: fail(ZeroDivisionError("secret")))
        (answer,) = self.say(connection, envelope(request_id="r-2"))
        self.assertEqual(json.loads(answer.payload)["error"], {"code": "internal", "message": "internal error"})
        self.assert_failed("command_failed")

    def test_asks_and_never_reads(self) -> None:
        """A client that asks on and on without reading answers is ended as one that reads too slowly."""
        stream, connection = self.opened()
        connection.producer.pauseProducing()
        for i in range(3):
            self.say(connection, envelope(request_id=f"r-{i}"))
            self.hub.executing[i].callback(reply(f"r-{i}", b"x" * (UNREAD_BYTES // 3)))
            self.world.soon.turn()
        self.assertEqual(frames_in(connection.take())[-1].code, 4008)
        self.assertEqual(stream.reasons, ["overflow"])
        self.world.advance(3.25)
        self.assertTrue(connection.aborted)
