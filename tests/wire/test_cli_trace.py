"""gatewayctl trace against a real nats-server."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatewayd.ingress.admission import Kind, accepted_corr_id, identity
from tests.servers import NatsServer
from tests.wire.commands import run, run_json
from tests.wire.test_cli_dead_letters import GOOD, NO_SIGNAL, bury, forget_ids, letter, pair, store
from tests.wire.test_cli_stream import Talk, environment

CORR_ID = accepted_corr_id(identity(b"tradingview", Kind.BODY, GOOD))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with JetStream and nothing in it."""
    made = NatsServer(tmp_path / "nats").start()
    yield made
    made.close()


@pytest.fixture
def talk(server: NatsServer) -> Iterator[Talk]:
    """A client, and the stream."""
    assert run(environment(server), "stream", "ensure")[0] == 0
    made = Talk(server)
    yield made
    made.close()


def access(status: int, corr_id: str, second: int = 1, **more: str) -> str:
    """A line of the log, as the gateway writes it."""
    members = {
        "timestamp": f"2099-01-15T10:10:{second:02d}.000Z",
        "msg": "Incoming request",
        "event": "request",
        "corr_id": corr_id,
        "requestId": corr_id,
        "client_ip": "192.0.2.7",
        "method": "POST",
        "path": "/webhook/tradingview",
        "status": status,
        "latency_ms": 2.1,
        **more,
    }
    return json.dumps(members) + "\n"


def test_accepted(server: NatsServer, talk: Talk) -> None:
    """Both events with their facts, and that they are stored once; a stranger's are not shown."""
    talk.signals(1, 3)
    for message in pair(GOOD):
        store(talk, message)
    code, out, err = run(environment(server), "trace", CORR_ID)
    lines = out.splitlines()
    assert (code, len(lines), lines[-1]) == (0, 3, "accepted once, stored as 7 and 8"), err
    assert "signals.raw 7" in lines[0]
    assert "by v1, identity body" in lines[0]
    assert "EURUSD buy 1.0900 " in lines[1]
    code, found = run_json(environment(server), "trace", CORR_ID)
    assert [scene["sequence"] for scene in found["scenes"]] == [7, 8]
    assert found["scenes"][0]["facts"]["identity"] == "body"
    assert found["stories"] == [{"corr_ids": [CORR_ID], "kind": "accepted", "text": "accepted once, stored as 7 and 8"}]


def test_refused_and_replayed(server: NatsServer, talk: Talk, tmp_path: Path) -> None:
    """The refusal's corr_id and the event's both lead to the letter, its replay and the events."""
    number = bury(talk, NO_SIGNAL)
    refusal = letter(NO_SIGNAL).corr_id
    environ = environment(server)
    code, out, _ = run(environ, "trace", refusal)
    assert (code, out.splitlines()[-1]) == (1, f"refused GW-003, dead letter {number}, not replayed")
    corrected = tmp_path / "body.json"
    corrected.write_bytes(GOOD)
    assert run(environ, "dlq", "replay", str(number), "--body", str(corrected))[0] == 0
    for corr_id in (refusal, CORR_ID):
        code, out, _ = run(environ, "trace", corr_id)
        lines = out.splitlines()
        assert (code, lines[-1]) == (0, f"refused GW-003, dead letter {number}, replayed as 3 and 4")
        assert [line.split()[1] for line in lines[:-1]] == [
            "dlq.signals.normalized",
            f"dlq.replayed.{number}",
            "signals.raw",
            "signals.normalized",
        ]


def test_unknown(server: NatsServer, talk: Talk) -> None:
    """Nothing anywhere: it is not stored; exit code 1. What is older than --since is not looked at."""
    for message in pair(GOOD):
        store(talk, message)
    code, out, _ = run(environment(server), "trace", "req_" + "0" * 20)
    assert (code, out.startswith("unknown: nothing in the stream since "), "send it again" in out) == (1, True, True)
    code, out, _ = run(environment(server), "trace", CORR_ID, "--since", "2098-01-01T00:00:00Z")
    assert (code, "unknown: " in out) == (1, True)


def test_with_the_log(server: NatsServer, talk: Talk, tmp_path: Path) -> None:
    """Lines of the log are part of the story, found by either id; an answer without an event is told as one."""
    for message in pair(GOOD):
        store(talk, message)
    log = tmp_path / "log"
    log.write_text(
        "no JSON " + CORR_ID + "\n"
        + access(503, CORR_ID, 1, code="GW-005")
        + "<6>" + access(202, CORR_ID, 2, client_corr_id="order-17")
        + access(202, "req_other", 3)
        + access(503, "req_lost", 4, code="GW-005")
        + access(401, "random-1", 5, code="GW-001")
    )  # fmt: skip
    environ = environment(server)
    for words, stdin in ((("--log", str(log)), b""), (("--log", "-"), log.read_bytes())):
        for corr_id, lines in ((CORR_ID, 2), ("order-17", 1)):
            code, found = run_json(environ, "trace", corr_id, *words, stdin=stdin)
            assert (code, sum("log" in scene for scene in found["scenes"])) == (0, lines)
            assert [story["corr_ids"] for story in found["stories"]] == [[CORR_ID]]
    assert run(environ, "trace", CORR_ID, "--log", str(log))[1].endswith("; answered 2 times: 503, 202\n")
    code, out, _ = run(environ, "trace", "req_lost", "--log", str(log))
    assert (code, "answered 503 GW-005" in out, "send it again" in out) == (1, True, True)
    assert "nothing of it was kept" in run(environ, "trace", "random-1", "--log", str(log))[1]
    assert run(environ, "trace", CORR_ID, "--log", str(tmp_path / "none"))[0] == 2


def test_the_journal_of_a_unit(server: NatsServer, talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--unit reads what journalctl prints of the unit; where that fails it is said."""
    program = tmp_path / "journalctl"
    program.write_text(f"#!/bin/sh\necho \"$@\" >{tmp_path}/asked\necho '{access(503, 'req_lost').strip()}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    environ = environment(server)
    code, out, err = run(environ, "trace", "req_lost", "--unit", "gatewayd.service")
    assert (code, "POST /webhook/tradingview 503" in out) == (1, True), err
    asked = (tmp_path / "asked").read_text()
    assert "--unit=gatewayd.service" in asked
    assert "--output=cat" in asked
    program.write_text("#!/bin/sh\necho 'No such unit' >&2\nexit 1\n")
    code, out, err = run(environ, "trace", "req_lost", "--unit", "nothing")
    assert (code, out, "No such unit" in err) == (2, "", True)


def test_half_and_doubled(server: NatsServer, talk: Talk) -> None:
    """A half is called one, and so is what was stored twice."""
    raw, normalised = pair(GOOD)
    store(talk, raw)
    code, out, _ = run(environment(server), "trace", CORR_ID)
    assert (code, out.splitlines()[-1].startswith("half stored: raw 1 ")) == (1, True)
    store(talk, normalised)
    forget_ids(talk)
    assert store(talk, raw)
    code, found = run_json(environment(server), "trace", CORR_ID)
    assert (code, found["stories"][0]["kind"]) == (1, "doubled")
