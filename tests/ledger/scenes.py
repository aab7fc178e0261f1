"""
The faults that need a start of their own, or a clock of their own: a few requests each, every answer looked at.

Decides what each of them promises. Never loads anything: faults.py does.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.clients import SECRET, stamped, tradingview_body
from tests.faultproxy import FaultProxy
from tests.gateway import Gateway
from tests.ledger.acts import SILENT, wait_for
from tests.ledger.report import Result
from tests.ledger.run import SETTINGS
from tests.servers import NatsServer, make_certificates
from tests.streams import read_stream

LIBRARIES: Final = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
)
CANARY: Final = "canary-3f9a1c-in-a-key"


class Stage:
    """A nats-server, perhaps a proxy, and one gatewayd; counts what is asked, and collects what is not as promised."""

    def __init__(self, root: Path, name: str, says: str, settings: Mapping[str, str], *, proxied: bool = False) -> None:
        self.result = Result(name, says)
        self.server = NatsServer(root / "nats").start()
        self.proxy = FaultProxy(self.server.port) if proxied else None
        url = self.server.url if self.proxy is None else self.proxy.url
        self.gateway = Gateway(root / "gateway", {**SETTINGS, "NATS_URL": url, **settings})

    def close(self) -> None:
        """End every process."""
        self.gateway.close()
        if self.proxy is not None:
            self.proxy.close()
        self.server.close()

    def expect(self, kept: bool, promise: str) -> None:
        """A promise, and whether it was kept."""
        if not kept:
            self.result.missed.append(promise)

    def send(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """One webhook: status, members of the answer."""
        began = time.monotonic()
        status, _, said = self.gateway.ask("POST", "/webhook/tradingview", body, headers)
        self.result.requests += 1
        self.result.accepted += status == 202
        self.result.refused += status == 503
        self.result.late += time.monotonic() - began > 2.5
        return status, json.loads(said)

    def expect_quiet_log(self) -> None:
        """Nothing in the log that points to a bug."""
        for line in self.gateway.log_text().splitlines():
            self.expect("Traceback" not in line and "Unhandled" not in line, line[:300])


@contextmanager
def _stage(root: Path, name: str, says: str, settings: Mapping[str, str], *, proxied: bool = False) -> Iterator[Stage]:
    made = Stage(root, name, says, settings, proxied=proxied)
    try:
        yield made
        made.expect_quiet_log()
    finally:
        made.close()


def silent_at_start(root: Path, says: str) -> Result:
    """NATS accepts and never speaks from the start on: gatewayd runs and says so within 5 s, and recovers."""
    with _stage(root, "silent-at-start", says, {}, proxied=True) as stage:
        assert stage.proxy is not None
        stage.proxy.set(up=SILENT, down=SILENT)
        took_s = stage.gateway.start()
        stage.expect(took_s < 5.0, f"/healthz took {took_s:.1f} s")
        stage.gateway.await_line(event="nats.absent", timeout_s=5.0)
        body = tradingview_body(time.time())
        status, said = stage.send(body, stamped(body, time.time()))
        stage.expect((status, said["code"]) == (503, "GW-005"), f"answered {status} {said['code']}")
        stage.expect(stage.gateway.health()["nats"] == "disconnected", "/healthz does not say disconnected")
        stage.proxy.clear()
        began = time.monotonic()
        wait_for("202", lambda: stage.send(body, stamped(body, time.time()))[0] == 202)
        stage.result.recover_s = time.monotonic() - began
        return stage.result


def half_repaired(root: Path, says: str) -> Result:
    """
    kill -9 between raw's acknowledgement and the normalised event, and nobody sends the webhook again: the next
    process completes it.
    """
    with _stage(root, "half-repaired", says, {}, proxied=True) as stage:
        assert stage.proxy is not None
        stage.gateway.start(wait="/readyz")
        body = tradingview_body(time.time())
        headers = stamped(body, time.time(), key="one-key")  # with a key of its own, raw goes first
        stage.proxy.cut_after_acks(1)
        try:
            stage.gateway.ask("POST", "/webhook/tradingview", body, headers, timeout_s=0.5)
        except OSError:
            stage.proxy.await_cut()
        stage.gateway.kill()
        stage.proxy.clear()
        stored = [one.subject for one in read_stream(stage.server.url)]
        stage.expect(stored == ["signals.raw"], f"after the kill there is {stored}")
        stage.gateway.start(wait="/readyz")
        began = time.monotonic()
        wait_for("the other half", lambda: len(read_stream(stage.server.url)) == 2, 20.0)
        stage.result.recover_s = time.monotonic() - began
        raw, normalised = read_stream(stage.server.url)
        told = json.loads(raw.data)["corr_id"]
        stage.expect(json.loads(normalised.data)["corr_id"] == told, "the other half is of another event")
        status, said = stage.send(body, stamped(body, time.time(), key="one-key"))
        stage.expect((status, said.get("duplicate"), said["corr_id"]) == (202, True, told), f"asked again: {said}")
        stage.result.half = int(len(read_stream(stage.server.url)) != 2)
        return stage.result


def clock_steps(root: Path, says: str) -> Result:
    """
    The wall clock steps by 400 s back and ahead, also between a request and its replay, also over a restart.

    `at(offset)` is the gateway's wall time; the client's own is true.
    """
    library = next((path for path in LIBRARIES if Path(path).exists()), None)
    if library is None:
        return Result("clock-steps", says, not_run="libfaketime is not installed")
    root.mkdir(parents=True, exist_ok=True)
    offset = root / "offset"

    def step(seconds: int) -> float:
        fresh = offset.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}")
        os.replace(fresh, offset)
        return time.time() + seconds

    step(0)
    settings = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with _stage(root, "clock-steps", says, settings) as stage:
        stage.gateway.start(wait="/readyz")
        _step_with_requests(stage, step)
        _step_with_timers(stage, step)
        return stage.result


def _step_with_requests(stage: Stage, step: Callable[[int], float]) -> None:
    """What is accepted and refused while the clock steps."""

    def replay(when: str) -> None:
        status, said = stage.send(body, headers)
        stage.expect((status, said["code"]) == (401, "GW-002"), f"replay {when}: {status} {said}")

    body = tradingview_body(time.time(), price=7)
    headers = stamped(body, time.time())
    stage.expect(stage.send(body, headers)[0] == 202, "the first webhook was refused")
    replay("at once")
    for seconds in (-400, 400, 200, -20, 0):
        now = step(seconds)
        replay(f"after a step to {seconds:+d} s")
        fresh = tradingview_body(now, price=1000 + seconds)
        status = stage.send(fresh, stamped(fresh, now))[0]
        stage.expect(status == 202, f"fresh by the gateway's clock at {seconds:+d} s: {status}")
        if abs(seconds) == 400:
            status, said = stage.send(fresh, stamped(fresh, time.time()))
            stage.expect((status, said["code"]) == (401, "GW-002"), f"400 s off at {seconds:+d} s: {status}")
    for seconds in (200, -20):  # within the window, so that only the nonce speaks against it
        step(seconds)
        stage.gateway.kill()
        stage.gateway.start(wait="/readyz")
        replay(f"after a restart at {seconds:+d} s")
    step(0)
    stored = [
        one for one in read_stream(stage.server.url) if one.subject == "signals.raw" and b'"price": 7' in one.data
    ]
    stage.expect(len(stored) == 1, f"the replayed event is stored {len(stored)} times")
    stage.result.doubled = max(0, len(stored) - 1)


def _step_with_timers(stage: Stage, step: Callable[[int], float]) -> None:
    """Timers go on: what is looked at once a second is looked at, whatever the clock does."""
    switch = stage.gateway.state / "maintenance.json"
    switch.parent.mkdir(parents=True, exist_ok=True)
    for seconds in (-400, 400):
        step(0)
        time.sleep(0.1)
        before = stage.gateway.health()["uptime_s"]
        step(seconds)
        switch.write_text("{}")
        wait_for(f"maintenance at {seconds:+d} s", lambda: _refused(stage), 4.0)
        switch.unlink()
        wait_for(f"no maintenance at {seconds:+d} s", lambda: not _refused(stage), 4.0)
        grown_s = stage.gateway.health()["uptime_s"] - before
        stage.expect(0 <= grown_s < 30, f"uptime grew by {grown_s:.1f} s at {seconds:+d} s")
    step(0)


def _refused(stage: Stage) -> bool:
    return stage.send(b"{}", {"Content-Type": "application/json"})[0] == 503


@dataclass(frozen=True)
class _Broken:
    """Settings that nothing can be started with, and the one that the refusal must name."""

    what: str
    names: str
    settings: Mapping[str, str]


def _broken(root: Path) -> list[_Broken]:
    root.mkdir(parents=True, exist_ok=True)
    good, other = make_certificates(root / "good"), make_certificates(root / "other")

    def file(name: str, content: bytes) -> str:
        (root / name).write_bytes(content)
        return str(root / name)

    garbage = file("garbage", b"\xff\xfe\x00" + CANARY.encode() + b"\x80\n\x00")
    pem = file("garbage.pem", b"-----BEGIN PRIVATE KEY-----\n" + CANARY.encode() + b"\n-----END PRIVATE KEY-----\n")
    secret, cert, key = "API_KEY_HMAC_SECRET", "GATEWAY_TLS_CERT", "GATEWAY_TLS_KEY"
    no_secret = {secret: ""}
    return [
        _Broken("no file", secret, {**no_secret, f"{secret}_FILE": str(root / "missing")}),
        _Broken("a directory", secret, {**no_secret, f"{secret}_FILE": str(root)}),
        _Broken("garbage", secret, {**no_secret, f"{secret}_FILE": garbage}),
        _Broken("an empty file", secret, {**no_secret, f"{secret}_FILE": file("empty", b"")}),
        _Broken("two forms", secret, {secret: CANARY, f"{secret}_FILE": garbage}),
        _Broken("no key", "missing.key", {cert: str(good.cert), key: str(root / "missing.key")}),
        _Broken("a garbage key", "garbage.pem", {cert: str(good.cert), key: pem}),
        _Broken("another's key", str(other.key), {cert: str(good.cert), key: str(other.key)}),
        _Broken("a garbage certificate", "garbage.pem", {cert: pem, key: str(good.key)}),
        _Broken("a garbage seed", "NATS_NKEY_SEED", {"NATS_NKEY_SEED": CANARY}),
    ]


def bad_secrets(root: Path, says: str) -> Result:
    """Secrets and keys that are missing, unreadable or broken: no start, one clear line, and nothing of the key."""
    result = Result("bad-secrets", says)
    for number, broken in enumerate(_broken(root)):
        asked = {**SETTINGS, "NATS_URL": "nats://127.0.0.1:1", **broken.settings}
        gateway = Gateway(root / f"gateway-{number}", {name: text for name, text in asked.items() if text})
        try:
            gateway.start(wait="")
            assert gateway.process is not None
            try:
                status = gateway.process.wait(10)
            except subprocess.TimeoutExpired:
                status = 0
            text = gateway.log_text()
            named = [line for line in text.splitlines() if broken.names in line]
            if status == 0:
                result.missed.append(f"{broken.what}: it started")
            if len(named) != 1:
                result.missed.append(f"{broken.what}: {len(named)} lines name {broken.names}: {text[-600:]}")
            if CANARY in text or SECRET.decode() in text or "Traceback" in text:
                result.missed.append(f"{broken.what}: a key, or a traceback, is in the log")
        finally:
            gateway.close()
    return result


@dataclass(frozen=True)
class Scene:
    """One of them; play(root, says) is its result."""

    name: str
    says: str
    play: Callable[[Path, str], Result]


SCENES: Final = (
    Scene("silent-at-start", "NATS accepts and never speaks, from the start on", silent_at_start),
    Scene("half-repaired", "kill -9 between the two events, and nobody asks again", half_repaired),
    Scene("clock-steps", "the wall clock steps by 400 s", clock_steps),
    Scene("bad-secrets", "secrets and keys that cannot be used", bad_secrets),
)
"""Every fault of a start."""
