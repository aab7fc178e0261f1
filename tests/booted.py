"""
A systemd of a test's own: booted in new namespaces on an overlay of this machine, gone without a trace at the end.

Root may do this where the kernel has overlayfs and cgroup v2; `obstacle()` says what is missing. The booted host has
its own file system (this one underneath, written to in memory), processes, units, journal, network and hostname.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SYSTEMD = Path("/usr/lib/systemd/systemd")

# What belongs to the machine underneath and not to this host.
_MASKED = (
    *(
        f"systemd-{name}.service"
        for name in ("udevd", "udev-trigger", "sysctl", "modules-load", "binfmt", "random-seed")
    ),
    *(f"systemd-{name}.service" for name in ("update-utmp", "remount-fs", "tmpfiles-setup", "tmpfiles-setup-dev")),
    "systemd-journald-audit.socket",
    "systemd-logind.service",
    "console-getty.service",
)

_BOOT = """
set -e
space=$1
mount --make-rprivate /
mount -t tmpfs tmpfs "$space"
mkdir "$space/upper" "$space/work" "$space/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$space/upper,workdir=$space/work" "$space/root"
cd "$space/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
rm -rf etc/systemd/system/*.wants etc/systemd/system/*.service etc/systemd/system/*.d var/lib/private
for unit in $MASKED; do ln -sf /dev/null "etc/systemd/system/$unit"; done
mkdir -p etc/systemd/journald.conf.d .under
printf '[Journal]\\nReadKMsg=no\\nStorage=volatile\\n' >etc/systemd/journald.conf.d/test.conf
if [ -n "$2" ]; then cp -a "$2/." .; fi
pivot_root . .under
umount -l .under
mount --make-rshared /  # what systemd mounts for a unit must come back to it: credentials
export container=test
unset NOTIFY_SOCKET
exec /usr/lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=0
"""


def obstacle() -> str:
    """Why no systemd can be booted here; "" when nothing is known against it."""
    if os.geteuid() != 0:
        return "booting a systemd needs root"
    missing = [name for name in ("unshare", "nsenter", "pivot_root", "setpriv") if shutil.which(name) is None]
    if missing or not SYSTEMD.exists():
        return f"{', '.join(missing) or 'systemd'} is not installed"
    if _cgroup_root() is None:
        return "there is no cgroup v2"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "there is no overlayfs"
    return ""


def _cgroup_root() -> Path | None:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)


class Booted:
    """The host; `files` is a tree that is laid over its root before it boots."""

    def __init__(self, files: Path | None = None) -> None:
        root = _cgroup_root()
        assert root is not None
        self._cgroup = root / f"gatewayd-test-{os.getpid()}"
        self._space = Path(tempfile.mkdtemp(prefix="booted-"))
        self._files = files
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def boot(self, timeout_s: float = 15.0) -> None:
        """Boot it; RuntimeError with what was said when it does not come up."""
        self._cgroup.mkdir(exist_ok=True)
        flags = ("--mount", "--pid", "--fork", "--uts", "--ipc", "--net", "--cgroup", "--kill-child=SIGKILL")
        inside = ["unshare", *flags, "sh", "-c", _BOOT, "boot", str(self._space), str(self._files or "")]
        enter = f'echo $$ >"{self._cgroup}/cgroup.procs"; exec "$@"'
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c", enter, "enter", *inside],
            env={"PATH": os.environ["PATH"], "MASKED": " ".join(_MASKED)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
                self._init = int(children[0])
                if self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"):
                    return
            time.sleep(0.1)
        self._process.kill()
        assert self._process.stdout is not None
        said = self._process.stdout.read().decode("utf-8", "replace")
        self.close()
        raise RuntimeError(f"systemd did not boot: {said[-500:]}")

    def run(
        self, *command: str, timeout_s: float = 60.0, environ: Mapping[str, str] | None = None, check: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on the host as root, from /."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            ["nsenter", "--target", str(self._init), "--all", "--root", "--wd", *command],
            env={"PATH": path, "HOME": "/root", "LC_ALL": "C", **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def sh(self, script: str, *, timeout_s: float = 60.0, check: bool = True) -> str:
        """Run a script on the host; its stdout."""
        return self.run("sh", "-c", script, timeout_s=timeout_s, check=check).stdout

    def spawn(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        """Start a command on the host."""
        return subprocess.Popen(
            ["nsenter", "--target", str(self._init), "--all", "--root", "--wd", *command],
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit, check=True).stdout.strip()

    def close(self) -> None:
        """End everything in it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # unshare's child, the host's pid 1, goes with it, and everything goes with that
            self._process.wait(10)
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        deadline = time.monotonic() + 10
        while self._cgroup.exists() and time.monotonic() < deadline:
            for path in sorted(self._cgroup.rglob("*"), reverse=True):
                if path.is_dir():
                    _remove(path)
            _remove(self._cgroup)
            time.sleep(0.05)
        shutil.rmtree(self._space, ignore_errors=True)


def _remove(cgroup: Path) -> None:
    """Remove a cgroup unless a process of it is still dying."""
    try:
        cgroup.rmdir()
    except OSError:
        return
