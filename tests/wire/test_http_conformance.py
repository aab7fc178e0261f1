"""
HTTP/1.1 as RFC 9110 and RFC 9112 have it: the table of tests/vectors/conformance_http.json on real sockets.

A row says what a client sends and which statuses each of the answers may have. Every row is followed by one more
request on the same connection, which is answered when the row leaves it open, and must not be when it does not. Each is
sent by a client that shuts down its sending side behind its last byte, and by one that does not.
"""

import json
from contextlib import suppress
from pathlib import Path
from socket import SHUT_WR, socket
from typing import Any

import pytest
import pytest_twisted

from tests.fakes.connection import get, read_answers
from tests.servers import Certificates
from tests.wire.conftest import Serving, in_force, secured
from tests.wire.listeners import read_to_end

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "vectors" / "conformance_http.json").read_text())
FOLLOWING = get("/healthz", "Connection: close")


def converse(row: dict[str, Any], connection: socket, *, half_close: bool) -> bytes:
    """Send the row's parts, each but the first once something was received, then the next request; all that came."""
    received = b""
    *before, last = [part.encode("latin-1") for part in row["send"]]
    with suppress(ConnectionError):  # refused before all of it was sent: the answer is there to be read
        for part in before:
            connection.sendall(part)
            received += connection.recv(65536)
        connection.sendall(last + FOLLOWING)
        if half_close:
            connection.shutdown(SHUT_WR)
    return received + read_to_end(connection)


def judge(row: dict[str, Any], data: bytes) -> list[int] | None:
    """The statuses of what came, None when they are as the row has them."""
    answers = read_answers(data, heads=row.get("heads", 0))
    allowed = row["answers"] + ([[200]] if row["open"] else [])
    statuses = [answer.status for answer in answers]
    good = len(statuses) == len(allowed) and all(map(list.__contains__, allowed, statuses))
    return None if good and [answer.closes for answer in answers].index(True) == len(answers) - 1 else statuses


@pytest.mark.parametrize("half_close", [False, True], ids=["", "half-close"])
@pytest_twisted.ensureDeferred
async def test_conformance(tcp_serving: Serving, half_close: bool) -> None:
    """Every row has answers that the RFCs allow, each of them delimited, and the connection ends or lives on."""
    wrong = []
    async with tcp_serving() as served:
        for row in ROWS:
            data = await served.run(lambda connection, row=row: converse(row, connection, half_close=half_close))  # type: ignore[misc]
            statuses = judge(row, data)
            if statuses is not None:
                wrong.append((row["what"], statuses))
        assert not wrong
        assert not served.failures


@pytest_twisted.ensureDeferred
async def test_conformance_inside_tls(tcp_serving: Serving, certificates: Certificates) -> None:
    """The same inside TLS, whose end a client can tell from a cut."""
    wrong = []

    def client(row: dict[str, Any], connection: socket) -> bytes:
        with secured(certificates, connection, suppress_ragged_eofs=False) as stream:
            return converse(row, stream, half_close=False)

    async with tcp_serving(tls=in_force(certificates)) as served:
        for row in ROWS:
            statuses = judge(row, await served.run(lambda connection, row=row: client(row, connection)))  # type: ignore[misc]
            if statuses is not None:
                wrong.append((row["what"], statuses))
        assert not wrong
        assert not served.failures
