"""
The systemd unit that a gatewayctl belongs to, as the installer's command tells it.

Decides where a unit's files are by convention, and that its settings stand behind one's own. Never changes a file
(environment does) and never runs anything.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gatewayd.cli.environment_file import merged, values

UNIT: Final = "GATEWAYCTL_UNIT"
FILE: Final = "GATEWAYCTL_ENV_FILE"
CONFIG: Final = "GATEWAYCTL_CONFIG"
"""The variables that stand for --unit, for --file of `env`, and for --config."""
CONFIG_NAME: Final = "at_gateway.toml"


def conventional_file(unit: str) -> Path:
    """Where the installer puts a unit's environment file."""
    return Path(f"/etc/{unit}/{unit}.env")


def unit_environment(environ: Mapping[str, str]) -> Mapping[str, str]:
    """
    `environ` over that of its unit, so that every command finds the settings that the unit has.

    `environ` alone where it names no unit, or where the unit's file is not for this user to read.
    """
    unit = environ.get(UNIT, "")
    if not unit:
        return environ
    file = Path(environ.get(FILE) or conventional_file(unit))
    try:
        of_unit = values(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return environ
    config = file.with_name(CONFIG_NAME)
    if config.exists():
        of_unit = {CONFIG: str(config), **of_unit}
    return merged(environ, {"STATE_DIRECTORY": f"/var/lib/{unit}", **of_unit})
