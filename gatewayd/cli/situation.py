"""
Which settings, secrets and bodies a command works with.

Decides where each is looked for: settings as the gateway itself does, a sender's secret in fewer places. Never shows a
secret, nor a path that stands where one is expected, since a secret is sometimes pasted there by mistake.
"""

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from gatewayd.cli.console import Code, Failed, Surroundings
from gatewayd.cli.unit import CONFIG

if TYPE_CHECKING:
    from gatewayd.config import Loaded
    from gatewayd.secret import Secret
    from gatewayd.settings import Settings

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""Well above what a gateway takes, so that its refusal can be seen."""

DEFAULT_PORT: Final = "8001"

_DIRECTORIES: Final = ("HOME", "STATE_DIRECTORY", "XDG_STATE_HOME")


class _Place(click.IntRange):
    """A place in a list. What is none is not repeated: --key is easily taken for the secret itself."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail("the number of a secret in its list, from 1 on", param, ctx)


def complete_file(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a file's name."""
    return [CompletionItem(incomplete, type="file")]


Command = TypeVar("Command", bound=Callable[..., Any])

config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Settings file (TOML); the environment comes first.",
)


def load_settings(environ: Mapping[str, str], config_file: Path | None, *, strict: bool = False) -> "Loaded":
    """What the gateway would find in this environment and file."""
    from gatewayd.config import Facts, load

    facts = Facts(descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1])  # a gateway raises its limit to this
    if config_file is None and environ.get(CONFIG):
        config_file = Path(environ[CONFIG])
    return load(environ, config_file, Path.read_bytes, facts=facts, strict=strict)


def require_settings(environ: Mapping[str, str], config_file: Path | None) -> "Settings":
    """The settings; Failed names all problems."""
    loaded = load_settings(environ, config_file)
    if loaded.settings is None:
        raise Failed(Code.WRONG, *(str(problem) for problem in loaded.problems))
    return loaded.settings


def own_url(surroundings: Surroundings) -> str:
    """The gateway on this machine, by PORT alone; Failed when that is no port."""
    port = surroundings.environ.get("PORT", "").strip() or DEFAULT_PORT
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise Failed(Code.WRONG, "PORT is no port to send to; give --url")
    return f"http://127.0.0.1:{port}"


@dataclass(frozen=True, slots=True)
class SecretChoice:
    """Which secret to sign with, as the options say; `number` counts from 1 in a list of several."""

    source: str | None
    file: str | None
    number: int
    config_file: Path | None


def secret_options(command: Command) -> Command:
    """The options that choose a secret."""
    options = (
        click.option(
            "--secret-file",
            metavar="FILE",
            shell_complete=complete_file,
            help="The secret, or a list of them with commas, instead of API_KEY_HMAC_SECRET.",
        ),
        click.option(
            "--key",
            "number",
            metavar="N",
            type=_Place(min=1),
            default=1,
            show_default=True,
            help="Which secret of a list.",
        ),
        config_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def find_secret(environ: Mapping[str, str], choice: SecretChoice) -> "Secret":
    """
    The secret to sign with: of --secret-file; the source's own; the shared one; in development the generated one.

    Without --config only the variables of secrets count, so that a sender needs no other setting of the gateway.
    """
    from gatewayd.settings_values import is_source_name

    if choice.source is not None and not is_source_name(choice.source):
        raise Failed(Code.WRONG, "--source: letters, digits, _ and -, at most 64")
    if choice.file is not None:
        return _pick(_secrets_of_file(choice.file), choice.number)
    settings = _sender_settings(environ, choice)
    source = settings.sources.get(choice.source) if choice.source is not None else None
    if choice.source is not None and source is None:
        raise Failed(Code.WRONG, f"--source {choice.source}: not in ALLOWED_SOURCES")
    found = (source.secrets if source is not None else ()) or settings.shared_secrets
    return _pick(found or _generated(settings.state_directory), choice.number)


def _sender_settings(environ: Mapping[str, str], choice: SecretChoice) -> "Settings":
    if choice.config_file is not None:
        return require_settings(environ, choice.config_file)
    from gatewayd.settings_row import SECRET
    from gatewayd.settings_table import secret_name

    names = [SECRET, *([secret_name(choice.source)] if choice.source is not None else [])]
    wanted = {*names, *(f"{name}_FILE" for name in names), "CREDENTIALS_DIRECTORY", *_DIRECTORIES}
    few = {name: environ[name] for name in wanted if name in environ}
    if not few.keys() & {*_DIRECTORIES}:
        few["STATE_DIRECTORY"] = "/"  # nothing is read from there; without any there would be no settings at all
    if choice.source is not None:
        few["ALLOWED_SOURCES"] = choice.source
    return require_settings(few, None)


def _secrets_of_file(path: str) -> "tuple[Secret, ...]":
    from gatewayd.settings_row import SECRET

    loaded = load_settings({f"{SECRET}_FILE": path, "STATE_DIRECTORY": "/"}, None)
    if loaded.settings is None:
        reasons = (problem.reason.replace(f"{SECRET}_FILE", "--secret-file") for problem in loaded.problems)
        raise Failed(Code.WRONG, *(f"--secret-file: {reason}" for reason in reasons))
    return loaded.settings.shared_secrets


def _generated(state_directory: Path) -> "tuple[Secret, ...]":
    """The secret that development mode made and keeps."""
    from gatewayd import state_files
    from gatewayd.secret import Secret

    path = state_directory / state_files.SECRET
    try:
        value = path.read_bytes().strip()
    except FileNotFoundError:
        value = b""
    except OSError as error:
        raise Failed(Code.WRONG, f"the secret in {path} cannot be read: {error.strerror}") from None
    if not value:
        raise Failed(
            Code.WRONG,
            "no secret: set API_KEY_HMAC_SECRET, or give --secret-file, or with --source a source that has its own; "
            f"no gateway in development left one in {path}",
        )
    return (Secret(value),)


def _pick(secrets: "tuple[Secret, ...]", number: int) -> "Secret":
    if number > len(secrets):
        raise Failed(Code.WRONG, f"--key {number}: there {'is' if len(secrets) == 1 else 'are'} only {len(secrets)}")
    return secrets[number - 1]


def read_body(surroundings: Surroundings, file: str | None, data: str | None) -> bytes | None:
    """The body's exact bytes, from FILE, from stdin for `-`, or from --data; None when neither is given."""
    if file is not None and data is not None:
        raise Failed(Code.WRONG, "FILE and --data: give one of them")
    if data is not None:
        return data.encode("utf-8", "surrogateescape")
    if file is None:
        return None
    try:
        if file == "-":
            body = surroundings.stdin().read(MAX_BODY_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                body = opened.read(MAX_BODY_BYTES + 1)
    except OSError as error:
        raise Failed(Code.WRONG, f"{file} cannot be read: {error.strerror or type(error).__name__}") from None
    if len(body) > MAX_BODY_BYTES:
        raise Failed(Code.WRONG, f"{file} has more than {MAX_BODY_BYTES} bytes")
    return body
