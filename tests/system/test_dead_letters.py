"""A refused body's way through a whole gatewayd, from the refusal to the event."""

import json
import time

from tests.clients import stamped
from tests.gateway import Gateway
from tests.servers import NatsServer
from tests.streams import read_stream
from tests.wire.commands import run, run_json

WEBHOOK = "/webhook/tradingview"


def test_refused_corrected_and_sent_again(gateway: Gateway, nats: NatsServer) -> None:
    """
    The letter is the bytes that were sent and says where they are wrong; corrected and replayed they are an event; the
    sender that sends the corrected body itself gets a duplicate's 202; trace tells all of it.
    """
    environ = gateway.environment()
    good = (
        '{"ticker": "EURUSD",\r\n "action": "buy",\r\n "strategy": "\u65e5\u672c",'
        f' "price": 1.0900,\r\n "time": "{time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}"}}\r\n'
    ).encode()
    broken = good.replace(b"1.0900,", b"1,0900,")
    status, _, answer = gateway.ask("POST", WEBHOOK, broken, stamped(broken, time.time()))
    refusal = json.loads(answer)
    assert (status, refusal["code"]) == (400, "GW-013")

    _, listed = run_json(environ, "dlq", "list", "--pending")
    assert [one["corr_id"] for one in listed] == [refusal["corr_id"]]
    assert listed[0]["position"] == [refusal["details"]["line"], refusal["details"]["column"]] == [3, 31]
    assert refusal["details"]["likely_cause"] in listed[0]["reasons"]
    number = str(listed[0]["sequence"])
    assert run_json(environ, "dlq", "show", number)[1]["body"].encode() == broken
    page = run(environ, "dlq", "show", number)[1].splitlines()
    caret = next(at for at, text in enumerate(page) if text.strip() == "^")
    assert page[caret - 1].startswith('   "strategy": "\u65e5\u672c", "price": 1,0900')

    code, told = run_json(environ, "dlq", "replay", number, "--body", "-", stdin=good)
    assert (code, told["counts"]) == (0, {"replayed": 1})
    status, _, answer = gateway.ask("POST", WEBHOOK, good, stamped(good, time.time()))
    accepted = json.loads(answer)
    assert (status, accepted["duplicate"]) == (202, True)
    assert accepted["corr_id"] == told["letters"][0]["corr_id"]
    events = [read for read in read_stream(nats.url) if read.subject.startswith("signals.")]
    assert [event.headers["Corr-ID"] for event in events] == [accepted["corr_id"]] * 2

    gateway.await_line(corr_id=accepted["corr_id"], status=202)
    for corr_id in (refusal["corr_id"], accepted["corr_id"]):
        code, traced = run_json(environ, "trace", corr_id, "--log", str(gateway.log_path))
        assert (code, [story["kind"] for story in traced["stories"]]) == (0, ["replayed"]), traced
        statuses = [scene["line"]["status"] for scene in traced["scenes"] if "log" in scene]
        assert statuses == [400, 202]
