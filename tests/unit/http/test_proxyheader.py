"""The PROXY header: what it carries, where it ends, and what is none."""

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.http.proxyheader import MAX_V1_BYTES, MAX_V2_BYTES, Broken, Carried, read_header

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "proxy_headers.json").read_text("utf-8")
)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, content: bytes) -> bytes:
    """A header of version 2."""
    return SIGNATURE + bytes([command, family]) + len(content).to_bytes(2, "big") + content


def v2_tcp(client: str, port: int = 4711, *, more: bytes = b"") -> bytes:
    """A header of version 2 for a client's TCP connection."""
    address = ip_address(client)
    ports = port.to_bytes(2, "big") + (443).to_bytes(2, "big")
    return v2(0x21, 0x11 if address.version == 4 else 0x21, address.packed * 2 + ports + more)


class VectorTests(SynchronousTestCase):
    """The table of headers, byte by byte."""

    def test_vectors(self) -> None:
        """Each is read as said, whatever follows it; no piece of it is taken for a whole."""
        assert len(VECTORS) > 40
        for vector in VECTORS:
            data = bytes.fromhex(vector["hex"]) if "hex" in vector else vector["text"].encode("latin-1")
            found = read_header(data)
            if "refused" in vector:
                assert found == Broken(vector["refused"]), vector
            elif "address" in vector:
                assert found == Carried(vector["address"], vector["port"], len(data)), vector
                assert read_header(data + b"GET / HTTP/1.1\r\n") == found, vector
                for end in range(len(data)):
                    assert read_header(data[:end]) is None, (vector, end)
            else:
                assert found is None, vector


class BoundTests(SynchronousTestCase):
    """How much is held of a header that never ends."""

    def test_v1(self) -> None:
        """Without its end a line is refused at 107 bytes, and one of 107 bytes is read."""
        longest = b"PROXY UNKNOWN " + b"f" * (MAX_V1_BYTES - 16) + b"\r\n"
        assert len(longest) == MAX_V1_BYTES
        assert read_header(longest) == Carried("", 0, MAX_V1_BYTES)
        assert read_header(longest[:-1]) is None
        assert read_header(b"PROXY UNKNOWN " + b"f" * 93) == Broken("too long")
        assert read_header(b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n") == Broken("too long")

    def test_v2(self) -> None:
        """What a proxy adds is skipped up to the bound; a length beyond it is refused before anything of it comes."""
        most = v2_tcp("192.0.2.7", more=b"\x04" * (MAX_V2_BYTES - 28))
        assert len(most) == MAX_V2_BYTES
        assert read_header(most) == Carried("192.0.2.7", 4711, MAX_V2_BYTES)
        assert read_header(most[:-1]) is None
        beyond = v2_tcp("192.0.2.7", more=b"\x04" * (MAX_V2_BYTES - 27))
        assert read_header(beyond[:15]) is None
        assert read_header(beyond[:16]) == Broken("too long")
