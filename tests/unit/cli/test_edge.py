"""gatewayctl edge: keys, entries and the client's side, as far as no server is needed."""

import base64
import io
import json
import os
import signal
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace as changed_event
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.cli import edge_following
from gatewayd.cli.caller import Target
from gatewayd.cli.console import Code, Failed
from gatewayd.cli.edge_client import (
    Ended,
    Identity,
    PublishedKey,
    Received,
    Trust,
    as_members,
    as_protobuf,
    check_position,
    is_behind,
    read_event,
    read_event_members,
    read_keys,
    read_private_key,
    read_public_key,
    read_reply,
)
from gatewayd.cli.edge_following import EdgeFollowing, PositionFile
from gatewayd.cli.edge_keys import edge_target
from gatewayd.push.frames import Event, EventSigner
from gatewayd.schemas.edge_v1_pb2 import GatewayEvent
from gatewayd.sessions.envelope import read_json, read_protobuf, write_protobuf
from gatewayd.sessions.keys import SigningKeys
from gatewayd.sessions.signing import event_input, key_id, request_input, response_input, verify
from gatewayd.sessions.values import Envelope, Reply
from gatewayd.settings_edge import REQUIRED
from tests import edge_requests
from tests.unit.cli.invocation import Ended as Done
from tests.unit.cli.invocation import World, gatewayctl

GATEWAY, CLIENT = 7, 1
RAW = edge_requests.private_key(GATEWAY).public_key().public_bytes_raw()
PUBLISHED = PublishedKey(key_id(RAW), "current", RAW)
PASSWORD = "canary-of-redis"
FIVE = {
    "STATE_DIRECTORY": "/",
    "GATEWAY_REDIS_MASTER_ADDR": "127.0.0.1:9",
    "GATEWAY_REDIS_PASSWORD": PASSWORD,
    "GATEWAY_SESSION_EVENTS_REDIS_STREAM": "sessions",
    "GATEWAY_CLIENT_EVENTS_REDIS_STREAM": "events",
    "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH": "/nonexistent/signer.pem",
}


def made_event(
    event_type: str, position: str, *, payload: bytes = b"{}", request_id: str = "", seed: int = GATEWAY
) -> Event:
    """An event as the gateway makes it."""
    signer = EventSigner(edge_requests.private_key(seed).sign, event_input)
    return Event(
        signer,
        event_type=event_type,
        event_id=f"id-of-{position}",
        timestamp_ms=1_700_000_000_000,
        payload=payload,
        position=position,
        request_id=request_id,
        trace_id="",
    )


def received(event: Event) -> Received:
    """The same as a client has it."""
    return read_event_members(json.loads(event.json))


class Scratch(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = Path(directory.name)


class TestNewKeys(Scratch):
    def test_a_key_that_the_gateway_takes(self) -> None:
        """Each makes a file for its owner only that the gateway would sign with, and prints the public half alone."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        for number, command in enumerate(("new-signer", "new-client")):
            path = self.root / f"{number}.pem"
            done = gatewayctl("edge", command, "--out", str(path))
            self.assertEqual(done.code, 0)
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
            keys = SigningKeys(str(path))
            loaded = keys.load()
            public = loaded.current.public_key().public_bytes_raw()
            self.assertEqual(loaded.warnings, ())
            self.assertEqual(done.out, base64.b64encode(public).decode() + "\n")
            self.assertIn(key_id(public), done.err)
            self.assertNotIn(base64.b64encode(loaded.current.private_bytes_raw()).decode()[:20], done.out + done.err)

    def test_as_json(self) -> None:
        """--json names the file and the key."""
        path = self.root / "key.pem"
        value = gatewayctl("edge", "new-client", "--out", str(path), "--json").json
        raw = read_public_key(path)
        self.assertEqual(value, {"file": str(path), "kid": key_id(raw), "public_key": base64.b64encode(raw).decode()})

    def test_nothing_is_replaced(self) -> None:
        """A file that is there stays: exit code 2."""
        path = self.root / "key.pem"
        path.write_text("kept")
        self.assertEqual(gatewayctl("edge", "new-signer", "--out", str(path)).code, 2)
        self.assertEqual(path.read_text(), "kept")

    def test_key_files(self) -> None:
        """Either half gives the public key; what is no Ed25519 key is refused by its file's name, never quoted."""
        path = self.root / "key.pem"
        gatewayctl("edge", "new-client", "--out", str(path))
        private = read_private_key(path)
        public = self.root / "public.pem"
        public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        self.assertEqual(read_public_key(public), read_public_key(path))
        for content in (b"", b"canary", b"-----BEGIN PUBLIC KEY-----\ncanary", public.read_bytes()):
            path.write_bytes(content)
            error = self.assertRaises(Failed, read_private_key, path)
            self.assertEqual(error.code, Code.WRONG)
            self.assertNotIn("canary", str(error))
        self.assertIn("cannot be read", str(self.assertRaises(Failed, read_public_key, self.root / "none")))


class TestEntries(Scratch):
    def wrong(self, *words: str, environ: dict[str, str] | None = None, stdin: bytes = b"") -> str:
        """What a command says that is wrong before anything is written: exit code 2."""
        done: Done = gatewayctl("edge", *words, environ=FIVE if environ is None else environ, stdin=stdin)
        self.assertEqual((done.code, done.out), (2, ""), done.err)
        self.assertNotIn(PASSWORD, done.err)
        return done.err

    def test_the_edge_is_off(self) -> None:
        """Without its settings every command that writes says which it needs."""
        for words in (("revoke", "s"), ("publish", "--user", "u", "--type", "t")):
            said = self.wrong(*words, environ={"STATE_DIRECTORY": "/"})
            for name in REQUIRED:
                self.assertIn(name, said)

    def test_a_session_needs_one_key(self) -> None:
        """One of the two options, not none and not both."""
        for keys in ((), ("--key-file", "f", "--public-key", "x")):
            self.assertIn("one of --key-file and --public-key", self.wrong("session", "s", "--user", "u", *keys))

    def test_what_the_gateway_would_drop_is_not_written(self) -> None:
        """Every entry is judged by the gateway's own reader."""
        key = base64.b64encode(RAW).decode()
        for words, reason in (
            (("session", "a b", "--user", "u", "--public-key", key), "device_session_id"),
            (("session", "s", "--user", "", "--public-key", key), "user_id"),
            (("session", "s", "--user", "u", "--public-key", "AAAA"), "client_public_key"),
            (("revoke", ""), "device_session_id"),
            (("publish", "--user", "u", "--type", "gateway.heartbeat"), "reserved_type"),
            (("publish", "--user", "", "--type", "t"), "empty"),
            (("publish", "--user", "u", "--session", "", "--type", "t"), "empty"),
            (("publish", "--user", "u", "--type", "t" * 200), "too_long"),
            (("publish", "--user", "u\udcff", "--type", "t"), "not_text"),
        ):
            self.assertIn(reason, self.wrong(*words))
        self.assertIn("too_long", self.wrong("publish", "-", "--user", "u", "--type", "t", stdin=bytes(300_000)))

    def test_no_server(self) -> None:
        """Exit code 3 when Redis is not there, in one line that says where."""
        for words in (("revoke", "s"), ("publish", "--user", "u", "--type", "t")):
            done = gatewayctl("edge", *words, environ=FIVE)
            self.assertEqual((done.code, done.err.count("\n")), (3, 1))
            self.assertIn("Redis at 127.0.0.1:9", done.err)


class TestIdentity(SynchronousTestCase):
    def envelope(self, payload: bytes = b"p", message_type: str = "orders.place") -> Envelope:
        identity = Identity(edge_requests.SESSION, edge_requests.private_key(CLIENT))
        return identity.sign(message_type, payload, at_ms=1_700_000_000_000, request_id="r-1", trace_id="t-1")

    def test_the_gateway_understands_it(self) -> None:
        """Both forms are read back as they were signed, and the signature is good."""
        envelope = self.envelope(bytes(range(256)))
        self.assertEqual(read_protobuf(as_protobuf(envelope)), envelope)
        self.assertEqual(read_json(json.dumps(as_members(envelope))), envelope)
        public = edge_requests.private_key(CLIENT).public_key().public_bytes_raw()
        self.assertTrue(verify(public, envelope.signature, request_input(envelope)))

    def test_a_wrong_form_is_not_sent(self) -> None:
        """What the gateway would call malformed is exit code 2, with its words."""
        self.assertIn("message_type is missing", str(self.assertRaises(Failed, self.envelope, message_type="a b")))

    def test_the_key_is_not_shown(self) -> None:
        """Not in a repr."""
        self.assertEqual(repr(Identity("s", edge_requests.private_key(1))), "Identity(device_session_id='s')")


class TestTrust(SynchronousTestCase):
    def setUp(self) -> None:
        self.asked = 0
        self.published: list[PublishedKey] = [PUBLISHED]

    def ask(self) -> Sequence[PublishedKey]:
        self.asked += 1
        return list(self.published)

    def test_a_good_event(self) -> None:
        """Its key is named, in both forms; the keys are asked for once."""
        trust, event = Trust(self.ask), made_event("a.b", "ee.1-0", payload=b"\x00\xff")
        protobuf = read_event(event.grpc_message[5:])
        self.assertEqual(protobuf, received(event))
        self.assertEqual([trust.check_event(one) for one in (protobuf, received(event))], [PUBLISHED.kid] * 2)
        self.assertEqual(self.asked, 1)

    def test_a_new_key_is_found(self) -> None:
        """A signature under none that is known: the keys are asked for again."""
        trust = Trust(self.ask)
        trust.check_event(received(made_event("a.b", "ee.1-0")))
        other = edge_requests.private_key(9).public_key().public_bytes_raw()
        self.published.insert(0, PublishedKey(key_id(other), "current", other))
        self.assertEqual(trust.check_event(received(made_event("a.b", "ee.2-0", seed=9))), key_id(other))
        self.assertEqual(self.asked, 2)

    def test_what_was_not_signed(self) -> None:
        """Any member that is changed, and a signature of somebody else, end the command."""
        good = received(made_event("a.b", "ee.1-0", request_id="r"))
        changed: dict[str, Any] = {
            "event_type": "a.c",
            "event_id": "x",
            "timestamp_ms": 1,
            "payload": b"[]",
            "payload_hash": bytes(32),
            "signature": bytes(64),
            "request_id": "s",
            "trace_id": "t",
            "position": "ee.2-0",
        }
        for name, value in changed.items():
            error = self.assertRaises(Failed, Trust(self.ask).check_event, changed_event(good, **{name: value}))
            self.assertEqual(error.code, Code.NOT_IN_ORDER, name)
        self.assertRaises(Failed, Trust(self.ask).check_event, received(made_event("a.b", "ee.1-0", seed=9)))

    def test_a_reply(self) -> None:
        """It must be to this request, and signed."""
        digest = edge_requests.request(payload=b"x").payload_hash
        signed = response_input("v1", "r-1", 5, "ok", digest)
        reply = Reply("v1", "r-1", 5, "ok", b"x", digest, edge_requests.private_key(GATEWAY).sign(signed))
        read = read_reply(write_protobuf(reply))
        self.assertEqual(read, reply)
        self.assertEqual(Trust(self.ask).check_reply(read, "r-1"), PUBLISHED.kid)
        self.assertRaises(Failed, Trust(self.ask).check_reply, read, "r-2")
        for wrong in (replace(reply, result_code="no"), replace(reply, payload=b"y")):
            self.assertRaises(Failed, Trust(self.ask).check_reply, wrong, "r-1")

    def test_published_keys(self) -> None:
        """The gateway's own document is read; a key that is not what it is called, or no key at all, is refused."""
        x = base64.urlsafe_b64encode(RAW).decode().rstrip("=")
        good = {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": key_id(RAW), "status": "current"}
        self.assertEqual(read_keys({"keys": [{"kty": "RSA"}, good]}), (PUBLISHED,))
        for listed in ([], "x", [{**good, "kid": "0" * 16}], [{**good, "x": x[:-4]}], [{**good, "x": "?"}], [None]):
            self.assertEqual(self.assertRaises(Failed, read_keys, {"keys": listed}).code, Code.NOT_IN_ORDER)
        self.assertRaises(Failed, read_keys, {})

    def test_what_is_no_event(self) -> None:
        """Other bytes, and JSON that lacks a member, are refused as what the gateway did not send."""
        members = json.loads(made_event("a.b", "ee.1-0").json)
        for name in members:
            self.assertRaises(Failed, read_event_members, {key: members[key] for key in members if key != name})
        self.assertRaises(Failed, read_event, b"\xff\xff")
        self.assertRaises(Failed, read_reply, b"\xff\xff")
        self.assertEqual(read_event(GatewayEvent().SerializeToString()).event_type, "")


class TestPositions(SynchronousTestCase):
    def test_behind(self) -> None:
        """Every mark at or below the same one of the last position, in the same epoch; else it is new."""
        last = "ea.5-3,sb.7-0"
        for position, behind in (
            ("ea.5-3,sb.7-0", True),
            ("ea.5-2,sb.7-0", True),
            ("ea.4-9", True),
            ("ea.5-4,sb.7-0", False),
            ("ea.5-3,sb.8-0", False),
            ("ex.1-0,sb.7-0", False),
            ("nonsense", False),
        ):
            self.assertEqual(is_behind(position, last), behind, position)
        self.assertFalse(is_behind("ea.1-0", ""))
        self.assertFalse(is_behind("ea.1-0,sb.1-0", "ea.5-3"))

    def test_a_position_that_is_none(self) -> None:
        """Refused; nothing at all is the beginning."""
        self.assertEqual(check_position("ea.5-3"), "ea.5-3")
        self.assertEqual(check_position(""), "")
        self.assertRaises(Failed, check_position, "yesterday")

    def test_targets(self) -> None:
        """A path is put below that of the URL; what is no address of a gateway names its option."""
        self.assertEqual(edge_target("--url", "http://h:1", "/p"), Target(False, "h", 1, "/p"))
        self.assertEqual(edge_target("--url", "https://[::1]/", "/p"), Target(True, "::1", 443, "/p"))
        self.assertEqual(edge_target("--url", "https://h/below/", "/p"), Target(True, "h", 443, "/below/p"))
        for url in ("h:1", "ftp://h", "http://u:p@h", "http://h?x", "http://h/#x", "http://h:99999"):
            self.assertIn("--grpc: ", str(self.assertRaises(Failed, edge_target, "--grpc", url, "/p")))

    def test_two_ways_at_once(self) -> None:
        """Options that exclude each other are exit code 2."""
        for words in (("--websocket", "--sse"), ("--position", "ea.1-0", "--state", "f"), ("--position", "x")):
            done = gatewayctl("edge", "subscribe", "--session", "s", "--key-file", "f", *words)
            self.assertEqual((done.code, done.err.count("\n")), (2, 1))


class Streams:
    """A channel whose streams were written beforehand: events, and how each stream ends."""

    def __init__(self, *streams: Sequence[Event | Exception]) -> None:
        self.streams = list(streams)
        self.positions: list[str] = []

    def subscribe(self, envelope: Envelope) -> Iterator[Received]:
        """The next stream, its first event bound to the request."""
        self.positions.append(envelope.payload.decode())
        for one in self.streams.pop(0):
            if isinstance(one, Exception):
                raise one
            bound = "server_time" in one.event_type and one.request_id != "another"
            yield received(made_event(one.event_type, one.position, request_id=envelope.request_id) if bound else one)
        raise Failed(Code.UNREACHABLE, "cut")


HELLO = made_event("gateway.server_time", "ea.1-0")


class TestFollowing(Scratch):
    def follow(self, channel: Streams, *, count: int | None = None, position: str = "", state: str = "") -> "Done":
        """A run to its end, as the command has it."""
        world = World()
        kept = PositionFile(self.root / state if state else None, world.surroundings.monotonic)
        identity = Identity(edge_requests.SESSION, edge_requests.private_key(CLIENT))
        following = EdgeFollowing(
            channel,
            identity,
            Trust(lambda: [PUBLISHED]),
            world.surroundings,
            message_type="events.subscribe",
            position=position,
            kept=kept,
            count=count,
            as_json=True,
        )
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                following.run()
            except Failed as failed:
                code = failed.code
                err.write("\n".join(failed.lines))
            finally:
                kept.close()
        return Done(code, out.getvalue(), err.getvalue(), world)

    @staticmethod
    def types(done: Done) -> list[str]:
        """What was printed."""
        return [json.loads(line)["event_type"] for line in done.lines]

    def test_once_each(self) -> None:
        """After a lost connection it resumes behind the last event; what comes again is not printed again."""
        first = [HELLO, made_event("one", "ea.2-0"), made_event("two", "ea.3-0")]
        second = [
            made_event("gateway.server_time", "ea.3-0"),
            made_event("two", "ea.3-0"),
            made_event("three", "ea.4-0"),
        ]
        channel = Streams(first, second)
        done = self.follow(channel, count=3)
        self.assertEqual(self.types(done), ["gateway.server_time", "one", "two", "gateway.server_time", "three"])
        self.assertEqual(channel.positions, ["", "ea.3-0"])
        self.assertEqual(done.world.slept, [0.5])

    def test_heartbeats_move_the_position_only(self) -> None:
        """A quiet stream resumes where its last heartbeat was."""
        channel = Streams([HELLO, made_event("gateway.heartbeat", "ea.9-0")], [HELLO, made_event("one", "ea.10-0")])
        done = self.follow(channel, count=1)
        self.assertNotIn("gateway.heartbeat", self.types(done))
        self.assertEqual(channel.positions, ["", "ea.9-0"])

    def test_waits_as_it_is_told(self) -> None:
        """The gateway's hint counts; without one, or a connection, the wait doubles until something comes."""
        ended = Ended("UNAVAILABLE gateway is shutting down", final=False, wait_s=1.25)
        lost = [Failed(Code.UNREACHABLE, "refused")]
        channel = Streams([HELLO, ended], lost, lost, [HELLO, ended], [HELLO, made_event("one", "ea.2-0")])
        done = self.follow(channel, count=1)
        self.assertEqual(done.world.slept, [1.25, 1.0, 2.0, 1.25])
        self.assertIn("gateway is shutting down; coming again in 1.25 s", done.err)

    def test_the_end(self) -> None:
        """A final end, and any end before the first event, ends the command."""
        revoked = Ended("FAILED_PRECONDITION device session is revoked", final=True)
        done = self.follow(Streams([HELLO, revoked]))
        self.assertEqual((done.code, done.err), (1, "FAILED_PRECONDITION device session is revoked"))
        self.assertEqual(self.follow(Streams([Ended("UNAVAILABLE", final=False)])).code, 1)
        self.assertEqual(self.follow(Streams([Failed(Code.UNREACHABLE, "refused")])).code, 3)

    def test_what_is_not_signed_is_not_printed(self) -> None:
        """A forged event, or a stream that answers another request, ends the command with exit code 1."""
        done = self.follow(Streams([HELLO, made_event("one", "ea.2-0", seed=9)]))
        self.assertEqual((done.code, self.types(done)), (1, ["gateway.server_time"]))
        for first in (made_event("one", "ea.1-0"), made_event("gateway.server_time", "ea.1-0", request_id="another")):
            done = self.follow(Streams([first]))
            self.assertEqual((done.code, done.out), (1, ""))
            self.assertIn("not trusted", done.err)

    def test_state(self) -> None:
        """The file holds the last position after the end, and the next run begins there."""
        self.follow(Streams([HELLO, made_event("one", "ea.2-0"), made_event("two", "ea.3-0")]), count=2, state="at")
        self.assertEqual((self.root / "at").read_text(), "ea.3-0\n")
        channel = Streams([made_event("gateway.server_time", "ea.3-0"), made_event("three", "ea.4-0")])
        self.follow(channel, count=1, state="at")
        self.assertEqual(channel.positions, ["ea.3-0"])
        (self.root / "at").write_text("nonsense")
        error = self.assertRaises(Failed, PositionFile, self.root / "at", lambda: 0.0)
        self.assertIn("holds no position", str(error))

    def test_interrupted(self) -> None:
        """Ctrl-C while an event is being printed comes once its position is kept: it is not printed again."""
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        shown: list[str] = []

        def show(members: dict[str, Any]) -> None:
            if members["event_type"] == "one":
                signal.raise_signal(signal.SIGINT)
            shown.append(members["event_type"])

        self.patch(edge_following, "show_json", show)
        with self.assertRaises(KeyboardInterrupt):
            self.follow(Streams([HELLO, made_event("one", "ea.2-0"), made_event("two", "ea.3-0")]), state="at")
        self.assertEqual(shown, ["gateway.server_time", "one"])
        self.assertEqual((self.root / "at").read_text(), "ea.2-0\n")

    def test_a_gap_is_said(self) -> None:
        """gateway.resume_failed is printed, and told of on stderr; the stream goes on from there."""
        done = self.follow(
            Streams([HELLO, made_event("gateway.resume_failed", "eb.1-0"), made_event("one", "eb.2-0")]),
            count=1,
            position="ea.1-0",
        )
        self.assertEqual(self.types(done)[1:], ["gateway.resume_failed", "one"])
        self.assertIn("something may have been missed", done.err)
