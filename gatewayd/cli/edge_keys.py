"""
Keys of the edge: `edge new-signer`, `edge new-client`, `edge keys`.

Decides where a new key is written and what is said of published ones. Never replaces a file, and never shows a private
key.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gatewayd.cli.caller import Answer, Caller, Target, Unreached, parse_target
from gatewayd.cli.console import Code, Failed, Surroundings, json_option, note, show_as
from gatewayd.cli.secret import write_new
from gatewayd.cli.situation import complete_file, own_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from gatewayd.cli.edge_client import PublishedKey

PATH: Final = "/.well-known/gatewayd/keys"

url_option = click.option("--url", metavar="URL", help="The gateway.  [default: http://127.0.0.1:$PORT]")
ca_option = click.option(
    "--ca",
    metavar="FILE",
    shell_complete=complete_file,
    help="For https: PEM certificates to trust, instead of the system's.",
)
_out_option = click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path), required=True, help="A new file, of mode 0600."
)


@click.command("new-signer")
@_out_option
@json_option
def new_signer(out: Path, as_json: bool) -> None:
    """
    Make the Ed25519 key that the gateway signs answers and events with (PKCS#8 PEM).

    GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH names its file. A file that is there already is left alone.
    """
    _make_key(out, "a new key to sign with", as_json=as_json)


@click.command("new-client")
@_out_option
@json_option
def new_client(out: Path, as_json: bool) -> None:
    """
    Make the Ed25519 key of a client's session (PKCS#8 PEM), and print its public half.

    That is the client_public_key of the session's snapshot; `gatewayctl edge session --key-file FILE` publishes it.
    """
    _make_key(out, "a new key of a client", as_json=as_json)


def _make_key(out: Path, what: str, *, as_json: bool) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from gatewayd.sessions.encodings import write_base64
    from gatewayd.sessions.signing import key_id

    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes_raw()
    write_new(out, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    if not as_json:
        note(f"{out}: {what}, {key_id(raw)}")
    show_as(as_json, {"file": str(out), "kid": key_id(raw), "public_key": write_base64(raw)}, [write_base64(raw)])


@click.command()
@url_option
@ca_option
@click.option(
    "--signer",
    metavar="FILE",
    type=click.Path(path_type=Path),
    shell_complete=complete_file,
    help="The key (either half, PEM) that should be in force.",
)
@json_option
@click.pass_obj
def keys(surroundings: Surroundings, *, url: str | None, ca: str | None, signer: Path | None, as_json: bool) -> int:
    """
    Print the public keys that the gateway serves, and check that each is what it says.

    Exit code 1 when none is in force, or, with --signer, when another one is: a rotation that was not taken over.
    """
    from gatewayd.cli.edge_client import read_public_key
    from gatewayd.sessions.encodings import write_base64
    from gatewayd.sessions.signing import key_id

    wanted = None if signer is None else read_public_key(signer)
    found = key_source(url or own_url(surroundings), ca)()
    current = [key for key in found if key.status == "current"]
    findings = [] if len(current) == 1 else [f"{len(current)} keys are in force, not one"]
    if wanted is not None and [key.raw for key in current] != [wanted]:
        findings.append(f"{signer} is {key_id(wanted)}, which is not in force")
    members: list[dict[str, Any]] = [
        {"kid": key.kid, "status": key.status, "public_key": write_base64(key.raw)} for key in found
    ]
    show_as(
        as_json,
        {"keys": members, "findings": findings},
        [f"{one['kid']} {one['status']} {one['public_key']}" for one in members] + findings,
    )
    return Code.NOT_IN_ORDER if findings else Code.OK


def key_source(url: str, ca: str | None, timeout_s: float = 10.0) -> "Callable[[], tuple[PublishedKey, ...]]":
    """What gets the published keys; Failed when they cannot be had."""
    from gatewayd.cli.edge_client import read_keys

    target = edge_target("--url", url, PATH)

    def ask() -> "tuple[PublishedKey, ...]":
        with Caller(target, timeout_s, ca) as caller:
            answer = caller.get()
        if isinstance(answer, Unreached):
            raise Failed(Code.UNREACHABLE, answer.text)
        if answer.status != 200:
            raise Failed(Code.NOT_IN_ORDER, f"{target}: {_why(answer)}")
        return read_keys(answer.members)

    return ask


def _why(answer: Answer) -> str:
    return f"{answer.text}; is the edge on there?" if answer.status == 404 else answer.text


def edge_target(option: str, url: str, path: str) -> Target:
    """The path at a gateway, below the path of the URL where it has one; Failed names the option."""
    try:
        if "?" in url or "#" in url:
            raise Failed(Code.WRONG)
        target = parse_target(url.rstrip("/"), "")
    except Failed:
        raise Failed(Code.WRONG, f"{option}: http://host:port or https://host:port") from None
    return replace(target, path=target.path.removesuffix("/webhook/") + path)
