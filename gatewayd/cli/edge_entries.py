"""
What the edge reads from Redis, written as its neighbours write it: `edge session`, `edge revoke`, `edge publish`.

Decides which fields an entry has, and waits until a gateway has taken a snapshot. Every entry is judged by the
gateway's own reader before it is written. Never writes a session's key: the gateway does.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from gatewayd.cli.console import Code, Failed, Surroundings, json_option, note, plain, show_as
from gatewayd.cli.situation import complete_file, config_option, read_body, require_settings

if TYPE_CHECKING:
    from gatewayd.cli.redis_caller import RedisCaller
    from gatewayd.sessions.values import Session
    from gatewayd.settings_edge import EdgeSettings

TAKEN_S: Final = 2.0
"""How long a snapshot is waited for: revocations are in force within a quarter of a second."""
_LOOK_S: Final = 0.01

Command = TypeVar("Command", bound=Callable[..., Any])

_length_option = click.option(
    "--max-length",
    metavar="N",
    type=click.IntRange(1, 1_000_000_000),
    help="Have Redis keep about the last N entries (MAXLEN ~ N).",
)
_wait_option = click.option("--no-wait", is_flag=True, help="Do not wait until a gateway has taken it.")


@click.command()
@click.argument("device_session_id", metavar="ID")
@click.option("--user", "user_id", metavar="USER", required=True, help="Whose session it is.")
@click.option(
    "--key-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    shell_complete=complete_file,
    help="The client's key, either half, in PEM.",
)
@click.option("--public-key", metavar="BASE64", help="Instead: its raw public key, as `edge new-client` prints it.")
@_length_option
@_wait_option
@config_option
@json_option
@click.pass_obj
def session(
    surroundings: Surroundings,
    *,
    device_session_id: str,
    user_id: str,
    key_file: Path | None,
    public_key: str | None,
    max_length: int | None,
    no_wait: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """
    Publish the snapshot of an active session, and wait until a gateway has taken it.

    A session that was revoked stays so: take another ID.
    """
    if (key_file is None) == (public_key is None):
        raise click.UsageError("one of --key-file and --public-key is needed")
    if key_file is not None:
        from gatewayd.cli.edge_client import read_public_key
        from gatewayd.sessions.encodings import write_base64

        public_key = write_base64(read_public_key(key_file))
    edge = edge_settings(surroundings, config_file)
    fields = {
        "device_session_id": device_session_id,
        "user_id": user_id,
        "client_public_key": public_key or "",
        "status": "active",
    }
    snapshot = _read_snapshot(fields)
    with _redis(edge) as redis:
        before = _kept(redis, edge, device_session_id)
        if before is not None and before.revoked:
            raise Failed(Code.NOT_IN_ORDER, f"{plain(device_session_id)} is revoked, and stays so; take another id")
        writer = _Writer(redis, edge, surroundings, max_length=max_length, wait=not no_wait, as_json=as_json)
        return writer.write(snapshot, fields, "active")


@click.command()
@click.argument("device_session_id", metavar="ID")
@_length_option
@_wait_option
@config_option
@json_option
@click.pass_obj
def revoke(
    surroundings: Surroundings,
    *,
    device_session_id: str,
    max_length: int | None,
    no_wait: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """
    Revoke a session for ever, and wait until a gateway has taken it: its open streams end then.

    Exit code 1 when no gateway has within 2 s: none runs on this Redis, database and stream.
    """
    edge = edge_settings(surroundings, config_file)
    at_ms = round(surroundings.wall() * 1000)
    fields = {"device_session_id": device_session_id, "status": "revoked", "revoked_at_ms": str(at_ms)}
    snapshot = _read_snapshot(fields)
    with _redis(edge) as redis:
        from gatewayd.sessions.encodings import write_base64

        known = _kept(redis, edge, device_session_id)
        if known is not None and known.client_public_key:
            fields |= {"user_id": known.user_id, "client_public_key": write_base64(known.client_public_key)}
        writer = _Writer(redis, edge, surroundings, max_length=max_length, wait=not no_wait, as_json=as_json)
        return writer.write(snapshot, fields, "revoked")


class _Writer:
    """Writes one snapshot and says what became of it."""

    def __init__(
        self,
        redis: "RedisCaller",
        edge: "EdgeSettings",
        surroundings: Surroundings,
        *,
        max_length: int | None,
        wait: bool,
        as_json: bool,
    ) -> None:
        self._redis = redis
        self._edge = edge
        self._surroundings = surroundings
        self._max_length = max_length
        self._wait = wait
        self._as_json = as_json

    def write(self, snapshot: "Session", fields: Mapping[str, str], status: str) -> int:
        """The exit code."""
        stream, monotonic = self._edge.gateway_session_events_redis_stream, self._surroundings.monotonic
        entry_id = _add(self._redis, stream, fields, self._max_length)
        began = monotonic()
        taken = self._wait and self._taken(snapshot, began)
        took_ms = round((monotonic() - began) * 1000, 1)
        name = snapshot.device_session_id
        value: dict[str, Any] = {"device_session_id": name, "status": status, "stream": stream, "entry": entry_id}
        line = f"{name} {status} {entry_id}"
        if taken:
            value |= {"taken": True, "took_ms": took_ms}
            line += f" taken in {took_ms} ms"
        elif self._wait:
            value |= {"taken": False}
            note(f"gatewayctl: written, but no gateway has taken it within {TAKEN_S:g} s")
        show_as(self._as_json, value, [line])
        return Code.NOT_IN_ORDER if self._wait and not taken else Code.OK

    def _taken(self, snapshot: "Session", began: float) -> bool:
        """True once the session's key, which gateways write, says what the snapshot says."""
        while self._surroundings.monotonic() - began < TAKEN_S:
            kept = _kept(self._redis, self._edge, snapshot.device_session_id)
            if kept is not None and (kept.revoked if snapshot.revoked else kept == snapshot):
                return True
            self._surroundings.sleep(_LOOK_S)
        return False


@click.command()
@click.argument("file", required=False, shell_complete=complete_file)
@click.option("--data", metavar="TEXT", help="The payload itself, instead of FILE.")
@click.option("--user", "user_id", metavar="USER", required=True, help="For whom it is.")
@click.option("--session", "device_session_id", metavar="ID", help="For this session of the user only.")
@click.option("--type", "event_type", metavar="TYPE", required=True, help="Such as trade.filled.")
@click.option("--event-id", metavar="ID", help="[default: a fresh one]")
@click.option("--request-id", metavar="ID", help="Of the request that the event comes of.")
@click.option("--trace-id", metavar="ID", help="Of its trace.")
@_length_option
@config_option
@json_option
@click.pass_obj
def publish(
    surroundings: Surroundings,
    *,
    file: str | None,
    data: str | None,
    user_id: str,
    device_session_id: str | None,
    event_type: str,
    event_id: str | None,
    request_id: str | None,
    trace_id: str | None,
    max_length: int | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """
    Publish an event for a user's streams, with the bytes of FILE (`-`: stdin) or --data as its payload.

    The payload is neither read nor changed; without one it is empty.
    """
    edge = edge_settings(surroundings, config_file)
    payload = read_body(surroundings, file, data) or b""
    texts = {
        "user_id": user_id,
        "device_session_id": device_session_id,
        "event_type": event_type,
        "event_id": event_id or surroundings.nonce(),
        "request_id": request_id,
        "trace_id": trace_id,
    }
    fields: dict[str, str | bytes] = {name: text for name, text in texts.items() if text is not None}
    fields["payload_bytes"] = payload
    _judge_event(fields)
    stream = edge.gateway_client_events_redis_stream
    with _redis(edge) as redis:
        entry_id = _add(redis, stream, fields, max_length)
    value = {"stream": stream, "entry": entry_id, "event_id": texts["event_id"], "payload_bytes": len(payload)}
    show_as(as_json, value, [f"{texts['event_id']} {entry_id}"])


def edge_settings(surroundings: Surroundings, config_file: Path | None) -> "EdgeSettings":
    """The edge's settings; Failed when it is off."""
    from gatewayd.settings_edge import REQUIRED

    edge = require_settings(surroundings.environ, config_file).edge
    if edge is None:
        raise Failed(Code.WRONG, f"the edge is off: it needs {', '.join(REQUIRED)}")
    return edge


def _redis(edge: "EdgeSettings") -> "RedisCaller":
    from gatewayd.cli.redis_caller import RedisCaller
    from gatewayd.stores.redisplace import RedisPlace

    address = edge.gateway_redis_master_addr
    return RedisCaller(RedisPlace(address.host, address.port, edge.gateway_redis_db, edge.gateway_redis_password))


def _add(redis: "RedisCaller", stream: str, fields: Mapping[str, str | bytes], max_length: int | None) -> str:
    """The new entry's id."""
    bound = () if max_length is None else ("MAXLEN", "~", max_length)
    words = (word for pair in fields.items() for word in pair)
    entry_id: bytes = redis.call("XADD", stream, *bound, "*", *words)
    return plain(entry_id.decode("ascii", "replace"))


def _kept(redis: "RedisCaller", edge: "EdgeSettings", device_session_id: str) -> "Session | None":
    """What stands under the session's key; None for nothing, and for what cannot be read."""
    from gatewayd.sessions.snapshots import read_key

    value = redis.call("GET", edge.gateway_session_redis_key_prefix + device_session_id)
    found = None if value is None else read_key(value, device_session_id)
    return None if isinstance(found, str) else found


def _read_snapshot(fields: Mapping[str, str]) -> "Session":
    from gatewayd.sessions.snapshots import read_entry

    read = read_entry([word.encode("utf-8", "surrogateescape") for pair in fields.items() for word in pair])
    if isinstance(read, str):
        raise Failed(Code.WRONG, f"the gateway would drop this: {read} is missing or malformed")
    return read


def _judge_event(fields: Mapping[str, str | bytes]) -> None:
    from gatewayd.streams.cursor import ORIGIN
    from gatewayd.streams.entries import Malformed, RawEntry, parse_client_event

    words = [word for pair in fields.items() for word in pair]
    raw = [word if isinstance(word, bytes) else word.encode("utf-8", "surrogateescape") for word in words]
    judged = parse_client_event(RawEntry(ORIGIN, raw))
    if isinstance(judged, Malformed):
        raise Failed(Code.WRONG, f"the gateway would drop this: {judged.reason}")
