"""
gatewayctl dlq against a real nats-server: in this process where nothing but the outcome counts (0.3 s less each), as a
process of its own where it is killed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

import pytest

from gatewayd.bus.publication import Message
from gatewayd.ingress.admission import Kind, accepted_corr_id, digest, identity
from gatewayd.ingress.events import DeadLetter, Envelope, Events, refused_digest
from gatewayd.ingress.normalise import read_tradingview
from gatewayd.times import Wall
from tests.contracts.admission import claim
from tests.holding import Holding
from tests.servers import NatsServer
from tests.streams import Read, read_stream
from tests.wire.commands import run, run_json
from tests.wire.test_cli_stream import Talk, environment, start

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")

GOOD = b'{"ticker":"EURUSD","action":"buy","price":1.0900,"time":"2024-01-15T10:30:00Z"}'
BROKEN = b'{"ticker": "EURUSD",\r\n "name": "\xe6\x97\xa5\xe6\x9c\xac", "price":: 1}\r\n'
NO_SIGNAL = b'{"ticker":"EURUSD","price":"1.0"}'


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


def forget_ids(talk: Talk) -> None:
    """Give the stream the shortest memory of ids, and wait until it has forgotten those it had: the youngest last."""
    config = talk.call("STREAM.INFO.trading-events")["config"]
    probes: set[int] = set()
    for turn in range(500):
        if turn % 50 == 0:  # on a busy machine the server has been seen not to look at a window that was changed once
            talk.call("STREAM.UPDATE.trading-events", {**config, "duplicate_window": 100_000_000 + turn})
        talk.publish("signals.probe", b"{}", {"Nats-Msg-Id": "probe"})
        probes.add(talk.sync()["seq"])
        if len(probes) == 2:
            break
        time.sleep(0.02)
    assert len(probes) == 2
    for sequence in probes:
        talk.call("STREAM.MSG.DELETE.trading-events", {"seq": sequence})


def store(talk: Talk, message: Message) -> bool:
    """Publish a message of ours; False when its id is known to the stream."""
    parsed = BytesParser(policy=HTTP).parsebytes(message.headers + b"\r\n")
    talk.publish(message.subject.decode(), message.body, {name: str(value) for name, value in parsed.items()})
    return not talk.sync().get("duplicate", False)


def letter(body: bytes, source: str = "tradingview", code: str = "GW-003", **more: Any) -> DeadLetter:
    """The dead letter of a body; of one that is a signal after all: the rules have changed since."""
    return DeadLetter(
        refused_digest(source, body), code, source, Wall(1705314601.0), code != "GW-013", ["price: required"], **more
    )


def bury(talk: Talk, body: bytes, *args: Any, **more: Any) -> int:
    """Store a dead letter; its sequence."""
    assert store(talk, letter(body, *args, **more).message(body))
    return last_sequence(talk)


def last_sequence(talk: Talk) -> int:
    """The stream's."""
    return int(talk.call("STREAM.INFO.trading-events")["state"]["last_seq"])


def pair(body: bytes, key: str | None = None) -> tuple[Message, Message]:
    """What a webhook with this body is stored as."""
    claimed = claim(body, source="tradingview", key=key)
    signal = read_tradingview(body)
    envelope = Envelope(accepted_corr_id(claimed.identity), Wall(1705314602.0), "v1", key, None)
    return Events("signals.raw", "signals.normalized", "1.1.0").pair(claimed, signal, body, envelope)  # type: ignore[arg-type]


def events_of(server: NatsServer) -> list[Read]:
    """The signals in the stream, without what was rejected."""
    return [read for read in read_stream(server.url) if read.subject.startswith("signals.")]


def assert_once(server: NatsServer, body: bytes, key: str | None = None) -> list[Read]:
    """The stream holds this body as one raw and one normalised event, raw first, under the ids of its identity."""
    who = identity(b"tradingview", Kind.BODY if key is None else Kind.KEY, body if key is None else key.encode()).hex()
    events = events_of(server)
    assert [one.headers["Nats-Msg-Id"] for one in events] == [f"gw:{who}:raw", f"gw:{who}:norm"], events
    assert events[0].data.endswith(b',"payload":' + body + b"}")
    assert all(one.headers["Gw-Facts"].split()[2] == digest(body).hex() for one in events)
    return events


def test_list_and_show(server: NatsServer, talk: Talk) -> None:
    """list says what there is and chooses; show points at the fault; --raw writes exactly the bytes received."""
    first = bury(talk, BROKEN, code="GW-013", position=(2, 24))
    second = bury(talk, NO_SIGNAL, "custom")
    environ = environment(server)
    code, out, _ = run(environ, "dlq", "list")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert lines[1].split()[:1] + lines[1].split()[2:6] == [
        str(first),
        "GW-013",
        "tradingview",
        str(len(BROKEN)),
        "pending",
    ]
    assert lines[1].endswith("2:24: price: required")
    for words, expected in (
        (("--source", "custom"), [second]),
        (("--code", "13"), [first]),
        (("--since", "1h"), [first, second]),
        (("--until", "2020-01-01T00:00:00Z"), []),
        (("--limit", "1"), [second]),
        (("--replayed",), []),
        (("--pending",), [first, second]),
    ):
        code, found = run_json(environ, "dlq", "list", *words)
        assert (code, [one["sequence"] for one in found]) == (0, expected), words
    code, out, _ = run(environ, "dlq", "show", str(first))
    lines = out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("position"))
    assert lines[at] == "position  line 2, column 24"
    assert lines[at + 1] == '   "name": "\u65e5\u672c", "price":: 1}'
    raw = subprocess.run(
        [sys.executable, "-c", "from gatewayd.cli import main; main()", "dlq", "show", str(first), "--raw"],
        env=environ, capture_output=True, check=False, timeout=20,
    )  # fmt: skip
    assert (raw.returncode, raw.stdout, raw.stderr) == (0, BROKEN, b"")
    code, shown = run_json(environ, "dlq", "show", str(first))
    assert (shown["body"], shown["headers"]["Dlq-Code"]) == (BROKEN.decode(), "GW-013")
    code, out, err = run(environ, "dlq", "show", "77")
    assert (code, out, "no dead letter 77" in err) == (2, "", True)


def test_replay(server: NatsServer, talk: Talk) -> None:
    """A letter that is a signal now becomes an event as from a webhook; one that is none stays, with its reasons."""
    number = bury(talk, GOOD)
    stays = bury(talk, NO_SIGNAL)
    environ = environment(server)
    before = talk.call("STREAM.INFO.trading-events")["state"]["last_seq"]
    code, dry = run_json(environ, "dlq", "replay", "--all", "--dry-run")
    assert (code, [one["outcome"] for one in dry["letters"]]) == (1, ["replayed", "still refused"])
    assert talk.call("STREAM.INFO.trading-events")["state"]["last_seq"] == before
    assert events_of(server) == []

    code, out, _ = run(environ, "dlq", "replay", "--all")
    assert code == 1
    assert out.splitlines()[0].startswith(f"{number}: replayed as ")
    assert out.splitlines()[1].startswith(f"{stays}: still refused: GW-003 time: required; price: ")
    assert out.splitlines()[2] == "1 replayed, 1 still refused"
    events = assert_once(server, GOOD)
    assert [one.headers["Replayed-From"] for one in events] == [str(number)] * 2
    assert (json.loads(events[1].data)["price"], events[0].headers["Source"]) == (1.09, "tradingview")
    assert events[0].headers["Corr-ID"] == json.loads(events[0].data)["corr_id"]

    code, found = run_json(environ, "dlq", "list", "--replayed")
    assert [one["sequence"] for one in found] == [number]
    assert found[0]["replay"]["stored"] == [event.sequence for event in events]
    code, again = run_json(environ, "dlq", "replay", str(number))
    assert (code, again["counts"]) == (0, {"replayed before": 1})
    assert run_json(environ, "dlq", "replay", "--since", "1h", "--code", "GW-013")[1]["letters"] == []
    assert_once(server, GOOD)


def test_replay_of_a_corrected_body(server: NatsServer, talk: Talk, tmp_path: Path) -> None:
    """--body stores the bytes of the file, under their own identity; the letter counts as replayed."""
    number = bury(talk, NO_SIGNAL)
    corrected = tmp_path / "body.json"
    corrected.write_bytes(b'{"ticker":"EURUSD","price":"1.0"}')
    environ = environment(server)
    code, told = run_json(environ, "dlq", "replay", str(number), "--body", str(corrected))
    assert (code, told["counts"]) == (1, {"still refused": 1})
    corrected.write_bytes(GOOD)
    code, told = run_json(environ, "dlq", "replay", str(number), "--body", str(corrected))
    assert (code, told["counts"]) == (0, {"replayed": 1})
    assert_once(server, GOOD)
    assert run_json(environ, "dlq", "list")[1][0]["state"] == "replayed"


def test_a_sender_was_faster(server: NatsServer, talk: Talk, tmp_path: Path) -> None:
    """What the sender itself has stored meanwhile is not stored again, also when the server has forgotten the ids."""
    number = bury(talk, NO_SIGNAL)
    for message in pair(GOOD):
        store(talk, message)
    forget_ids(talk)
    corrected = tmp_path / "body.json"
    corrected.write_bytes(GOOD)
    environ = environment(server)
    code, told = run_json(environ, "dlq", "replay", str(number), "--body", str(corrected))
    assert (code, told["counts"]) == (0, {"there already": 1})
    assert told["letters"][0]["stored"] == [event.sequence for event in assert_once(server, GOOD)]
    assert run_json(environ, "dlq", "list")[1][0]["state"] == "replayed"


def test_half_of_it_is_there(server: NatsServer, talk: Talk) -> None:
    """A raw event without its normalised one is completed."""
    number = bury(talk, GOOD)
    store(talk, pair(GOOD)[0])
    forget_ids(talk)
    code, told = run_json(environment(server), "dlq", "replay", str(number))
    assert (code, told["counts"]) == (0, {"replayed": 1})
    assert_once(server, GOOD)


def test_a_signed_key_is_the_identity(server: NatsServer, talk: Talk) -> None:
    """A letter that came with a signed key is that key's event: stored under it, and not beside the sender's own."""
    first = bury(talk, GOOD, key="order-1", key_is_identity=True)
    environ = environment(server)
    assert run_json(environ, "dlq", "replay", str(first))[1]["counts"] == {"replayed": 1}
    events = assert_once(server, GOOD, "order-1")
    assert json.loads(events[1].data)["idempotency_key"] == "order-1"

    other = GOOD.replace(b"1.0900", b"1.0901")
    for message in pair(other, "order-2"):
        store(talk, message)
    forget_ids(talk)
    second = bury(talk, GOOD, key="order-2", key_is_identity=True, code="GW-009")
    code, told = run_json(environ, "dlq", "replay", str(second))
    assert (code, told["counts"]) == (1, {"superseded": 1})
    assert len(events_of(server)) == 4


def test_one_letter_of_many_sources(server: NatsServer, talk: Talk) -> None:
    """A body that had to name its source may not name one with a secret of its own, nor one that is not configured."""
    generic = b'{"source":"%b","instrument":"EURUSD","timestamp":"2024-01-15T10:30:00Z","payload":{"price":1.09}}'
    for source in (b"custom", b"partner", b"stranger"):
        bury(talk, generic % source, "_other")
    environ = environment(server, ALLOWED_SOURCES="custom,partner", API_KEY_HMAC_SECRET_PARTNER="p" * 40)
    code, told = run_json(environ, "dlq", "replay", "--source", "_other")
    outcomes = [(one["outcome"], one.get("code")) for one in told["letters"]]
    assert (code, outcomes) == (1, [("replayed", None), ("still refused", "GW-001"), ("still refused", "GW-007")])
    assert [one.headers["Source"] for one in events_of(server)] == ["custom", "custom"]


def test_rate(server: NatsServer, talk: Talk) -> None:
    """--rate holds the run back."""
    for number in range(4):
        bury(talk, GOOD.replace(b"1.0900", b"1.090%d" % number))
    began = time.monotonic()
    code, told = run_json(environment(server), "dlq", "replay", "--all", "--rate", "4")
    assert (code, told["counts"]) == (0, {"replayed": 4})
    assert time.monotonic() - began >= 0.75


def test_two_operators_at_once(server: NatsServer, talk: Talk) -> None:
    """Two runs over the same letters store each of them once; whoever comes second leaves a letter to the other."""
    bodies = [GOOD.replace(b"1.0900", b"1.0%03d" % number) for number in range(100, 140)]
    for body in bodies:
        bury(talk, body)
    runs = [start(environment(server), "dlq", "replay", "--all", "--json") for _ in range(2)]
    counts = []
    for process in runs:
        out, err = process.communicate(timeout=60)
        assert process.returncode in (0, 1), err
        counts.append(json.loads(out)["counts"])
    assert all(sum(one.values()) <= len(bodies) for one in counts)
    assert run_json(environment(server), "dlq", "replay", "--all")[0] == 0
    ids = [one.headers["Nats-Msg-Id"] for one in events_of(server)]
    assert len(ids) == len(set(ids)) == 2 * len(bodies)


@pytest.mark.parametrize("mark", ["dlq.replayed.", "signals.raw ", "signals.normalized ", "dlq.replayed. 2"])
@pytest.mark.parametrize("window", ["short", "long"] if FULL else ["short"])
def test_kill_9(server: NatsServer, talk: Talk, mark: str, window: str) -> None:
    """
    A run that is killed before its claim, before raw, before normalised or before the end of the record is finished by
    the next one, once; also when the server has forgotten the ids, and when the bytes of the killed one come later.
    """
    number = bury(talk, GOOD)
    if window == "short":
        forget_ids(talk)
    way = Holding(server.port, b"HPUB " + mark.removesuffix(" 2").encode(), 2 if mark.endswith(" 2") else 1)
    try:
        process = start(environment(server, NATS_URL=way.url), "dlq", "replay", str(number))
        assert way.held.wait(15), process.communicate(timeout=10)
        process.kill()
        process.communicate(timeout=10)
        time.sleep(0.3)
        code, told = run_json(environment(server), "dlq", "replay", str(number))
        word = "replayed" if mark == "dlq.replayed." else "finished"
        assert (code, told["counts"]) == (0, {word: 1})
        assert_once(server, GOOD)
        time.sleep(0.3)
        way.release()
        assert_once(server, GOOD)
    finally:
        way.close()
    listed = run_json(environment(server), "dlq", "list")[1]
    assert [one["state"] for one in listed] == ["replayed"]
    assert run_json(environment(server), "dlq", "replay", str(number))[1]["counts"] == {"replayed before": 1}


def test_a_run_that_wakes_too_late(server: NatsServer, talk: Talk) -> None:
    """A run that hung between claim and publish, while another one finished its letter, stores nothing and says so."""
    number = bury(talk, GOOD)
    forget_ids(talk)
    way = Holding(server.port, b"HPUB signals.raw ")
    try:
        process = start(environment(server, NATS_URL=way.url), "dlq", "replay", str(number))
        assert way.held.wait(15)
        assert run_json(environment(server), "dlq", "replay", str(number))[1]["counts"] == {"finished": 1}
        time.sleep(0.3)
        way.release()
        out, err = process.communicate(timeout=10)
    finally:
        way.close()
    assert (process.returncode, "left to another run" in out) == (1, True), out + err
    assert_once(server, GOOD)


def test_the_claim_is_enough(server: NatsServer, talk: Talk, tmp_path: Path) -> None:
    """A corrected body that was claimed is stored by the next run as it was claimed, also when the letter has gone."""
    number = bury(talk, NO_SIGNAL)
    corrected = tmp_path / "body.json"
    corrected.write_bytes(GOOD)
    way = Holding(server.port, b"HPUB signals.raw ")
    try:
        process = start(environment(server, NATS_URL=way.url), "dlq", "replay", str(number), "--body", str(corrected))
        assert way.held.wait(15)
        process.kill()
        process.communicate(timeout=10)
    finally:
        way.close()
    corrected.write_bytes(GOOD.replace(b"1.0900", b"1.0901"))
    environ = environment(server)
    code, told = run_json(environ, "dlq", "replay", str(number), "--body", str(corrected))
    assert (code, told["counts"]) == (1, {"still refused": 1})
    talk.call("STREAM.MSG.DELETE.trading-events", {"seq": number})
    assert run_json(environ, "dlq", "list")[1][0]["state"] == "claimed"
    code, told = run_json(environ, "dlq", "replay", "--all")
    assert (code, told["counts"]) == (0, {"finished": 1})
    assert_once(server, GOOD)


def test_not_reached() -> None:
    """Exit code 3, in one line."""
    for words in (("dlq", "list"), ("dlq", "show", "1"), ("dlq", "replay", "--all"), ("trace", "req_1")):
        code, out, err = run(environment(None, NATS_URL="nats://127.0.0.1:9"), *words)
        assert (code, out, err.count("\n")) == (3, "", 1), words


def test_ctrl_c(server: NatsServer, talk: Talk) -> None:
    """Ctrl-C ends a run with what was done so far and exit code 130; the next run does the rest."""
    for number in range(3):
        bury(talk, GOOD.replace(b"1.0900", b"1.090%d" % number))
    process = start(environment(server), "dlq", "replay", "--all", "--rate", "0.01")
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, "replayed as" in first, "2 not looked at" in out) == (130, True, True), out + err
    assert run_json(environment(server), "dlq", "replay", "--all")[1]["counts"] == {"replayed": 2}


def test_not_reached_on_the_way(server: NatsServer, talk: Talk) -> None:
    """A server that hangs ends the run with exit code 3 and what is left; the next run goes on."""
    numbers = [bury(talk, GOOD.replace(b"1.0900", b"1.090%d" % number)) for number in range(3)]
    way = Holding(server.port, b"HPUB signals.raw ")
    try:
        process = start(environment(server, NATS_URL=way.url), "dlq", "replay", "--all")
        out, err = process.communicate(timeout=30)
    finally:
        way.close()
    assert (process.returncode, "3 not looked at" in out) == (3, True), out + err
    assert run_json(environment(server), "dlq", "replay", "--all")[1]["counts"] == {"finished": 1, "replayed": 2}
    assert len(numbers) * 2 == len(events_of(server))
