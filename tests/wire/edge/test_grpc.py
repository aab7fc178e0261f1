"""The official Python client against the gRPC server, on the event loop's transports and on Twisted's."""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeAlias

import grpc
import msgspec
import pytest
import pytest_twisted
from grpc_health.v1 import health_pb2
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from gatewayd.http.capacity import Capacity
from gatewayd.push.grpc_calls import METHODS
from gatewayd.schemas import edge_v1_pb2 as pb
from tests.buses import pause, until
from tests.fakes.hub import QUEUE_EVENTS, make_event
from tests.servers import Certificates
from tests.wire.edge.grpc_serving import (
    EXECUTE,
    Served,
    execute,
    request,
    serving,
    subscribe,
    subscription,
)

Serving: TypeAlias = Callable[..., AbstractAsyncContextManager[Served]]
KIB = 1024


@pytest.fixture(params=["loop", "twisted", "tls"])
def any_serving(request: pytest.FixtureRequest, certificates: Certificates) -> Serving:
    """The server on either kind of transport, and with TLS."""
    tls = certificates if request.param == "tls" else None
    return partial(serving, on_loop=request.param != "twisted", tls=tls)


def failure(call: Callable[[], Any]) -> tuple[str, str]:
    """The status and the message that a call fails with."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()  # type: ignore[attr-defined] # a call, too
    raise AssertionError("it did not fail")


@pytest_twisted.ensureDeferred
async def test_execute(any_serving: Serving) -> None:
    """A command's reply comes back whole; who runs it is told the envelope as sent and the time that is left."""
    async with any_serving() as served:
        reply = await served.run(lambda channel: execute(channel)(request(), timeout=5))
        (envelope, left_s), *more = served.hub.executed
        assert (reply.request_id, reply.result_code, reply.payload_bytes) == ("request-1", "ok", b"payload")
        assert (envelope.device_session_id, envelope.payload, envelope.trace_id) == ("device-1", b"payload", "trace-1")
        assert left_s is not None
        assert 1 < left_s <= 5
        assert not more
        assert served.server.calls == 0


@pytest_twisted.ensureDeferred
async def test_stream(any_serving: Serving) -> None:
    """Events come in order, through windows that are smaller than all of them; a cancelled call is gone at once."""
    count = 3000

    def client(channel: grpc.Channel) -> list[str]:
        call = subscribe(channel)(subscription())
        ids = [next(call).event_id for _ in range(count)]
        call.cancel()
        return ids

    async with any_serving() as served:
        got = served.run(client)
        await until(lambda: served.hub.streams)
        (stream,) = served.hub.streams
        for number in range(1, count):
            while len(stream.queue) > QUEUE_EVENTS // 2:
                await pause(0.002)
            stream.publish(make_event(number, b"p" * 400))
        assert await got == [f"event-{number}" for number in range(count)]
        await until(lambda: stream.gone_for == ["client"])
        assert served.server.calls == 0


@pytest_twisted.ensureDeferred
async def test_shutdown(any_serving: Serving) -> None:
    """At the end streams get their status and the time to come back after, and no call is taken any more."""

    def client(channel: grpc.Channel) -> tuple[Any, ...]:
        call = subscribe(channel)(subscription())
        seen = [event.event_id for event in _until_error(call)]
        trailers = {item.key: item.value for item in call.trailing_metadata()}
        return call.code().name, call.details(), seen, trailers

    async with any_serving() as served:
        got = served.run(client)
        await until(lambda: served.hub.streams)
        await pause(0.05)
        began = time.monotonic()
        await served.listener.leave()
        assert served.server.draining
        served.hub.close(retry_after_ms=2300)
        await served.listener.close()
        assert time.monotonic() - began < 1.9, "the stop waits for nothing"
        assert await got == (
            "UNAVAILABLE",
            "gateway is shutting down",
            ["event-0"],
            {"retry-after": "3", "retry-after-ms": "2300"},
        )


def _until_error(call: Any) -> Any:
    try:
        yield from call
    except grpc.RpcError:
        return


@pytest_twisted.ensureDeferred
async def test_shutdown_waits_for_calls() -> None:
    """A command in flight is answered when the gateway stops; one that never ends is told, within the budget."""

    def client(channel: grpc.Channel) -> Any:
        slow = execute(channel).future(request("never"), timeout=20)
        stuck = execute(channel).future(request("never", request_id="stuck"), timeout=20)
        return slow.result().result_code, failure(stuck.result)

    async with serving() as served:
        got = served.run(client)
        await until(lambda: len(served.hub.pending) == 2)
        closed = Deferred.fromCoroutine(served.listener.close())
        await pause(0.1)
        slow = next(i for i, (envelope, _) in enumerate(served.hub.executed) if envelope.request_id == "request-1")
        answered = msgspec.structs.replace(served.hub.executed[slow][0], message_type="echo")
        served.hub.execute(answered, None).addCallback(served.hub.pending[slow].callback)
        await closed
        assert await got == ("ok", ("UNAVAILABLE", "gateway is shutting down"))
        assert served.hub.cancelled == 1


@pytest_twisted.ensureDeferred
async def test_endings() -> None:
    """Every refusal comes with its status and text, and a limit with the time to come back after."""

    def client(channel: grpc.Channel) -> tuple[Any, ...]:
        call = execute(channel)
        limited = call.future(request("limited"), timeout=5)
        refused = failure(limited.result)
        trailers = {item.key: item.value for item in limited.trailing_metadata()}
        unknown = channel.unary_unary("/gatewayd.edge.v1.EdgeGateway/Other")
        both_ways = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        return (
            (refused, trailers),
            failure(lambda: call(request("no.route"), timeout=5)),
            failure(lambda: call(request(device_session_id=""), timeout=5)),
            failure(lambda: channel.unary_unary(EXECUTE)(b"\xff\xfe garbage", timeout=5)),
            failure(lambda: unknown(b"", timeout=5)),
            failure(lambda: next(both_ways(iter([b"\x0a\x01x"]), timeout=5))),
            failure(lambda: next(subscribe(channel)(subscription("limited"), timeout=5))),
        )

    limit = "authenticated request rate limit exceeded"
    async with serving() as served:
        got = await served.run(client)
        assert got[0] == (("RESOURCE_EXHAUSTED", limit), {"retry-after": "2", "retry-after-ms": "1500"})
        assert got[1] == ("UNIMPLEMENTED", "no route for this message type")
        assert got[2] == ("INVALID_ARGUMENT", "device_session_id is missing or malformed")
        assert got[3][0] == "INVALID_ARGUMENT"
        assert got[4:6] == (("UNIMPLEMENTED", "unknown service or method"),) * 2
        assert got[6] == ("RESOURCE_EXHAUSTED", limit)


@pytest_twisted.ensureDeferred
async def test_a_bug_is_internal(no_logged_failures: list[LogEvent]) -> None:
    """What breaks while a command runs is logged, and the client learns no more than INTERNAL."""
    async with serving() as served:
        got = await served.run(lambda channel: failure(lambda: execute(channel)(request("broken"), timeout=5)))
        assert got == ("INTERNAL", "internal error")
    assert [event["event"] for event in no_logged_failures] == ["grpc.call_failed"]
    no_logged_failures.clear()


@pytest_twisted.ensureDeferred
async def test_giving_up(any_serving: Serving) -> None:
    """A deadline that passes, and a client that cancels, end what is being done for a command and for an opening."""

    def client(channel: grpc.Channel) -> tuple[str, str]:
        passed = failure(lambda: execute(channel)(request("never"), timeout=0.2))
        pending = execute(channel).future(request("never"))
        opening = subscribe(channel)(subscription("never"))
        time.sleep(0.2)
        pending.cancel()
        opening.cancel()
        return passed

    async with any_serving() as served:
        assert (await served.run(client))[0] == "DEADLINE_EXCEEDED"
        await until(lambda: served.hub.cancelled == 3)
        assert served.server.calls == 0


@pytest_twisted.ensureDeferred
async def test_large_messages(any_serving: Serving) -> None:
    """Requests and replies of nearly 4 MiB pass, in pieces; a longer request is refused before it is read."""

    def client(channel: grpc.Channel) -> tuple[Any, ...]:
        call = execute(channel)
        most = 4 * KIB * KIB - 1000
        echoed = call(request(payload=b"a" * most), timeout=20)
        big = call(request("big", str(most).encode()), timeout=20)
        return (
            len(echoed.payload_bytes),
            len(big.payload_bytes),
            failure(lambda: call(request(payload=b"a" * (4 * KIB * KIB)), timeout=20)),
            call(request(), timeout=5).result_code,
        )

    unlimited = {"grpc.max_send_message_length": -1, "grpc.max_receive_message_length": -1}
    async with any_serving() as served:
        most = 4 * KIB * KIB - 1000
        got = await served.run(client, **unlimited)
        assert got == (most, most, ("RESOURCE_EXHAUSTED", "the message is larger than 4194304 bytes"), "ok")


@pytest_twisted.ensureDeferred
async def test_compressed_messages_are_refused() -> None:
    """A compressed message is not read: UNIMPLEMENTED, and what is accepted."""

    def client(channel: grpc.Channel) -> Any:
        call = execute(channel).future(request(payload=b"a" * 5000), timeout=5, compression=grpc.Compression.Gzip)
        refused = failure(call.result)
        seen = {item.key: item.value for item in (*call.initial_metadata(), *call.trailing_metadata())}
        return refused, seen.get("grpc-accept-encoding", "identity")

    async with serving() as served:
        got = await served.run(client)
        assert got == (("UNIMPLEMENTED", "compressed messages are not supported"), "identity")
        assert not served.hub.executed


@pytest_twisted.ensureDeferred
async def test_long_metadata() -> None:
    """30 KiB of metadata fail that call alone: the client knows our bound."""

    def client(channel: grpc.Channel) -> Any:
        call = execute(channel)
        before = call(request(), timeout=5, metadata=[("x-a", "a" * 8000)]).result_code
        refused = failure(lambda: call(request(), timeout=5, metadata=[("x-a", "a" * 30_000)]))
        return before, refused, call(request(), timeout=5).result_code

    async with serving() as served:
        refused = ("RESOURCE_EXHAUSTED", "the metadata is larger than 16384 bytes")
        assert await served.run(client) == ("ok", refused, "ok")
        assert not served.server.closed_for


@pytest_twisted.ensureDeferred
async def test_health(any_serving: Serving) -> None:
    """The standard health check answers for the server and the service; a watcher hears of the end."""

    def client(channel: grpc.Channel) -> tuple[Any, ...]:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        ask = health_pb2.HealthCheckRequest
        service = "gatewayd.edge.v1.EdgeGateway"
        states = [check(ask(service=name), timeout=5).status for name in ("", service)]
        unknown = failure(lambda: check(ask(service="other"), timeout=5))
        strange = next(iter(watch(ask(service="other"), timeout=5))).status
        watching = watch(ask(service=service))
        heard.append(next(watching).status)
        heard.extend(answer.status for answer in _until_error(watching))
        return states, unknown, strange, watching.code().name

    heard: list[int] = []
    async with any_serving() as served:
        got = served.run(client)
        await until(lambda: heard)
        await served.listener.close()
        assert await got == ([1, 1], ("NOT_FOUND", "unknown service"), 3, "UNAVAILABLE")
        assert heard == [1, 2]


@pytest_twisted.ensureDeferred
async def test_overflow(any_serving: Serving) -> None:
    """A client that does not read is told at the end of what it had room for; its stream costs nothing till then."""
    ended: list[bool] = []

    def client(channel: grpc.Channel) -> tuple[Any, ...]:
        call = subscribe(channel)(subscription())
        first = next(call).event_id
        while not ended:
            time.sleep(0.02)
        ids = [first, *(event.event_id for event in _until_error(call))]
        return call.code().name, call.details(), ids == [f"event-{number}" for number in range(len(ids))]

    async with any_serving() as served:
        got = served.run(client)
        await until(lambda: served.hub.streams)
        (stream,) = served.hub.streams
        for number in range(1, 40_000):
            stream.publish(make_event(number, b"p" * 200))
            if stream.ended:
                break
            if number % 200 == 0:
                await pause(0.001)
        assert stream.ended
        assert served.server.calls == 0, "the slot is free although nothing was read"
        ended.append(True)
        assert await got == ("RESOURCE_EXHAUSTED", "push stream overflowed", True)


@pytest_twisted.ensureDeferred
async def test_overflow_of_large_events() -> None:
    """Half of a large event on its way does not keep the status from its client."""
    ended: list[bool] = []

    def client(channel: grpc.Channel) -> tuple[Any, ...]:
        call = subscribe(channel)(subscription())
        next(call)
        while not ended:
            time.sleep(0.02)
        for _ in _until_error(call):
            continue
        return call.code().name, call.details()

    async with serving() as served:
        got = served.run(client)
        await until(lambda: served.hub.streams)
        (stream,) = served.hub.streams
        for number in range(1, 400):
            stream.publish(make_event(number, b"p" * 300_000))
            await pause(0.001)
            if stream.ended:
                break
        assert stream.ended
        ended.append(True)
        assert await got == ("RESOURCE_EXHAUSTED", "push stream overflowed")


@pytest_twisted.ensureDeferred
async def test_bounds_of_connections() -> None:
    """More connections than one address may have are closed at accept; the others go on."""

    def client(channel: grpc.Channel) -> Any:
        first = execute(channel)(request(), timeout=5).result_code
        with served.channel() as second:
            return first, failure(lambda: execute(second)(request(), timeout=2))[0]

    async with serving(capacity=Capacity(10, 1)) as served:
        first, second = await served.run(client)
        assert first == "ok"
        assert second in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
        assert served.server.capacity.refused >= 1


@pytest_twisted.ensureDeferred
async def test_what_is_being_received_is_bounded() -> None:
    """Requests that are not whole may take so much memory together; who goes over it is told."""

    def client(channel: grpc.Channel) -> Any:
        call = execute(channel)
        return failure(lambda: call(request(payload=b"a" * 300_000), timeout=10)), call(
            request(), timeout=5
        ).result_code

    async with serving(max_receiving=200_000) as served:
        assert await served.run(client) == (("RESOURCE_EXHAUSTED", "too much is being received"), "ok")


@pytest_twisted.ensureDeferred
async def test_many_at_once() -> None:
    """300 commands at once on one connection, three times what it takes, are all answered, each with its own."""

    def client(channel: grpc.Channel) -> bool:
        call = execute(channel)
        pending = [call.future(request(payload=b"%d" % n, request_id=f"r{n}"), timeout=20) for n in range(300)]
        replies = [one.result() for one in pending]
        return all(reply.payload_bytes == b"%d" % n for n, reply in enumerate(replies))

    async with serving() as served:
        assert await served.run(client)
        assert len(served.hub.executed) == 300


def test_the_proto_names_what_is_served() -> None:
    """The methods of the schema are the methods of the server."""
    service = pb.DESCRIPTOR.services_by_name["EdgeGateway"]
    assert {f"/{service.full_name}/{method.name}".encode() for method in service.methods} <= set(METHODS)
