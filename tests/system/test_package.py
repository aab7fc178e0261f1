"""The package as it is installed: a wheel in a fresh environment."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.gateway import ROOT
from tests.installed import Installed


@pytest.fixture
def environment(installed: Installed) -> Path:
    """A new virtual environment with what the lock names and the wheel of this tree in it, and nothing else."""
    return installed.program


def run(environment: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run one of the environment's commands, away from the source tree."""
    kept = {"PATH": os.environ["PATH"], "HOME": str(environment)}
    return subprocess.run(
        [str(environment / "bin" / "python"), *command],
        cwd=environment,
        env=kept,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


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
    kinds = {".py", ".pyi", ".json", ".lua", ".proto", ".typed"}
    ours = {path.relative_to(ROOT) for path in (ROOT / "gatewayd").rglob("*") if path.suffix in kinds}
    ours.add(Path("twisted/plugins/gatewayd_plugin.py"))
    missing = [str(path) for path in ours if not (site / path).exists()]
    assert not missing
    assert not (site / "tests").exists()
