"""More webhooks than can be served: what they are answered, and that everything else goes on."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.clients import SECRET
from tests.gateway import ROOT, Gateway
from tests.servers import NatsServer
from tests.streams import read_stream

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
SECONDS = 20 if FULL else 3
OFFERED = 12_000
CONNECTIONS = 1500


def child(module: str, *arguments: object) -> "subprocess.Popen[str]":
    """A process of the load, ready to begin."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What it saw."""
    said, _ = process.communicate(timeout=60)
    seen: dict[str, Any] = json.loads(said)
    return seen


def value(gateway: Gateway, name: str) -> float:
    """One series of /metrics."""
    lines = gateway.get("/metrics")[2].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def test_an_overload(make_gateway: Callable[..., Gateway], nats: NatsServer) -> None:
    """
    Webhooks are taken or refused with 503 GW-010 and nothing else; each 202 is stored, each refusal counted; the probes
    answer all the while; afterwards everything is as before.
    """
    gateway = make_gateway(
        NATS_URL=nats.url,
        API_KEY_HMAC_SECRET=SECRET.decode(),
        RATE_LIMIT_RPS="1000000",
        RATE_LIMIT_EXEMPT_CIDRS="127.0.0.0/8",
    )
    gateway.start(wait="/readyz")
    load = child("tests.bench.openload", gateway.port, CONNECTIONS, SECONDS, OFFERED, SECRET.decode())
    probes = child("tests.bench.probing", gateway.port, SECONDS)
    for process in (load, probes):
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    seen, probed = result(load), result(probes)
    assert set(seen["statuses"]) <= {"202", "503"}, seen
    accepted, refused = seen["statuses"]["202"], seen["statuses"].get("503", 0)
    assert accepted > 500
    assert refused or accepted > 0.9 * SECONDS * OFFERED, seen
    assert seen["lost"] == 0
    assert all(probe["asked"] >= 1 and probe["max_ms"] < 2500 for probe in probed.values()), probed
    lines = [line for line in gateway.log_lines() if line.get("code")]
    assert {line["code"] for line in lines} <= {"GW-010"}
    assert len(lines) == refused == value(gateway, "gateway_backpressure_total")
    assert value(gateway, "gateway_reactor_lag_seconds") < SECONDS
    messages = read_stream(nats.url)
    assert len(messages) == 2 * accepted
    time.sleep(0.5)
    after = result_of_a_calm_second(gateway)
    assert list(after["statuses"]) == ["202"], after


def result_of_a_calm_second(gateway: Gateway) -> dict[str, Any]:
    """Ten connections, closed load."""
    load = child("tests.bench.load", gateway.port, 10, 0.5, SECRET.decode())
    assert load.stdin is not None
    load.stdin.write("go\n")
    load.stdin.flush()
    return result(load)
