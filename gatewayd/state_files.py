"""The files of the state directory that the daemon and its tools both know, by name. Pure."""

from typing import Final

SECRET: Final = "hmac-secret"  # noqa: S105 - a file's name
"""Development's secret for signatures; readable by its user only."""

MAINTENANCE: Final = "maintenance.json"
"""While it is there, maintenance is on; {"until": RFC 3339 or null}."""

CLIENT: Final = "nats/client.json"
"""How to reach the embedded server of the present run: url, user, password; readable by its user only."""
