"""gatewayctl send against an HTTP server on a real socket, and the whole program as a process of its own."""

import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gatewayd.cli.caller import Answer, Caller, Unreached, parse_target
from gatewayd.ingress.signature import SCHEMES, Signed, SigningKey, parse_signatures, verify
from tests.servers import free_port, make_certificates
from tests.unit.cli.invocation import gatewayctl

SECRET = "canary-" + "s" * 33
ENVIRON = {"API_KEY_HMAC_SECRET": SECRET}
ACCEPTED = (202, {"status": "accepted", "corr_id": "req_0123456789abcdef0123", "duplicate": False})
DUPLICATE = (202, {**ACCEPTED[1], "duplicate": True})
UNAVAILABLE = (503, {"error": "nats_unavailable", "code": "GW-005", "message": "Not stored.", "details": {"a": ["b"]}})
CLOSE: tuple[int, dict[str, Any]] = (0, {})


class Gateway:
    """Answers in turn, the last answer for ever, and keeps what it was sent."""

    def __init__(self, answers: Sequence[tuple[int, dict[str, Any]]], keep_alive: bool) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self._answers = list(answers)
        self._lock = threading.Lock()
        gateway = self

        class Exchange(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if keep_alive else "HTTP/1.0"

            wbufsize = -1  # an answer in one piece: else each waits 40 ms for a delayed ACK

            def setup(self) -> None:
                gateway.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, members = gateway.take((self.path, dict(self.headers), body))
                if not status:
                    self.close_connection = True
                    return
                content = json.dumps(members).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if status == 503:
                    self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Exchange)
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def take(self, request: tuple[str, dict[str, str], bytes]) -> tuple[int, dict[str, Any]]:
        """Keep the request and say what to answer."""
        with self._lock:
            self.requests.append(request)
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@contextmanager
def gateway(*answers: tuple[int, dict[str, Any]], keep_alive: bool = True) -> Iterator[Gateway]:
    """A gateway that listens."""
    made = Gateway(answers, keep_alive)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join(5)


def is_signed(headers: dict[str, str], body: bytes, scheme: str) -> bool:
    """The gateway's own verdict on a request."""
    found = parse_signatures(headers["X-Signature"].encode())
    assert found is not None
    key = headers.get("Idempotency-Key", "").encode()
    signed = Signed(headers["X-Timestamp"].encode(), headers["X-Nonce"].encode(), key, body)
    return verify(found, [SigningKey(SECRET.encode(), None, 1)], frozenset({scheme}), signed) is not None


def test_one_signal_is_signed_and_accepted() -> None:
    """The request carries what the gateway checks; the answer's corr_id is shown."""
    for scheme in sorted(scheme.name for scheme in SCHEMES.values()):
        with gateway(ACCEPTED) as server:
            ended = gatewayctl(
                "send", "--url", server.url, "--scheme", scheme, "--idempotency-key", "order-17", environ=ENVIRON
            )
        path, headers, body = server.requests[0]
        assert (ended.code, path, headers["Content-Type"]) == (0, "/webhook/test", "application/json")
        assert is_signed(headers, body, scheme)
        assert ended.out == "202 accepted req_0123456789abcdef0123 in 0.0 ms\n"
        assert "canary" not in ended.out + ended.err


def test_many_are_distinct_and_share_one_connection() -> None:
    """--count sends so many different bodies, each with its own nonce, over one kept connection."""
    with gateway(ACCEPTED) as server:
        ended = gatewayctl("send", "--url", server.url, "--count", "40", "--json", environ=ENVIRON)
    assert ended.json["accepted"] == 40
    assert len({body for _, _, body in server.requests}) == 40
    assert len({headers["X-Nonce"] for _, headers, _ in server.requests}) == 40
    assert server.connections == 1
    assert set(ended.json["latency_ms"]) == {"p50", "p99"}


def test_rate_is_kept() -> None:
    """--rate spaces the signals evenly: the waits add up to (N - 1) / R."""
    with gateway(ACCEPTED) as server:
        ended = gatewayctl("send", "--url", server.url, "--count", "5", "--rate", "10", environ=ENVIRON)
    assert abs(sum(ended.world.slept) - 0.4) < 1e-6


def test_a_given_body_is_sent_as_it_is() -> None:
    """The bytes of stdin arrive unchanged; sent twice they are duplicates, which is exit code 0."""
    body = b'{"a": 1.50}\n'
    with gateway(ACCEPTED, DUPLICATE) as server:
        ended = gatewayctl("send", "-", "--url", server.url, "--count", "2", "--json", environ=ENVIRON, stdin=body)
    assert [sent for _, _, sent in server.requests] == [body, body]
    assert (ended.code, ended.json["accepted"], ended.json["duplicates"]) == (0, 1, 1)


def test_unanswered_for_certain_is_sent_again_with_a_fresh_nonce() -> None:
    """After 503 and after a connection that ends without an answer: same body, another nonce, signed anew."""
    with gateway(UNAVAILABLE, CLOSE, ACCEPTED) as server:
        ended = gatewayctl("send", "--url", server.url, "--json", environ=ENVIRON)
    assert (ended.code, ended.json["accepted"], ended.json["retries"]) == (0, 1, 2)
    assert len({body for _, _, body in server.requests}) == 1
    assert len({headers["X-Nonce"] for _, headers, _ in server.requests}) == 3
    assert all(is_signed(headers, body, "v1") for _, headers, body in server.requests)
    assert ended.world.slept == [1.0, 1.0]


def test_refused() -> None:
    """What stays refused is exit code 1: code, message and details on stdout, the way to the remedy on stderr."""
    with gateway(UNAVAILABLE) as server:
        ended = gatewayctl("send", "--url", server.url, "--retries", "1", environ=ENVIRON)
    assert ended.code == 1
    assert ended.lines == ["503 GW-005 nats_unavailable: Not stored. in 0.0 ms", '  a: ["b"]']
    assert "gatewayctl explain GW-005" in ended.err


def test_another_server_answers() -> None:
    """An answer that is none of a gateway's is counted by its status and cannot move the terminal's cursor."""
    with gateway((500, {"message": "\x1b[2Jx"}), (404, {"code": "\x1b]0;x\x07"})) as server:
        ended = gatewayctl("send", "--url", server.url, "--retries", "0", "--count", "2", environ=ENVIRON)
        assert ended.code == 1
        assert "refused HTTP 500: 1" in ended.out
    assert "\x1b" not in ended.out + ended.err


def test_not_reached() -> None:
    """A port where nobody listens is exit code 3, and the run ends with the first signal."""
    url = f"http://127.0.0.1:{free_port()}"
    ended = gatewayctl("send", "--url", url, "--count", "100", "--retries", "1", environ=ENVIRON)
    assert ended.code == 3
    assert "unreached 1;" in ended.out
    assert "Connection refused" in ended.err


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    """The end of a kept connection between two signals costs neither an attempt nor a nonce."""
    with gateway(ACCEPTED) as server, Caller(parse_target(server.url, "test"), 5.0, None) as caller:
        assert isinstance(caller.post(b"{}", {}), Answer)
        kept = caller._connection
        assert kept is not None
        assert kept.sock is not None
        kept.sock.shutdown(1)  # the server answers our FIN with its own
        assert select.select([kept.sock], [], [], 5)[0]
        assert isinstance(caller.post(b"{}", {}), Answer)
    assert (server.connections, len(server.requests)) == (2, 2)


def test_a_server_that_does_not_keep_connections() -> None:
    """Each signal gets a connection of its own then."""
    with gateway(ACCEPTED, keep_alive=False) as server:
        ended = gatewayctl("send", "--url", server.url, "--count", "3", environ=ENVIRON)
    assert (ended.code, server.connections) == (0, 3)


def test_no_answer_in_time() -> None:
    """A server that takes the request and says nothing is given up after --timeout."""
    with socket_that_only_listens() as url, Caller(parse_target(url, "test"), 0.2, None) as caller:
        answer = caller.post(b"{}", {})
    assert isinstance(answer, Unreached)
    assert "timed out" in answer.text


@contextmanager
def socket_that_only_listens() -> Iterator[str]:
    """The kernel accepts, nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_tls_is_verified(tmp_path: Path) -> None:
    """https needs a certificate that --ca, or the system, vouches for."""
    files = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    with gateway(ACCEPTED) as server:
        server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
        url = server.url.replace("http", "https")
        trusted = gatewayctl("send", "--url", url, "--ca", str(files.ca), environ=ENVIRON)
        distrusted = gatewayctl("send", "--url", url, "--retries", "0", environ=ENVIRON)
    assert trusted.code == 0, trusted.err
    assert distrusted.code == 3
    assert "CERTIFICATE_VERIFY_FAILED" in distrusted.err
    assert len(server.requests) == 1


SCRIPT = "from gatewayd.cli import main; main()"


def start(*arguments: str, stderr: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    """The program as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, **ENVIRON},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def test_interrupted_says_what_was_sent() -> None:
    """Ctrl-C in the middle of a run: the summary so far, exit code 130, no traceback."""
    with gateway(ACCEPTED) as server:
        process = start("send", "--url", server.url, "--count", "100000", "--rate", "50", "--json")
        while len(server.requests) < 3:
            assert process.poll() is None
            threading.Event().wait(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert json.loads(out)["accepted"] >= 2
    assert "Traceback" not in err


def test_progress_on_a_terminal_only() -> None:
    """A terminal's stderr shows how far the run is, and is left clean; notes get lines of their own."""
    ours, theirs = os.openpty()
    with gateway(ACCEPTED, UNAVAILABLE, ACCEPTED) as server:
        process = start("send", "--url", server.url, "--count", "3", stderr=theirs)
        out, _ = process.communicate(timeout=20)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # Linux says EIO at the end of a terminal
        while data := os.read(ours, 4096):
            shown += data
    os.close(ours)
    assert b"\r\x1b[K1/3  accepted 1" in shown
    assert b"\r\x1b[Kgatewayctl: 503 GW-005 nats_unavailable: Not stored.; sent again in 1 s\r\n" in shown
    assert shown.endswith(b"\r\x1b[K")
    assert (process.returncode, out.count("\n"), "\r" in out) == (0, 2, False)


def test_a_reader_that_leaves_is_no_traceback() -> None:
    """Output into a pipe that nobody reads any more: exit code 141 and silence."""
    process = start("explain")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(10) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
