"""
`gatewayctl env`: the environment file of the systemd unit.

Decides which file it is, that a change is judged by the gateway's own checks before it is written, that it is written
in one step, and what is to be done next. Never shows a secret and never takes one from the command line.
"""

import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from gatewayd.cli.console import Code, Failed, Surroundings, json_option, note, plain, show_as
from gatewayd.cli.environment_file import Unwritable, values, with_value, without
from gatewayd.cli.replacement import replace_file
from gatewayd.cli.unit import CONFIG_NAME, FILE, UNIT, conventional_file

_MAX_SECRET_BYTES: Final = 65536


@click.group()
def env() -> None:
    """
    Show or change the environment file of the systemd unit.

    A shell's variables never reach a unit; what stands in this file does, from the unit's next start on.
    """


def _target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--unit", metavar="NAME", help=f"The unit; {UNIT} stands for it."),
        click.option(
            "--file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help=f"The environment file, instead of the unit's; {FILE} stands for it.",
        ),
    ):
        command = option(command)
    return command


restart_option = click.option("--restart", is_flag=True, help="Restart the unit when the file is written.")


@env.command("show")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_target_options
@json_option
@click.pass_obj
def show_environment(
    surroundings: Surroundings, *, names: tuple[str, ...], unit: str | None, file: Path | None, as_json: bool
) -> None:
    """Print what the file sets, or of it the settings named. Of secrets only how long they are."""
    target = _Target.find(surroundings, unit, file)
    found = values(target.read())
    for name in names:
        if name not in found:
            note(f"{name} is not set in {target.file}")
    shown = {name: shown_value(name, found[name]) for name in (names or found) if name in found}
    show_as(as_json, shown, (f"{name}={value}" for name, value in shown.items()))


@env.command("set")
@click.argument("settings", metavar="NAME=VALUE...", nargs=-1, required=True)
@click.option("--from-stdin", is_flag=True, help="NAME alone is given, its value is read from stdin: for secrets.")
@restart_option
@_target_options
@json_option
@click.pass_obj
def set_values(
    surroundings: Surroundings,
    *,
    settings: tuple[str, ...],
    from_stdin: bool,
    restart: bool,
    unit: str | None,
    file: Path | None,
    as_json: bool,
) -> None:
    """
    Set settings, after the gateway's own checks: when one finds a new problem, nothing is written.

    Comments, order and everything else in the file stay as they are. A secret is taken from stdin only, since every
    user of the machine can read a command line.
    """
    if from_stdin:
        if len(settings) != 1 or "=" in settings[0]:
            raise Failed(Code.WRONG, "--from-stdin: give one NAME, without a value")
        given = {settings[0]: _read_value(surroundings)}
    else:
        given = dict(_split(text) for text in settings)
    _Target.find(surroundings, unit, file).change(given, restart=restart, as_json=as_json)


@env.command("unset")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@restart_option
@_target_options
@json_option
@click.pass_obj
def unset_values(
    surroundings: Surroundings,
    *,
    names: tuple[str, ...],
    restart: bool,
    unit: str | None,
    file: Path | None,
    as_json: bool,
) -> None:
    """Take settings out of the file, so that their defaults hold again; checked in the same way."""
    _Target.find(surroundings, unit, file).change(dict.fromkeys(names), restart=restart, as_json=as_json)


def shown_value(name: str, value: str) -> str:
    """A value for people: nothing of a secret, nor of a path that stands where a secret's path should."""
    from gatewayd.settings_table import SECRET_OF_SOURCE, TABLE

    row = TABLE.get(name.removesuffix("_FILE"))
    if name.endswith("_FILE") and (row is None or row.name != name):
        return plain(value) if value.startswith("/") else f"<{len(value)} characters that are no path>"
    if row is None or row.secret or name.startswith(SECRET_OF_SOURCE):
        return f"<set: {len(value.encode('utf-8', 'surrogateescape'))} bytes>"
    return "<set, with a login in it>" if row.kind.private(value) else plain(value)


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        # What has no = may be a secret that lost its name.
        raise Failed(Code.WRONG, "give NAME=VALUE (or --from-stdin and one NAME)")
    if _is_secret(name, value):
        raise Failed(
            Code.WRONG,
            f"{plain(name)}: every user of this machine can read a command line; `--from-stdin` takes it from there, "
            f"and secrets can stand in files ({_file_form(name)})",
        )
    if not value.strip():
        raise Failed(Code.WRONG, f"{plain(name)}: an empty value counts as not set; `gatewayctl env unset` does that")
    return name, value


def _is_secret(name: str, value: str) -> bool:
    from gatewayd.settings_table import SECRET_OF_SOURCE, TABLE

    if name.endswith("_FILE"):
        return False
    row = TABLE.get(name)
    return name.startswith(SECRET_OF_SOURCE) or (row is not None and (row.secret or row.kind.private(value)))


def _file_form(name: str) -> str:
    return "NATS_USER and NATS_PASSWORD_FILE" if name == "NATS_URL" else f"{plain(name)}_FILE"


def _read_value(surroundings: Surroundings) -> str:
    try:
        data = surroundings.stdin().read(_MAX_SECRET_BYTES + 1)
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise Failed(Code.WRONG, f"stdin cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failed(Code.WRONG, "stdin is not UTF-8") from None
    if not text or len(data) > _MAX_SECRET_BYTES:
        raise Failed(Code.WRONG, f"stdin: 1 to {_MAX_SECRET_BYTES} bytes are expected")
    return text


@dataclass(frozen=True, slots=True)
class _Target:
    """One environment file, and the unit that it belongs to ("" when only the file was named)."""

    file: Path
    unit: str
    systemctl: str | None

    @classmethod
    def find(cls, surroundings: Surroundings, unit: str | None, file: Path | None) -> "_Target":
        """The file that was named, else the one that systemd says the unit has, else the installer's."""
        environ = surroundings.environ
        unit = (unit or environ.get(UNIT, "")).removesuffix(".service")
        systemctl = shutil.which("systemctl", path=environ.get("PATH", os.defpath))
        named = file or (Path(environ[FILE]) if environ.get(FILE) else None)
        if named is None:
            if not unit:
                raise Failed(Code.WRONG, "which unit? --unit NAME, or --file FILE")
            named = _file_of_unit(systemctl, unit) or conventional_file(unit)
        try:
            return cls(named.resolve(strict=True), unit, systemctl)
        except OSError as error:
            raise Failed(Code.WRONG, f"{named} cannot be found: {error.strerror}") from None

    def read(self) -> str:
        """The file's text; Failed when it cannot be read."""
        try:
            return self.file.read_bytes().decode("utf-8")
        except OSError as error:
            raise Failed(Code.WRONG, f"{self.file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise Failed(Code.WRONG, f"{self.file} is not UTF-8") from None

    def change(self, given: Mapping[str, str | None], *, restart: bool, as_json: bool) -> None:
        """Set, or unset where the value is None; then say or do what is next."""
        for name, value in given.items():
            _require_setting(name, unsets=value is None)
        if restart and not (self.unit and self.systemctl):
            raise Failed(Code.WRONG, "--restart: " + ("there is no systemctl" if self.unit else "name the unit, too"))
        with self._locked():
            before = self.read()
            after = before
            for name, value in given.items():
                try:
                    after = without(after, name) if value is None else with_value(after, name, value)
                except Unwritable as error:
                    raise Failed(Code.WRONG, f"{name}: {error}") from None
            self._judge(before, after)
            if after != before:
                self._write(after, private=any(value and _is_secret(name, value) for name, value in given.items()))
        shown = {name: None if value is None else shown_value(name, value) for name, value in given.items()}
        lines = [f"{name} is not set" if value is None else f"{name}={value}" for name, value in shown.items()]
        members = {"file": str(self.file), "changed": after != before, "set": shown, "restarted": restart}
        show_as(as_json, members, [*lines, f"{self.file}: {'written' if after != before else 'as it was'}"])
        if restart:
            self._restart()
        elif after != before:
            self._say_next(given)

    def _judge(self, before: str, after: str) -> None:
        """Failed when the change brings a problem that was not there; the others are only told."""
        old, new = self._problems(before), self._problems(after)
        fresh = [problem for problem in new if problem not in old]
        if fresh:
            raise Failed(Code.WRONG, *fresh, f"{self.file} is as it was")
        for problem in new:
            note(f"still a problem: {problem}")

    def _problems(self, text: str) -> Sequence[str]:
        from gatewayd.cli.situation import load_settings

        config = self.file.with_name(CONFIG_NAME)
        environ = {"STATE_DIRECTORY": f"/var/lib/{self.unit or 'gatewayd'}", **values(text)}
        loaded = load_settings(environ, config if config.exists() else None, strict=True)
        return [str(problem) for problem in loaded.problems]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One change after the other: two at once would each write what it read, and one would be lost."""
        try:
            descriptor = os.open(self.file.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise Failed(Code.WRONG, f"{self.file.parent} cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, text: str, *, private: bool) -> None:
        """Replace the file in one step, with its owner and mode; others may not read what holds a secret."""
        try:
            status = self.file.stat()
        except OSError as error:
            raise Failed(Code.WRONG, f"{self.file} cannot be written: {error.strerror}") from None
        mode = stat.S_IMODE(status.st_mode) & (~0o007 if private else ~0)
        replace_file(self.file, text.encode("utf-8"), mode, (status.st_uid, status.st_gid))

    def _restart(self) -> None:
        assert self.systemctl is not None  # noqa: S101 - change() has seen to it
        done = subprocess.run([self.systemctl, "restart", self.unit], stdin=subprocess.DEVNULL, check=False)  # noqa: S603
        if done.returncode:
            raise Failed(
                Code.NOT_IN_ORDER,
                f"{self.file} is written, but {self.unit} could not be restarted; `journalctl -u {self.unit}` says why",
            )
        note(f"{self.unit} was restarted")

    def _say_next(self, names: Iterable[str]) -> None:
        from gatewayd.settings_table import TABLE

        unit = self.unit or "UNIT"
        note(f"in force from the next start on: systemctl restart {unit}")
        live = [name.lower() for name in names if name in TABLE and TABLE[name].reloadable and not TABLE[name].secret]
        if live and self.file.with_name(CONFIG_NAME).exists():
            note(
                f"without a restart: {', '.join(live)} in {self.file.with_name(CONFIG_NAME)} (and not here: this file "
                f"comes first), then systemctl reload {unit}"
            )


def _file_of_unit(systemctl: str | None, unit: str) -> Path | None:
    """The last environment file that systemd knows the unit to have: what stands there comes last, and so it counts."""
    if systemctl is None:
        return None
    command = [systemctl, "show", "--property=EnvironmentFiles", "--value", "--", unit]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if line.startswith("/")]
    return Path(lines[-1].rpartition(" (")[0] or lines[-1]) if lines and done.returncode == 0 else None


def _require_setting(name: str, *, unsets: bool) -> None:
    """Failed for what is no setting; what is none any more may still be unset."""
    from gatewayd.settings_origins import nearest
    from gatewayd.settings_table import SECRET_OF_SOURCE, TABLE, refusal

    filed = [f"{row.name}_FILE" for row in TABLE.values() if row.filed]
    if unsets or name in TABLE or name in filed or name.startswith(SECRET_OF_SOURCE):
        return
    reason = refusal(name) or f"is not a setting{nearest(name, [*TABLE, *filed])}"
    raise Failed(Code.WRONG, f"{plain(name)} {reason}")
