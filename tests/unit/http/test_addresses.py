"""Addresses to listen on: what each text means, and how a wrong one reads."""

import re

import pytest

from gatewayd.http.addresses import Address, Kind, parse_address

GOOD = [
    (":8001", Address(Kind.TCP, "192.0.2.9", 8001), "192.0.2.9:8001"),
    (" 127.0.0.1:0 ", Address(Kind.TCP, "127.0.0.1", 0), "127.0.0.1:0"),
    ("localhost:65535", Address(Kind.TCP, "localhost", 65535), "localhost:65535"),
    ("[::1]:8001", Address(Kind.TCP, "::1", 8001), "[::1]:8001"),
    ("[0:0::1]:8001", Address(Kind.TCP, "::1", 8001), "[::1]:8001"),
    ("[::]:80", Address(Kind.TCP, "::", 80), "[::]:80"),
    ("tcp:8001", Address(Kind.TCP, "192.0.2.9", 8001), "192.0.2.9:8001"),
    (r"tcp:8001:interface=\:\:1", Address(Kind.TCP, "::1", 8001), "[::1]:8001"),
    ("unix:/run/gw.sock", Address(Kind.UNIX, path="/run/gw.sock"), "unix:/run/gw.sock"),
    ("unix:/run/gw.sock:mode=660", Address(Kind.UNIX, path="/run/gw.sock", mode=0o660), "unix:/run/gw.sock"),
    (r"unix:/run/a\:b:mode=0600", Address(Kind.UNIX, path="/run/a:b", mode=0o600), "unix:/run/a:b"),
    (
        "ssl:8443:privateKey=/k.pem:certKey=/c.pem:extraCertChain=/d.pem:interface=127.0.0.1",
        Address(Kind.TLS, "127.0.0.1", 8443, private_key="/k.pem", certificate="/c.pem", chain="/d.pem"),
        "ssl:127.0.0.1:8443",
    ),
    (
        "ssl:8443:privateKey=/both.pem",
        Address(Kind.TLS, "192.0.2.9", 8443, private_key="/both.pem", certificate="/both.pem"),
        "ssl:192.0.2.9:8443",
    ),
    (
        "systemd:domain=INET:name=public",
        Address(Kind.INHERITED, domain="INET", name="public"),
        "systemd:domain=INET:name=public",
    ),
    (
        "systemd:index=2:domain=UNIX",
        Address(Kind.INHERITED, domain="UNIX", index=2),
        "systemd:domain=UNIX:index=2",
    ),
]

BAD = [
    ("", "not an address"),
    ("8001", "not an address"),
    ("systemd:", "is not one of domain=, name=, index="),
    ("systemd:name=public", "domain is one of INET, INET6, UNIX"),
    ("systemd:domain=inet:name=public", "domain is one of"),
    ("systemd:domain=INET", "either name= or index="),
    ("systemd:domain=INET:name=a:index=0", "either name= or index="),
    ("systemd:domain=INET:name=", "a name is 1 to 255 visible ASCII characters"),
    ("systemd:domain=INET:name=a b", "a name is 1 to 255 visible ASCII characters"),
    (r"systemd:domain=INET:name=a\:b", "a name is 1 to 255 visible ASCII characters"),
    ("systemd:domain=INET:index=-1", "an index is a number from 0 to 1023"),
    ("systemd:domain=INET:index=1024", "an index is a number from 0 to 1023"),
    ("systemd:domain=INET:fd=3", "'fd=3' is not one of domain=, name=, index="),
    (":", "a port is a number"),
    (":65536", "a port is a number"),
    (":-1", "a port is a number"),
    (":8_0", "a port is a number"),
    (":\u0668\u0660", "a port is a number"),
    ("host:", "a port is a number"),
    ("host:http", "a port is a number"),
    ("a b:80", "neither an IP address nor a host name"),
    ("-a:80", "neither an IP address nor a host name"),
    ("/run/x:80", "neither an IP address nor a host name"),
    ("http://gw:80", "write an IPv6 address in brackets"),
    ("::1:80", "write an IPv6 address in brackets"),
    ("[::1:80", "write an IPv6 address in brackets"),
    ("[1.2.3.4]:80", "only an IPv6 address"),
    ("[::g]:80", "not an IPv6 address"),
    ("unix:", "must be absolute"),
    ("unix:run/gw.sock", "must be absolute"),
    ("unix:/" + "x" * 107, "at most 107 bytes"),
    ("unix:/a\0b", "no NUL"),
    ("unix:/a:mode=999", "three octal digits"),
    ("unix:/a:mode=", "three octal digits"),
    ("unix:/a:mode=660:mode=600", "once each"),
    ("unix:/a:lockfile=0", "'lockfile=0' is not one of mode="),
    ("unix:/a\\", "a backslash escapes nothing"),
    ("ssl:8443", "privateKey=FILE is missing"),
    ("ssl:8443:privateKey=", "privateKey=FILE is missing"),
    ("ssl:8443:privateKey=/k:dhParameters=/d", "is not one of"),
    ("tcp:80:backlog=5", "is not one of interface="),
]


@pytest.mark.parametrize(("text", "address", "shown"), GOOD)
def test_good(text: str, address: Address, shown: str) -> None:
    """A text means one address, which shows itself as people write it."""
    found = parse_address(text, "192.0.2.9")
    assert found == address
    assert str(found) == shown


@pytest.mark.parametrize(("text", "what"), BAD)
def test_bad(text: str, what: str) -> None:
    """A wrong text is named together with what is wrong with it."""
    with pytest.raises(ValueError, match=re.escape(what)) as caught:
        parse_address(text)
    assert repr(text.strip()) in str(caught.value)


def test_shown_is_read_back() -> None:
    """What an address shows of itself is that address again, where it has no keys and no mode."""
    for text in ("127.0.0.1:8001", "[::1]:0", "unix:/run/gw.sock", "systemd:domain=INET6:name=public"):
        assert str(parse_address(str(parse_address(text)))) == text
