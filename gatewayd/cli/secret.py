"""
`gatewayctl secret new`: a fresh secret, printed or kept in a file.

Decides how strong a secret is and who may read its file. Never replaces a file that is there.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path

import click

from gatewayd.cli.console import Code, Failed, json_option, note, show_as
from gatewayd.secret import STRONG_BYTES


@click.group()
def secret() -> None:
    """Make secrets."""


@secret.command()
@click.option(
    "--bytes",
    "size",
    metavar="N",
    type=click.IntRange(STRONG_BYTES, 1024),
    default=STRONG_BYTES,
    show_default=True,
    help="How many random bytes.",
)
@click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path), help="Write it there (mode 0600), print nothing."
)
@json_option
def new(size: int, out: Path | None, as_json: bool) -> None:
    """
    Print a new secret of N random bytes, in letters, digits, - and _.

    With --out it goes to a new file instead, which API_KEY_HMAC_SECRET_FILE can name; a file that is there already is
    left alone.
    """
    made = secrets.token_urlsafe(size)
    if out is None:
        show_as(as_json, {"secret": made, "bytes": size}, [made])
        return
    write_new(out, made.encode("ascii") + b"\n")
    if as_json:
        show_as(as_json, {"file": str(out), "bytes": size}, [])
    else:
        note(f"{out}: a new secret of {size} random bytes")


def write_new(path: Path, content: bytes) -> None:
    """A new file, for its owner only, whole or not at all; Failed when there is one already or it cannot be made."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise Failed(Code.WRONG, f"{path} is there already; it is left as it is") from None
    except OSError as error:
        raise Failed(Code.WRONG, f"{path} cannot be made: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise Failed(Code.WRONG, f"{path} cannot be written: {error.strerror}") from None
