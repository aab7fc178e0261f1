"""
What development mode invents: a secret, kept from run to run, and a command to try the gateway with.

Decides where the secret lies and what the command says. Never used in production, and never shows the secret: the
command reads it from its file.
"""

import os
import secrets
import shlex
from dataclasses import replace
from pathlib import Path

from gatewayd import state_files
from gatewayd.lifecycle import StartFailed
from gatewayd.secret import Secret
from gatewayd.settings import Settings


def keep_secret(state_directory: Path) -> tuple[Secret, Path]:
    """
    The secret of this state directory, made (mode 0600) when there is none; and its file.

    OSError when it can be neither read nor made.
    """
    path = state_directory / state_files.SECRET
    state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return Secret(path.read_bytes().strip()), path
    made = secrets.token_urlsafe(32).encode("ascii")
    with os.fdopen(descriptor, "wb") as file:
        file.write(made + b"\n")
    return Secret(made), path


def complete_settings(settings: Settings) -> Settings:
    """The settings, with the secret that development mode makes and keeps where nobody set one."""
    if not settings.generate_secret:
        return settings
    try:
        secret, _ = keep_secret(settings.state_directory)
    except OSError as error:
        raise StartFailed(
            f"{settings.state_directory}: the development secret cannot be kept: {error.strerror}"
        ) from None
    return replace(settings, shared_secrets=(secret,), generate_secret=False, unconfigured_sources=())


def trial_command(url: str, secret_file: Path) -> str:
    """
    One curl command that sends a signed webhook: it stamps, numbers and signs itself each time it is pasted in bash.

    The request is made in a subshell whose output curl reads as its options, so that no variable is left behind. It has
    neither a double quote nor a backslash in it (tr makes the body's quotes), so that it can be copied out of a line of
    JSON as it stands.
    """
    body = "'{~ticker~:~EURUSD~,~action~:~buy~,~price~:1.0945,~time~:~'$t'~}'"
    return (
        "curl -sS -K <("
        f"k=$(cat {shlex.quote(str(secret_file))}); t=$(date -u +%FT%TZ); n=$(cat /proc/sys/kernel/random/uuid); "
        f"q=$(echo Ig== | base64 -d); b=$(echo {body} | tr '~' $q); "
        "s=$( (echo $t; echo $n; echo; echo -n $b) | openssl dgst -sha256 -hmac $k | sed 's/.* //'); "
        "echo header=Content-Type:application/json; echo header=X-Timestamp:$t; echo header=X-Nonce:$n; "
        f"echo header=X-Signature:v1=$s; echo data-raw=$b) {url}/webhook/tradingview"
    )
