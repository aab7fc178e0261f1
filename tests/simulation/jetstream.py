"""
A model of one nats-server with one JetStream stream, at the level of the bytes of the NATS protocol.

Decides what each frame is answered; whoever owns the connections carries the bytes and decides when they arrive. It
can be frozen (what comes is kept and read later), killed and started again. What one connection publishes is answered
on that connection; plain publish and subscribe between connections is not modelled.
"""

import base64
import json
from collections.abc import Callable
from typing import Any, Final

from tests.simulation.stream import NO_CONSUMER, NO_MESSAGE, NOT_FOUND, NS, ApiError, Consumer, Kept, Stream, text_of

VERSION: Final = "2.15.1"
MAX_PAYLOAD: Final = 2 * 1024 * 1024
_API: Final = "$JS.API."
_NO_RESPONDERS: Final = b"NATS/1.0 503\r\n\r\n"


class Server:
    """
    One server, its stream and its connections.

    `now` is the wall clock. `later` calls a function some seconds later. `stored` is told of every message that is
    stored. `proposing` says of the twin of a publication that a cluster would still be proposing it, and answer with
    the error that asks for the publication again instead of calling it a duplicate.
    """

    def __init__(
        self,
        now: Callable[[], float],
        later: Callable[..., object],
        *,
        stored: Callable[[Kept], object] = lambda _: None,
        proposing: Callable[[Kept], bool] = lambda _: False,
    ) -> None:
        self.now = now
        self.later = later
        self.stored = stored
        self.proposing = proposing
        self.stream: Stream | None = None
        self.up = True
        self.frozen = False
        self.connections: list[Connection] = []
        self._names = 0
        self._accepted = 0

    def accept(self, send: Callable[[bytes], object]) -> "Connection":
        """A client connects; `send` takes what the server writes to it."""
        self._accepted += 1
        connection = Connection(self, send, self._accepted)
        self.connections.append(connection)
        connection.greet()
        return connection

    def thaw(self, order: Callable[[list["Connection"]], object] = lambda _: None) -> None:
        """Go on after a freeze: read what came meanwhile, connection by connection, as `order` arranges them."""
        self.frozen = False
        waiting = list(self.connections)
        order(waiting)
        for connection in waiting:
            connection.go_on()

    def kill(self) -> None:
        """End at once: what was not read is lost, and every connection."""
        self.up = self.frozen = False
        gone, self.connections = self.connections, []
        for connection in gone:
            connection.dead = True

    def start(self) -> None:
        """Start again on the same store."""
        self.up = True
        if self.stream is not None:
            self.stream.restart(self.now())

    # JetStream

    def publish(self, connection: "Connection", subject: str, reply: bytes, headers: bytes, body: bytes) -> None:
        """One message for the stream; answered unless nobody waits."""
        stream = self.stream
        if stream is None or not stream.takes(subject):
            connection.deliver(reply, b"", _NO_RESPONDERS, b"")
            return
        answer, kept = stream.publish(subject, headers, body, self.now(), connection, self.proposing)
        if reply:
            connection.deliver(reply, b"", b"", answer)
        if kept is not None:
            self.stored(kept)
            for consumer in stream.consumers.values():
                if consumer.waiting:
                    self._serve(consumer)

    def call(self, connection: "Connection", subject: str, reply: bytes, body: bytes) -> None:
        """One request to the JetStream API."""
        verb, *names = subject.removeprefix(_API).split(".")
        if verb == "DIRECT":
            self._direct(connection, reply, body)
            return
        if names[:2] == ["MSG", "NEXT"]:
            self._next(connection, names[3], reply, json.loads(body))
            return
        members = json.loads(body) if body else {}
        try:
            done = getattr(self, f"_{verb.lower()}_{names[0].lower()}", None)
            if done is None or (verb, names[0]) == ("STREAM", "MSG"):
                done = getattr(self, f"_{verb.lower()}_{'_'.join(names[:2]).lower()}")
            answer = done(names, members)
        except ApiError as refused:
            answer = {"error": refused.answer}
        connection.deliver(reply, b"", b"", json.dumps(answer).encode())

    def _named(self, name: str) -> Stream:
        if self.stream is None or self.stream.config["name"] != name:
            raise ApiError(*NOT_FOUND)
        self.stream.forget_old(self.now())
        return self.stream

    def _stream_info(self, names: list[str], _: dict[str, Any]) -> dict[str, Any]:
        return {**self._named(names[1]).info(), "ts": text_of(self.now())}

    def _stream_create(self, names: list[str], members: dict[str, Any]) -> dict[str, Any]:
        if self.stream is None:
            self.stream = Stream(members, self.now())
        else:
            known = Stream(members, self.now()).config
            if known != self.stream.config or members["name"] != names[1]:
                raise ApiError(400, 10058, "stream name already in use with a different configuration")
        return self.stream.info()

    def _stream_update(self, names: list[str], members: dict[str, Any]) -> dict[str, Any]:
        stream = self._named(names[1])
        stream.configure(members)
        return stream.info()

    def _stream_delete(self, names: list[str], _: dict[str, Any]) -> dict[str, Any]:
        self._named(names[1])
        self.stream = None
        return {"success": True}

    def _stream_purge(self, names: list[str], _: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "purged": self._named(names[1]).purge()}

    def _stream_msg_get(self, names: list[str], members: dict[str, Any]) -> dict[str, Any]:
        stream = self._named(names[2])
        kept = stream.messages.get(members["seq"])
        if kept is None:
            raise ApiError(*NO_MESSAGE)
        message = {"subject": kept.subject, "seq": kept.sequence, "time": text_of(kept.at)}
        if kept.headers:
            message["hdrs"] = base64.b64encode(kept.headers).decode()
        return {"message": {**message, "data": base64.b64encode(kept.body).decode()}}

    def _stream_msg_delete(self, names: list[str], members: dict[str, Any]) -> dict[str, Any]:
        stream = self._named(names[2])
        if members["seq"] not in stream.messages:
            raise ApiError(404, 10043, f"sequence {members['seq']} not found")
        stream.remove(members["seq"])
        return {"success": True}

    def _direct(self, connection: "Connection", reply: bytes, body: bytes) -> None:
        stream, asked = self.stream, json.loads(body)
        if stream is None or not stream.config.get("allow_direct"):
            connection.deliver(reply, b"", _NO_RESPONDERS, b"")
            return
        sequence = asked.get("seq") or stream.last_of(asked.get("last_by_subj", ""))
        kept = stream.messages.get(sequence)
        if kept is None:
            connection.deliver(reply, b"", b"NATS/1.0 404 Message Not Found\r\n\r\n", b"")
            return
        added = "Nats-Stream: {}\r\nNats-Subject: {}\r\nNats-Sequence: {}\r\nNats-Time-Stamp: {}\r\n\r\n".format(
            stream.config["name"], kept.subject, kept.sequence, text_of(kept.at)
        )
        head = kept.headers[:-2] if kept.headers else b"NATS/1.0\r\n"
        connection.deliver(reply, b"", head + added.encode(), kept.body)

    # consumers

    def _consumer_create(self, names: list[str], members: dict[str, Any]) -> dict[str, Any]:
        stream = self._named(names[1])
        config = members["config"]
        self._names += 1
        name = config.get("durable_name") or f"c{self._names}"
        return self._consumer(stream, stream.consume(name, config, self.now()))

    def _consumer_info(self, names: list[str], _: dict[str, Any]) -> dict[str, Any]:
        stream = self._named(names[1])
        return self._consumer(stream, self._consumer_named(stream, names[2]))

    def _consumer_delete(self, names: list[str], _: dict[str, Any]) -> dict[str, Any]:
        stream = self._named(names[1])
        del stream.consumers[self._consumer_named(stream, names[2]).name]
        return {"success": True}

    def _consumer_named(self, stream: Stream, name: str) -> Consumer:
        consumer = stream.consumers.get(name)
        if consumer is None:
            raise ApiError(*NO_CONSUMER)
        threshold_s = consumer.config.get("inactive_threshold", 0) / NS
        if threshold_s and consumer.used + threshold_s <= self.now():
            del stream.consumers[name]
            raise ApiError(*NO_CONSUMER)
        consumer.used = self.now()
        return consumer

    def _consumer(self, stream: Stream, consumer: Consumer) -> dict[str, Any]:
        floor = {"consumer_seq": 0, "stream_seq": 0}
        return {
            "stream_name": stream.config["name"],
            "name": consumer.name,
            "created": text_of(consumer.created),
            "config": consumer.config,
            "delivered": {"consumer_seq": consumer.delivered, "stream_seq": consumer.next - 1},
            "ack_floor": floor,
            "num_ack_pending": 0,
            "num_pending": stream.pending(consumer),
        }

    def _next(self, connection: "Connection", name: str, reply: bytes, members: dict[str, Any]) -> None:
        """A pull: what is there at once, what comes until it expires, then its status line."""
        try:
            stream = self._named(self.stream.config["name"] if self.stream is not None else "")
            consumer = self._consumer_named(stream, name)
        except ApiError:
            connection.deliver(reply, b"", _NO_RESPONDERS, b"")
            return
        pull = _Pull(connection, reply, members.get("batch", 1))
        consumer.waiting.append(pull)
        self._serve(consumer)
        if pull.left:
            self.later(members.get("expires", 0) / NS, self._expire, consumer, pull)

    def _serve(self, consumer: Consumer) -> None:
        stream = self.stream
        if stream is None:
            return
        name, left = stream.config["name"], stream.pending(consumer)
        for kept in stream.of(consumer) if left else ():
            if not consumer.waiting:
                return
            pull = consumer.waiting[0]
            left -= 1
            consumer.delivered += 1
            consumer.next = kept.sequence + 1
            at_ns = round(kept.at * NS)
            place = f"$JS.ACK.{name}.{consumer.name}.1.{kept.sequence}.{consumer.delivered}.{at_ns}.{left}"
            headers, body = kept.headers, kept.body
            if consumer.config.get("headers_only"):
                size = b"Nats-Msg-Size: %d\r\n\r\n" % len(body)
                headers, body = (headers[:-2] if headers else b"NATS/1.0\r\n") + size, b""
            pull.connection.deliver(pull.reply, kept.subject.encode(), headers, body, place.encode())
            pull.left -= 1
            if not pull.left:
                consumer.waiting.pop(0)

    def _expire(self, consumer: Consumer, pull: "_Pull") -> None:
        if pull in consumer.waiting:
            consumer.waiting.remove(pull)
            pull.connection.deliver(pull.reply, b"", b"NATS/1.0 408 Request Timeout\r\n\r\n", b"")


class _Pull:
    """A request for messages that is not served yet."""

    __slots__ = ("connection", "left", "reply")

    def __init__(self, connection: "Connection", reply: bytes, left: int) -> None:
        self.connection = connection
        self.reply = reply
        self.left = left


class Connection:
    """
    One client's connection, on the server's side, the `number`-th. `dead` once it is of no more use; `left` once its
    client has gone, though what it sent may still come.
    """

    def __init__(self, server: Server, send: Callable[[bytes], object], number: int) -> None:
        self.number = number
        self.dead = self.left = False
        self._server = server
        self._send = send
        self._rest = b""
        self._held: list[bytes | None] = []
        self._greeted = False
        self._sids: dict[bytes, bytes] = {}  # subject, or what stands before its ".*", -> sid

    def greet(self) -> None:
        """The first line; a frozen server says it later."""
        if self._server.frozen or self._greeted:
            return
        self._greeted = True
        info = {"server_id": "MODEL", "version": VERSION, "headers": True, "jetstream": True}
        line = json.dumps({**info, "proto": 1, "host": "127.0.0.1", "port": 4222, "max_payload": MAX_PAYLOAD})
        self._send(b"INFO %b\r\n" % line.encode())

    def received(self, data: bytes) -> None:
        """Bytes from the client, in order; whole frames are acted on."""
        if self.dead:
            return
        if self._server.frozen:
            self._held.append(data)
            return
        buffer = self._rest + data if self._rest else data
        at = 0
        while (end := buffer.find(b"\r\n", at)) >= 0:
            line = buffer[at:end]
            if line.startswith((b"HPUB ", b"PUB ")):
                parts = line.split(b" ")
                body_at, stop = end + 2, end + 2 + int(parts[-1])
                if len(buffer) < stop + 2:
                    break
                head_at = body_at
                if line[0] == 72:  # H
                    body_at += int(parts[-2])
                    reply = parts[2] if len(parts) == 5 else b""
                else:
                    reply = parts[2] if len(parts) == 4 else b""
                self._published(parts[1].decode(), reply, buffer[head_at:body_at], buffer[body_at:stop])
                at = stop + 2
            else:
                self._control(line)
                at = end + 2
        self._rest = buffer[at:] if at else buffer

    def closed(self) -> None:
        """The client has gone, behind everything it sent."""
        if self._server.frozen:
            self._held.append(None)
            return
        self.dead = True
        if self in self._server.connections:
            self._server.connections.remove(self)

    def go_on(self) -> None:
        """After a freeze: read what came meanwhile."""
        self.greet()
        held, self._held = self._held, []
        for data in held:
            if data is None:
                self.closed()
            else:
                self.received(data)

    def _published(self, subject: str, reply: bytes, headers: bytes, body: bytes) -> None:
        if subject.startswith(_API):
            self._server.call(self, subject, reply, body)
        else:
            self._server.publish(self, subject, reply, headers, body)

    def _control(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        if verb == b"PING":
            self._send(b"PONG\r\n")
        elif verb == b"SUB":
            subject, *_, sid = rest.split(b" ")
            self._sids[subject.removesuffix(b".*")] = sid
        elif verb == b"UNSUB":
            gone = rest.split(b" ")[0]
            self._sids = {subject: sid for subject, sid in self._sids.items() if sid != gone}

    def deliver(self, to: bytes, subject: bytes, headers: bytes, body: bytes, reply: bytes = b"") -> None:
        """A message for an inbox of this client; under `subject` where it keeps its own."""
        if self.dead or not to:
            return
        sid = self._sids.get(to) or self._sids.get(to.rpartition(b".")[0])
        if sid is None:
            return
        named = b"%b %b" % (subject or to, sid) + (b" " + reply if reply else b"")
        if headers:
            total = len(headers) + len(body)
            self._send(b"HMSG %b %d %d\r\n%b%b\r\n" % (named, len(headers), total, headers, body))
        else:
            self._send(b"MSG %b %d\r\n%b\r\n" % (named, len(body), body))
