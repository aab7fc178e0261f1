"""
A webhook gateway as a good FastAPI programmer would write it: the peer that gatewayd is measured against.

The same checks, promise (202 only after both acknowledgements), counters and access log on the way that is measured;
none of gatewayd's repair, dead letters, reloading or draining. Tuned: uvicorn on uvloop and httptools without its own
access log, the body validated from its bytes, orjson, bound metric children, pre-keyed HMACs, asynchronous publishing.

Settings come from the environment: PORT, NATS_URL, SECRETS (separated by commas), LOG (a file), MAX_BODY (bytes),
ENTRIES (bound of what is remembered), RATE (requests a second).
"""

import asyncio
import hashlib
import hmac
import math
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from io import BufferedWriter, FileIO
from typing import Annotated, Any, Literal

import nats
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from nats.js import JetStreamContext
from prometheus_client import Counter, Histogram, generate_latest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

WINDOW_S, SKEW_S, MAX_BODY_AGE, ACK_WAIT_S = 300, 30, timedelta(seconds=120), 2.0
SOURCE = "tradingview"
MAX_SIGNATURES = 5
NONCE = re.compile(r"[A-Za-z0-9._:-]{8,128}")
KEY = re.compile(r"[\x21-\x7e]{1,255}")
INSTRUMENT = re.compile(r"[A-Z0-9][A-Z0-9._:/!-]{0,63}")
LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

REQUESTS = Counter("webhook_requests", "answers", ["source", "status"])
EVENTS = Counter("events_published", "events stored")
LATENCY = Histogram("webhook_latency_seconds", "time to the answer", ["source"], buckets=LATENCIES)


class Signal(BaseModel):
    """The body."""

    model_config = ConfigDict(strict=True)

    ticker: Annotated[str, Field(min_length=1, max_length=64)]
    price: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    time: Annotated[AwareDatetime, Field(strict=False)]
    action: Literal["buy", "sell", "close"] | None = None
    strategy: Annotated[str, Field(max_length=256)] | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None


class Refused(Exception):
    """A status and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def digest(kind: bytes, text: bytes) -> bytes:
    """16 bytes of SHA-256."""
    return hashlib.sha256(b"%d:%b%d:" % (len(kind), kind, len(text)) + text).digest()[:16]


class Admission:
    """A token bucket; nonces and identities in two generations each, so that nothing has to be scanned."""

    def __init__(self, bound: int, rate: float) -> None:
        self.bound, self.rate, self.tokens = bound, rate, rate
        self.filled = self.turned = time.monotonic()
        self.nonces: dict[bytes, bytes] = {}
        self.old_nonces: dict[bytes, bytes] = {}
        self.bodies: dict[bytes, bytes] = {}  # identity -> body
        self.old_bodies: dict[bytes, bytes] = {}
        self.flying: dict[bytes, asyncio.Future[bool]] = {}

    def take(self) -> None:
        """One token, or Refused."""
        now = time.monotonic()
        self.tokens = min(self.rate, self.tokens + (now - self.filled) * self.rate)
        self.filled = now
        if self.tokens < 1:
            raise Refused(429, "rate")
        self.tokens -= 1

    def admit(self, nonce: bytes, identity: bytes, body: bytes) -> bool:
        """True when the event was seen before; claims nonce and identity."""
        if len(self.nonces) + len(self.bodies) >= self.bound // 2 or time.monotonic() - self.turned > 3600:
            self.old_nonces, self.nonces = self.nonces, {}
            self.old_bodies, self.bodies = self.bodies, {}
            self.turned = time.monotonic()
        if nonce in self.nonces or nonce in self.old_nonces:
            raise Refused(401, "nonce used")
        known = self.bodies.get(identity) or self.old_bodies.get(identity)
        if known is not None and known != body:
            raise Refused(409, "Idempotency-Key")
        self.nonces[nonce] = identity
        if known is None:
            self.bodies[identity] = body
        return known is not None

    def forget(self, nonce: bytes, identity: bytes) -> None:
        """It was not stored after all."""
        self.nonces.pop(nonce, None)
        self.bodies.pop(identity, None)
        self.old_bodies.pop(identity, None)


class Gateway:
    """One webhook from request to answer."""

    def __init__(self, settings: dict[str, str], log: BufferedWriter) -> None:
        self.keys = [hmac.new(secret.encode(), digestmod="sha256") for secret in settings["SECRETS"].split(",")]
        self.max_body = int(settings["MAX_BODY"])
        self.admission = Admission(int(settings["ENTRIES"]), float(settings["RATE"]))
        self.log = log
        self.stream: JetStreamContext
        self.accepted = REQUESTS.labels(SOURCE, "202")
        self.latency = LATENCY.labels(SOURCE)

    def is_signed(self, header: str, head: bytes, body: bytes) -> bool:
        """One of the signatures was made with one of the secrets; every secret is tried."""
        matched = False
        for value in header.split(",", MAX_SIGNATURES):
            scheme, _, text = value.strip().partition("=")
            if scheme not in ("v1", "sha256"):
                return False
            try:
                given = bytes.fromhex(text)
            except ValueError:
                return False
            message = head + body if scheme == "v1" else body
            for key in self.keys:
                mac = key.copy()
                mac.update(message)
                matched |= hmac.compare_digest(mac.digest(), given)
        return matched

    async def accept(self, request: Request, now: datetime) -> tuple[dict[str, Any], str]:
        """The 202's members and the instrument, or Refused."""
        headers = request.headers
        if headers.get("content-type", "").partition(";")[0].lower() != "application/json":
            raise Refused(415, "Content-Type")
        if int(headers.get("content-length", "0")) > self.max_body:
            raise Refused(413, "body")
        body = await request.body()
        timestamp, nonce = headers.get("x-timestamp", ""), headers.get("x-nonce", "")
        key = headers.get("idempotency-key", "")
        if key and not KEY.fullmatch(key):
            raise Refused(400, "Idempotency-Key")
        wall = now.timestamp()
        if not timestamp.isdigit() or not math.floor(wall) - WINDOW_S <= int(timestamp) <= wall + SKEW_S:
            raise Refused(401, "X-Timestamp")
        if not NONCE.fullmatch(nonce):
            raise Refused(401, "X-Nonce")
        if not self.is_signed(headers.get("x-signature", ""), f"{timestamp}\n{nonce}\n{key}\n".encode(), body):
            raise Refused(401, "X-Signature")
        try:
            signal = Signal.model_validate_json(body)
        except ValidationError as error:
            raise Refused(422, error.json(include_url=False)) from None
        instrument = signal.ticker.upper()
        if not INSTRUMENT.fullmatch(instrument):
            raise Refused(422, "ticker")
        if now - signal.time > MAX_BODY_AGE or signal.time - now > timedelta(seconds=SKEW_S):
            raise Refused(422, "time")
        return await self.admit(signal, instrument, body, nonce, key, now), instrument

    async def admit(
        self, signal: Signal, instrument: str, body: bytes, nonce: str, key: str, now: datetime
    ) -> dict[str, Any]:
        """Once for each event: the first publishes, twins wait for it."""
        body_digest = digest(b"body", body)
        identity = digest(b"key", key.encode()) if key else body_digest
        used = digest(b"nonce", nonce.encode())
        made = {
            "status": "accepted",
            "corr_id": f"req_{identity.hex()[:20]}",
            "idempotency_key": key or identity.hex(),
            "timestamp": now,
            "duplicate": False,
        }
        self.admission.take()
        if self.admission.admit(used, identity, body_digest):
            made["duplicate"] = True
            twin = self.admission.flying.get(identity)
            if twin is not None and not await asyncio.shield(twin):
                raise Refused(503, "not stored")
            return made
        flight = self.admission.flying[identity] = asyncio.get_running_loop().create_future()
        stored = False
        try:
            acks = await self.publish(signal, instrument, body, identity, made)
            made["duplicate"] = acks[0].duplicate is True
            stored = True
        except (nats.errors.Error, TimeoutError) as error:
            raise Refused(503, "not stored") from error
        finally:
            if not stored:
                self.admission.forget(used, identity)
            del self.admission.flying[identity]
            flight.set_result(stored)
        return made

    async def publish(
        self, signal: Signal, instrument: str, body: bytes, identity: bytes, made: dict[str, Any]
    ) -> list[Any]:
        """Both events, both acknowledgements."""
        name = identity.hex()
        corr_id, now = made["corr_id"], made["timestamp"]
        raw = orjson.dumps(
            {"corr_id": corr_id, "source": SOURCE, "received_at": now, "payload": orjson.Fragment(body)},
            option=orjson.OPT_UTC_Z,
        )
        normalised = orjson.dumps(
            {
                "corr_id": corr_id,
                "source": SOURCE,
                "instrument": instrument,
                "price": signal.price,
                "side": None if signal.action == "close" else signal.action,
                "strength": signal.strength,
                "timestamp": signal.time,
                "normalized_at": now,
                "strategy": signal.strategy,
                "schema_version": "1.1.0",
            },
            option=orjson.OPT_UTC_Z,
        )
        common = {
            "Corr-ID": corr_id,
            "Source": SOURCE,
            "Instrument": instrument,
            "Schema-Version": "1.1.0",
            "Idempotency-Key": made["idempotency_key"],
        }
        publish = self.stream.publish_async
        first = await publish("signals.raw", raw, headers={**common, "Nats-Msg-Id": f"py:{name}:raw"})
        second = await publish("signals.normalized", normalised, headers={**common, "Nats-Msg-Id": f"py:{name}:norm"})
        async with asyncio.timeout(ACK_WAIT_S):
            return [await first, await second]

    async def answer(self, request: Request) -> Response:
        """The answer, counted and logged."""
        began = time.perf_counter()
        now = datetime.now(UTC)
        corr_id, instrument, status = "", None, 202
        try:
            made, instrument = await self.accept(request, now)
            corr_id = made["corr_id"]
            content = orjson.dumps(made, option=orjson.OPT_UTC_Z)
            EVENTS.inc(2)
            self.accepted.inc()
        except Refused as refused:
            status = refused.status
            content = orjson.dumps({"status": "error", "reason": refused.reason})
            REQUESTS.labels(SOURCE, str(status)).inc()
        took = time.perf_counter() - began
        self.latency.observe(took)
        line = {
            "timestamp": now,
            "level": "info",
            "message": "Incoming request",
            "corr_id": corr_id,
            "method": request.method,
            "path": request.scope["path"],
            "status": status,
            "latency_ms": round(took * 1000, 3),
            "source": SOURCE,
            "instrument": instrument,
            "client_ip": request.scope["client"][0],
        }
        self.log.write(orjson.dumps(line, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))
        headers = {"X-Correlation-ID": corr_id}
        return Response(content, status, headers, media_type="application/json")


async def flush(log: BufferedWriter) -> None:
    """Lines wait a tenth of a second at most, so that a line costs no system call."""
    while True:
        await asyncio.sleep(0.1)
        log.flush()


def make_app(settings: dict[str, str]) -> FastAPI:
    """The application."""
    gateway = Gateway(settings, BufferedWriter(FileIO(settings["LOG"], "ab"), 1 << 16))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        client = await nats.connect(settings["NATS_URL"], max_reconnect_attempts=-1)
        gateway.stream = client.jetstream(publish_async_max_pending=16384)
        flushing = asyncio.create_task(flush(gateway.log))
        yield
        flushing.cancel()
        gateway.log.close()
        await client.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.post("/webhook/tradingview")
    async def webhook(request: Request) -> Response:
        return await gateway.answer(request)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type="text/plain; version=0.0.4")

    @app.get("/readyz")
    async def ready() -> Response:
        return Response(b"ready")

    return app


def main() -> None:
    """See the module."""
    app = make_app(dict(os.environ))
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,
    )


if __name__ == "__main__":
    main()
