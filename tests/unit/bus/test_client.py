"""What the client is told and says: servers, credentials, the driver's names, errors in one line."""

import base64
import json
import ssl

from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client as Driver
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.api import read_api
from gatewayd.bus.client import NatsSettings, check_private_names, credentials, describe
from gatewayd.bus.nats import Seldom, stored_by_leader, stored_direct
from gatewayd.bus.publication import Cause, Stored, Unpublished
from gatewayd.bus.requests import Reply
from gatewayd.bus.servers import parse_server
from gatewayd.bus.stored import place
from gatewayd.times import Wall


class ServersTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """A host, a port, a scheme, an address in brackets; credentials leave the URL and are decoded."""
        cases = {
            "localhost": ("nats://localhost:4222", False, None, None, None),
            "nats://10.0.0.1:4333/": ("nats://10.0.0.1:4333", False, None, None, None),
            "tls://[::1]:4222": ("tls://[::1]:4222", True, None, None, None),
            "nats://gw:p%40ss%2Fword@h": ("nats://h:4222", False, "gw", "p@ss/word", None),
            "nats://s3cret@h:1": ("nats://h:1", False, None, None, "s3cret"),
        }
        for url, (plain, tls, user, password, token) in cases.items():
            server = parse_server(url)
            self.assertEqual((server.url, server.tls), (plain, tls))
            self.assertEqual((server.user, server.password, server.token), (user, password, token))

    def test_what_is_no_server(self) -> None:
        """Other schemes, paths, ports out of range, no host: ValueError without the credentials."""
        for url in (
            "", "http://h", "ws://h", "nats://", "nats://u:canary@", "nats://u:canary@h:99999", "nats://u:canary@h:x",
            "nats://u:canary@h/path", "nats://h?a=b", "nats://u:canary@[::1",
        ):  # fmt: skip
            error = self.assertRaises(ValueError, parse_server, url)
            self.assertNotIn("canary", f"{error!r}{error.__cause__!r}{error.__suppress_context__ or error.__context__}")

    @given(st.text(max_size=40))
    def test_any_text(self, text: str) -> None:
        """Any text is a server or a ValueError."""
        try:
            server = parse_server(text)
        except ValueError:
            return
        self.assertRegex(server.url, "^(nats|tls)://.+:[0-9]+$")

    def test_secrets_have_no_repr(self) -> None:
        """No credential stands in the repr of settings or servers."""
        settings = NatsSettings(("nats://u:canary@h",), "s", password="canary", token="canary", nkey_seed="canary")
        self.assertNotIn(
            "canary", repr(settings) + repr(parse_server("nats://u:canary@h")) + repr(parse_server("canary@h"))
        )


class CredentialsTests(SynchronousTestCase):
    def test_a_servers_own_come_before_the_settings(self) -> None:
        """User and password of the URL win; without them the settings' are used; a token only without both."""
        settings = NatsSettings(("h",), "s", user="u", password="p", token="t")
        self.assertEqual(credentials(parse_server("a:b@h"), settings), {"user": "a", "password": "b"})
        self.assertEqual(credentials(parse_server("h"), settings), {"user": "u", "password": "p"})
        self.assertEqual(credentials(parse_server("own@h"), NatsSettings(("h",), "s", token="t")), {"token": "own"})
        self.assertEqual(credentials(parse_server("h"), NatsSettings(("h",), "s", token="t")), {"token": "t"})

    def test_tls_is_before_the_first_byte(self) -> None:
        """With tls:// the handshake comes first and the peer is checked."""
        options = credentials(parse_server("tls://h"), NatsSettings(("tls://h",), "s"))
        self.assertIs(options["tls_handshake_first"], True)
        self.assertEqual((options["tls"].verify_mode, options["tls"].check_hostname), (ssl.CERT_REQUIRED, True))

    def test_a_missing_file_is_an_error_of_the_attempt(self) -> None:
        """A certificate file that is not there raises when the connection is made, naming no secret."""
        settings = NatsSettings(("h",), "s", tls_ca_file="/nonexistent/ca.pem")
        self.assertRaises(OSError, credentials, parse_server("h"), settings)


class DriverTests(SynchronousTestCase):
    def test_the_installed_driver_is_the_one_that_was_tried(self) -> None:
        """The private names are there."""
        self.assertIsNone(check_private_names())

    def test_a_name_that_is_gone_is_said_at_start(self) -> None:
        """A driver that counts pings in another way is refused with a clear error."""

        class Changed(Driver):
            def __init__(self) -> None:
                super().__init__()
                del self._pings_outstanding

        error = self.assertRaises(RuntimeError, check_private_names, Changed)
        self.assertIn("Client._pings_outstanding", str(error))

    def test_errors_in_one_line(self) -> None:
        """The kind and the text of an error, in one line; a hint for a server that speaks before TLS."""
        self.assertEqual(describe(OSError(5, "broken\nby\tit")), "OSError: [Errno 5] broken by it")
        self.assertEqual(describe(TimeoutError()), "TimeoutError")
        wrong = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
        self.assertIn("handshake_first", describe(wrong))


class ReadingTests(SynchronousTestCase):
    def test_one_line_a_second(self) -> None:
        """The first passes, then one a second with the number that was left out."""
        seldom = Seldom()
        self.assertEqual([seldom.passes(t) for t in (0.0, 0.1, 0.9, 1.0, 1.5, 7.0)], [0, None, None, 2, None, 1])

    def test_where_a_delivery_stands(self) -> None:
        """Both forms of the reply subject give sequence, consumer sequence, time and what is pending."""
        expected = (1234, 7, Wall(1700000000.5), 42)
        self.assertEqual(place("$JS.ACK.s.c.1.1234.7.1700000000500000000.42"), expected)
        self.assertEqual(place("$JS.ACK.hub.hash.s.c.1.1234.7.1700000000500000000.42.rnd"), expected)

    def test_api_answers(self) -> None:
        """Members, or the error with its number; what is no object is an error too."""
        self.assertEqual(read_api(b'{"a":1}'), {"a": 1})
        refused = read_api(b'{"error":{"code":404,"err_code":10059,"description":"stream not found"}}')
        self.assertEqual(refused, Unpublished(Cause.REJECTED, "stream not found (10059)"))
        self.assertIsInstance(read_api(b"[]"), Unpublished)
        self.assertIsInstance(read_api(b"{"), Unpublished)

    def test_a_message_by_direct_get(self) -> None:
        """The server's own headers are taken out, the message's stay."""
        added = {"Nats-Stream": "s", "Nats-Subject": "a.b", "Nats-Sequence": "3"}
        answer = Reply(b"x", {"Nats-Msg-Id": "1", **added, "Nats-Time-Stamp": "2024-01-15T10:30:00.5Z"})
        self.assertEqual(stored_direct(3, answer), Stored(3, "a.b", {"Nats-Msg-Id": "1"}, b"x", Wall(1705314600.5)))

    def test_a_message_by_its_leader(self) -> None:
        """The first of a repeated header counts; another id, and a message that is not there, are None."""
        block = base64.b64encode(b"NATS/1.0\r\nNats-Msg-Id: 1\r\nA:b:c\r\nA: d\r\n\r\n").decode()
        message = {"subject": "a.b", "seq": 3, "hdrs": block, "data": "eA==", "time": "2024-01-15T10:30:00Z"}
        found = json.dumps({"message": message}).encode()
        headers = {"Nats-Msg-Id": "1", "A": "b:c"}
        self.assertEqual(stored_by_leader(found, "1"), Stored(3, "a.b", headers, b"x", Wall(1705314600.0)))
        self.assertIsNone(stored_by_leader(found, "2"))
        self.assertIsNone(stored_by_leader(b'{"error":{"code":404,"err_code":10037}}', "1"))
        self.assertIsInstance(stored_by_leader(b'{"error":{"code":404,"err_code":10059}}', "1"), Unpublished)
        for rubbish in (b"", b"[]", b"{}", b'{"message":1}'):
            self.assertIsInstance(stored_by_leader(rubbish, "1"), Unpublished)
        bare = b'{"message":{"subject":"a","seq":1,"time":"2024-01-15T10:30:00Z"}}'
        self.assertIsNone(stored_by_leader(bare, "1"))
