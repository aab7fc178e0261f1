"""gatewayctl stream and consumer against a real nats-server, each as a process of its own."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.servers import NatsServer, make_certificates, tls_block

SCRIPT = "from gatewayd.cli import main; main()"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with JetStream and nothing in it."""
    made = NatsServer(tmp_path / "nats").start()
    yield made
    made.close()


def environment(server: NatsServer | None, **more: str) -> dict[str, str]:
    """What the commands need to know: where NATS is."""
    known = {} if server is None else {"NATS_URL": server.url}
    return {"PATH": os.environ["PATH"], "STATE_DIRECTORY": "/", **known, **more}


def start(environ: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
    """The program as a process of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], env=environ, stdout=pipe, stderr=pipe, text=True
    )


def run(environ: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = start(environ, *arguments)
    out, err = process.communicate(timeout=20)
    assert "Traceback" not in err
    return process.returncode, out, err


def run_json(environ: Mapping[str, str], *arguments: str) -> tuple[int, Any]:
    """Exit code and the JSON on stdout."""
    code, out, err = run(environ, *arguments, "--json")
    assert out.count("\n") == 1, out + err
    return code, json.loads(out)


class Talk:
    """A NATS client of a few lines: it publishes and calls the JetStream API."""

    def __init__(self, server: NatsServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), 5)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self._socket.sendall(b'CONNECT {"headers":true,"verbose":false}\r\nSUB answers 1\r\nSUB acks 2\r\n')
        self._unacked = 0

    def publish(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """One message; stored when sync() has returned."""
        head = "NATS/1.0\r\n" + "".join(f"{name}: {text}\r\n" for name, text in (headers or {}).items()) + "\r\n"
        sizes = f"{len(head.encode())} {len(head.encode()) + len(body)}"
        self._socket.sendall(f"HPUB {subject} acks {sizes}\r\n{head}".encode() + body + b"\r\n")
        self._unacked += 1

    def call(self, subject: str, members: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One answer of the JetStream API."""
        body = json.dumps(members or {}).encode()
        self._socket.sendall(f"PUB $JS.API.{subject} answers {len(body)}\r\n".encode() + body + b"\r\n")
        while (message := self._next())[0] != "answers":
            self._unacked -= 1
        return message[1]

    def _next(self) -> tuple[str, dict[str, Any]]:
        """The next message that came: its subject, and what it says."""
        while not (line := self._lines.readline()).startswith(b"MSG"):
            assert line
        read: dict[str, Any] = json.loads(self._lines.read(int(line.split()[-1]) + 2))
        assert "error" not in read, read
        return line.split()[1].decode(), read

    def signals(self, first: int, last: int) -> None:
        """Pairs of raw and normalised signals, numbered."""
        for number in range(first, last + 1):
            headers = {"Corr-ID": f"req_{number}", "Source": "test", "Instrument": "EURUSD"}
            self.publish("signals.raw", b'{"price": 1.0900,\n "n": %d}' % number, headers)
            self.publish("signals.normalized", b"{}", headers)
        self.sync()

    def sync(self) -> dict[str, Any]:
        """Wait until everything sent before is stored; the last acknowledgement."""
        told: dict[str, Any] = {}
        while self._unacked:
            told = self._next()[1]
            self._unacked -= 1
        return told

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def talk(server: NatsServer) -> Iterator[Talk]:
    """A client, and the stream made by the command."""
    assert run(environment(server), "stream", "ensure")[0] == 0
    made = Talk(server)
    yield made
    made.close()


def test_stream_made_checked_and_left_alone(server: NatsServer) -> None:
    """check finds nothing and makes nothing, ensure makes the stream once, then all is in order."""
    environ = environment(server, NATS_STREAM_MAX_BYTES="64MiB")
    code, checked = run_json(environ, "stream", "check")
    assert (code, checked["state"], checked["findings"][0]["kind"]) == (1, "missing", "stream_missing")
    code, made = run_json(environ, "stream", "ensure")
    assert (code, made["state"], made["config"]["max_bytes"]) == (0, "made", 64 * 1024 * 1024)
    assert made["config"]["subjects"] == ["signals.>", "dlq.>"]
    assert made["config"]["metadata"]["created-by"] == "gatewayd"
    assert run_json(environ, "stream", "ensure")[1]["state"] == "present"
    code, out, err = run(environ, "stream", "check")
    assert (code, out.count("\n")) == (0, 1)
    assert "0 messages" in out
    assert "gatewayctl consumer ensure" in err


def test_own_subjects_are_part_of_the_stream(server: NatsServer) -> None:
    """Subjects that the settings name and no usual pattern covers are added."""
    environ = environment(server, NATS_SUBJECT_SIGNALS_RAW="in.raw")
    assert run_json(environ, "stream", "ensure")[1]["config"]["subjects"] == ["signals.>", "dlq.>", "in.raw"]


def test_a_guessed_size_fits_the_server(tmp_path: Path) -> None:
    """Where nobody says how large the stream may be, it is made as large as the server has room for."""
    server = NatsServer(tmp_path / "nats", "", jetstream=False)
    server.config = f'jetstream {{ store_dir: "{tmp_path}/store"\nmax_file_store: 300MB }}'
    server.start()
    try:
        code, made = run_json(environment(server), "stream", "ensure")
    finally:
        server.close()
    assert (code, made["state"]) == (0, "made")
    assert 64 * 1024 * 1024 <= made["config"]["max_bytes"] <= 300 * 1024 * 1024  # NATS counts in powers of two


def test_a_stream_of_ours_is_raised_a_foreign_one_reported(server: NatsServer, talk: Talk) -> None:
    """A longer window is put into gatewayd's stream; somebody else's is not touched, and exit code 1 says so."""
    code, raised = run_json(environment(server, IDEMPOTENCY_TTL_SEC="7200"), "stream", "ensure")
    assert (code, raised["state"], raised["config"]["duplicate_window"]) == (0, "raised", 7800 * 10**9)
    talk.call("STREAM.DELETE.trading-events")
    foreign = {"name": "trading-events", "subjects": ["signals.>", "dlq.>"], "storage": "memory", "discard": "old"}
    talk.call("STREAM.CREATE.trading-events", foreign)
    for command in ("ensure", "check"):
        code, found = run_json(environment(server), "stream", command)
        assert (code, found["state"], found["ok"]) == (1, "present", False)
        assert {"duplicate_window", "discard_old", "memory_storage"} <= {one["kind"] for one in found["findings"]}
    assert talk.call("STREAM.INFO.trading-events")["config"]["discard"] == "old"


def test_consumer_made_once(server: NatsServer, talk: Talk) -> None:
    """The durable pull consumer reads normalised events only; a second time it is there already."""
    talk.signals(1, 3)
    code, made = run_json(environment(server), "consumer", "ensure")
    assert (code, made["state"], made["pending"]) == (0, "made", 3)
    assert run_json(environment(server), "consumer", "ensure")[1]["state"] == "present"
    config = talk.call("CONSUMER.INFO.trading-events.gateway-consumer")["config"]
    assert (config["filter_subject"], config["max_ack_pending"], config["ack_wait"]) == (
        "signals.normalized",
        10,
        30 * 10**9,
    )
    code, out, _ = run(environment(server), "stream", "check")
    assert (code, "consumer gateway-consumer: 3 waiting, 0 not acknowledged" in out) == (0, True)


def test_a_consumer_that_differs_is_reported(server: NatsServer, talk: Talk) -> None:
    """One that reads other events is a finding of both commands and is not changed."""
    config = {"durable_name": "gateway-consumer", "filter_subject": "dlq.>", "ack_policy": "explicit"}
    talk.call(
        "CONSUMER.CREATE.trading-events.gateway-consumer.dlq.>", {"stream_name": "trading-events", "config": config}
    )
    for words in (("consumer", "ensure"), ("stream", "check")):
        code, found = run_json(environment(server), *words)
        assert (code, [one["kind"] for one in found["findings"]]) == (1, ["filter"])


def test_consumer_without_a_stream(server: NatsServer) -> None:
    """Exit code 1, with what makes the stream."""
    code, out, err = run(environment(server), "consumer", "ensure")
    assert (code, out, "gatewayctl stream ensure" in err) == (1, "", True)


def test_tail_of_the_last(server: NatsServer, talk: Talk) -> None:
    """--last N --no-follow prints exactly the last N of both signals' messages, oldest first, and ends."""
    talk.signals(1, 5)
    talk.publish("dlq.signals.raw", b"\xff\x00", {"Dlq-Code": "GW-013"})
    talk.sync()
    code, out, _ = run(environment(server), "stream", "tail", "--last", "3", "--no-follow")
    words = [line.split(" ") for line in out.splitlines()]
    assert code == 0
    assert [line[0] for line in words] == ["signals.normalized", "signals.raw", "signals.normalized"]
    assert [(line[1], line[3], line[4], line[5]) for line in words] == [
        ("8", "req_4", "test", "EURUSD"),
        ("9", "req_5", "test", "EURUSD"),
        ("10", "req_5", "test", "EURUSD"),
    ]
    code, out, _ = run(environment(server), "stream", "tail", "--last", "1000", "--no-follow")
    assert (code, out.count("\n")) == (0, 10)


def test_tail_as_json_keeps_the_body(server: NatsServer, talk: Talk) -> None:
    """--json gives headers and body; numbers keep their digits, a line is a line, what is no JSON is base64."""
    talk.signals(1, 400)  # more than one batch, and far apart for the dead letter's filter
    talk.publish("dlq.signals.raw", b"\xff\x00", {"Dlq-Code": "GW-013"})
    talk.sync()
    tail = ("stream", "tail", "--no-follow", "--json", "--subject")
    _, out, _ = run(environment(server), *tail, "signals.raw", "--last", "2")
    assert [json.loads(line)["body"]["n"] for line in out.splitlines()] == [399, 400]
    assert '"body":{"price":1.0900,"n":400}}' in out
    _, out, _ = run(environment(server), *tail, "dlq.>", "--last", "5")
    letter = json.loads(out)
    assert base64.b64decode(letter["body_base64"]) == b"\xff\x00"
    assert (letter["headers"], letter["corr_id"], letter["sequence"]) == ({"Dlq-Code": "GW-013"}, None, 801)
    _, out, _ = run(environment(server), *tail, "signals.raw", "--last", "300")
    assert [json.loads(line)["body"]["n"] for line in out.splitlines()] == list(range(101, 401))


def test_tail_cannot_move_the_cursor(server: NatsServer, talk: Talk) -> None:
    """Headers of a foreign message are printed as escapes."""
    talk.publish("signals.raw", b"{}", {"Corr-ID": "\x1b[2J", "Source": "a b"})
    talk.sync()
    _, out, _ = run(environment(server), "stream", "tail", "--last", "1", "--no-follow")
    assert out.split(" ")[3:] == ["\\x1b[2J", "a_b", "-\n"]


class Lines:
    """A process's stdout as it comes."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def until(self, count: int, within_s: float = 15.0) -> list[str]:
        """Wait for so many lines."""
        deadline = time.monotonic() + within_s
        while len(self.lines) < count:
            assert time.monotonic() < deadline, self.lines
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            threading.Event().wait(0.02)
        return self.lines

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Send the signal; exit code and stderr."""
        self.process.send_signal(number)
        code = self.process.wait(10)
        self._thread.join(5)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        with self.process.stdout, self.process.stderr as err:
            return code, err.read()


def test_tail_follows_through_a_restart_and_ends_with_ctrl_c(server: NatsServer, talk: Talk) -> None:
    """What is stored is printed at once; a killed server is awaited and nothing is left out or printed twice."""
    talk.signals(1, 1)
    tail = Lines(start(environment(server), "stream", "tail", "--last", "2"))
    tail.until(2)
    talk.signals(2, 2)
    tail.until(4, 3.0)
    server.restart()
    again = Talk(server)
    again.signals(3, 4)
    again.close()
    found = tail.until(8)
    assert [int(line.split()[1]) for line in found] == list(range(1, 9))
    code, err = tail.end()
    assert code == 0
    assert "trying again" in err
    assert "Traceback" not in err


def test_tail_of_what_comes_only(server: NatsServer, talk: Talk) -> None:
    """Without --last only messages stored after the start are printed."""
    talk.signals(1, 2)
    tail = Lines(start(environment(server), "stream", "tail"))
    while not talk.call("CONSUMER.NAMES.trading-events")["consumers"]:
        assert tail.process.poll() is None
        threading.Event().wait(0.02)
    talk.signals(3, 3)
    assert [line.split()[3] for line in tail.until(2)] == ["req_3", "req_3"]
    assert tail.end()[0] == 0


def test_tail_of_a_stream_that_was_made_anew(server: NatsServer, talk: Talk) -> None:
    """A stream that was deleted is awaited; made again it is followed from its first message, and that is said."""
    talk.signals(1, 2)
    tail = Lines(start(environment(server), "stream", "tail", "--last", "4"))
    tail.until(4)
    talk.call("STREAM.DELETE.trading-events")
    assert tail.process.stderr is not None
    assert "consumer is gone" in tail.process.stderr.readline()
    assert "there is no stream" in tail.process.stderr.readline()
    assert run(environment(server), "stream", "ensure")[0] == 0
    talk.signals(7, 7)
    assert [line.split()[3] for line in tail.until(6)[4:]] == ["req_7", "req_7"]
    code, err = tail.end()
    assert code == 0
    assert "another stream" in err


def test_tail_without_a_stream(server: NatsServer) -> None:
    """Exit code 1, with what makes the stream."""
    code, _, err = run(environment(server), "stream", "tail")
    assert (code, "gatewayctl stream ensure" in err) == (1, True)


def test_not_reached(server: NatsServer) -> None:
    """A server that is stopped or frozen: exit code 3 within a few seconds, one line for each server."""
    both = environment(server, NATS_URL=f"nats://127.0.0.1:1,{server.url}")
    assert run(both, "stream", "ensure")[0] == 0
    server.sigstop()
    began = time.monotonic()
    code, out, err = run(both, "stream", "check")
    assert (code, out, err.count("\n")) == (3, "", 2), err
    assert time.monotonic() - began < 8
    server.sigcont()
    server.stop()
    for words in (("stream", "check"), ("stream", "tail"), ("consumer", "ensure")):
        code, out, err = run(environment(server), *words)
        assert (code, out) == (3, "")
        assert f"{server.url}: " in err


def test_no_jetstream(tmp_path: Path) -> None:
    """A server without JetStream is exit code 3, in words."""
    server = NatsServer(tmp_path, jetstream=False).start()
    try:
        code, out, err = run(environment(server), "stream", "check")
    finally:
        server.close()
    assert (code, out, "no JetStream" in err) == (3, "", True)


def test_logins(tmp_path: Path) -> None:
    """User and password by settings or in the URL, and TLS with an authority of one's own; no password is shown."""
    files = make_certificates(tmp_path)
    config = tls_block(files) + 'authorization { user: "gw", password: "canary" }\n'
    server = NatsServer(tmp_path / "nats", config).start()
    url = f"tls://localhost:{server.port}"
    try:
        for environ, expected in (
            ({"NATS_URL": url, "NATS_USER": "gw", "NATS_PASSWORD": "canary", "NATS_TLS_CA": str(files.ca)}, 0),
            ({"NATS_URL": f"tls://gw:canary@localhost:{server.port}", "NATS_TLS_CA": str(files.ca)}, 0),
            ({"NATS_URL": url, "NATS_USER": "gw", "NATS_PASSWORD": "canary-wrong", "NATS_TLS_CA": str(files.ca)}, 3),
            ({"NATS_URL": url, "NATS_USER": "gw", "NATS_PASSWORD": "canary"}, 3),
        ):
            code, out, err = run(environment(None, **environ), "stream", "ensure")
            assert code == expected, err
            assert "canary" not in out + err
    finally:
        server.close()


def test_the_server_of_development(tmp_path: Path) -> None:
    """Without NATS_URL the address file of the running gateway's own server is used; without one it is exit code 3."""
    server = NatsServer(tmp_path / "server", 'authorization { user: "gatewayd", password: "canary" }').start()
    environ = environment(None, STATE_DIRECTORY=str(tmp_path / "state"))
    (tmp_path / "state" / "nats").mkdir(parents=True)
    try:
        code, out, err = run(environ, "stream", "ensure")
        assert (code, out, "NATS_URL is not set" in err) == (3, "", True)
        address = {"url": server.url, "user": "gatewayd", "password": "canary"}
        (tmp_path / "state" / "nats" / "client.json").write_text(json.dumps(address))
        code, out, err = run(environ, "stream", "ensure")
        assert code == 0, err
        assert "canary" not in out + err
        (tmp_path / "state" / "nats" / "client.json").write_text("{}")
        assert run(environ, "stream", "check")[0] == 3
    finally:
        server.close()
