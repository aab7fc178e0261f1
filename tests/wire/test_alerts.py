"""
What people really send, signed and sent: those in the contract's form are accepted, all others get their exact answer.

Bodies that call themselves JSON go as application/json; the others as TradingView sends what is no JSON, text/plain,
and as application/json too, where they are dead letters. What each body is worth stands in the readers' own tables.
"""

import json
import time
from pathlib import Path

from tests.clients import SECRET, stamped
from tests.gateway import Gateway
from tests.servers import NatsServer
from tests.streams import read_stream
from tests.unit.ingress.test_alerts import ACCEPTED, ALERTS, INVALID, MALFORMED


def send(gateway: Gateway, alert_id: str, media: str) -> tuple[int, dict[str, object]]:
    alert = ALERTS[alert_id]
    body = alert["body"].encode()
    headers = {**stamped(body, time.time()), "Content-Type": media}
    status, _, answer = gateway.ask("POST", f"/webhook/{alert['kind']}", body, headers)
    return status, json.loads(answer)


def test_every_alert(tmp_path: Path) -> None:
    """202, 400, 415 or 422, each for the reason that the body gives; none is an error of ours, none shows a secret."""
    server = NatsServer(tmp_path / "nats").start()
    settings = {"NATS_URL": server.url, "API_KEY_HMAC_SECRET": SECRET.decode(), "RATE_LIMIT_RPS": "100000"}
    gateway = Gateway(tmp_path / "gateway", {**settings, "LOG_LEVEL": "DEBUG"})
    answers = []
    try:
        gateway.start(wait="/readyz")
        for alert_id, alert in ALERTS.items():
            if "json" not in alert["format"]:
                status, answer = send(gateway, alert_id, "text/plain; charset=utf-8")
                assert (status, answer["code"]) == (415, "GW-014"), alert_id
            status, answer = send(gateway, alert_id, "application/json; charset=utf-8")
            details = answer.get("details", {})
            assert isinstance(details, dict)
            if alert_id in ACCEPTED:
                assert (status, answer["status"]) == (202, "accepted"), (alert_id, answer)
            elif alert_id in MALFORMED:
                line, column, cause = MALFORMED[alert_id]
                assert (status, answer["code"]) == (400, "GW-013"), (alert_id, answer)
                assert (details["line"], details["column"], details["likely_cause"]) == (line, column, cause)
            else:
                assert (status, answer["code"]) == (422, "GW-003"), (alert_id, answer)
                assert " ".join(fault["path"] for fault in details["validation_errors"]) == INVALID[alert_id], alert_id
            answers.append(json.dumps(answer))
        stored = read_stream(server.url)
        log = gateway.log_text()
    finally:
        gateway.close()
        server.close()
    events = [message for message in stored if "Gw-Facts" in message.headers]
    assert len(events) == 2 * len(ACCEPTED)
    raws = {json.dumps(json.loads(message.data)["payload"]) for message in events if message.subject == "signals.raw"}
    assert raws == {json.dumps(json.loads(ALERTS[alert_id]["body"])) for alert_id in ACCEPTED}
    shown = [secret for alert in ALERTS.values() for secret in alert.get("secrets", []) if secret in log]
    assert not shown
    assert not [
        secret for alert in ALERTS.values() for secret in alert.get("secrets", []) if secret in "".join(answers)
    ]
    assert '"failure"' not in log
