"""The kinds of values: which texts each allows, what they become, how they are shown."""

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd import settings_values as values
from gatewayd.ingress.addresses import Proxies
from gatewayd.secret import Secret
from gatewayd.settings_values import Kind, Wrong

SEED = "SU" + "A2" * 28


def parse(kind: Kind, text: str) -> object:
    return kind.parse(tuple(item.strip() for item in text.split(",")) if kind.many else (text,))


class ParseTest(SynchronousTestCase):
    RIGHT = (
        (values.whole(0, 65535), "0", 0),
        (values.whole(0, 65535), "65535", 65535),
        (values.whole(1, 9, "off"), "OFF", None),
        (values.number(0.01, 1000), "0.01", 0.01),
        (values.number(0.01, 1000), "1000.000", 1000.0),
        (values.duration(0.05, 7200), "250ms", 0.25),
        (values.duration(0.05, 7200), "5s", 5.0),
        (values.duration(0.05, 7200), "1m", 60.0),
        (values.duration(0.05, 7200), "1.5h", 5400.0),
        (values.duration(0.05, 7200), "2", 2.0),
        (values.duration(0.05, 7200), "0.3", 0.3),
        (values.duration(1, 7200, whole_seconds=True), "5m", 300),
        (values.size_bytes(1, 2**50), "2MB", 2_000_000),
        (values.size_bytes(1, 2**50), "1.5KiB", 1536),
        (values.size_bytes(1, 2**50), "3GiB", 3 * 2**30),
        (values.size_bytes(1, 2**50), "7", 7),
        (values.switch(), "Yes", True),
        (values.switch(), "off", False),
        (values.one_of("a", "b"), "B", "b"),
        (values.some_of("v1", "sha256"), "sha256,v1", ("sha256", "v1")),
        (values.host(), "all", ""),
        (values.host(), "::", "::"),
        (values.host(), "[::1]", "::1"),
        (values.host(), "localhost", "localhost"),
        (values.networks("all"), "ALL", values.ALL_NETWORKS),
        (values.networks("none"), "none", ()),
        (values.networks(), "10.0.0.0/8, 10.0.0.0/8", (ip_network("10.0.0.0/8"),)),
        (values.networks(), "::ffff:10.0.0.0/104", (ip_network("10.0.0.0/8"),)),
        (values.proxies(), "none", Proxies()),
        (values.proxies(), "2", Proxies((), 2)),
        (values.proxies(), "10.0.0.1,16", Proxies((ip_network("10.0.0.1"),), 16)),
        (values.proxies(), "10.0.0.1,PROXY-Protocol", Proxies((ip_network("10.0.0.1"),), protocol=True)),
        (values.proxies(), "10.0.0.1,2,proxy-protocol", Proxies((ip_network("10.0.0.1"),), 2, True)),
        (values.rates(0.1, 100), "a:1, b-c:2.5", {"a": 1.0, "b-c": 2.5}),
        (values.source_names(), "a,B_-9", ("a", "B_-9")),
        (values.instant(), "2030-01-01T00:00:00Z", 1893456000.0),
        (values.secret("one line"), "x y", Secret(b"x y")),
        (values.servers(), "nats://a", (values.Server("nats://a:4222"),)),
        (values.servers(), "a:1/", (values.Server("nats://a:1"),)),
        (values.servers(), "tls://u%3A:p%25@[::1]", (values.Server("tls://[::1]:4222", "u:", Secret(b"p%")),)),
        (values.servers(), "nats://t@a", (values.Server("nats://a:4222", token=Secret(b"t")),)),
    )
    WRONG = (
        (values.whole(0, 65535), ("", "-1", "+1", "65536", "1_0", "٣", "1.0", "0x1", " 1", "9" * 30, "1\n", "off")),
        (values.number(0.01, 1000), ("nan", "inf", "1e3", "-1", "0", "1000.1", "1,5", ".5", "5.", "٣", "1s", "")),
        (
            values.duration(0.05, 7200),
            ("5 s", "5d", "1h30m", "-5s", "49ms", "7201", "5S", "nan", "inf", "1e3", "٣s", "s", ""),
        ),
        (values.duration(1, 7200, whole_seconds=True), ("1.5", "1500ms", "0")),
        (values.size_bytes(10, 2**50), ("9", "2 MB", "2mb", "2M", "-1", "1PB", "1e3", "")),
        (values.switch(), ("", "maybe", "2", "ja")),
        (values.one_of("a", "b"), ("c", "", "ab")),
        (values.some_of("v1", "sha256"), ("", "V1", "v1,v1", "v2", "v1,")),
        (values.named("letters", "[a-z]+"), ("", "a b", "a\n", "ä")),
        (values.host(), ("", "[]", "a b", "1:2:3", "a:80", "*")),
        (
            values.listening(),
            (
                "",
                "8001",
                ":70000",
                ":80,:80",
                "systemd:x",
                ",".join(["systemd:domain=INET:name=a"] * 2),
                "unix:relative",
                ":80,",
            ),
        ),
        (values.networks("none"), ("10.0.0.1/8", "10.0.0.0/33", "all", "none,10.0.0.0/8", "fe80::%eth0/64", "x", "")),
        (
            values.proxies(),
            ("0", "17", "1,2", "proxy-protocol", "2,proxy-protocol", "10.0.0.1,proxy_protocol", "x", "2,none", ""),
        ),
        (values.rates(0.1, 100), ("a", "a:", "a:0", "a:101", ":1", "a:1,a:2", "a b:1", "a:nan", "")),
        (values.source_names(), ("", "a,a", "a b", "ä", "a" * 65, "a.b", "a/b")),
        (values.instant(), ("", "2030-01-01", "2030-01-01T00:00:00", "1893456000")),
        (values.secret("one line"), ("", "a\nb", "a\0", "a\udcff")),
        (values.secret("a seed", r"SU[A-Z2-7]{56}"), (SEED + "A", SEED.lower(), "SA" + SEED[2:], SEED + "\n")),
        (
            values.servers(),
            (
                "",
                "http://a",
                "nats://",
                "nats://a:0",
                "nats://a:70000",
                "nats://a/x",
                "nats://a?x",
                "nats://a#x",
                "nats://u:@a",
                "nats://u:%ff@a",
                "nats://:p@a",
                "nats://u@v@a",
                "nats://a b",
                "nats://ä:p@a",
                "nats://a,nats://a:4222",
                "nats://u:p@a,nats://v:p@b",
            ),
        ),
        (values.path(), ("-----BEGIN PRIVATE KEY-----", "/a\n/b", "/a\0")),
        (values.secret_list(), ("", "a,", "a\0", "a\nb")),
    )

    def test_right(self) -> None:
        """Each of these texts becomes this value."""
        for kind, text, value in self.RIGHT:
            found = parse(kind, text)
            self.assertEqual(found, value, text)
            self.assertIs(type(found), type(value), text)

    def test_wrong(self) -> None:
        """Each of these texts is refused."""
        for kind, texts in self.WRONG:
            for text in texts:
                self.assertIsInstance(parse(kind, text), Wrong, f"{kind.allowed}: {text!r}")

    def test_private_texts(self) -> None:
        """Where a wrong text may hold a secret, it must not be repeated, and the reason does not."""
        for kind, text in (
            (values.servers(), "nats://u:hidden@a/"),
            (values.servers(), "nats://u:hid,den@a"),
            (values.path(), "-----BEGIN hidden"),
            (values.secret_list(), "hidden\0"),
            (values.secret("x"), "hidden\n"),
        ):
            self.assertTrue(kind.private(text), text)
            found = parse(kind, text)
            self.assertNotIn("hid", found.reason if isinstance(found, Wrong) else "")
        self.assertFalse(values.servers().private("http://a"))
        self.assertFalse(values.path().private("/etc/x"))

    def test_hints(self) -> None:
        """A network with bits beyond its prefix is answered with the one that may be meant."""
        found = parse(values.networks(), "10.1.2.3/8")
        assert isinstance(found, Wrong)
        self.assertIn("10.0.0.0/8", found.reason)


class ShowTest(SynchronousTestCase):
    def test_shown(self) -> None:
        """Values are shown in the units that people write."""
        for kind, value, text in (
            (values.duration(0, 1e9), 0.25, "250ms"),
            (values.duration(0, 1e9), 0.0, "0s"),
            (values.duration(0, 1e9), 90.0, "90s"),
            (values.duration(0, 1e9), 86400.0, "24h"),
            (values.duration(0, 1e9), 1.5, "1500ms"),
            (values.size_bytes(0, 1 << 60), 2_000_000, "2000000"),
            (values.size_bytes(0, 1 << 60), 3 << 30, "3GiB"),
            (values.number(0, 1e9), 1e6, "1000000"),
            (values.number(0, 1e9), 0.5, "0.5"),
            (values.networks("loopback"), values.LOOPBACK, "loopback"),
            (values.networks(), (), ""),
            (values.secret("x"), None, ""),
            (values.secret("x"), Secret(b"abc"), "<set: 1 secret, 3 bytes>"),
            (values.secret_list(), (Secret(b"abc"), Secret(b"de")), "<set: 2 secrets, 3 and 2 bytes>"),
            (
                values.secret_list(),
                (Secret(b"abc"), Secret(b"de"), Secret(b"f")),
                "<set: 3 secrets, 3, 2 and 1 bytes>",
            ),
        ):
            self.assertEqual(kind.show(value), text)

    @given(st.integers(1, 10**11).map(lambda micros: micros / 1e6))
    def test_durations_come_back(self, seconds: float) -> None:
        """A duration that is shown is read as the same one."""
        kind = values.duration(0, 10**9)
        self.assertEqual(parse(kind, kind.show(seconds)), seconds)

    @given(st.integers(1, 10**18 - 1))
    def test_sizes_come_back(self, size: int) -> None:
        """A size that is shown is read as the same one."""
        kind = values.size_bytes(0, 2**61)
        self.assertEqual(parse(kind, kind.show(size)), size)

    @given(st.text() | st.text(st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)))
    def test_any_text_is_answered(self, text: str) -> None:
        """No text whatever makes a kind raise."""
        for kind, _ in ParseTest.WRONG:
            parse(kind, text)


class SecretTest(SynchronousTestCase):
    def test_never_shown(self) -> None:
        """A secret shows its length only, in whatever it is put."""
        secret = Secret(b"hidden-value")
        for text in (repr(secret), str(secret), f"{secret}", f"{[secret]}"):
            self.assertNotIn("hidden", text)
            self.assertIn("12 bytes", text)
        self.assertEqual(secret.reveal(), b"hidden-value")
        self.assertEqual(secret.size, 12)

    def test_compared_by_value(self) -> None:
        """Two secrets are equal when their bytes are, so that a reload sees what changed."""
        self.assertEqual(Secret(b"a"), Secret(b"a"))
        self.assertEqual(len({Secret(b"a"), Secret(b"a"), Secret(b"b")}), 2)
        self.assertNotEqual(Secret(b"a"), b"a")

    def test_weakness(self) -> None:
        """Published, short and monotonous secrets are weak, and the reason does not show them."""
        for value, word in (
            (b"your-256-bit-secret", "published"),
            (b"A-String-Secret-At-Least-256-Bits-Long", "published"),
            (b"x9" * 15, "30 bytes"),
            (b"ab" * 40, "repeats"),
        ):
            self.assertIn(word, Secret(value).weakness())
            self.assertNotIn(value.decode(), Secret(value).weakness())
        self.assertEqual(Secret(b"0123456789-abcdefghijklmnopqrstuv").weakness(), "")
