"""Signals to a real gatewayd: asked twice, reloaded while it ends, frozen and thawed."""

import http.client
import os
import signal
import socket
import time
from collections import Counter

from tests.gateway import Gateway
from tests.senders import Sender, sending
from tests.servers import NatsServer
from tests.streams import read_stream

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
FROZEN_S = 10.0 if FULL else 3.0


def kept(gateway: Gateway) -> http.client.HTTPConnection:
    """A connection that has been used, and is idle: the end waits for its last request for a while."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=5)
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    return connection


class TestEnd:
    """SIGTERM and SIGINT."""

    def test_the_second_one_ends_at_once(self, gateway: Gateway) -> None:
        """It does not wait for what the first one waits for, and what was logged until then is written."""
        idle = kept(gateway)
        gateway.signal(signal.SIGTERM)
        gateway.await_line(msg="Received SIGTERM, shutting down.")
        assert gateway.process is not None
        gateway.signal(signal.SIGTERM)
        assert gateway.process.wait(5) == 128 + signal.SIGTERM
        lines = gateway.log_lines()
        assert any(line["event"] == "ready" for line in lines)
        assert not any(line.get("service") == "requests" for line in lines if line["event"] == "service.stopped")
        idle.close()

    def test_sigint(self, gateway: Gateway) -> None:
        """It stops as SIGTERM does, in order, and the status is its own."""
        gateway.signal(signal.SIGINT)
        assert gateway.process is not None
        assert gateway.process.wait(10) == -signal.SIGINT
        stopped = [line["service"] for line in gateway.log_lines() if line["event"] == "service.stopped"]
        order = ["requests", "NATS", "public listener", "log"]
        assert [name for name in stopped if name in order] == order

    def test_a_reload_while_it_ends(self, gateway: Gateway) -> None:
        """SIGHUP neither keeps it from ending nor harms it."""
        idle = kept(gateway)
        gateway.signal(signal.SIGTERM)
        gateway.await_line(msg="Received SIGTERM, shutting down.")
        for _ in range(5):
            gateway.signal(signal.SIGHUP)
        gateway.await_line(event="config.reloaded")
        assert gateway.process is not None
        assert gateway.process.wait(10) == -signal.SIGTERM
        assert "Traceback" not in gateway.log_text()
        idle.close()

    def test_many_reloads(self, gateway: Gateway) -> None:
        """A burst of SIGHUP is one reload after the other, under load, and nobody notices."""
        sender = Sender(gateway.port)
        with sending(sender):
            for _ in range(50):
                gateway.signal(signal.SIGHUP)
                time.sleep(0.005)
            gateway.await_line(event="config.reloaded", after=4)
        assert Counter(one.status for one in sender.noted) == {202: len(sender.noted)}
        assert "Traceback" not in gateway.log_text()


class TestFrozen:
    """SIGSTOP, as a suspended machine does it."""

    def test_it_recovers(self, gateway: Gateway, nats: NatsServer) -> None:
        """
        Nothing that was accepted is lost or doubled, senders get answers again at once, timers do not make up for what
        they missed, and whoever gave up meanwhile and asks again gets the one answer there is.
        """
        senders = [Sender(gateway.port, timeout_s=FROZEN_S - 0.5) for _ in range(8)]
        with sending(*senders):
            time.sleep(0.5)
            os.kill(gateway.pid, signal.SIGSTOP)
            frozen_at = time.time()
            time.sleep(FROZEN_S)
            with socket.create_connection(("127.0.0.1", gateway.port), 1):
                pass  # the kernel goes on taking connections
            os.kill(gateway.pid, signal.SIGCONT)
            thawed_at = time.time()
            time.sleep(2.0)
        for sender in senders:
            assert set(Counter(one.status for one in sender.between(thawed_at + 1.0))) == {202}
        noted = [one for sender in senders for one in sender.noted]
        ended = Counter((one.status, one.code) for one in noted if frozen_at - 0.1 < one.sent_at < thawed_at)
        assert {status for status, _ in ended} <= {0, 202, 503}, ended
        accepted = Counter(one.corr_id for one in noted if one.status == 202)
        stored = Counter(one.headers["Corr-ID"] for one in read_stream(nats.url) if one.subject == "signals.raw")
        assert max(stored.values()) == 1
        assert not accepted.keys() - stored.keys()
        print(f"\nfrozen {FROZEN_S:g} s: {dict(ended)}; stored without an answer: {len(stored) - len(accepted)}")

        assert gateway.process is not None
        assert gateway.process.poll() is None
        others = [line for line in gateway.log_lines() if line["event"] != "request"]
        assert len([line for line in others if line["level"] in ("error", "critical")]) == 0, others
        assert len(others) < 100, [line["msg"] for line in others]
        began, cpu_s = time.monotonic(), gateway.cpu_seconds()
        time.sleep(1.0)
        assert gateway.cpu_seconds() - cpu_s < 0.5 * (time.monotonic() - began)
