"""The units and their installer: what is put on a host, the unit's command line by hand, and a real systemd with it."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gatewayd.cli.environment_file import values
from tests.booted import Booted, obstacle
from tests.clients import generic_body, stamped
from tests.gateway import ROOT, Gateway
from tests.installed import HIDDEN, UNIT, Installed, host_python, install
from tests.servers import NatsServer
from tests.sockets import Passed, listening_tcp

pytest_plugins = ("tests.reporting",)

UNITS = (f"{UNIT}.service", f"{UNIT}.socket", "nats-server.service")
MODES = {
    f"/etc/{UNIT}/{UNIT}.env": 0o640,
    f"/etc/{UNIT}/at_gateway.toml": 0o640,
    f"/etc/{UNIT}/hmac-secret": 0o640,
    f"/etc/{UNIT}/nats-password": 0o640,
    "/etc/nats-server/nats-server.conf": 0o644,
    "/etc/nats-server/nats-server.env": 0o600,
    "/usr/local/bin/gatewayctl": 0o755,
    f"/usr/local/lib/sysusers.d/{UNIT}.conf": 0o644,
    "/usr/local/lib/sysusers.d/nats-server.conf": 0o644,
    **{f"/usr/local/lib/systemd/system/{name}": 0o644 for name in UNITS},
}


def settings_of(installed: Installed) -> dict[str, str]:
    """What the unit's environment file sets."""
    return values(installed.path(f"/etc/{UNIT}/{UNIT}.env").read_text())


def line_of(installed: Installed, name: str) -> list[str]:
    """A command line of the unit, by the name of its setting, as it is in the image."""
    text = installed.moved(installed.unit_file(f"{UNIT}.service").read_text())
    return shlex.split(next(line for line in text.splitlines() if line.startswith(f"{name}=")).partition("=")[2])


def shown_drop_in(text: str) -> str:
    """The drop-in of docs/operations.md that has `text` in it, for this unit."""
    blocks = re.compile(r"^ *```\n( *\[Service\]\n.*?)^ *```$", re.MULTILINE | re.DOTALL)
    found = blocks.findall((ROOT / "docs/operations.md").read_text())
    (drop_in,) = (block for block in found if text in block)
    return textwrap.dedent(drop_in).replace("at-gateway", UNIT)


class TestFiles:
    """What the installer leaves."""

    def test_everything_is_there_and_private(self, installed: Installed) -> None:
        """Every file with its mode, outside of the program; the secrets are strong, and each another one."""
        found = {
            f"/{path.relative_to(installed.root)}": stat.S_IMODE(path.stat().st_mode)
            for path in installed.root.rglob("*")
            if path.is_file() and not path.is_relative_to(installed.path("/opt"))
        }
        assert found == MODES
        secrets = [
            installed.path(f"/etc/{UNIT}/{name}").read_text().strip() for name in ("hmac-secret", "nats-password")
        ]
        assert min(len(secret) for secret in secrets) >= 43
        assert len(set(secrets)) == 2

    def test_the_settings(self, installed: Installed) -> None:
        """Production, the inherited socket, secrets from files: nothing else is set."""
        assert settings_of(installed) == {
            "ENV": "production",
            "SERVICE_NAME": UNIT,
            "GATEWAY_PUBLIC_HTTP_ADDR": "systemd:domain=INET:name=public",
            "API_KEY_HMAC_SECRET_FILE": f"/etc/{UNIT}/hmac-secret",
            "NATS_URL": "nats://127.0.0.1:4222",
            "NATS_USER": "gateway",
            "NATS_PASSWORD_FILE": f"/etc/{UNIT}/nats-password",
        }

    def test_nothing_points_to_where_it_was_built(self, installed: Installed) -> None:
        """No script and no configuration knows the image's place."""
        places = [installed.path("/etc"), installed.path("/usr"), installed.program / "bin"]
        files = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
        assert len(files) > 20
        assert not [str(path) for path in files if os.fsencode(installed.root) in path.read_bytes()]

    def test_the_command_line_holds_the_seed_name(self, installed: Installed) -> None:
        """`pgrep -f at_gateway` finds the process."""
        assert line_of(installed, "ExecStart")[-1].endswith(f"/etc/{UNIT}/at_gateway.toml")

    def test_again(self, installed: Installed, tmp_path: Path) -> None:
        """A second run installs nothing anew and leaves every byte of the configuration as people changed it."""
        root = tmp_path / "host"
        shutil.copytree(installed.root, root, symlinks=True, copy_function=os.link)
        changed = root / f"etc/{UNIT}/{UNIT}.env"
        changed.unlink()
        changed.write_text("# mine\n")
        (root / f"etc/{UNIT}/at_gateway.toml").unlink()

        def all_files() -> dict[str, object]:
            """The content of what is small, the times of the program's files."""
            files = [path for path in root.rglob("*") if path.is_file()]
            opt = root / "opt"
            return {str(path): path.stat().st_mtime_ns if opt in path.parents else path.read_bytes() for path in files}

        before = all_files()
        done = install(installed.source, "--unit", UNIT, "--with-nats", "--destdir", str(root))
        assert done.returncode == 1, done.stdout
        (root / f"etc/{UNIT}/at_gateway.toml").touch()
        done = install(installed.source, "--unit", UNIT, "--with-nats", "--destdir", str(root))
        assert done.returncode == 0, done.stdout
        assert "installing" not in done.stdout
        assert {**before, f"{root}/etc/{UNIT}/at_gateway.toml": b""} == all_files()

    def test_remove(self, installed: Installed, tmp_path: Path) -> None:
        """Configuration and state stay, all else goes; --purge takes them along; drop-ins of people stay always."""
        for purge in ((), ("--purge",)):
            root = tmp_path / f"host{len(purge)}"
            shutil.copytree(installed.root, root, symlinks=True, copy_function=os.link)
            (root / f"var/lib/{UNIT}").mkdir(parents=True)
            drop_in = root / f"etc/systemd/system/{UNIT}.service.d/mine.conf"
            drop_in.parent.mkdir(parents=True)
            drop_in.touch()
            done = install(installed.source, "--remove", *purge, "--unit", UNIT, "--destdir", str(root))
            assert done.returncode == 0, done.stdout
            left = {f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()}
            kept = set() if purge else {name for name in MODES if name.startswith(f"/etc/{UNIT}/")}
            nats = {"/etc/nats-server/nats-server.conf", "/etc/nats-server/nats-server.env"}
            assert left == kept | nats | {f"/{drop_in.relative_to(root)}"}
            assert (root / f"var/lib/{UNIT}").exists() is not bool(purge)
        again = install(installed.source, "--remove", "--purge", "--unit", UNIT, "--destdir", str(root))
        assert (again.returncode, "is not installed" in again.stdout) == (1, True)

    def test_what_is_somebody_elses_is_left_alone(self, installed: Installed, tmp_path: Path) -> None:
        """A unit, a directory or a program of that name that is not ours ends it before anything is written."""
        for name in ("etc/systemd/system/x.service", "usr/lib/systemd/system/x.socket", "etc/x/config", "opt/x/bin"):
            root = tmp_path / name.replace("/", "-")
            (root / name).parent.mkdir(parents=True)
            (root / name).write_text("[Unit]\n")
            for action in ((), ("--remove", "--purge")):
                done = install(installed.source, *action, "--unit", "x", "--destdir", str(root))
                assert done.returncode == 1, done.stdout
                assert [path for path in root.rglob("*") if path.is_file()] == [root / name]

    def test_one_server_for_all(self, installed: Installed, tmp_path: Path) -> None:
        """A second unit cannot take the nats-server over; an upgrade of the first brings it along unasked."""
        root = tmp_path / "host"
        shutil.copytree(installed.root, root, symlinks=True, copy_function=os.link)
        done = install(installed.source, "--unit", "second", "--with-nats", "--destdir", str(root))
        assert (done.returncode, "belongs to another unit" in done.stdout) == (1, True)
        server = root / "usr/local/lib/systemd/system/nats-server.service"
        before = server.read_text()
        server.unlink()
        server.write_text(before.replace("Type=exec", "Type=simple"))
        done = install(installed.source, "--unit", UNIT, "--destdir", str(root))
        assert (done.returncode, server.read_text()) == (0, before), done.stdout

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--unit", "../x"),
            ("--unit", "x.service"),
            ("--unit", ""),
            ("--unit", "nats"),
            ("--unit", "x" * 32),
            ("--unit",),
            ("--destdir", "relative"),
            ("--purg",),
        ],
    )
    def test_arguments(self, installed: Installed, arguments: tuple[str, ...], tmp_path: Path) -> None:
        """Whatever is wrong with the command line is said in one line, and nothing is done."""
        done = install(installed.source, "--destdir", str(tmp_path / "host"), *arguments)
        assert (done.returncode, done.stdout.count("\n")) == (1, 1), done.stdout
        assert not (tmp_path / "host").exists()


class TestUnits:
    """The unit files themselves."""

    def test_systemd_understands_them(
        self, installed: Installed, tmp_path: Path, not_run: Callable[[str], None]
    ) -> None:
        """systemd-analyze verify has nothing to say of any of them."""
        if shutil.which("systemd-analyze") is None:
            not_run("systemd-analyze is not installed")
            return
        for name in UNITS:
            (tmp_path / name).write_text(installed.moved(installed.unit_file(name).read_text()))
        command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT in line or "nats-server" in line]
        assert (done.returncode, said) == (0, [])

    @pytest.mark.parametrize("name", ["gatewayd.service", "nats-server.service"])
    def test_exposure(self, installed: Installed, name: str, not_run: Callable[[str], None]) -> None:
        """At most 1.0 of 10, without MemoryDenyWriteExecute for gatewayd, which would break its TLS."""
        if shutil.which("systemd-analyze") is None:
            not_run("systemd-analyze is not installed")
            return
        unit = installed.source / "systemd" / name
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=10", "--no-pager", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout[-200:]
        text = unit.read_text()
        assert ("\nMemoryDenyWriteExecute=" in text) is (name == "nats-server.service")
        # Without it the process_* metrics would be gone.
        assert ("\nProcSubset=" in text) is (name == "nats-server.service")


class Started:
    """The unit's command line, started by hand as systemd starts it: a socket, a notify socket, a journal's stream."""

    def __init__(self, installed: Installed, root: Path, nats_url: str) -> None:
        self.state = root / "state"
        self.state.mkdir()
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(root / "notify"))
        self.notify.settimeout(15)
        self.public = listening_tcp()
        self.journal, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        status = os.fstat(theirs.fileno())
        environ = {
            **settings_of(installed),
            "PATH": "/usr/bin:/bin",
            "STATE_DIRECTORY": str(self.state),
            "API_KEY_HMAC_SECRET_FILE": str(installed.path(f"/etc/{UNIT}/hmac-secret")),
            "NATS_URL": nats_url,
            "NOTIFY_SOCKET": str(root / "notify"),
            "WATCHDOG_USEC": "600000",
            "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
        }
        for name in ("NATS_USER", "NATS_PASSWORD_FILE"):
            del environ[name]
        self.settings_file = root / "at_gateway.toml"
        self.settings_file.write_text("")
        *command, _ = line_of(installed, "ExecStart")
        passed = Passed(("public", self.public))
        spawned = passed.spawned([*command, f"--config={self.settings_file}"], environ)
        self.process = subprocess.Popen(**spawned, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd="/")
        theirs.close()

    def told(self, wanted: str, timeout_s: float = 15.0) -> dict[str, str]:
        """The next datagram that assigns `wanted`, parsed."""
        deadline = time.monotonic() + timeout_s
        seen = []
        while time.monotonic() < deadline:
            lines = dict(line.split("=", 1) for line in self.notify.recv(4096).decode().splitlines())
            if wanted in lines:
                return lines
            seen.append(lines)
        raise AssertionError(f"no {wanted}, but {seen}")

    def log(self) -> list[str]:
        """What it wrote until its end."""
        with self.journal.makefile("r") as text:
            return text.read().splitlines()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for each in (self.notify, self.public, self.journal):
            each.close()


@pytest.fixture
def started(installed: Installed, tmp_path: Path, nats: NatsServer) -> Iterator[Started]:
    started = Started(installed, tmp_path, nats.url)
    yield started
    started.close()


class TestByHand:
    """The installed command line under what systemd gives a process."""

    def test_a_life(self, started: Started, installed: Installed) -> None:
        """READY, WATCHDOG, a webhook on the inherited socket, two reloads, STOPPING; and what the journal gets."""
        assert started.told("READY")["STATUS"] == "taking webhooks on systemd:domain=INET:name=public; NATS connected"
        began = time.monotonic()
        for _ in range(4):
            started.told("WATCHDOG")
        assert time.monotonic() - began < 5
        gateway = Gateway(started.state, {}, port=started.public.getsockname()[1])
        body = generic_body(time.time())
        secret = installed.path(f"/etc/{UNIT}/hmac-secret").read_bytes().strip()
        assert gateway.ask("POST", "/webhook/generic", body, stamped(body, time.time(), secret=secret))[0] == 202
        assert b"\nprocess_resident_memory_bytes " in gateway.get("/metrics")[2]

        started.settings_file.write_text("rate_limit_rps = 7\n")
        started.process.send_signal(signal.SIGHUP)
        assert int(started.told("RELOADING")["MONOTONIC_USEC"]) > 0
        assert "Z: changed RATE_LIMIT_RPS, " in started.told("READY")["STATUS"]
        started.settings_file.write_text("prot = 7\n")
        started.process.send_signal(signal.SIGHUP)
        started.told("RELOADING")
        assert "refused, the old settings stay: prot" in started.told("READY")["STATUS"]

        started.process.send_signal(signal.SIGTERM)
        assert started.told("STOPPING")["STATUS"].startswith("stopping")
        assert started.process.wait(15) in (0, -signal.SIGTERM)
        lines = started.log()
        assert all(line[:1] == "<" and line[2:4] == ">{" for line in lines), [
            line for line in lines if line[2:4] != ">{"
        ]
        members = [json.loads(line[3:]) for line in lines]
        assert [line[1] for line, said in zip(lines, members, strict=True) if said["level"] == "error"] == ["3"]
        assert {line[1] for line, said in zip(lines, members, strict=True) if said["level"] == "info"} == {"6"}

    def test_nats_is_lost(self, started: Started, nats: NatsServer) -> None:
        """The status says so within seconds, and that it is back."""
        started.told("READY")
        nats.kill()
        while not (said := started.told("STATUS")["STATUS"]).startswith("webhooks get 503 GW-005"):
            assert "NATS" in said
        nats.start()
        while not (said := started.told("STATUS")["STATUS"]).startswith("taking webhooks"):
            assert "NATS" in said


@pytest.fixture(scope="module")
def booted(installed: Installed) -> Iterator[Booted | str]:
    """A host with the image on it, under a real systemd; or why there is none."""
    reason = obstacle()
    if not reason and f"{Path(host_python()).resolve()}".startswith(HIDDEN):
        reason = "the only Python is in a home directory, which units do not see"
    if reason:
        yield reason
        return
    host = Booted(installed.root)
    try:
        host.boot()
    except RuntimeError as error:
        yield str(error)
        return
    try:
        environ = {"PYTHON": host_python()}
        script = str(installed.source / "systemd" / "install")
        host.run(script, "--unit", UNIT, "--with-nats", environ=environ, timeout_s=200, check=True)
        host.sh(f"systemctl enable --quiet --now nats-server {UNIT}")
        yield host
    finally:
        host.close()


class TestBooted:
    """The real unit under a real systemd, in the order of a host's life."""

    @pytest.fixture
    def host(self, booted: Booted | str, not_run: Callable[[str], None]) -> Iterator[Booted | None]:
        if isinstance(booted, str):
            not_run(booted)
            yield None
        else:
            yield booted

    def test_it_runs(self, host: Booted | None) -> None:
        """Active, as its own user, with a status; found as the runbook finds it; its log is JSON with priorities."""
        if host is None:
            return
        assert host.show(UNIT, "ActiveState") == "active"
        assert host.show(UNIT, "StatusText").startswith("taking webhooks on systemd:domain=INET:name=public")
        pid = host.run("pgrep", "-f", "at_gateway").stdout.strip()
        assert pid == host.show(UNIT, "MainPID")
        assert host.sh(f"stat -c %U /proc/{pid} /var/lib/{UNIT} /var/lib/nats").split() == [UNIT, UNIT, "nats"]
        soft, hard = host.sh(f"grep 'open files' /proc/{pid}/limits").split()[3:5]
        assert int(soft) == int(hard) > 1024
        lines = host.sh(f"journalctl -u {UNIT} _PID={pid} -o cat --no-pager").splitlines()
        assert {"ready", "nats_connected"} <= {json.loads(line)["event"] for line in lines}
        assert '"level":"info"' not in host.sh(f"journalctl -u {UNIT} -p warning -o cat --no-pager")
        assert "\nprocess_open_fds " in host.sh("curl -s localhost:8001/metrics")

    def test_a_user_of_somebody_else(self, host: Booted | None, installed: Installed) -> None:
        """A unit cannot have the name of a user that is not its own: it would run as that user."""
        if host is None:
            return
        done = host.run(str(installed.source / "systemd" / "install"), "--unit", "root")
        assert (done.returncode, done.stderr) == (1, "systemd/install: there is another user root\n")

    def test_gatewayctl_knows_the_unit(self, host: Booted | None) -> None:
        """Root's gatewayctl has the unit's settings: it signs, sends, and makes the consumer, without any option."""
        if host is None:
            return
        assert "accepted 3" in host.sh("gatewayctl send --count 3 --source custom")
        host.sh("gatewayctl consumer ensure")
        assert host.sh("gatewayctl config show ENV") == "ENV=production  # environment\n"
        assert f"/var/lib/{UNIT}/maintenance.json" in host.sh("gatewayctl maintenance status")
        assert host.sh("runuser -u nats -- gatewayctl config show ENV") == "ENV=development  # default\n"

    def test_a_setting(self, host: Booted | None) -> None:
        """`env set --restart` is in force; a wrong value is refused and the unit goes on."""
        if host is None:
            return
        host.sh("gatewayctl env set RATE_LIMIT_RPS=1234 --restart")
        pid = host.show(UNIT, "MainPID")
        assert "\0RATE_LIMIT_RPS=1234\0" in host.sh(f"cat /proc/{pid}/environ")
        refused = host.run("gatewayctl", "env", "set", "RATE_LIMIT_RPS=many", "--restart")
        assert refused.returncode == 2
        assert host.show(UNIT, "MainPID") == pid

    def test_reload(self, host: Booted | None) -> None:
        """A rotated secret is taken over by `systemctl reload`; with broken settings the reload fails and says why."""
        if host is None:
            return
        pid = host.show(UNIT, "MainPID")
        etc = f"/etc/{UNIT}"
        host.sh(f'old=$(cat {etc}/hmac-secret); echo "$(gatewayctl secret new),$old" >{etc}/hmac-secret')
        host.sh(f"systemctl reload {UNIT}")
        self.await_status(host, "changed API_KEY_HMAC_SECRET")
        for key in (1, 2):
            assert "202 accepted" in host.sh(f"gatewayctl send --source custom --key {key}")
        host.sh(f"echo 'prot = 1' >{etc}/at_gateway.toml")
        assert host.run("systemctl", "reload", UNIT).returncode == 1
        assert "problem: prot" in host.sh(f"journalctl -u {UNIT} -o cat --no-pager -n 20")
        host.sh(f": >{etc}/at_gateway.toml; systemctl reload {UNIT}")
        assert (host.show(UNIT, "ActiveState"), host.show(UNIT, "MainPID")) == ("active", pid)

    def test_a_credential(self, host: Booted | None) -> None:
        """A secret that root alone may read, handed over by systemd: taken at the start, and known to a reload."""
        if host is None:
            return
        place = f"/run/systemd/system/{UNIT}.service.d"
        drop_in = shown_drop_in("LoadCredential=").replace("\n", "\\n")
        host.sh(f"mkdir -p {place}; printf '%b' '{drop_in}' >{place}/secret.conf")
        host.sh(f"chown root:root /etc/{UNIT}/hmac-secret; chmod 600 /etc/{UNIT}/hmac-secret")
        host.sh(f"systemctl daemon-reload; systemctl restart {UNIT}; systemctl reload {UNIT}")
        self.await_status(host, "changed nothing")
        assert "202 accepted" in host.sh("gatewayctl send --source custom")
        host.sh(f"rm {place}/secret.conf; chgrp {UNIT} /etc/{UNIT}/hmac-secret; chmod 640 /etc/{UNIT}/hmac-secret")
        host.sh(f"systemctl daemon-reload; systemctl restart {UNIT}")

    def await_status(self, host: Booted, text: str) -> None:
        deadline = time.monotonic() + 10
        while text not in host.show(UNIT, "StatusText"):
            assert time.monotonic() < deadline, host.show(UNIT, "StatusText")
            time.sleep(0.1)

    def test_restarts_lose_nothing(self, host: Booted | None) -> None:
        """Three restarts under 50 signals a second: each is accepted, and stored once."""
        if host is None:
            return
        sending = host.spawn(["gatewayctl", "send", "--count", "250", "--rate", "50", "--source", "custom", "--json"])
        for _ in range(3):
            time.sleep(1.0)
            host.sh(f"systemctl restart {UNIT}")
        said, _ = sending.communicate(timeout=60)
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        outcome = [found[name] for name in ("sent", "accepted", "duplicates", "refused", "unreached")]
        assert outcome == [250, 250, 0, {}, 0]

    def test_who_may_be_talked_to(self, host: Booted | None) -> None:
        """Another machine reaches the public socket, although the unit may open nothing but to this machine."""
        if host is None:
            return
        script = """
        unshare --net sleep 30 & other=$!
        sleep 0.3
        ip link add here type veth peer name there netns $other
        ip addr add 10.99.0.1/24 dev here; ip link set here up
        nsenter --net --target $other sh -c 'ip addr add 10.99.0.2/24 dev there; ip link set there up'
        sleep 0.5
        nsenter --net --target $other curl -s -m 5 http://10.99.0.1:8001/healthz; echo
        connect='import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)'
        run() { systemd-run --quiet --wait --pipe -p IPAddressDeny=any -p IPAddressAllow=localhost "$@" 2>/dev/null; }
        nsenter --net --target $other %(python)s -m http.server -b 10.99.0.2 4222 >/dev/null 2>&1 & server=$!
        for _ in 1 2 3 4 5 6 7 8; do %(python)s -c "$connect" 10.99.0.2 4222 2>/dev/null && break; sleep 0.5; done
        %(python)s -c "$connect" 10.99.0.2 4222 && echo open
        run %(python)s -c "$connect" 10.99.0.2 4222 || echo denied
        run %(python)s -c "$connect" 127.0.0.1 4222 && echo allowed
        kill $server $other
        """
        said = host.sh(script % {"python": host_python()}, check=False)
        assert json.loads(said.splitlines()[0])["ok"] is True
        assert said.split()[-3:] == ["open", "denied", "allowed"], said

    def test_a_process_that_hangs(self, host: Booted | None) -> None:
        """The watchdog ends it, the journal says where it hung, systemd starts another, and webhooks go on."""
        if host is None:
            return
        host.sh(f"mkdir -p /run/systemd/system/{UNIT}.service.d")
        host.sh(f"printf '[Service]\\nWatchdogSec=1s\\n' >/run/systemd/system/{UNIT}.service.d/watchdog.conf")
        host.sh(f"systemctl daemon-reload; systemctl restart {UNIT}")
        pid = host.show(UNIT, "MainPID")
        host.sh(f"kill -STOP {pid}")
        deadline = time.monotonic() + 20
        while host.show(UNIT, "MainPID") in (pid, "0") or host.show(UNIT, "ActiveState") != "active":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        log = host.sh(f"journalctl -u {UNIT} -o cat --no-pager")
        assert "Watchdog timeout" in log
        assert "Fatal Python error: Aborted" in log
        assert "202 accepted" in host.sh("gatewayctl send --source custom")

    def test_upgrade_and_removal(self, host: Booted | None, installed: Installed) -> None:
        """Another build is installed beside the one that runs, which goes once it is restarted; then all is removed."""
        if host is None:
            return
        program = f"/opt/{UNIT}"
        old = host.sh(f"ls {program}").strip()
        # A build of other content, without a package index: a copy of this one under another name.
        host.sh(f"cp -a {program}/{old} {program}/000000000000")
        host.sh(f"cp -r {installed.source} /source; echo '# changed' >>/source/systemd/install")
        host.sh("sed -i 's|digest=\\$({|digest=000000000000; ignored=$({|' /source/systemd/install")
        said = host.run("/source/systemd/install", "--unit", UNIT, "--with-nats", environ={"PYTHON": host_python()})
        assert f"systemctl restart {UNIT}" in said.stdout, said.stdout + said.stderr
        assert set(host.sh(f"ls {program}").split()) == {old, "000000000000"}
        host.sh(f"systemctl restart {UNIT} nats-server")
        pid = host.show(UNIT, "MainPID")
        assert f"{program}/000000000000/" in host.sh(f"cat /proc/{pid}/cmdline")

        host.run("/source/systemd/install", "--remove", "--unit", UNIT, check=True)
        assert (
            host.run("systemctl", "is-active", UNIT, f"{UNIT}.socket", "nats-server").stdout.split() == ["inactive"] * 3
        )
        assert host.sh(
            f"ls -d /etc/{UNIT} /var/lib/{UNIT} /var/lib/nats {program} 2>/dev/null", check=False
        ).split() == [
            f"/etc/{UNIT}",
            f"/var/lib/{UNIT}",
            "/var/lib/nats",
        ]
