"""The package as it is installed: a wheel in a fresh environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway import ROOT


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with what the lock names and the wheel of this tree in it, and nothing else."""
    root = tmp_path_factory.mktemp("package")
    source = root / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    environment = root / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    locked = [*pip, "--require-hashes", "-r", str(source / "requirements.txt")]
    for command in (locked, [*pip, "--no-deps", str(source)]):
        subprocess.run(command, check=True, capture_output=True, text=True)
    return environment


def run(environment: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run one of the environment's commands, away from the source tree."""
    kept = {"PATH": os.environ["PATH"], "HOME": str(environment)}
    return subprocess.run(command, cwd=environment, env=kept, capture_output=True, text=True, timeout=60, check=False)


def test_twistd_finds_the_plugin(environment: Path) -> None:
    """`twistd --help` lists gatewayd, and Twisted's own plugins are still there."""
    done = run(environment, str(environment / "bin" / "twistd"), "--help")
    assert done.returncode == 0, done.stderr
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line.split()]
    assert {"gatewayd", "web"} <= set(lines)


def test_gatewayctl_is_installed(environment: Path) -> None:
    """The command is there, and knows its version."""
    done = run(environment, str(environment / "bin" / "gatewayctl"), "--version")
    assert done.returncode == 0, done.stderr
    assert "0.1.0" in done.stdout


def test_everything_is_in_the_wheel(environment: Path) -> None:
    """Every module and every data file of the tree is installed; nothing of the tests is."""
    (site,) = environment.glob("lib/python*/site-packages")
    ours = {
        path.relative_to(ROOT) for path in (ROOT / "gatewayd").rglob("*") if path.suffix in {".py", ".json", ".typed"}
    }
    ours.add(Path("twisted/plugins/gatewayd_plugin.py"))
    missing = [str(path) for path in ours if not (site / path).exists()]
    assert not missing
    assert not (site / "tests").exists()
