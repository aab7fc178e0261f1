"""
Where the texts of settings stand. Pure but for the reader of files that it is handed.

Decides which of the places counts (the environment first, then the TOML file; of a list or secret the value itself,
NAME_FILE or a credential, and never two of them) and which names must not be there at all. Never decides what a text
means (config and the table do). What it says holds no part of a secret, nor the path in a NAME_FILE of one, where the
secret itself is sometimes pasted by mistake.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeAlias

from gatewayd.settings_row import Row
from gatewayd.settings_table import (
    IGNORED,
    RETIRED,
    SECRET_OF_SOURCE,
    TABLE,
    is_platforms,
    refusal,
)

MAX_FILE_BYTES: Final = 1 << 20
"""A configuration file, a list or a secret is at most this long."""
ENVIRONMENT: Final = "environment"
_SHOWN_CHARACTERS: Final = 200
_BLANKS: Final = " \t\r\n"
_LARGEST_INTEGER: Final = 2**63

Reader: TypeAlias = Callable[[Path], bytes]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the setting, its value as given (None: there is none, or it is not shown), and why."""

    setting: str
    reason: str
    value: str | None = None

    def __str__(self) -> str:
        return f"{self.setting}: {self.reason}" if self.value is None else f"{self.setting}={self.value}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was found: the items of a list, or a tuple of one text."""

    items: tuple[str, ...]
    origin: str


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where one value may stand: `variable` in the environment ("" for none), `key` in `table` of the file; `label` is
    what messages call it.
    """

    row: Row
    label: str
    variable: str
    table: Mapping[str, Any]
    key: str


def shown(text: str) -> str:
    """A text fit for one line of a message: bounded, and escaped when it does not print."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return cut if cut.isprintable() else ascii(cut)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that may have been meant, "" when none is near."""
    names = list(known)
    bare = name.removeprefix("GATEWAY_")
    found = [bare] if bare in names else get_close_matches(name, names, 1) or get_close_matches(bare, names, 1)
    return f"; perhaps {found[0]}" if found else ""


def items_of(row: Row, text: str) -> tuple[str, ...]:
    """The items of a list, without the blanks around them; another kind's text as it is, a secret even with blanks."""
    if row.kind.many:
        return tuple(item.strip(_BLANKS) for item in text.split(",")) if text.strip() or row.secret else ()
    return (text if row.secret else text.strip(),)


def _toml_text(value: object) -> str | None:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return value
        case int() if abs(value) >= _LARGEST_INTEGER:  # TOML's range; repr() of a very large one raises
            return None
        case int() | float():
            return repr(value)
        case datetime():
            return value.isoformat()
    return None


def _toml_items(row: Row, value: object) -> tuple[str, ...] | None:
    """What the environment would have given for a TOML value; None for a type that stands for nothing."""
    if isinstance(value, list) and row.kind.many:
        texts = [_toml_text(item) for item in value]
        return None if None in texts else tuple(text.strip(_BLANKS) for text in texts if text is not None)
    text = _toml_text(value)
    return None if text is None else items_of(row, text)


class Origins:
    """
    The environment, the configuration file and the files of lists and secrets, and what is wrong with them so far.

    `top` is the file's table, `problems`, `warnings` and `notes` are added to by whoever finds some.
    """

    def __init__(self, environ: Mapping[str, str], config_file: Path | None, read: Reader) -> None:
        self.environ = environ
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._failed: set[str] = set()
        self._read = read
        self.top: Mapping[str, Any] = {} if config_file is None else self._parse(config_file)

    def problem(self, setting: str, reason: str, value: str | None = None) -> None:
        """Note what is wrong with a setting; `value` only when it may be shown."""
        found = Problem(shown(setting), reason, None if value is None else shown(value))
        if found not in self.problems:
            self.problems.append(found)
        self._failed.add(setting)

    def sound(self, *settings: str) -> bool:
        """True while nothing is wrong with any of them, so that judging them together makes sense."""
        return self._failed.isdisjoint(settings)

    def find(self, place: Place) -> Given | None:
        """The one form in which a value is given; None when there is none, or when something is wrong with it."""
        forms = [self._inline(place)]
        if place.row.filed:
            forms.append(self._from_file(place))
        if place.row.secret and place.variable:
            forms.append(self._from_credential(place))
        found = [given for given in forms if given is not None]
        if len(found) > 1:
            self.problem(place.label, f"is given twice ({' and '.join(given.origin for given in found)}); keep one")
            return None
        return found[0] if found else None

    def judge_environment(self, known: Iterable[str], *, strict: bool) -> None:
        """Refuse names that are retired or not available; warn of unknown GATEWAY_* names, or refuse when `strict`."""
        names = set(known)
        for name, value in sorted(self.environ.items()):
            if is_platforms(name, value) or (not value.strip() and name not in RETIRED):
                continue
            if name in IGNORED:
                self.notes.append(f"{name} is ignored: {IGNORED[name]}")
            elif reason := refusal(name):
                self.problem(name, reason)
            elif name.startswith("GATEWAY_") and name not in names:
                reason = f"is not a setting{nearest(name, names)}"
                if strict:
                    self.problem(name, reason)
                else:
                    self.warnings.append(f"{shown(name)} {reason}")

    def judge_file(self, known: Iterable[str]) -> None:
        """Refuse every key of the configuration file that is not known."""
        keys = set(known)
        for key in sorted(self.top):
            if key in keys:
                continue
            if key.upper() in IGNORED:
                self.notes.append(f"{key} is ignored: {IGNORED[key.upper()]}")
            elif reason := refusal(key.upper()):
                self.problem(key, reason)
            elif key.startswith(SECRET_OF_SOURCE.lower()):
                self.problem(key, "is not a setting of the file; a source's own secrets stand in [sources.<name>]")
            else:
                lower = f"; perhaps {key.lower()}" if key.upper() in TABLE else nearest(key, keys)
                self.problem(key, f"is not a setting of the file{lower}")

    def _parse(self, config_file: Path) -> Mapping[str, Any]:
        try:
            return tomllib.loads(self._bytes(config_file).decode("utf-8-sig"))
        except OSError as error:
            reason = _why_unreadable(error)
        except UnicodeDecodeError:
            reason = "is not UTF-8"
        except tomllib.TOMLDecodeError as error:
            reason = f"is not TOML: {error}"
        except (ValueError, RecursionError):
            reason = "is not TOML: a number is too long, or it is nested too deeply"
        self.problem("--config", reason, str(config_file))
        return {}

    def _inline(self, place: Place) -> Given | None:
        row, text = place.row, self.environ.get(place.variable)
        # Empty counts as not set, as composed environments pass variables on. Not so for secrets that sign: who meant
        # to give one must not be left with none, or with a made one.
        signs = row.secret and row.kind.many
        if text is not None and (text.strip() or signs):
            return Given(items_of(row, text), ENVIRONMENT)
        if place.key not in place.table:
            return None
        items = _toml_items(row, place.table[place.key])
        if items is None:
            self.problem(place.label, f"{row.kind.allowed}; the file's value is of another type")
            return None
        return Given(items, "configuration file") if signs or any(items) else None

    def _from_file(self, place: Place) -> Given | None:
        name = f"{place.variable}_FILE"
        path: object = self.environ.get(name, "").strip() if place.variable else ""
        if not path:
            name = f"{place.key}_file"
            path = place.table.get(name, "")
        if not isinstance(path, str):
            self.problem(place.label, f"{name} is a path")
            return None
        return self._contents(place, Path(path), name) if path.strip() else None

    def _from_credential(self, place: Place) -> Given | None:
        directory = self.environ.get("CREDENTIALS_DIRECTORY", "")
        return self._contents(place, Path(directory) / place.variable, "credential") if directory else None

    def _contents(self, place: Place, path: Path, origin: str) -> Given | None:
        try:
            data = self._bytes(path)
        except OSError as error:
            if origin != "credential" or not isinstance(error, FileNotFoundError):
                self.problem(place.label, f"the file ({origin}) {_why_unreadable(error)}")
            return None
        text = data.decode("utf-8", "surrogateescape")
        if place.row.secret or not place.row.kind.many:
            return Given(items_of(place.row, text.rstrip("\r\n")), origin)
        lines = (line.partition("#")[0].replace(",", " ") for line in text.splitlines())
        return Given(tuple(item for line in lines for item in line.split()), origin)

    def _bytes(self, path: Path) -> bytes:
        """The bytes of a file of bounded length; every reason not to have them is an OSError."""
        if "\0" in str(path):
            raise OSError(0, "its path holds NUL")
        data = self._read(path)
        if len(data) > MAX_FILE_BYTES:
            raise OSError(0, f"it has more than {MAX_FILE_BYTES} bytes")
        return data


def _why_unreadable(error: OSError) -> str:
    # Not str(error): that repeats the path, which for a secret's file may be the secret itself.
    return f"cannot be read: {error.strerror or type(error).__name__}"
