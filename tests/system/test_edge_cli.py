"""gatewayctl edge against a running gatewayd, a Valkey with a password and a nats-server: what users type."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.edge_world import PASSWORD, Edge
from tests.servers import free_port
from tests.wire import commands

SCRIPT = "import sys; from gatewayd.cli import main; main()"
TRANSPORTS = ((), ("--websocket",), ("--sse",))


class Service(BaseHTTPRequestHandler):
    """Answers a command with its own payload backwards; `X-Result-Code` for those that say so."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        if self.headers["X-Message-Type"] == "echo.refused":
            self.send_header("X-Result-Code", "insufficient_funds")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[::-1])

    def log_message(self, *_: Any) -> None:
        pass


class Follower:
    """A `gatewayctl edge subscribe --json` in a process of its own."""

    def __init__(self, environ: dict[str, str], *words: str) -> None:
        line = [sys.executable, "-c", SCRIPT, "edge", "subscribe", *words, "--json"]
        self.process = subprocess.Popen(line, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def event(self) -> dict[str, Any]:
        """The next event."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.end()
        members: dict[str, Any] = json.loads(line)
        return members

    def end(self) -> tuple[int, str, str]:
        """Exit code, what was left on stdout, stderr."""
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


class Desk:
    """An edge, and gatewayctl beside it with the same settings."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        service = ThreadingHTTPServer(("127.0.0.1", 0), Service)
        threading.Thread(target=service.serve_forever, args=(0.05,), daemon=True).start()
        stack.callback(service.server_close)
        stack.callback(service.shutdown)
        route = f"echo.=http://127.0.0.1:{service.server_port}/commands"
        self.edge = Edge(root, GATEWAY_COMMAND_ROUTES=route, GATEWAY_SIGNALS_GRANTS="user-1: *")
        stack.callback(self.edge.close)
        self.edge.start()
        self.environ = self.edge.gateway.environment()
        self.root = root
        self._followers: list[Follower] = []
        stack.callback(self._end)

    def _end(self) -> None:
        for follower in self._followers:
            follower.process.kill()
            follower.process.wait(10)
            for pipe in (follower.process.stdout, follower.process.stderr):
                assert pipe is not None
                pipe.close()

    def run(self, *words: str, stdin: bytes = b"", **changed: str) -> tuple[int, str, str]:
        """One command line; no secret is in what it says."""
        code, out, err = commands.run({**self.environ, **changed}, "edge", *words, stdin=stdin)
        assert PASSWORD[:9] not in out + err
        return code, out, err

    def run_json(self, *words: str, stdin: bytes = b"", **changed: str) -> tuple[int, Any]:
        """Exit code and the JSON on stdout."""
        code, out, err = self.run(*words, "--json", stdin=stdin, **changed)
        assert out.count("\n") == 1, out + err
        return code, json.loads(out)

    def login(self, name: str, user: str = "user-1") -> tuple[str, ...]:
        """A new session with a key of its own; the options that a client of it needs."""
        key = str(self.root / f"{name}.pem")
        assert self.run("new-client", "--out", key)[0] == 0
        code, said = self.run_json("session", name, "--user", user, "--key-file", key)
        assert (code, said["taken"]) == (0, True)
        return ("--session", name, "--key-file", key)

    def follow(self, *words: str) -> Follower:
        """A follower, whose stream is open."""
        follower = Follower(self.environ, *words)
        self._followers.append(follower)
        assert follower.event()["event_type"] == "gateway.server_time"
        return follower

    def publish(self, payload: str, *words: str) -> None:
        """One event of type trade.filled."""
        assert self.run("publish", "--type", "trade.filled", "--data", payload, *words)[0] == 0


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One for every test here, which leaves it running."""
    with ExitStack() as stack:
        yield Desk(tmp_path_factory.mktemp("desk"), stack)


def payloads(events: Sequence[dict[str, Any]]) -> list[str]:
    """What they carry."""
    return [event["payload"] for event in events]


def test_keys_and_a_rotation(desk: Desk) -> None:
    """The published key is the signer's; after a rotation and SIGHUP it is the new one, and both are served."""
    signer = Path(desk.environ["GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH"])
    code, said = desk.run_json("keys", "--signer", str(signer))
    assert (code, [key["status"] for key in said["keys"]], said["findings"]) == (0, ["current"], [])
    new = desk.root / "new.pem"
    desk.run("new-signer", "--out", str(new))
    code, out, _ = desk.run("keys", "--signer", str(new))
    assert code == 1
    assert "which is not in force" in out
    who = desk.login("rotated")
    follower = desk.follow(*who)
    desk.publish("before", "--user", "user-1")
    before = follower.event()
    new.replace(signer)
    desk.edge.gateway.signal(signal.SIGHUP)
    deadline = time.monotonic() + 10
    while desk.run("keys", "--signer", str(signer))[0] != 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    desk.publish("after", "--user", "user-1")
    after = follower.event()
    assert payloads([before, after]) == ["before", "after"]
    kids = [key["kid"] for key in desk.run_json("keys")[1]["keys"]]
    assert [after["key"], before["key"]] == kids


@pytest.mark.parametrize("transport", TRANSPORTS, ids=["grpc", "websocket", "sse"])
def test_events(desk: Desk, transport: tuple[str, ...]) -> None:
    """
    Published events come in order, byte for byte, to their user and session alone; the next run resumes behind them.
    """
    name = f"events{''.join(transport)}"
    who, other = desk.login(name, name), desk.login(f"{name}-other", f"{name}-other")
    follower, stranger = desk.follow(*who, *transport, "--count", "3"), desk.follow(*other, *transport, "--count", "1")
    desk.publish("one", "--user", name)
    binary = bytes(range(256))
    assert desk.run("publish", "--user", name, "--type", "b", "-", stdin=binary)[0] == 0
    desk.publish("not for this one", "--user", name, "--session", "another")
    desk.publish("for this one", "--user", name, "--session", name, "--request-id", "r-1", "--trace-id", "t-1")
    desk.publish("for the other", "--user", f"{name}-other")
    one, two, three = (follower.event() for _ in range(3))
    assert follower.end() == (0, "", "")
    assert (one["payload"], two["payload_base64"][:8], three["payload"]) == ("one", "AAECAwQF", "for this one")
    assert (three["request_id"], three["trace_id"]) == ("r-1", "t-1")
    assert stranger.event()["payload"] == "for the other"
    assert stranger.end()[0] == 0
    code, out, _ = desk.run("subscribe", *who, *transport, "--position", one["position"], "--count", "2")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["gateway.server_time", "b", "trade.filled"]


def test_signals(desk: Desk) -> None:
    """Signals are asked for by the message type: a signed webhook comes out as an event, where it is granted."""
    follower = desk.follow(*desk.login("signals"), "signals.subscribe", "--count", "1")
    assert commands.run(desk.environ, "send", "--source", "test", "--url", desk.edge.gateway.url)[0] == 0
    event = follower.event()
    assert event["event_type"] == "signal.normalized"
    assert json.loads(event["payload"])["instrument"] == "EURUSD"
    code, _, err = desk.run("subscribe", *desk.login("no-signals", "user-2"), "signals.subscribe")
    assert (code, err) == (1, "gatewayctl: UNIMPLEMENTED no route for this message type\n")


def test_a_restart_of_the_gateway(desk: Desk) -> None:
    """Followers come back by themselves, behind the last event: nothing is missed and nothing is printed twice."""
    who = desk.login("patient", "patient")
    state = desk.root / "patient.position"
    followers = [desk.follow(*who, *transport, "--count", "2") for transport in TRANSPORTS]
    followers.append(desk.follow(*who, "--state", str(state), "--count", "2"))
    desk.publish("before", "--user", "patient")
    firsts = [follower.event() for follower in followers]
    desk.edge.gateway.stop()
    desk.publish("meanwhile", "--user", "patient")
    desk.edge.gateway.start(wait="/readyz")
    for first, follower in zip(firsts, followers, strict=True):
        code, out, err = follower.end()
        events = [json.loads(line) for line in out.splitlines()]
        assert (code, first["payload"]) == (0, "before")
        assert [event.get("payload") for event in events if not event["event_type"].startswith("gateway.")] == [
            "meanwhile"
        ]
        assert "gateway is shutting down; coming again in" in err
    last = json.loads(out.splitlines()[-1])
    assert state.read_text() == f"{last['position']}\n"


def test_commands(desk: Desk) -> None:
    """The reply is the service's, signed by the gateway; other result codes and refusals are exit code 1."""
    who = desk.login("commander")
    code, out, _ = desk.run("command", "echo.text", *who, "--data", "abc")
    assert code == 0
    assert out.startswith("ok in ")
    assert out.endswith("\ncba\n")
    binary = bytes(range(256)) * 1000
    file = desk.root / "payload"
    file.write_bytes(binary)
    line = [sys.executable, "-c", SCRIPT, "edge", "command", "echo.binary", str(file), *who, "--raw"]
    done = subprocess.run(line, env=desk.environ, capture_output=True, timeout=30, check=True)
    assert done.stdout == binary[::-1]
    code, said = desk.run_json("command", "echo.refused", *who, "-", stdin=b"x", PORT=str(desk.edge.gateway.port))
    assert (code, said["result_code"], said["payload"]) == (1, "insufficient_funds", "x")
    code, _, err = desk.run("command", "nobody.home", *who)
    assert (code, err) == (1, "gatewayctl: UNIMPLEMENTED no route for this message type\n")
    for _ in range(2):
        code, _, err = desk.run("command", "echo.text", *who, "--request-id", "the-same")
    assert (code, err) == (1, "gatewayctl: FAILED_PRECONDITION request replay detected\n")


def test_revocation(desk: Desk) -> None:
    """Every stream of the session ends, by its own words; it stays revoked, and nothing opens a stream again."""
    who = desk.login("lost-phone", "loser")
    followers = [desk.follow(*who, *transport) for transport in TRANSPORTS]
    code, said = desk.run_json("revoke", "lost-phone")
    assert (code, said["status"], said["taken"]) == (0, "revoked", True)
    words = [follower.end()[2].splitlines()[-1] for follower in followers]
    assert words == [
        "gatewayctl: FAILED_PRECONDITION device session is revoked",
        "gatewayctl: 4003 device session is revoked",
        "gatewayctl: revoked: device session is revoked",
    ]
    code, _, err = desk.run("session", "lost-phone", "--user", "loser", *who[2:])
    assert (code, err) == (1, "gatewayctl: lost-phone is revoked, and stays so; take another id\n")
    for transport in TRANSPORTS:
        assert desk.run("subscribe", *who, *transport)[0] == 1
    assert desk.run("revoke", "never-seen")[0] == 0


def test_nobody_takes_it(desk: Desk) -> None:
    """On a stream that no gateway reads a revocation is written, but exit code 1 says that it is not in force."""
    elsewhere = {"GATEWAY_SESSION_EVENTS_REDIS_STREAM": "another"}
    code, said = desk.run_json("revoke", "unheard", **elsewhere)
    assert (code, said["taken"], said["stream"]) == (1, False, "another")
    code, out, err = desk.run("revoke", "unheard", "--no-wait", "--max-length", "100", **elsewhere)
    assert (code, err) == (0, "")
    assert out.startswith("unheard revoked ")
    assert desk.edge.valkey.call("XLEN", "another") == 2


def test_what_is_not_there(desk: Desk) -> None:
    """A wrong password or database is exit code 2, an absent server 3; each is one line that says which."""
    for changed, code, text in (
        ({"GATEWAY_REDIS_PASSWORD": "wrong"}, 2, "GATEWAY_REDIS_PASSWORD"),
        ({"GATEWAY_REDIS_DB": "4000"}, 2, "GATEWAY_REDIS_DB"),
        ({"GATEWAY_REDIS_MASTER_ADDR": f"127.0.0.1:{free_port()}"}, 3, "Connection refused"),
    ):
        ended, out, err = desk.run("revoke", "nobody", **changed)
        assert (ended, out, err.count("\n")) == (code, "", 1), err
        assert text in err
    who = desk.login("lonely")
    url = f"http://127.0.0.1:{free_port()}"
    for words in (("--grpc", url), ("--url", url, "--sse"), ("--url", url, "--websocket")):
        ended, _, err = desk.run("subscribe", *who, *words)
        assert (ended, err.count("\n")) == (3, 1), err
    assert desk.run("keys", "--url", url)[0] == 3
    ended, _, err = desk.run("command", "echo.text", *who, "--grpc", desk.edge.gateway.url)
    assert (ended, "no gRPC" in err or "connection" in err.lower(), err.count("\n")) == (3, True, 1), err
    ended, _, err = desk.run("subscribe", "--session", "stranger", *who[2:], "--websocket")
    assert (ended, err) == (1, "gatewayctl: 4001 authentication failed\n")


def test_ctrl_c(desk: Desk) -> None:
    """It ends a follower with exit code 0, and the position is kept."""
    who, state = desk.login("interrupted", "interrupted"), desk.root / "interrupted.position"
    follower = desk.follow(*who, "--state", str(state))
    desk.publish("one", "--user", "interrupted")
    position = follower.event()["position"]
    follower.process.send_signal(signal.SIGINT)
    assert follower.end()[0] == 0
    assert state.read_text() == f"{position}\n"
