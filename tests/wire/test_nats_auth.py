"""Proving who we are to a real nats-server: passwords, tokens, keys, credentials files, TLS."""

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nkeys
import pytest
import pytest_twisted
from twisted.logger import LogEvent, globalLogPublisher

from gatewayd.bus.publication import BusState, Published, Unpublished
from tests.buses import connected_bus, create_stream, pair, pause, until
from tests.fakes.counts import Counts
from tests.servers import Certificates, NatsServer, make_certificates, tls_block

CANARY = "canary-9f3a"


@pytest.fixture
def lines() -> Iterator[list[LogEvent]]:
    """Everything that is logged, in which no secret may ever stand."""
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)
    assert CANARY not in repr(seen)
    assert all(CANARY not in str(event.get("error", "")) for event in seen)


def key_pair(prefix: int) -> tuple[str, Any]:
    """A new seed of a kind (nkeys.PREFIX_BYTE_...), as text, and its key pair."""
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    return bytes(seed).decode(), nkeys.from_seed(bytearray(seed))


def public(keys: Any) -> str:
    """The public key as text."""
    text: str = keys.public_key.decode()
    return text


def signed(claims: dict[str, Any], signer: Any) -> str:
    """A NATS JWT (version 2) of these claims."""

    def part(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    claims = {"iat": int(time.time()), "iss": public(signer), **claims}
    claims["jti"] = base64.b32encode(hashlib.sha256(json.dumps(claims).encode()).digest()).rstrip(b"=").decode()
    text = f"{part(json.dumps({'typ': 'JWT', 'alg': 'ed25519-nkey'}).encode())}.{part(json.dumps(claims).encode())}"
    return f"{text}.{part(signer.sign(text.encode()))}"


async def check_publishes(server: NatsServer | str, **settings: Any) -> None:
    async with connected_bus(server, **settings) as bus:
        await create_stream(bus)
        assert isinstance(await bus.publish(pair("1")), Published)


@pytest_twisted.ensureDeferred
async def test_user_and_password_in_the_url_and_in_the_settings(tmp_path: Path, lines: list[LogEvent]) -> None:
    """Percent-encoded in the URL or plain in the settings; the log names the server without them."""
    config = f'authorization {{ user: gw, password: "{CANARY}/@:" }}'
    server = NatsServer(tmp_path, config).start()
    try:
        await check_publishes(server.url_with(f"gw:{CANARY}%2F%40%3A"))
        await check_publishes(server, user="gw", password=f"{CANARY}/@:")
        assert any("Connected" in str(event.get("log_format")) for event in lines)
    finally:
        server.close()


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_said_calmly_and_never_repeated(tmp_path: Path, lines: list[LogEvent]) -> None:
    """Every attempt is counted, the log has one line a second, and the password stands nowhere."""
    server = NatsServer(tmp_path, 'authorization { user: gw, password: "right" }').start()
    counts = Counts()
    try:
        async with connected_bus(server, wait=False, user="gw", password=CANARY, counts=counts) as bus:
            await pause(1.5)
            assert bus.state is BusState.DISCONNECTED
            assert "Authorization" in bus.last_error
            assert CANARY not in bus.last_error
            assert bus.attempts == counts.errors["connection"] >= 3
            said = [event for event in lines if event.get("event") == "nats_connect_failed"]
            assert 1 <= len(said) <= 2
            assert isinstance(await bus.publish(pair("1")), Unpublished)
    finally:
        server.close()


@pytest_twisted.ensureDeferred
async def test_token(tmp_path: Path, lines: list[LogEvent]) -> None:
    """A token in the URL or in the settings."""
    server = NatsServer(tmp_path, f'authorization {{ token: "{CANARY}" }}').start()
    try:
        await check_publishes(server.url_with(CANARY))
        await check_publishes(server, token=CANARY)
        assert lines
    finally:
        server.close()


@pytest_twisted.ensureDeferred
async def test_nkey_as_text_and_as_file(tmp_path: Path) -> None:
    """An nkey seed as text or in a file; a file that is missing is a failed attempt, and works once it is there."""
    seed, keys = key_pair(nkeys.PREFIX_BYTE_USER)
    server = NatsServer(tmp_path, f"authorization {{ users = [ {{ nkey: {public(keys)} }} ] }}").start()
    path = tmp_path / "seed"
    try:
        await check_publishes(server, nkey_seed=seed)
        async with connected_bus(server, wait=False, nkey_file=str(path)) as bus:
            assert "No such file" in bus.last_error
            path.write_text(seed + "\n")
            await until(lambda: bus.state is BusState.CONNECTED)
            assert isinstance(await bus.publish(pair("1")), Published)
    finally:
        server.close()


@pytest_twisted.ensureDeferred
async def test_credentials_file(tmp_path: Path) -> None:
    """A credentials file (JWT and seed) of an operator's account."""
    _, operator = key_pair(nkeys.PREFIX_BYTE_OPERATOR)
    _, account = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    _, system = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    seed, user = key_pair(nkeys.PREFIX_BYTE_USER)
    everything = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1}
    limits = {**everything, "wildcards": True, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    operator_claims = {"type": "operator", "version": 2}
    operator_jwt = signed({"name": "op", "sub": public(operator), "nats": operator_claims}, operator)
    account_claims = {"type": "account", "version": 2, "limits": limits}
    account_jwt = signed({"name": "acc", "sub": public(account), "nats": account_claims}, operator)
    system_claims = {"type": "account", "version": 2, "limits": everything}
    system_jwt = signed({"name": "sys", "sub": public(system), "nats": system_claims}, operator)
    user_claims = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
    user_jwt = signed({"name": "gw", "sub": public(user), "nats": user_claims}, account)
    credentials = tmp_path / "gw.creds"
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    config = (
        f"operator: {operator_jwt}\nresolver: MEMORY\nsystem_account: {public(system)}\n"
        f"resolver_preload: {{ {public(account)}: {account_jwt}\n{public(system)}: {system_jwt} }}\n"
    )
    server = NatsServer(tmp_path, config).start()
    try:
        await check_publishes(server, credentials_file=str(credentials))
        async with connected_bus(server, wait=False, credentials_file=str(tmp_path / "none")) as bus:
            assert "No such file" in bus.last_error
    finally:
        server.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest_twisted.ensureDeferred
async def test_tls_handshake_first_with_a_client_certificate(tmp_path: Path, certificates: Certificates) -> None:
    """TLS before the first byte, both sides with certificates, through a kill -9; stopped without noise."""
    server = NatsServer(tmp_path, tls_block(certificates, verify=True)).start()
    files = {"tls_ca_file": str(certificates.ca)}
    own = {"tls_cert_file": str(certificates.cert), "tls_key_file": str(certificates.key)}
    try:
        async with connected_bus(server.url_with("", "tls", "localhost"), **files, **own) as bus:
            await create_stream(bus)
            assert isinstance(await bus.publish(pair("1", b"x" * 1_000_000)), Published)
            server.restart()
            await until(lambda: bus.attempts or bus.last_error != "")
            await until(lambda: bus.state is not BusState.DISCONNECTED)
            assert isinstance(await bus.publish(pair("2")), Published)
        async with connected_bus(server.url_with("", "tls", "localhost"), wait=False, **files) as bus:
            await pause(0.2)
            assert bus.state is BusState.DISCONNECTED
    finally:
        server.close()


@pytest_twisted.ensureDeferred
async def test_a_server_that_cannot_be_trusted_gets_no_password(
    tmp_path: Path, certificates: Certificates, lines: list[LogEvent]
) -> None:
    """Another authority, another name, no TLS at all: no connection, and nothing is sent in the clear."""
    settings = {"wait": False, "user": "gw", "password": CANARY}
    other = make_certificates(tmp_path / "other", "elsewhere.example")
    plain = NatsServer(tmp_path / "plain").start()
    tls = NatsServer(tmp_path / "tls", tls_block(certificates)).start()
    named = NatsServer(tmp_path / "named", tls_block(other)).start()
    cases = [
        (tls, str(other.ca), "CERTIFICATE_VERIFY_FAILED"),
        (named, str(other.ca), "CERTIFICATE_VERIFY_FAILED"),
        (plain, str(certificates.ca), "handshake_first"),
    ]
    try:
        for server, ca, text in cases:
            url = server.url_with("", "tls", "localhost")
            async with connected_bus(url, tls_ca_file=ca, **settings) as bus:
                assert bus.state is BusState.DISCONNECTED
                assert text in bus.last_error
        assert lines
    finally:
        for server in (plain, tls, named):
            server.close()


@pytest_twisted.ensureDeferred
async def test_a_frozen_server_with_tls_is_left_too(tmp_path: Path, certificates: Certificates) -> None:
    """The socket of a hung server is freed below TLS as well, with bytes that it did not take."""
    server = NatsServer(tmp_path, tls_block(certificates)).start()
    counts = Counts()
    url = server.url_with("", "tls", "localhost")
    try:
        async with connected_bus(url, counts=counts, tls_ca_file=str(certificates.ca)) as bus:
            await create_stream(bus)
            server.sigstop()
            outcomes = [bus.publish(pair(str(i), b"x" * 900_000)) for i in range(10)]
            for publishing in outcomes:
                assert isinstance(await publishing, Unpublished)
            await until(lambda: counts.errors["connection"] >= 1, 2.0)
            server.sigcont()
            await until(lambda: bus.state is not BusState.DISCONNECTED)
            assert isinstance(await bus.publish(pair("after")), Published)
    finally:
        server.close()
