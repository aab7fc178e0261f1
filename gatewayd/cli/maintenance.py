"""
`gatewayctl maintenance`: the file that switches a running gateway's maintenance.

Decides what the file says and that it is replaced in one step. Never talks to the gateway, which looks at the file
every second.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gatewayd import state_files
from gatewayd.cli.console import Code, Failed, Surroundings, json_option, json_or_none, note, plain, show_as
from gatewayd.cli.replacement import replace_file
from gatewayd.cli.situation import config_option, load_settings
from gatewayd.times import Wall, format_wall, parse_rfc3339

if TYPE_CHECKING:
    from gatewayd.maintenance import Window
    from gatewayd.settings import Settings

LONGEST_S: Final = 30 * 86400.0
_MAX_FILE_BYTES: Final = 65536
_DEFAULT_RETRY_AFTER_S: Final = 300.0

directory_option = click.option(
    "--state-directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The running gateway's state directory; no other setting is read then.",
)


@click.group()
def maintenance() -> None:
    """
    Switch maintenance on or off, without a restart.

    A file in the running gateway's state directory is the switch. Under systemd that directory is known to the unit
    only: name it with --state-directory (/var/lib/gatewayd, say) or in STATE_DIRECTORY.
    """


@maintenance.command()
@click.option("--until", metavar="TIME", help="When it ends: RFC 3339 with a zone.")
@click.option("--for", "lasting", metavar="DURATION", help="How long it lasts: 90s, 10m, 2h.")
@click.option("--reason", metavar="TEXT", help="Kept in the file, for people; clients do not see it.")
@directory_option
@config_option
@json_option
@click.pass_obj
def on(
    surroundings: Surroundings,
    *,
    until: str | None,
    lasting: str | None,
    reason: str | None,
    state_directory: Path | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """
    Answer every webhook 503 GW-011, until `maintenance off` or the end given here.

    Senders that retry lose nothing: they are told when to come back. Probes and metrics are answered as ever.
    """
    now = surroundings.wall()
    end = _end(now, until, lasting)
    place = _Place.find(surroundings, state_directory, config_file)
    members: dict[str, str | None] = {"until": None if end is None else format_wall(end), "since": format_wall(now)}
    if reason is not None:
        members["reason"] = reason
    place.write(json.dumps(members).encode() + b"\n")
    _report(place, surroundings, as_json=as_json)


@maintenance.command()
@directory_option
@config_option
@json_option
@click.pass_obj
def off(
    surroundings: Surroundings,
    state_directory: Path | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Take webhooks again within a second."""
    place = _Place.find(surroundings, state_directory, config_file)
    if not place.remove():
        note(f"{place.file} was not there")
    _report(place, surroundings, as_json=as_json)


@maintenance.command()
@directory_option
@config_option
@json_option
@click.pass_obj
def status(
    surroundings: Surroundings,
    state_directory: Path | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Say whether maintenance is on, by the file and by the settings of this environment."""
    _report(_Place.find(surroundings, state_directory, config_file), surroundings, as_json=as_json)


def _end(now: Wall, until: str | None, lasting: str | None) -> Wall | None:
    if until is not None and lasting is not None:
        raise Failed(Code.WRONG, "--until and --for: give one of them")
    if until is not None:
        end = parse_rfc3339(until)
        if end is None:
            raise Failed(Code.WRONG, "--until: RFC 3339 with a zone, as in 2026-01-31T18:00:00Z")
        if end <= now:
            raise Failed(Code.WRONG, f"--until {until} has passed")
        return end
    if lasting is None:
        return None
    from gatewayd.settings_values import duration

    kind = duration(1, LONGEST_S)
    seconds = kind.parse((lasting,))
    if not isinstance(seconds, float):
        raise Failed(Code.WRONG, f"--for: {kind.allowed}")
    return Wall(now + seconds)


class _Place:
    """The switch of one gateway: its file, and what the settings add."""

    def __init__(self, directory: Path, settings: "Settings | None") -> None:
        self.directory = directory
        self.file = directory / state_files.MAINTENANCE
        self._settings = settings

    @classmethod
    def find(cls, surroundings: Surroundings, state_directory: Path | None, config_file: Path | None) -> "_Place":
        """
        The directory named by the option or the settings. It must be there: a file in a directory that no gateway
        looks into would switch nothing, and nobody would notice.
        """
        settings = None
        if state_directory is None:
            loaded = load_settings(surroundings.environ, config_file)
            settings = loaded.settings
            if settings is None:
                problems = (str(problem) for problem in loaded.problems)
                raise Failed(Code.WRONG, *problems, "--state-directory DIR does without the settings")
            state_directory = settings.state_directory
        if not state_directory.is_dir():
            raise Failed(
                Code.WRONG,
                f"there is no directory {state_directory}: name the running gateway's with --state-directory",
            )
        return cls(state_directory, settings)

    def write(self, content: bytes) -> None:
        """Replace the file in one step; readable for a gateway that runs as another user."""
        replace_file(self.file, content, 0o644)

    def remove(self) -> bool:
        """True when there was a file."""
        try:
            self.file.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise Failed(Code.WRONG, f"{self.file} cannot be removed: {error.strerror}") from None
        return True

    def read(self) -> bytes | None:
        """What the file says; None when there is none."""
        try:
            with self.file.open("rb") as file:
                return file.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failed(Code.WRONG, f"{self.file} cannot be read: {error.strerror}") from None

    def window(self, surroundings: Surroundings, content: bytes | None, *, by_settings: bool) -> "Window | None":
        """The window that is open now, as the gateway would judge it."""
        from gatewayd.maintenance import Maintenance

        settings = self._settings if by_settings else None
        switch = Maintenance(
            surroundings.wall,
            on=settings is not None and settings.maintenance_mode,
            until=None if settings is None else settings.maintenance_until,
            retry_after_s=_DEFAULT_RETRY_AFTER_S if self._settings is None else self._settings.maintenance_retry_after,
        )
        switch.read_file(content)
        return switch.window()


def _report(place: _Place, surroundings: Surroundings, *, as_json: bool) -> None:
    """What clients get from now on."""
    content = place.read()
    window = place.window(surroundings, content, by_settings=True)
    by_file = place.window(surroundings, content, by_settings=False) is not None
    found = json_or_none(content) if content is not None else None
    members = found if isinstance(found, dict) else {}
    if content is not None and found is None:
        note(f"{place.file} cannot be understood; the gateway takes that for maintenance without a known end")
    value: dict[str, object] = {"on": window is not None, "file": str(place.file)}
    lines = [f"maintenance is off ({place.file})"]
    if window is not None:
        wait_s = max(1, -int(-window.retry_after_s // 1))
        end = window.text or "until it is switched off"
        value |= {"until": None if window.until is None else format_wall(window.until), "retry_after_s": wait_s}
        value |= {
            "by": "file" if by_file else "settings",
            "since": members.get("since"),
            "reason": members.get("reason"),
        }
        lines = [
            f"maintenance is on, {end} ({place.file if by_file else 'MAINTENANCE_MODE'})",
            f"clients get: HTTP 503, GW-011 maintenance_mode, Retry-After: {wait_s}",
        ]
        lines += [f"{name}: {plain(members[name])}" for name in ("since", "reason") if by_file and members.get(name)]
        if not by_file:
            note("the file is not the reason: MAINTENANCE_MODE is set; unset it and reload (SIGHUP)")
    show_as(as_json, value, lines)
