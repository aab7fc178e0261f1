"""
Follow a session's events from Python, one JSON line each; needs `cryptography` and nothing else.

    GATEWAY_URL=https://gateway.example DEVICE_SESSION_ID=… CLIENT_KEY_FILE=client.pem python python_client.py

CLIENT_KEY_FILE is the session's Ed25519 private key (PKCS#8 PEM). POSITION resumes behind the last position seen; the
first argument is the message type (`events.subscribe`). It reads server-sent events: every event is verified, comes
once, and a lost connection is resumed. For commands use gRPC: gatewayd/schemas/edge_v1.proto.
"""

import base64
import http.client
import json
import os
import random
import sys
import time
import uuid
from collections.abc import Iterator
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

FINAL = {"authentication", "revoked", "malformed", "version", "stale", "no_route"}
LONGEST_WAIT_S = 30.0
SILENCE_S = 45.0  # three heartbeats


class Refused(Exception):
    """The gateway said no, or ended the stream: `code` is its word for it."""

    def __init__(self, error: dict[str, Any], retry_after: str | None = None) -> None:
        super().__init__(error["message"])
        self.code = error["code"]
        self.retry_after_s = error.get("retry_after_ms", 1000 * int(retry_after or 0)) / 1000


class Untrusted(Exception):
    """What came is not what the gateway signed."""


def to_base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def signing_input(*parts: str | bytes | int) -> bytes:
    """What is signed: each text behind its length as a varint, times as 8 bytes, big-endian."""
    made = bytearray()
    for part in parts:
        if isinstance(part, int):
            made += part.to_bytes(8, "big")
            continue
        data = part.encode() if isinstance(part, str) else part
        length = len(data)
        while length > 127:
            made.append(length & 127 | 128)
            length >>= 7
        made.append(length)
        made += data
    return bytes(made)


def passed(last: str, position: str) -> bool:
    """Whether a position was passed already: each of its marks is at or below the same mark of `last`."""

    def marks(text: str) -> dict[str, tuple[int, ...]]:
        pairs = (mark.split(".") for mark in text.split(",") if mark)
        return {epoch: tuple(map(int, at.split("-"))) for epoch, at in pairs}

    known, asked = marks(last), marks(position)
    return bool(asked) and all(at <= known.get(epoch, (-1, -1)) for epoch, at in asked.items())


class EdgeClient:
    """One session's stream. `private_key` is the session's; `keys` pins the gateway's public keys (raw, 32 bytes)."""

    def __init__(
        self, url: str, session_id: str, private_key: Ed25519PrivateKey, keys: list[bytes] | None = None
    ) -> None:
        self._url = urlsplit(url)
        self._session_id = session_id
        self._private_key = private_key
        self._pinned = keys
        self._keys: list[Ed25519PublicKey] = []

    def events(self, message_type: str = "events.subscribe", position: str = "") -> Iterator[dict[str, Any]]:
        """
        Events, verified, each once, with `payload` as bytes. Reconnects and resumes by itself; raises Refused when that
        is of no use. Keep `position` to go on from there after a restart. `gateway.resume_failed` says that something
        was missed.
        """
        failures = 0
        while True:
            wait_s = 0.0
            try:
                for event in self._open(message_type, position):
                    failures = 0
                    old = passed(position, event["position"])
                    if not old or event["event_type"].startswith("gateway."):
                        yield event
                    if not old:
                        position = event["position"]
            except Refused as refused:
                if refused.code in FINAL:
                    raise
                wait_s = refused.retry_after_s
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(wait_s + random.uniform(0, min(LONGEST_WAIT_S, 2.0**failures)))  # noqa: S311 # no secret
            failures += 1

    def _open(self, message_type: str, position: str) -> Iterator[dict[str, Any]]:
        envelope = self._envelope(message_type, position.encode())
        connection = self._connect()
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/edge/v1/events", json.dumps(envelope), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise Refused(json.load(response)["error"], response.headers.get("Retry-After"))
            first = True
            for raw in self._messages(response):
                event = self._verified(raw)
                # The first event answers this very request: nobody can play an old stream to us.
                if first and (event["event_type"], event["request_id"]) != (
                    "gateway.server_time",
                    envelope["request_id"],
                ):
                    raise Untrusted("the stream does not begin with the answer to this request")
                first = False
                yield event
        finally:
            connection.close()

    def _messages(self, response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        fields: dict[str, str] = {}
        for line in response:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
                continue
            if fields.get("event") == "close":
                raise Refused(json.loads(fields["data"]))
            if "data" in fields:
                yield json.loads(fields["data"])
            fields = {}

    def _envelope(self, message_type: str, payload: bytes) -> dict[str, Any]:
        digest, request_id, now_ms = sha256(payload).digest(), str(uuid.uuid4()), time.time_ns() // 1_000_000
        signed = signing_input("gatewayd-request-v1", "v1", self._session_id, message_type, now_ms, request_id, digest)
        return {
            "protocol_version": "v1",
            "device_session_id": self._session_id,
            "message_type": message_type,
            "timestamp_ms": now_ms,
            "request_id": request_id,
            "payload_bytes": to_base64url(payload),
            "payload_hash": to_base64url(digest),
            "signature": to_base64url(self._private_key.sign(signed)),
        }

    def _verified(self, event: dict[str, Any]) -> dict[str, Any]:
        payload, digest = from_base64url(event["payload_bytes"]), from_base64url(event["payload_hash"])
        if sha256(payload).digest() != digest:
            raise Untrusted("the payload is not the one that was signed")
        texts = (event["request_id"], event["trace_id"], digest, event["position"])
        signed = signing_input(
            "gatewayd-event-v1", event["event_type"], event["event_id"], event["timestamp_ms"], *texts
        )
        signature = from_base64url(event["signature"])
        if not any(_is_good(key, signature, signed) for key in self._keys):
            self._keys = self._gateway_keys()  # the gateway may have a new one
            if not any(_is_good(key, signature, signed) for key in self._keys):
                raise Untrusted("the gateway's signature is wrong")
        return {**event, "payload": payload}

    def _gateway_keys(self) -> list[Ed25519PublicKey]:
        if self._pinned is not None:
            return [Ed25519PublicKey.from_public_bytes(key) for key in self._pinned]
        connection = self._connect()
        try:
            connection.request("GET", "/.well-known/gatewayd/keys")
            found = json.load(connection.getresponse())["keys"]
        finally:
            connection.close()
        return [Ed25519PublicKey.from_public_bytes(from_base64url(key["x"])) for key in found]

    def _connect(self) -> http.client.HTTPConnection:
        secure = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(self._url.hostname or "", self._url.port, timeout=SILENCE_S)


def _is_good(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def main() -> None:
    """Follow and print."""
    with open(os.environ["CLIENT_KEY_FILE"], "rb") as file:
        private_key = load_pem_private_key(file.read(), None)
    if not isinstance(private_key, Ed25519PrivateKey):
        sys.exit("CLIENT_KEY_FILE is no Ed25519 key")
    client = EdgeClient(os.environ["GATEWAY_URL"], os.environ["DEVICE_SESSION_ID"], private_key)
    try:
        message_type = sys.argv[1] if len(sys.argv) > 1 else "events.subscribe"
        for event in client.events(message_type, os.environ.get("POSITION", "")):
            shown = {name: event[name] for name in ("event_type", "event_id", "timestamp_ms", "position")}
            payload = base64.b64encode(event["payload"]).decode()
            sys.stdout.write(json.dumps({**shown, "payload": payload}) + "\n")
            sys.stdout.flush()
    except Refused as refused:
        sys.exit(f"{refused.code}: {refused}")


if __name__ == "__main__":
    main()
