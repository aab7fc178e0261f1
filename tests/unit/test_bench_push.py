"""The push bench's clients: they count each event once and in order, however its bytes come."""

import json
import socket
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.frames import Event, EventSigner
from gatewayd.schemas.edge_v1_pb2 import SubscribeEventsRequest
from gatewayd.sessions.envelope import read_json, read_protobuf
from gatewayd.sessions.signing import event_input, request_input, verify
from tests.bench import pushload, pushnames

HEAD = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"


def event(event_id: str) -> Event:
    """As gatewayd makes one."""
    signer = EventSigner(lambda signed: bytes(64), event_input)
    return Event(signer, event_type="t", event_id=event_id, timestamp_ms=1, payload=b"x" * 200, position="ea.1-0")


def marked(number: int) -> Event:
    """One that was published at 1,000 ns."""
    return event(pushnames.mark_of(number, 1000).decode())


class Readers(SynchronousTestCase):
    def read(self, kind: str, data: bytes, pieces: int) -> tuple[pushload.Tally, bytes]:
        """What a client of this kind makes of bytes that come in so many pieces, and what it answered."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        self.addCleanup(ours.close)
        tally = pushload.Tally()
        tally.now = 3500
        stream = pushload.KINDS[kind](ours, 7, tally)
        if isinstance(stream, pushload.GrpcStream):
            stream.begin(7, b"/path", b"")
        cuts = [len(data) * piece // pieces for piece in range(pieces + 1)]
        for begin, end in pairwise(cuts):
            stream.read(data[begin:end])
        theirs.setblocking(False)
        try:
            return tally, theirs.recv(65536)
        except BlockingIOError:
            return tally, b""

    def test_pieces(self) -> None:
        """In one piece or in very many: it opens with the first event, and each further one counts once."""
        own, numbers = event("gateway-1"), range(3, 6)
        streams = {
            "websocket": HEAD + own.websocket_frame + b"".join(marked(at).websocket_frame for at in numbers),
            "sse": HEAD + b": open\n\n" + own.sse_frame + b"".join(marked(at).sse_frame for at in numbers),
            "nchan sse": HEAD + b": hi\n\n" + b"".join(marked(at).sse_frame for at in numbers),
            "nchan websocket": HEAD + b"".join(marked(at).websocket_frame for at in numbers),
            "grpc": pushnames.frame(pushnames.SETTINGS, 0, 0)
            + b"".join(pushnames.frame(pushnames.DATA, 0, 1, one.grpc_message) for one in (own, *map(marked, numbers))),
        }
        for kind, data in streams.items():
            for pieces in (1, 2, 97, len(data)):
                tally, _ = self.read(kind, data, pieces)
                seen = (tally.opened, list(tally.latencies), tally.disordered, tally.number)
                self.assertEqual(seen, (1, [2500] * 3, 0, 5), f"{kind} in {pieces}")

    def test_disorder(self) -> None:
        """An event that is missing or comes twice is seen."""
        for numbers in ((1, 2, 4), (1, 2, 2)):
            data = HEAD + b"".join(marked(at).websocket_frame for at in numbers)
            self.assertEqual(self.read("websocket", data, 1)[0].disordered, 1, numbers)

    def test_the_end(self) -> None:
        """A close frame, a last event and trailers end a stream."""
        ends = {
            "websocket": HEAD + b"\x88\x02\x0f\xa3",
            "sse": HEAD + b"event: close\ndata: {}\n\n",
            "grpc": pushnames.frame(pushnames.HEADERS, pushnames.END_STREAM, 1, b"..."),
        }
        for kind, data in ends.items():
            self.assertEqual(self.read(kind, data, 1)[0].closed, {7: 3500}, kind)

    def test_pings(self) -> None:
        """Idle clients stay: they answer what asks whether they are there."""
        self.assertTrue(self.read("websocket", HEAD + b"\x89\x00", 1)[1].endswith(b"\x8a\x80\0\0\0\0"))
        asked = pushnames.frame(pushnames.PING, 0, 0, b"12345678")
        answer = pushnames.frame(pushnames.PING, pushnames.ACK, 0, b"12345678")
        self.assertTrue(self.read("grpc", asked, 1)[1].endswith(answer))


class Openings(SynchronousTestCase):
    def test_signed(self) -> None:
        """What opens a stream is an envelope that passes, in either form."""
        made = pushnames.signed("shared-0", "events.subscribe", 1_700_000_000_000, b"payload")
        public = pushnames.CLIENT_KEY.public_key().public_bytes_raw()
        self.assertTrue(verify(public, made.signature, request_input(made)))
        self.assertEqual(read_json(pushnames.as_json(made)), made)
        self.assertEqual(read_protobuf(pushnames.as_protobuf(made)[5:]), made)
        self.assertIn(json.dumps("shared-0").encode(), pushnames.opening("sse", made))
        self.assertEqual(SubscribeEventsRequest.FromString(pushnames.opening("grpc", made)[5:]).trace_id, "bench")
