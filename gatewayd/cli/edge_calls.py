"""
What a client of the edge does: `edge subscribe`, `edge command`.

Decides where the gateway is and how results are printed. Never prints anything that the gateway did not sign, and never
sends a command twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from gatewayd.cli.caller import Target, tls_context
from gatewayd.cli.console import Code, Failed, Surroundings, json_option, note, plain, show, show_json
from gatewayd.cli.edge_keys import ca_option, edge_target, key_source, url_option
from gatewayd.cli.situation import complete_file, config_option, load_settings, own_url, read_body

if TYPE_CHECKING:
    from gatewayd.cli.edge_client import Channel, Identity, Trust
    from gatewayd.sessions.values import Reply

DEFAULT_GRPC: Final = "http://127.0.0.1:9090"
SILENCE_S: Final = 45.0
"""Three heartbeats."""

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Client:
    """What the options that both commands have say."""

    device_session_id: str
    key_file: Path
    url: str | None
    grpc: str | None
    ca: str | None
    config_file: Path | None

    def identity(self) -> "Identity":
        from gatewayd.cli.edge_client import Identity, read_private_key

        return Identity(self.device_session_id, read_private_key(self.key_file))

    def trust(self, surroundings: Surroundings) -> "Trust":
        from gatewayd.cli.edge_client import Trust

        return Trust(key_source(self.url or own_url(surroundings), self.ca))

    def grpc_target(self, surroundings: Surroundings) -> Target:
        url = self.grpc or _own_grpc(surroundings.environ, self.config_file)
        return edge_target("--grpc", url, "")


def _client_options(command: Command) -> Command:
    for option in reversed(
        (
            click.option("--session", "device_session_id", metavar="ID", required=True, help="Whose client this is."),
            click.option(
                "--key-file",
                metavar="FILE",
                type=click.Path(path_type=Path),
                required=True,
                shell_complete=complete_file,
                help="The session's private key (PKCS#8 PEM).",
            ),
            url_option,
            click.option(
                "--grpc",
                metavar="URL",
                help="The gRPC listener, as http://host:port or https://host:port.  [default: the settings', else "
                f"{DEFAULT_GRPC}]",
            ),
            ca_option,
            config_option,
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("message_type", required=False, default="events.subscribe")
@_client_options
@click.option("--websocket", is_flag=True, help="By WebSocket, instead of gRPC.")
@click.option("--sse", is_flag=True, help="By server-sent events, instead of gRPC.")
@click.option("--position", metavar="TEXT", help="Resume behind this position.")
@click.option(
    "--state",
    "state_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    shell_complete=complete_file,
    help="Resume behind the position in FILE, and keep the last one there.",
)
@click.option("--count", metavar="N", type=click.IntRange(1), help="End after N events, the gateway's own not counted.")
@click.option(
    "--silence",
    "silence_s",
    metavar="S",
    type=click.FloatRange(1, 3600),
    default=SILENCE_S,
    show_default=True,
    help="Seconds without a byte after which a connection counts as lost.",
)
@json_option
@click.pass_obj
def subscribe(
    surroundings: Surroundings,
    /,
    *,
    message_type: str,
    websocket: bool,
    sse: bool,
    position: str | None,
    state_file: Path | None,
    count: int | None,
    silence_s: float,
    as_json: bool,
    **client: Any,
) -> int:
    """
    Follow a session's events; one line for each: time, type, id, signing key, position, payload.

    MESSAGE_TYPE says what is wanted: events.subscribe, signals.subscribe, all.subscribe, the latter two also with
    instruments, as in all.subscribe:EURUSD,GBPUSD. Each event is printed once, and only when its signature is good. A
    connection that is lost is made again behind the last event. Ctrl-C ends it, with exit code 0.
    """
    if websocket and sse:
        raise click.UsageError("--websocket and --sse: give one of them")
    if position is not None and state_file is not None:
        raise click.UsageError("--position and --state: give one of them")
    from gatewayd.cli.edge_client import check_position
    from gatewayd.cli.edge_following import EdgeFollowing, PositionFile

    options = _Client(**client)
    check_position(position or "")
    kept = PositionFile(state_file, surroundings.monotonic)
    following = EdgeFollowing(
        _channel(options, surroundings, silence_s, websocket=websocket, sse=sse),
        options.identity(),
        options.trust(surroundings),
        surroundings,
        message_type=message_type,
        position=position or "",
        kept=kept,
        count=count,
        as_json=as_json,
    )
    try:
        following.run()
    except KeyboardInterrupt:
        return Code.OK
    finally:
        kept.close()
    return Code.OK


def _channel(
    options: _Client, surroundings: Surroundings, silence_s: float, *, websocket: bool, sse: bool
) -> "Channel":
    if not (websocket or sse):
        from gatewayd.cli.edge_grpc import GrpcChannel

        target = options.grpc_target(surroundings)
        return GrpcChannel(target, silence_s, tls_context(options.ca) if target.secure else None)
    from gatewayd.cli.edge_http import PATH, SseChannel, WebSocketChannel

    target = edge_target("--url", options.url or own_url(surroundings), PATH)
    kind = WebSocketChannel if websocket else SseChannel
    return kind(target, silence_s, tls_context(options.ca) if target.secure else None)


@click.command()
@click.argument("message_type", metavar="TYPE")
@click.argument("file", required=False, shell_complete=complete_file)
@click.option("--data", metavar="TEXT", help="The payload itself, instead of FILE.")
@_client_options
@click.option("--request-id", metavar="ID", help="[default: a fresh one]")
@click.option("--trace-id", metavar="ID", default="", help="Handed on to the service.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="S",
    type=click.FloatRange(0.05, 60),
    default=10.0,
    show_default=True,
    help="Seconds to wait for the reply.",
)
@click.option("--raw", is_flag=True, help="Only the reply's payload, byte for byte.")
@json_option
@click.pass_obj
def command(
    surroundings: Surroundings,
    /,
    *,
    message_type: str,
    file: str | None,
    data: str | None,
    request_id: str | None,
    trace_id: str,
    timeout_s: float,
    raw: bool,
    as_json: bool,
    **client: Any,
) -> int:
    """
    Send one signed command by gRPC, with the bytes of FILE (`-`: stdin) or --data as its payload; print the reply.

    It is sent once. The reply is printed only when its signature is good. Exit code 1 when the gateway refuses it, or
    when the result code is not ok.
    """
    if raw and as_json:
        raise click.UsageError("--raw and --json: give one of them")
    from gatewayd.cli.edge_client import Ended
    from gatewayd.cli.edge_grpc import GrpcChannel

    options = _Client(**client)
    payload = read_body(surroundings, file, data) or b""
    envelope = options.identity().sign(
        message_type,
        payload,
        at_ms=round(surroundings.wall() * 1000),
        request_id=request_id or surroundings.nonce(),
        trace_id=trace_id,
    )
    target = options.grpc_target(surroundings)
    context = tls_context(options.ca) if target.secure else None
    trust = options.trust(surroundings)
    began = surroundings.monotonic()
    try:
        reply = GrpcChannel(target, timeout_s + 1, context).execute(envelope, timeout_s)
    except Ended as ended:
        raise Failed(Code.NOT_IN_ORDER, str(ended), *_hint(ended.wait_s)) from None
    took_ms = round((surroundings.monotonic() - began) * 1000, 2)
    _show_reply(reply, trust.check_reply(reply, envelope.request_id), took_ms, raw=raw, as_json=as_json)
    return Code.OK if reply.result_code == "ok" else Code.NOT_IN_ORDER


def _hint(wait_s: float | None) -> tuple[str, ...]:
    return () if wait_s is None else (f"it may be sent again in {wait_s:g} s",)


def _show_reply(reply: "Reply", key: str, took_ms: float, *, raw: bool, as_json: bool) -> None:
    from gatewayd.cli.edge_client import shown_payload

    if as_json:
        members = {
            "result_code": reply.result_code,
            "request_id": reply.request_id,
            "timestamp_ms": reply.timestamp_ms,
            "key": key,
            "took_ms": took_ms,
        }
        show_json({**members, **shown_payload(reply.payload)})
        return
    line = f"{plain(reply.result_code)} in {took_ms} ms, signed by {key}"
    if raw:
        note(line)
        click.echo(reply.payload, nl=False)
        return
    show(line)
    if reply.payload:
        (text,) = shown_payload(reply.payload).values()
        show("\n".join(plain(one, 10_000) for one in text.splitlines()))


def _own_grpc(environ: Mapping[str, str], config_file: Path | None) -> str:
    """The gRPC listener of the gateway whose settings these are, as a client on this machine reaches it."""
    settings = load_settings(environ, config_file).settings
    if settings is None or settings.edge is None:
        return DEFAULT_GRPC
    from gatewayd.http.addresses import Kind

    for address in settings.edge.gateway_authenticated_grpc_addr:
        if address.kind in (Kind.TCP, Kind.TLS):
            secure = address.kind is Kind.TLS or settings.gateway_tls_cert is not None
            host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
            where = f"[{host}]" if ":" in host else host
            return f"{'https' if secure else 'http'}://{where}:{address.port}"
    raise Failed(Code.WRONG, "GATEWAY_AUTHENTICATED_GRPC_ADDR has no address of TCP; give --grpc")
