"""
What one row of the tables of settings says. Pure.

Decides nothing: settings_table and settings_edge hold the rows, and whoever reads a setting is told by its row.
"""

from dataclasses import dataclass
from typing import Final

from gatewayd.settings_values import Kind

SECRET: Final = "API_KEY_HMAC_SECRET"  # noqa: S105 -- a name


@dataclass(frozen=True, slots=True)
class Row:
    """
    One setting. `default` is a text of its kind; where it is None, `otherwise` says in words what holds instead (none,
    or what follows from other settings). `filed`: the value may also stand in the file that NAME_FILE names.
    `secret`: never shown, and also looked for in $CREDENTIALS_DIRECTORY. `reloadable`: SIGHUP takes a new value over.
    """

    name: str
    kind: Kind
    default: str | None
    meaning: str
    otherwise: str = "none"
    secret: bool = False
    filed: bool = False
    reloadable: bool = False

    @property
    def field(self) -> str:
        """The name of its field in Settings, or in EdgeSettings for a row of the edge's."""
        return "shared_secrets" if self.name == SECRET else self.name.lower()
