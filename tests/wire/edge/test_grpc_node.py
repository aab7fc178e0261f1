"""
The unchanged Node client, @grpc/grpc-js, against the gRPC server.

It is looked for in the cache where the bench keeps what it fetches; under GATEWAYD_TEST_FULL=1 it is fetched once.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

import gatewayd.schemas
from tests.bench.toolchain import cache
from tests.buses import pause, until
from tests.fakes.hub import make_event
from tests.servers import Certificates
from tests.wire.edge.grpc_serving import Served, serving

pytest_plugins = ("tests.reporting",)

PACKAGES = ("@grpc/grpc-js@^1.14", "@grpc/proto-loader@^0.8")
FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
CLIENT = Path(__file__).with_name("grpc_client.js")
PROTO = Path(str(gatewayd.schemas.__file__)).with_name("edge_v1.proto")


def modules() -> Path | str:
    """The directory with the client's packages, or why there is none."""
    if shutil.which("node") is None:
        return "node is not installed"
    root = cache() / "grpc-js"
    if not (root / "node_modules/@grpc/grpc-js").is_dir():
        if not FULL or shutil.which("npm") is None:
            return "@grpc/grpc-js is not there; GATEWAYD_TEST_FULL=1 fetches it"
        root.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(root), *PACKAGES]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=180)
        except (OSError, subprocess.SubprocessError) as error:
            return f"@grpc/grpc-js cannot be fetched: {type(error).__name__}"
    return root / "node_modules"


def start(served: Served, found: Path, certificates: Certificates) -> "subprocess.Popen[str]":
    """The client, which says `ready` on its standard error once it has had 100 events."""
    tls = served.tls is not None
    address = f"localhost:{served.port}" if tls else f"127.0.0.1:{served.port}"
    return subprocess.Popen(
        ["node", str(CLIENT), address, str(PROTO), str(certificates.ca) if tls else ""],
        env={**os.environ, "NODE_PATH": str(found)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("tls", [False, True], ids=["cleartext", "tls"])
@pytest_twisted.ensureDeferred
async def test_node_client(tls: bool, certificates: Certificates, not_run: Callable[[str], None]) -> None:
    """Commands, refusals, deadlines, large and many messages, a stream, its cancelling and its end at shutdown."""
    found = modules()
    if isinstance(found, str):
        not_run(found)
        return
    async with serving(tls=certificates if tls else None) as served:
        with start(served, found, certificates) as client:
            try:
                # The first stream is the one that is cancelled.
                await until(lambda: len(served.hub.streams) == 2 or client.poll() is not None, within_s=20)
                for number in range(1, 100):
                    served.hub.streams[1].publish(make_event(number))
                    await pause(0)
                assert client.stderr is not None
                assert await deferToThread(client.stderr.readline) == "ready\n"
                await served.listener.leave()
                served.hub.close(retry_after_ms=1500)
                out, errors = await deferToThread(client.communicate, timeout=20)
            finally:
                client.kill()
    assert json.loads(out) == {
        "unary": [0, "payload"],
        "refused": [12, "no route for this message type"],
        "deadline": 4,
        "large": 1_000_000,
        "many": True,
        "cancelled": 1,
        "ended": [14, "gateway is shutting down", 100, ["1500"]],
    }, errors
    assert served.hub.streams[0].gone_for == ["client"]
