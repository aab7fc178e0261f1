"""
What is done to a run's processes: each act strikes, lasts, and takes its fault back.

Decides how a fault is made and when it is over. Never judges: an act raises only when the fault could not be made, or
when what it waits for did not happen.
"""

import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import nats
from nats.js.api import StreamConfig

from tests.clients import SECRET
from tests.faultproxy import NONE, State, Toxics
from tests.ledger.report import FROZEN, GATEWAY, NATS
from tests.ledger.run import Run, Strike
from tests.streams import delete_stream, read_stream, run

STREAM: Final = "trading-events"
SECOND_SECRET: Final = b"another-secret-for-tests-that-is-long-enough-too"
SILENT: Final = Toxics(discard=True)

_COMES_BACK_S: Final = 8.0


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float = _COMES_BACK_S) -> None:
    """Returns when the condition holds; AssertionError when it does not in time."""
    ends_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > ends_at:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.01)


def nothing(_: Run, __: float) -> None:
    """The load itself is what is looked at."""


# NATS itself.


def kill_nats(run_: Run, seconds: float) -> None:
    """kill -9; down for so long."""
    with run_.fault(NATS):
        run_.server.kill()
        time.sleep(seconds)
        run_.server.start()


def stop_nats(run_: Run, seconds: float) -> None:
    """SIGTERM, which announces itself; down for so long."""
    with run_.fault(NATS):
        run_.server.stop()
        time.sleep(seconds)
        run_.server.start()


def freeze_nats(run_: Run, seconds: float) -> None:
    """SIGSTOP; when it wakes, it stores what lay in the sockets."""
    with run_.fault(NATS):
        run_.server.sigstop()
        try:
            time.sleep(seconds)
        finally:
            run_.server.sigcont()


def fill_disk(run_: Run, seconds: float) -> None:
    """No file of nats-server grows beyond what the largest has now; then room again, and a restart."""
    size = max(file.stat().st_size for file in run_.server.store.rglob("*.blk"))
    with run_.fault(NATS):
        hard = resource.prlimit(run_.server.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(run_.server.pid, resource.RLIMIT_FSIZE, (size + 4096, hard))
        time.sleep(seconds)
        resource.prlimit(run_.server.pid, resource.RLIMIT_FSIZE, (hard, hard))
        run_.server.stop()
        run_.server.start()


async def _limit(url: str, more: int | None) -> None:
    """Let the stream take so many more messages; None: any number."""
    client = await nats.connect(url)
    try:
        context = client.jetstream()
        info = await context.stream_info(STREAM)
        config: StreamConfig = info.config
        config.max_msgs = -1 if more is None else info.state.messages + more
        await context.update_stream(config)
    finally:
        await client.close()


def fill_stream(run_: Run, seconds: float) -> None:
    """A few more messages fit, then none; then any number again."""
    with run_.fault(NATS):
        run(_limit(run_.nats_url, 15))
        try:
            time.sleep(seconds)
        finally:
            run(_limit(run_.nats_url, None))


def remove_stream(run_: Run, _: float) -> None:
    """Deleted with everything in it, between two requests; gatewayd makes another one."""
    with run_.quiet():
        run_.removed += read_stream(run_.nats_url)
        with run_.fault(NATS):
            run(delete_stream(run_.nats_url))


async def _purge(url: str) -> None:
    client = await nats.connect(url)
    try:
        await client.jetstream().purge_stream(STREAM)
    finally:
        await client.close()


def empty_stream(run_: Run, _: float) -> None:
    """Every message purged, between two requests; the server still knows their ids."""
    with run_.quiet():
        run_.removed += read_stream(run_.nats_url)
        run(_purge(run_.nats_url))


# The way to NATS.


def silence(run_: Run, seconds: float) -> None:
    """Connections are accepted, and nothing ever comes out of them."""
    with run_.fault(NATS):
        run_.way.set(up=SILENT, down=SILENT)
        try:
            time.sleep(seconds)
        finally:
            run_.way.clear()


def reset_at_random(run_: Run, times: float) -> None:
    """RST to both sides behind a random byte, in either direction; again and again."""
    random = Random(run_.options.seed)
    for _ in range(int(times)):
        with run_.fault(NATS):
            toxics = Toxics(reset_after_bytes=random.randint(1, 8000))
            up, down = random.sample((toxics, NONE), 2)
            _await_another(run_, run_.way.set(up=up, down=down, open_only=True))
        time.sleep(random.uniform(0.02, 0.2))


def _await_another(run_: Run, before: State) -> None:
    """gatewayd has made another connection, or there is no load any more that could make it need one."""
    wait_for("a connection", lambda: run_.way.state().connected > before.connected or not run_.sending)


def delay(run_: Run, seconds: float) -> None:
    """Every answer of NATS takes 200 ms, 100 ms more or less."""
    half = Toxics(latency_s=0.1, jitter_s=0.05)
    run_.way.set(up=half, down=half)
    time.sleep(seconds)
    run_.way.clear()


def narrow(run_: Run, seconds: float) -> None:
    """2 MB a second in slices of 700 bytes."""
    toxics = Toxics(rate_bytes_s=2_000_000, slice_bytes=700)
    run_.way.set(up=toxics, down=toxics)
    time.sleep(seconds)
    run_.way.clear()


def _leave(run_: Run, seconds: float, *, up: Toxics, down: Toxics = NONE) -> None:
    """Make the open connection useless, for so long; the fault is over once gatewayd has another one."""
    began = time.monotonic()
    with run_.fault(NATS):
        _await_another(run_, run_.way.set(up=up, down=down, open_only=True))
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    run_.way.set(up=NONE, down=NONE)


def half_open(run_: Run, seconds: float) -> None:
    """The peer is gone without a word: nothing is read and nothing comes, and no end either."""
    stall = Toxics(stall=True)
    _leave(run_, seconds, up=stall, down=stall)


def ghosts(run_: Run, seconds: float) -> None:
    """What was written to the old connection is stored long after gatewayd has left it for a new one."""
    _leave(run_, seconds, up=Toxics(hold=True))


# gatewayd.


def kill_gateway(run_: Run, times: float) -> None:
    """kill -9 at random moments, also while it starts."""
    random = Random(run_.options.seed)
    for left in range(int(times), 0, -1):
        if not run_.sending:
            run_.measured["left out"] = left
            break
        patient = left == 1 or not run_.options.inherited
        if run_.kill_gateway(wait_s=15.0 if patient else random.choice((0.3, 0.6, 15.0))):
            time.sleep(random.choice((0.03, 0.4)) * random.random())


def kill_behind_ack(run_: Run, times: float) -> None:
    """Nothing passes behind some acknowledgement, which may be that of the first half of a pair; then kill -9."""
    random = Random(run_.options.seed)
    for _ in range(int(times)):
        run_.await_ready()
        time.sleep(random.uniform(0.0, 0.2))
        if not run_.sending:
            break
        with run_.fault(NATS):
            run_.way.cut_after_acks(random.randint(1, 30))
            run_.way.await_cut()
            run_.kill_gateway(meanwhile=run_.way.clear)


def kill_all(run_: Run, seconds: float) -> None:
    """kill -9 of nats-server, then of gatewayd, which starts without it."""
    with run_.fault(NATS):
        run_.server.kill()
        run_.kill_gateway()
        time.sleep(seconds)
        run_.server.start()


def stop_gateway(run_: Run, times: float) -> None:
    """SIGTERM, and the next process when it has ended."""
    for _ in range(int(times)):
        run_.await_ready()
        with run_.fault(GATEWAY):
            status = run_.gateway.stop(15)
            assert status == -signal.SIGTERM, f"SIGTERM ended it with {status}"
            run_.start_gateway()


def stop_gateway_twice(run_: Run, _: float) -> None:
    """NATS is frozen, so that requests hang; SIGTERM, and half a second later another."""
    run_.await_ready()
    with run_.fault(NATS), run_.fault(GATEWAY):
        run_.server.sigstop()
        time.sleep(0.1)
        run_.gateway.signal(signal.SIGTERM)
        time.sleep(0.5)
        assert run_.gateway.process is not None
        if run_.gateway.process.poll() is None:
            began = time.monotonic()
            run_.gateway.signal(signal.SIGTERM)
            run_.gateway.process.wait(10)
            run_.measured["second SIGTERM s"] = time.monotonic() - began
        run_.server.sigcont()
        run_.start_gateway()


def reload_gateway(run_: Run, times: float) -> None:
    """SIGHUP again and again."""
    for _ in range(int(times)):
        _reload(run_)
        time.sleep(0.2)


def freeze_gateway(run_: Run, seconds: float) -> None:
    """SIGSTOP."""
    with run_.fault(FROZEN):
        run_.gateway.signal(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            run_.gateway.signal(signal.SIGCONT)
        # What came meanwhile is answered now, which takes a moment of its own.
        run_.await_ready()


def _reload(run_: Run) -> None:
    def reloaded() -> int:
        return run_.gateway.log_text().count('"event":"config.reloaded"')

    before = reloaded()
    run_.gateway.signal(signal.SIGHUP)
    wait_for("settings reloaded", lambda: reloaded() > before)


def secret_file(root: Path) -> dict[str, str]:
    """The secret in a file, which a reload reads again."""
    path = root / "secret"
    path.write_bytes(SECRET)
    return {"API_KEY_HMAC_SECRET_FILE": str(path), "API_KEY_HMAC_SECRET": ""}


def rotate_secret(run_: Run, seconds: float) -> None:
    """The old secret, both, the new one; senders change over while both are good."""
    path = Path(run_.gateway.settings["API_KEY_HMAC_SECRET_FILE"])
    path.write_bytes(SECRET + b"," + SECOND_SECRET)
    _reload(run_)
    time.sleep(seconds / 2)
    with run_.quiet():
        run_.secret = SECOND_SECRET  # a request that is repeated as it is was signed before
    time.sleep(seconds / 2)
    path.write_bytes(SECOND_SECRET)
    _reload(run_)


def crowd(run_: Run, seconds: float) -> None:
    """Two hundred connections that send nothing, more than there are descriptors; NATS is killed meanwhile as well."""
    with run_.fault(GATEWAY), run_.fault(NATS), ExitStack() as stack:
        opened = []
        for _ in range(200):
            with suppress(OSError):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", run_.gateway.port), 2))
                opened.append(one)
        deadline = time.monotonic() + 2.0  # the slow ones are closed after 5 s
        closed = 0
        for one in opened:
            one.settimeout(max(0.001, min(0.05, deadline - time.monotonic())))
            with suppress(TimeoutError):
                closed += one.recv(1) == b""
        run_.measured["closed at once"] = closed
        run_.server.restart()
        wait_for("NATS", lambda: "disconnected" not in _nats_lines(run_)[-1:], seconds + _COMES_BACK_S)
        time.sleep(seconds)


def _nats_lines(run_: Run) -> list[str]:
    """connected and disconnected, as the log has them."""
    events: Any = {"nats_connected": "connected", "nats_lost": "disconnected"}
    return [events[one["event"]] for one in run_.gateway.log_lines() if one.get("event") in events]


def shout(run_: Run, _: float) -> None:
    """More lines than the log's pipe and queue hold, with nobody who reads them."""
    request = b"GET /" + b"x" * 1500 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", run_.gateway.port), 5) as wire:
        wire.settimeout(20)
        for _ in range(100):
            wire.sendall(request * 100)
            answered = 0
            while answered < 100:
                answered += wire.recv(1 << 20).count(b"HTTP/1.1 404")


def kill_both(seed: int) -> list[Strike]:
    """kill -9 of both, at random places of a run, one after the other."""
    random = Random(seed + 1)
    acts: list[Callable[[Run], object]] = [partial(kill_nats, seconds=1.0), Run.kill_gateway]
    made = random.sample(acts, 2)
    places = random.uniform(0.15, 0.45), random.uniform(0.55, 0.85)
    return [Strike(place, random.uniform(0.0, 0.03), act) for place, act in zip(places, made, strict=True)]
