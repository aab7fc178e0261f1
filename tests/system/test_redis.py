"""Two gatewayd on one stream and one Redis: what they know together, and what is left when Redis goes."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.clients import SECRET, generic_body, stamped, tradingview_body
from tests.gateway import Gateway
from tests.servers import NatsServer, free_port
from tests.streams import read_stream
from tests.valkey import ValkeyServer

PASSWORD = "the-password-of-redis-is-a-canary"
WITHIN_S = 2.5
"""Every webhook is answered by then, whatever a store does."""
TOLD_S = 0.2
"""Redis is told of an accepted event, and that is not waited for; on a busy machine it takes a moment."""


def settings(nats: NatsServer, url: str) -> dict[str, str]:
    return {
        "NATS_URL": nats.url,
        "REDIS_URL": url,
        "API_KEY_HMAC_SECRET": SECRET.decode(),
        "RATE_LIMIT_RPS": "100000",
        "RATE_LIMIT_SOURCES": "test:5",
        "RATE_LIMIT_EXEMPT_CIDRS": "127.0.0.0/8",
        "METRICS_ALLOW_CIDRS": "all",
    }


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """The stream of every test here."""
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A server with a password that keeps what it was told; a test leaves it running."""
    server = ValkeyServer(tmp_path_factory.mktemp("redis"), password=PASSWORD, append_only=True).start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, nats: NatsServer, redis: ValkeyServer
) -> Iterator[tuple[Gateway, Gateway]]:
    """Two of them, ready."""
    root = tmp_path_factory.mktemp("gateways")
    one, other = (Gateway(root / name, settings(nats, redis.url)) for name in ("one", "other"))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda gateway: gateway.start(wait="/readyz"), (one, other)))
    for gateway in (one, other):
        wait_for(gateway, redis="ok")
    yield one, other
    one.close()
    other.close()


class Sent:
    """One request as it was signed, to be sent wherever and as often as a test likes."""

    def __init__(self, body: bytes, *, nonce: str = "", path: str = "/webhook/tradingview") -> None:
        self.path, self.body = path, body
        self.headers = stamped(body, time.time(), nonce=nonce)

    def to(self, gateway: Gateway) -> tuple[int, dict[str, Any]]:
        """Send it; status and members of the answer, which must come in time."""
        began = time.monotonic()
        status, _, answer = gateway.ask("POST", self.path, self.body, self.headers)
        assert time.monotonic() - began < WITHIN_S
        return status, json.loads(answer)


def body(price: float) -> bytes:
    return tradingview_body(time.time(), price)


def wait_for(gateway: Gateway, **members: str) -> None:
    """Wait until /healthz has these members."""
    deadline = time.monotonic() + 10
    while not members.items() <= gateway.health().items():
        assert time.monotonic() < deadline, gateway.health()
        time.sleep(0.05)


def metric(gateway: Gateway, name: str) -> float:
    """A sample of /metrics."""
    lines = gateway.get("/metrics")[2].decode().splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} "))


def raw_ids(nats: NatsServer) -> list[str]:
    """The message id of every raw event that is stored."""
    return [read.headers["Nats-Msg-Id"] for read in read_stream(nats.url) if read.subject == "signals.raw"]


def test_two_hosts_and_a_redis_that_dies(pair: tuple[Gateway, Gateway], nats: NatsServer, redis: ValkeyServer) -> None:
    """
    Nonces and rates hold for both; without Redis both go on at once, and say so; back again Redis knows what was
    accepted before and meanwhile; emptied, it costs no event and doubles none.
    """
    one, other = pair
    before = len(raw_ids(nats))
    first = Sent(body(1.0))
    status, accepted = first.to(one)
    assert (status, accepted["duplicate"]) == (202, False)
    time.sleep(TOLD_S)
    assert first.to(other)[0] == 401
    assert Sent(body(2.0), nonce=first.headers["X-Nonce"]).to(other)[0] == 401
    status, again = Sent(first.body).to(other)
    assert (status, again["duplicate"], again["corr_id"]) == (202, True, accepted["corr_id"])

    limited = [Sent(generic_body(time.time(), price=1 + n), path="/webhook/test") for n in range(16)]
    statuses = [sent.to(pair[number % 2])[0] for number, sent in enumerate(limited)]
    assert 5 <= statuses.count(202) <= 8, statuses  # the burst, and what comes of 5 a second meanwhile
    assert set(statuses) == {202, 429}

    redis.kill()
    meanwhile = Sent(body(3.0))
    assert meanwhile.to(one)[0] == 202
    assert meanwhile.to(one)[0] == 401
    wait_for(one, redis="error", status="ok")
    assert metric(one, "gateway_admission_fallback") == 1
    assert metric(one, 'gateway_store_errors_total{kind="admission"}') >= 1
    status, _, ready = one.get("/readyz")
    assert status == 200
    assert "Redis (REDIS_URL)" in " ".join(json.loads(ready)["warnings"])
    assert metric(one, "redis_connected") == 0

    redis.start()
    for gateway in pair:
        wait_for(gateway, redis="ok")
    one.await_line(event="redis.caught_up")
    assert meanwhile.to(other)[0] == 401
    assert first.to(other)[0] == 401
    assert metric(one, "gateway_admission_fallback") == 0

    redis.call("FLUSHALL")
    last = Sent(body(4.0))
    assert last.to(one)[0] == 202
    time.sleep(TOLD_S)  # or Redis is told only after it was emptied
    redis.call("FLUSHALL")
    status, again = last.to(other)
    assert (status, again["duplicate"]) == (202, True)

    ids = raw_ids(nats)
    assert len(ids) - before == 3 + statuses.count(202)
    assert len(set(ids)) == len(ids)
    shown = "".join(gateway.log_text() + gateway.get("/metrics")[2].decode() for gateway in pair) + ready.decode()
    assert PASSWORD not in shown


def test_one_nonce_on_two_hosts_at_once(pair: tuple[Gateway, Gateway], nats: NatsServer) -> None:
    """Fifty times one request on both hosts at the same moment: one event each, and no answer is an error of ours."""
    before = len(raw_ids(nats))
    sent = [Sent(body(10.0 + number)) for number in range(50)]
    with ThreadPoolExecutor(8) as threads:
        answers = [[threads.submit(one.to, gateway) for gateway in pair] for one in sent]
    for both in answers:
        statuses = sorted(answer.result()[0] for answer in both)
        assert statuses in ([202, 202], [202, 401])
        assert sum(answer.result()[1].get("duplicate") is False for answer in both) == 1
    assert len(raw_ids(nats)) - before == 50


def test_frozen(pair: tuple[Gateway, Gateway], redis: ValkeyServer) -> None:
    """A Redis that hangs costs few requests a quarter of a second and none its answer."""
    redis.freeze()
    waits = []
    for number in range(30):
        began = time.monotonic()
        assert Sent(body(100.0 + number)).to(pair[0])[0] == 202
        waits.append(time.monotonic() - began)
    redis.thaw()
    assert sum(wait > 0.2 for wait in waits) <= 6, waits
    wait_for(pair[0], redis="ok")
    assert Sent(body(200.0)).to(pair[0])[0] == 202
    wait_for(pair[0], redis="ok")


def test_starts(make_gateway: Callable[..., Gateway], nats: NatsServer, redis: ValkeyServer) -> None:
    """A wrong password or database keeps it from starting, in one line; a Redis that is not there does not."""
    cases = (
        (f"redis://:wrong@{redis.address}", "WRONGPASS"),
        (f"{redis.url}/9999", "out of range"),
        (f"redis://{redis.address}", "NOAUTH"),
    )
    refused = [make_gateway(said[:5], **settings(nats, url)) for url, said in cases]
    for gateway in refused:
        gateway.start(wait="")
    for gateway, (_, said) in zip(refused, cases, strict=True):
        assert gateway.process is not None
        assert gateway.process.wait(15) not in (0, None)
        (line,) = [
            line for line in gateway.log_lines() if said in line["msg"] and line["level"] in ("error", "critical")
        ]
        assert "failure" not in line
        assert PASSWORD not in gateway.log_text()
    gateway = make_gateway("alone", **settings(nats, f"redis://127.0.0.1:{free_port()}"))
    gateway.start(wait="/readyz")
    assert Sent(body(1.0)).to(gateway)[0] == 202
    assert gateway.health()["redis"] == "error"
    assert gateway.stop() in (0, -15)
