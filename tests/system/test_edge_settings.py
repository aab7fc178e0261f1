"""A whole gatewayd whose settings of the edge are wrong: it does not start, and says in one line why."""

import subprocess
import time
from pathlib import Path

from gatewayd.settings_edge import REQUIRED
from gatewayd.settings_table import RETIRED
from tests.gateway import Gateway
from tests.servers import free_port
from tests.unit.edge.test_settings_edge import FIVE, PASSWORD

START_S = 5.0


def refused(root: Path, *arguments: str, **settings: str) -> str:
    """What a gatewayd with these settings says before it ends without having started."""
    gateway = Gateway(root, settings)
    root.mkdir(exist_ok=True)
    began = time.monotonic()
    done = subprocess.run(
        gateway.command(*arguments),
        env=gateway.environment(),
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert time.monotonic() - began < START_S
    said = done.stdout + done.stderr
    assert done.returncode not in (0, -11), said
    assert "Traceback" not in said
    assert PASSWORD[:9] not in said
    return said


def test_two_of_the_five_are_missing(tmp_path: Path) -> None:
    """Three of the five do not make an edge: those that are missing are named, on one line."""
    missing = (REQUIRED[1], REQUIRED[4])
    said = refused(tmp_path, **{name: text for name, text in FIVE.items() if name not in missing})
    (line,) = [line for line in said.splitlines() if f"needs {missing[0]} and {missing[1]} beside it" in line]
    assert "the edge is on with all five or off" in line


def test_retired_names(tmp_path: Path) -> None:
    """Every retired name ends the start by its name, all of them at once, also when it is empty."""
    said = refused(tmp_path, **FIVE, **dict.fromkeys(RETIRED, ""))
    for name in RETIRED:
        assert f"{name}: is retired and no longer accepted; remove it" in said


def test_all_problems_at_once(tmp_path: Path) -> None:
    """Routes, addresses and limits that make no sense are all named, by the check as by the start."""
    wrong = {
        **FIVE,
        "GATEWAY_COMMAND_ROUTES": "orders.place=nats:signals.raw",
        "GATEWAY_AUTH_SERVICE_BASE_URL": "auth:8081",
        "GATEWAY_PUSH_QUEUE_BYTES": "lots",
        "GATEWAY_ADMIN_HTTP_ADDR": "9100",
    }
    for arguments in ((), ("--check-config",)):
        said = refused(tmp_path, *arguments, **wrong)
        for name in wrong.keys() - FIVE.keys():
            assert name in said, said
        assert "the stream of signals" in said


def test_the_check_shows_the_edge(tmp_path: Path) -> None:
    """A good environment is shown with its defaults, the password only measured."""
    port = free_port()
    gateway = Gateway(tmp_path, {**FIVE, "GATEWAY_COMMAND_ROUTES": "orders.=nats:orders"}, port=port)
    done = subprocess.run(
        gateway.command("--check-config"),
        env=gateway.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    for line in (
        f"GATEWAY_REDIS_PASSWORD=<set: 1 secret, {len(PASSWORD)} bytes>  # environment",
        "GATEWAY_COMMAND_ROUTES=orders.=nats:orders  # environment",
        "GATEWAY_FRESHNESS_WINDOW=5m  # default",
        f"GATEWAY_PUBLIC_HTTP_ADDR=127.0.0.1:{port}  # PORT and HOST",
    ):
        assert line in done.stdout.splitlines()
    assert PASSWORD not in done.stdout + done.stderr
