"""Client addresses behind proxies, and their buckets."""

from ipaddress import ip_network

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.ingress.addresses import AddressBuckets, Proxies, bucket_name, contains
from gatewayd.ingress.admission import Limit
from gatewayd.times import Monotonic

INSIDE = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
ONE = Limit(1.0, 1.0)


class ProxyTests(SynchronousTestCase):
    """Whose word is believed about the client's address."""

    def test_untrusted_peer_is_the_client(self) -> None:
        """A forged header of a client that is no proxy changes nothing."""
        assert Proxies(INSIDE).client("203.0.113.9", [b"198.51.100.1"]) == "203.0.113.9"
        assert Proxies().client("10.0.0.1", [b"198.51.100.1"]) == "10.0.0.1"

    def test_announces(self) -> None:
        """A PROXY header is expected of the networks only, and of them only where it was asked for."""
        spoken = Proxies(INSIDE, protocol=True)
        assert spoken.announces("10.0.0.1")
        assert spoken.announces("::ffff:10.0.0.1")
        assert not any(spoken.announces(peer) for peer in ("203.0.113.9", "2001:db8::1", ""))
        assert not Proxies(INSIDE).announces("10.0.0.1")
        assert not Proxies(hops=1, protocol=True).announces("10.0.0.1")

    def test_right_most_untrusted(self) -> None:
        """Trusted proxies are stepped over from the right; what stands left of the client is its own claim."""
        chain = [b"6.6.6.6, 198.51.100.1, 10.1.1.1"]
        assert Proxies(INSIDE).client("10.0.0.1", chain) == "198.51.100.1"
        assert Proxies(INSIDE).client("10.0.0.1", [b"6.6.6.6", b"198.51.100.1", b"10.1.1.1"]) == "198.51.100.1"

    def test_hop_count(self) -> None:
        """With a hop count the address that so many proxies from the right saw is the client's."""
        chain = [b"6.6.6.6, 198.51.100.1, 192.0.2.7"]
        assert Proxies(hops=1).client("203.0.113.9", chain) == "192.0.2.7"
        assert Proxies(hops=2).client("203.0.113.9", chain) == "198.51.100.1"
        assert Proxies(hops=9).client("203.0.113.9", chain) == "6.6.6.6"

    def test_hop_count_from_known_proxies(self) -> None:
        """With networks and a count, hops are counted only when the peer is one of the proxies."""
        both = Proxies(INSIDE, hops=1)
        assert both.client("10.0.0.1", [b"6.6.6.6, 198.51.100.1"]) == "198.51.100.1"
        assert both.client("203.0.113.9", [b"6.6.6.6, 198.51.100.1"]) == "203.0.113.9"
        assert not both.trusted("203.0.113.9", [b"6.6.6.6"])

    def test_forms(self) -> None:
        """Ports and brackets are taken off; what is no address ends the walk."""
        proxies = Proxies(INSIDE)
        assert proxies.client("10.0.0.1", [b"198.51.100.1:4711"]) == "198.51.100.1"
        assert proxies.client("10.0.0.1", [b"[2001:db8::1]:4711"]) == "2001:db8::1"
        assert proxies.client("fd00::1", [b"2001:db8::1"]) == "2001:db8::1"
        assert proxies.client("10.0.0.1", [b"198.51.100.1, unknown"]) == "10.0.0.1"
        assert proxies.client("10.0.0.1", [b"<script>, 10.0.0.2"]) == "10.0.0.2"

    def test_believed(self) -> None:
        """A request that passed an unknown proxy could be anybody's."""
        assert Proxies().trusted("127.0.0.1", [])
        assert not Proxies().trusted("127.0.0.1", [b"198.51.100.1"])
        assert Proxies(INSIDE).trusted("10.0.0.1", [b"198.51.100.1"])

    def test_contains(self) -> None:
        """IPv4 addresses mapped into IPv6 are themselves; no text is an address by accident."""
        assert contains(INSIDE, "::ffff:10.2.3.4")
        assert not contains(INSIDE, "")
        assert not contains(INSIDE, "10.0.0")
        assert not contains((), "10.0.0.1")


class BucketTests(SynchronousTestCase):
    """One bucket per address, bounded."""

    def test_addresses_do_not_share(self) -> None:
        """One address's requests cost another nothing."""
        buckets = AddressBuckets()
        assert buckets.take("192.0.2.1", ONE, Monotonic(1000)) is None
        assert buckets.take("192.0.2.1", ONE, Monotonic(1000)) is not None
        assert buckets.take("192.0.2.2", ONE, Monotonic(1000)) is None

    def test_an_ipv6_client_has_its_64(self) -> None:
        """All addresses of one /64 are one client."""
        assert bucket_name("2001:db8:1:2:3::4") == bucket_name("2001:db8:1:2:ffff::1")
        assert bucket_name("2001:db8:1:2::1") != bucket_name("2001:db8:1:3::1")
        assert bucket_name("192.0.2.1") != bucket_name("192.0.2.2")

    def test_bound(self) -> None:
        """Full of busy addresses, newcomers share one bucket; full of idle ones, those are forgotten."""
        buckets = AddressBuckets(bound=3)
        for number in range(3):
            assert buckets.take(f"192.0.2.{number}", ONE, Monotonic(1000)) is None
        assert buckets.take("192.0.2.9", ONE, Monotonic(1000)) is None
        assert buckets.take("192.0.2.8", ONE, Monotonic(1000)) is not None
        assert buckets.overflows == 2
        assert buckets.take("192.0.2.8", ONE, Monotonic(1002)) is None
        assert buckets.take("192.0.2.7", ONE, Monotonic(1002)) is None
        assert buckets.overflows == 2
