"""
Halves of signals in a real stream: what a crash and a hung server leave there, and what gatewayd makes of it; and what
an operator does to a stream that makes less of a 202.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from gatewayd.bus.keeper import StreamKeeper
from gatewayd.bus.publication import Unpublished
from gatewayd.bus.stream import ConsumerWanted, StreamWanted
from gatewayd.bus.tail import Gently, ReadBack
from gatewayd.ingress.admission import accepted_corr_id
from gatewayd.ingress.events import Envelope, Events
from gatewayd.ingress.normalise import Signal, read_tradingview
from gatewayd.times import Wall
from tests.buses import STREAM, connected_bus, create_stream, pair, pause
from tests.buses import call as call_api
from tests.clients import SECRET, generic_body, stamped, tradingview_body
from tests.contracts.admission import claim
from tests.fakes.bus import headers_of
from tests.gateway import Gateway
from tests.servers import NatsServer
from tests.streams import Read, read_stream, run

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
SECRETS = {"API_KEY_HMAC_SECRET": SECRET.decode()}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.close()


@pytest.fixture
def gateways(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Gateways of a server, closed at the end."""
    made: list[Gateway] = []

    def make(server: NatsServer, **settings: str) -> Gateway:
        root = tmp_path / f"gateway-{len(made)}"
        made.append(Gateway(root, {"NATS_URL": server.url, **SECRETS, **settings}))
        return made[-1]

    yield make
    for gateway in made:
        gateway.close()


def send(gateway: Gateway, body: bytes, path: str = "tradingview", **how: Any) -> tuple[int, dict[str, Any]]:
    """One good request: status and members."""
    status, _, answer = gateway.ask("POST", f"/webhook/{path}", body, stamped(body, time.time(), **how))
    return status, json.loads(answer)


def with_client(url: str, work: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """What an operator does with the official client."""

    async def act() -> Any:
        client = await nats.connect(url)
        try:
            return await work(client)
        finally:
            await client.close()

    return run(act())


def plant(url: str, *messages: Read) -> None:
    """Publish these messages as they are."""

    async def work(client: Any) -> None:
        for one in messages:
            await client.jetstream().publish(one.subject, one.data, headers=one.headers)

    with_client(url, work)


def call(url: str, subject: str, members: dict[str, Any]) -> dict[str, Any]:
    """One call of the JetStream API."""

    async def work(client: Any) -> Any:
        return await client.request(f"$JS.API.{subject}.{STREAM}", json.dumps(members).encode(), timeout=5)

    answer: dict[str, Any] = json.loads(with_client(url, work).data)
    assert "error" not in answer, answer
    return answer


def until(condition: Callable[[], Any], within_s: float, what: str) -> float:
    """Wait for it; how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


def warnings(gateway: Gateway) -> str:
    return " ".join(json.loads(gateway.get("/readyz")[2])["warnings"])


def metric(gateway: Gateway, name: str) -> float:
    lines = gateway.get("/metrics")[2].decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def halves(url: str) -> tuple[set[str], set[str]]:
    """The ids of raws without their normalised message, and of normalised messages without their raw one."""
    ids = [one.headers["Nats-Msg-Id"] for one in read_stream(url) if "Gw-Facts" in one.headers]
    assert len(ids) == len(set(ids))
    raws = {one.removesuffix(":raw") for one in ids if one.endswith(":raw")}
    normalised = {one.removesuffix(":norm") for one in ids if one.endswith(":norm")}
    return raws - normalised, normalised - raws


class TestAfterACrash:
    def test_a_half_is_completed_at_the_next_start(
        self, tmp_path: Path, server: NatsServer, gateways: Callable[..., Gateway]
    ) -> None:
        """
        A raw event alone, as a crash leaves it, has its normalised one within 2 s of being ready: byte for byte the
        one that the crashed process would have published, headers included. What is whole stays as it is.
        """
        other = NatsServer(tmp_path / "other").start()
        try:
            first = gateways(other)
            first.start(wait="/readyz")
            now = time.time()
            trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
            for number, how in enumerate(({"key": "a-key"}, {"scheme": "sha256"}, {})):
                body = tradingview_body(now, 1.5 + number, strategy="crossing")
                headers = {**stamped(body, now, **how), "traceparent": trace}
                assert first.ask("POST", "/webhook/tradingview", body, headers)[0] == 202
            assert send(first, generic_body(now, "custom"), "generic", key="another-key")[0] == 202
            first.stop()
            original = read_stream(other.url)
        finally:
            other.close()

        second = gateways(server)
        second.start(wait="/readyz")
        assert send(second, tradingview_body(now, 9.0))[0] == 202
        second.kill()
        raws = [one for one in original if one.subject == "signals.raw"]
        plant(server.url, *raws)
        time.sleep(2.5)  # younger, it might be under way
        second.start(wait="/readyz")
        until(lambda: len(read_stream(server.url)) == 10, 2.0, "the normalised events")
        made = [(one.subject, one.headers, one.data) for one in read_stream(server.url)[6:]]
        assert made == [(one.subject, one.headers, one.data) for one in original if one.subject == "signals.normalized"]
        assert metric(second, 'gateway_repairs_total{result="normalized"}') == 4
        assert metric(second, "gateway_orphans_total") == 0
        said = [line["corr_id"] for line in second.log_lines() if line.get("event") == "repair.normalised"]
        assert said == [one.headers["Corr-ID"] for one in raws]
        retry = send(second, tradingview_body(now, 1.5, strategy="crossing"), key="a-key")
        assert (retry[0], retry[1]["duplicate"], retry[1]["corr_id"]) == (202, True, said[0])
        assert len(read_stream(server.url)) == 10

    def test_what_cannot_be_normalised_any_more_is_a_dead_letter(
        self, server: NatsServer, gateways: Callable[..., Gateway]
    ) -> None:
        """A raw of a source that is no longer configured: its body, byte for byte, and why."""
        gateway = gateways(server, ALLOWED_SOURCES="custom")
        gateway.start(wait="/readyz")
        gateway.kill()
        raw = next(events(1, 1))
        plant(server.url, raw)
        time.sleep(2.5)
        gateway.start(wait="/readyz")
        until(lambda: len(read_stream(server.url)) == 2, 5.0, "the dead letter")
        letter = read_stream(server.url)[1]
        assert (letter.subject, letter.headers["Dlq-Code"]) == ("dlq.signals.normalized", "GW-009")
        assert raw.data.endswith(b',"payload":' + letter.data + b"}")
        assert metric(gateway, 'gateway_repairs_total{result="dead_letter"}') == 1
        assert metric(gateway, 'gateway_dlq_total{code="GW-009"}') == 1


def events(count: int, missing: int) -> Iterator[Read]:
    """So many pairs of events, as the pipeline makes them; the first `missing` lack the normalised one."""
    made, now = Events("signals.raw", "signals.normalized", "1.1.0"), Wall(time.time())
    for number in range(count):
        body = tradingview_body(now, 1.0 + number)
        read = read_tradingview(body)
        assert isinstance(read, Signal)
        event = claim(body, f"nonce-{number}", source="tradingview")
        pair = made.pair(event, read, body, Envelope(accepted_corr_id(event.identity), now, "v1", None, None))
        for one in pair if number >= missing else pair[:1]:
            yield Read(0, one.subject.decode(), headers_of(one), one.body)


class TestLongStretches:
    COUNT = 10_000 if FULL else 600

    def test_webhooks_do_not_notice(self, server: NatsServer, gateways: Callable[..., Gateway]) -> None:
        """
        While a long stretch is looked through and its halves are completed, webhooks are answered as ever; a stop in
        the middle of it is a stop like any other, and the next start completes what is left.
        """
        gateway = gateways(server, RATE_LIMIT_RPS="10000")
        gateway.start(wait="/readyz")
        gateway.stop()

        async def fill(client: Any) -> None:
            for number, one in enumerate(events(self.COUNT, 100)):
                await client.publish(one.subject, one.data, headers=one.headers)
                if not number % 200:
                    await client.flush()
            await client.flush()

        with_client(server.url, fill)
        time.sleep(2.5)
        gateway.start(wait="/readyz", timeout_s=30.0)
        assert gateway.stop(5.0) in (0, -signal.SIGTERM)
        assert "service.stop_overrun" not in gateway.log_text()
        gateway.start(wait="/readyz", timeout_s=30.0)
        slowest_s = 0.0
        for number in range(50):
            began = time.monotonic()
            assert send(gateway, tradingview_body(time.time(), 1e6 + number))[0] == 202
            slowest_s = max(slowest_s, time.monotonic() - began)
            time.sleep(0.01)
        print(f"slowest of 50 webhooks: {slowest_s * 1000:.1f} ms")
        assert slowest_s < 0.5

        def looked() -> bool:
            lines = [line for line in gateway.log_lines() if line.get("event") == "repair.looked"]
            return any(line["seen"] >= self.COUNT for line in lines)

        until(looked, 60.0, "the whole stretch is looked through")
        assert halves(server.url) == (set(), set())
        assert metric(gateway, "gateway_orphans_total") == 0


class TestAfterAHang:
    def test_ghosts_are_completed(self, server: NatsServer, gateways: Callable[..., Gateway]) -> None:
        """
        A server that hung stores, when it wakes, raw events of requests that were answered 503 long ago. Nobody sends
        them again; each of them is whole a few seconds after.
        """
        gateway = gateways(server)
        gateway.start(wait="/readyz")
        assert send(gateway, tradingview_body(time.time()))[0] == 202
        server.sigstop()
        statuses: list[int] = []

        def one(number: int) -> None:
            statuses.append(send(gateway, tradingview_body(time.time(), 2.0 + number), key=f"key-{number}")[0])

        threads = [threading.Thread(target=one, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {503}
        gateway.await_line(event="nats_lost", timeout_s=15.0)
        server.sigcont()
        gateway.await_line(event="nats_connected", after=1, timeout_s=15.0)
        completed = 'gateway_repairs_total{result="normalized"}'  # as many as were written before the breaker opened
        until(lambda: metric(gateway, completed) > 0, 20.0, "the first ghost is completed")
        until(lambda: halves(server.url) == (set(), set()), 20.0, "all are completed")
        assert len(read_stream(server.url)) == 2 + 2 * metric(gateway, completed)
        assert metric(gateway, "gateway_orphans_total") == 0


@pytest_twisted.ensureDeferred
async def test_a_stretch_is_read_gently(server: NatsServer) -> None:
    """At most so many messages, so many at a time, with a pause between; with the server's time, to tell ages by."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        for number in range(10):
            await bus.publish(pair(str(number)))
        seen: list[int] = []
        pauses: list[int] = []

        def rest() -> Deferred[None]:
            pauses.append(len(seen))
            return pause(0.01)

        def see(_: str, __: object, sequence: int, ___: float) -> None:
            seen.append(sequence)

        read = await bus.tail(">", see, from_sequence=4, limit=9, gently=Gently(4, rest))
        assert read == ReadBack(9, 20)
        assert isinstance(read, ReadBack)
        assert abs((read.server_time or 0) - time.time()) < 5
        assert (seen, pauses) == (list(range(4, 13)), [4, 8])
        info = await call_api(bus, f"$JS.API.STREAM.INFO.{STREAM}", {})
        assert info["state"]["consumer_count"] == 0


@pytest_twisted.ensureDeferred
async def test_from_where_on_halves_are_looked_for(server: NatsServer) -> None:
    """
    From the beginning in a stream that is new; after a reconnect, and after a publication that failed although the
    connection stood, from what was acknowledged 10 s before the trouble; never without a reason.
    """
    begun: list[int | None] = []
    now = 100.0
    async with connected_bus(server) as bus:
        keeper = StreamKeeper(
            bus,
            StreamWanted(STREAM, 86_400.0, 100_000_000, 4_200.0),
            ConsumerWanted(STREAM, "gateway-consumer"),
            guessed=False,
            sync_always=None,
            read_back_s=660.0,
            shed_above=None,
            fill=lambda _: None,
            forget=lambda: 0,
            ready=lambda: None,
            repair=begun.append,
            now=lambda: now,
            wall=lambda: Wall(time.time()),
        )
        await pause(0)  # the bus is still in the call that told of the connection
        bus.on_connected = keeper.prepare
        await keeper.prepare()
        assert begun == [None]
        for number in range(3):
            await bus.publish(pair(str(number)))
            now += 8
            await keeper.tick()
        assert begun == [None]
        now += 60  # the outage counts from the last tick, not from the reconnect
        server.restart()
        deadline = time.monotonic() + 10
        while len(begun) < 2 and time.monotonic() < deadline:
            await pause(0.05)
        assert begun == [None, 2]
        config = (await call_api(bus, f"$JS.API.STREAM.INFO.{STREAM}", {}))["config"]
        await call_api(bus, f"$JS.API.STREAM.UPDATE.{STREAM}", {**config, "max_msgs": 6})
        await keeper.tick()
        assert len(begun) == 2
        now += 60
        assert isinstance(await bus.publish(pair("full")), Unpublished)
        await keeper.tick()
        await keeper.tick()
        assert begun == [None, 2, 6]
        await call_api(bus, f"$JS.API.STREAM.DELETE.{STREAM}", {})
        await keeper.tick()
        await keeper.tick()
        assert begun == [None, 2, 6, None]


class TestLessOfA202:
    """What an operator does to a stream that makes less of what was promised is warned of."""

    def test_a_purge(self, server: NatsServer, gateways: Callable[..., Gateway]) -> None:
        """Said once in the log and by /readyz from then on; a retry is a duplicate that is stored nowhere."""
        gateway = gateways(server)
        gateway.start(wait="/readyz")
        body = tradingview_body(time.time())
        assert send(gateway, body)[0] == 202
        time.sleep(1.2)
        assert "removed" not in warnings(gateway)
        call(server.url, "STREAM.PURGE", {})
        gateway.await_line(event="stream.events_removed")
        assert "removed from the stream" in warnings(gateway)
        again = send(gateway, body)
        assert (again[0], again[1]["duplicate"], read_stream(server.url)) == (202, True, [])
        assert send(gateway, tradingview_body(time.time(), 2.0))[0] == 202
        time.sleep(1.2)
        said = [line for line in gateway.log_lines() if line.get("event") == "stream.events_removed"]
        assert len(said) == 1

    def test_a_purge_of_one_subject(self, server: NatsServer, gateways: Callable[..., Gateway]) -> None:
        """Normalised events that are gone while the raw ones are there are noticed, too."""
        gateway = gateways(server)
        gateway.start(wait="/readyz")
        for number in range(3):
            assert send(gateway, tradingview_body(time.time(), 1.0 + number))[0] == 202
        time.sleep(1.2)
        call(server.url, "STREAM.PURGE", {"filter": "signals.normalized"})
        gateway.await_line(event="stream.events_removed")
        assert "removed from the stream" in warnings(gateway)

    def test_a_shorter_duplicate_window(self, server: NatsServer, gateways: Callable[..., Gateway]) -> None:
        """Said by /readyz within seconds; put right, the ids that were forgotten meanwhile are still spoken of."""
        gateway = gateways(server)
        gateway.start(wait="/readyz")
        config = call(server.url, "STREAM.INFO", {})["config"]
        assert config["duplicate_window"] == 4200 * 10**9
        call(server.url, "STREAM.UPDATE", {**config, "duplicate_window": 60 * 10**9})
        taken_s = until(lambda: "recognised for 60 s only" in warnings(gateway), 5.0, "the warning")
        assert taken_s < 5
        call(server.url, "STREAM.UPDATE", config)
        until(lambda: "recognised" not in warnings(gateway), 5.0, "the warning ends")
        assert "was too short for a while" in warnings(gateway)

    def test_another_stream_of_the_same_name(self, server: NatsServer, gateways: Callable[..., Gateway]) -> None:
        """Deleted and made anew while we are connected: what was remembered is dropped, the retry is stored."""
        gateway = gateways(server)
        gateway.start(wait="/readyz")
        body = tradingview_body(time.time())
        assert send(gateway, body)[0] == 202
        time.sleep(1.2)
        config = call(server.url, "STREAM.INFO", {})["config"]
        call(server.url, "STREAM.DELETE", {})
        call(server.url, "STREAM.CREATE", config)
        gateway.await_line(event="stream.replaced")
        again = send(gateway, body)
        assert (again[0], again[1]["duplicate"], len(read_stream(server.url))) == (202, False, 2)
        gateway.await_line(event="repair.looked", after=1)
        assert "removed" not in warnings(gateway)
