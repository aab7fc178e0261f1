"""
`gatewayctl sign`: the headers that a webhook's body needs.

Decides what is stamped and signed, with the gateway's own signing and its own judgement of the headers' forms. Never
sends anything, and never shows the secret.
"""

import math
from pathlib import Path

import click

from gatewayd.cli.console import Code, Failed, Surroundings, json_option, show_as
from gatewayd.cli.situation import SecretChoice, complete_file, find_secret, read_body, secret_options
from gatewayd.times import format_wall

SCHEMES = ("v1", "sha256")


@click.command()
@click.argument("file", required=False, shell_complete=complete_file)
@click.option("--data", metavar="TEXT", help="The body itself, instead of FILE.")
@click.option("--source", metavar="NAME", help="Sign with this source's own secret where it has one.")
@secret_options
@click.option("--scheme", type=click.Choice(SCHEMES), default="v1", show_default=True, help="How to sign.")
@click.option("--idempotency-key", metavar="KEY", help="Sent along; signed with v1.")
@click.option("--timestamp", metavar="TIME", help="RFC 3339 with a zone, or epoch seconds.  [default: now]")
@click.option("--nonce", metavar="TEXT", help="[default: a fresh one]")
@json_option
@click.pass_obj
def sign(
    surroundings: Surroundings,
    *,
    file: str | None,
    data: str | None,
    source: str | None,
    secret_file: str | None,
    number: int,
    config_file: Path | None,
    scheme: str,
    idempotency_key: str | None,
    timestamp: str | None,
    nonce: str | None,
    as_json: bool,
) -> None:
    """
    Print the headers that sign the body in FILE (`-`: stdin), one a line.

    The very bytes of FILE are signed, so they must be what is sent (curl: --data-binary, not --data):

    \b
      gatewayctl sign body.json | curl -H @- --data-binary @body.json http://127.0.0.1:8001/webhook/custom

    The secret is --secret-file's, else API_KEY_HMAC_SECRET_<SOURCE> with --source, else API_KEY_HMAC_SECRET, else
    the one that a gateway in development made.
    """  # noqa: D301 - click's mark for text that is not to be wrapped
    body = read_body(surroundings, file, data)
    if body is None:
        raise click.UsageError("a body is needed: FILE, - or --data")
    secret = find_secret(surroundings.environ, SecretChoice(source, secret_file, number, config_file))
    headers = make_headers(
        secret.reveal(),
        scheme,
        body,
        timestamp=timestamp or format_wall(surroundings.wall()),
        nonce=nonce or surroundings.nonce(),
        key=idempotency_key,
    )
    value = {"scheme": scheme, "body_bytes": len(body), "headers": headers}
    show_as(as_json, value, (f"{name}: {text}" for name, text in headers.items()))


def make_headers(
    secret: bytes, scheme: str, body: bytes, *, timestamp: str, nonce: str, key: str | None
) -> dict[str, str]:
    """Every header that the gateway asks of this body, by name; Failed when one has a form that it would refuse."""
    from gatewayd.ingress.signature import Signed
    from gatewayd.ingress.signature import sign as make_signature

    stamped = {"Content-Type": "application/json", "X-Timestamp": timestamp, "X-Nonce": nonce}
    if key is not None:
        stamped["Idempotency-Key"] = key
    _judge_forms(stamped)
    signed = Signed(timestamp.encode("ascii"), nonce.encode("ascii"), (key or "").encode("ascii"), body)
    return {"X-Signature": make_signature(scheme, secret, signed).decode("ascii"), **stamped}


def _judge_forms(headers: dict[str, str]) -> None:
    """Ask the gateway's own reader of headers, at any time, with a signature that has the right form."""
    from gatewayd.errors import Refused
    from gatewayd.http.message import Request
    from gatewayd.ingress.headers import read_headers

    given = {name.lower().encode(): text.encode("utf-8", "surrogateescape") for name, text in headers.items()}
    judged = read_headers(Request(b"POST", b"/", {**given, b"x-signature": b"v1=" + b"0" * 64}), math.inf, math.inf)
    if isinstance(judged, Refused):
        raise Failed(Code.WRONG, f"the gateway would refuse this: {judged.code} {judged.details.get('reason', '')}")
