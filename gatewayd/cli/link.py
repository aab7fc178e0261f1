"""
One connection to NATS for one command, on asyncio.

Decides which server is asked and how long, and tells an answer from a refusal. Never connects again by itself, and
never shows a credential.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import nats.errors
from nats.aio.client import Client as Driver

from gatewayd.bus.client import NatsSettings, credentials, describe, parse_server
from gatewayd.cli.console import Code, Failed, json_or_none

if TYPE_CHECKING:
    from gatewayd.secret import Secret
    from gatewayd.settings import Settings

CONNECT_S: Final = 2.0
ANSWER_S: Final = 5.0
CLOSE_S: Final = 1.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Refusal:
    """JetStream's error: its number (err_code) and text."""

    number: int
    text: str


def nats_settings(settings: "Settings") -> NatsSettings:
    """Where NATS is: NATS_URL and its logins; without it the server that a gateway in development runs now."""
    if settings.embedded_nats:
        return _embedded(settings)
    return NatsSettings(
        settings.nats_url,
        settings.nats_stream,
        user=settings.nats_user,
        password=_text(settings.nats_password),
        token=_text(settings.nats_token),
        nkey_seed=_text(settings.nats_nkey_seed),
        credentials_file=_path(settings.nats_credentials_file),
        tls_ca_file=_path(settings.nats_tls_ca),
        tls_cert_file=_path(settings.nats_tls_cert),
        tls_key_file=_path(settings.nats_tls_key),
    )


def _text(secret: "Secret | None") -> str | None:
    return None if secret is None else secret.reveal().decode("utf-8", "surrogateescape")


def _path(path: object) -> str | None:
    return None if path is None else str(path)


def _embedded(settings: "Settings") -> NatsSettings:
    path = settings.state_directory / "nats" / "client.json"
    try:
        found = json_or_none(path.read_bytes())
    except FileNotFoundError:
        raise Failed(
            Code.UNREACHABLE,
            f"NATS_URL is not set, and no gateway runs a server of its own here (there is no {path})",
        ) from None
    except OSError as error:
        raise Failed(Code.WRONG, f"{path} cannot be read: {error.strerror}") from None
    members = found if isinstance(found, dict) else {}
    url, user, password = (members.get(name) for name in ("url", "user", "password"))
    if not (isinstance(url, str) and isinstance(user, str) and isinstance(password, str)):
        raise Failed(Code.UNREACHABLE, f"{path} cannot be understood: is a gateway running?")
    return NatsSettings((url,), settings.nats_stream, user=user, password=password)


def run(command: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's coroutine to its end; KeyboardInterrupt cancels it first."""
    return asyncio.run(command)


async def within(seconds: float, waiting: Awaitable[Result]) -> Result:
    """
    The result, or TimeoutError. asyncio.wait_for would wait on for a task that swallows its cancellation, as
    nats-py's do at a server that hangs (tried).
    """
    task = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
    if not task.done():
        raise TimeoutError(f"no answer within {seconds:g} s")
    return task.result()


class Link:
    """An open connection; made by open_link()."""

    def __init__(self, driver: Driver, stream: str) -> None:
        self.driver = driver
        self.stream = stream

    @property
    def server_version(self) -> str:
        """As the server says."""
        found = self.driver.connected_server_version
        return f"{found.major}.{found.minor}.{found.patch}"

    @property
    def max_payload(self) -> int:
        """Bytes that a message may have."""
        return self.driver.max_payload

    async def ask(self, call: str, members: Mapping[str, Any]) -> dict[str, Any] | Refusal:
        """One call of the JetStream API, `$JS.API.` left out; Failed when there is no answer."""
        payload = json.dumps(members).encode() if members else b""
        try:
            message = await within(ANSWER_S + 1, self.driver.request(f"$JS.API.{call}", payload, timeout=ANSWER_S))
        except nats.errors.NoRespondersError:
            raise Failed(
                Code.UNREACHABLE, "the server has no JetStream for this user, or its stream has no leader now"
            ) from None
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise Failed(Code.UNREACHABLE, f"NATS does not answer: {describe(error)}") from None
        answer = json_or_none(message.data)
        if not isinstance(answer, dict):
            raise Failed(Code.UNREACHABLE, "NATS answers something that is not JetStream's")
        refusal = answer.get("error")
        if isinstance(refusal, dict):
            return Refusal(int(refusal.get("err_code", 0)), str(refusal.get("description", "")))
        return answer

    async def close(self) -> None:
        """Close within CLOSE_S; a connection to a server that hangs is left to the end of the process."""
        with suppress(nats.errors.Error, TimeoutError, OSError):
            await within(CLOSE_S, self.driver.close())


def _reason(error: Exception) -> str:
    return f"no answer within {CONNECT_S:g} s" if isinstance(error, TimeoutError) else describe(error)


async def open_link(settings: NatsSettings) -> Link:
    """A connection to the first server that takes it; Failed says why each did not."""
    reasons = []
    for url in settings.servers:
        try:
            server = parse_server(url)
        except ValueError as error:
            raise Failed(Code.WRONG, f"NATS_URL: {error}") from None
        heard: deque[Exception] = deque(maxlen=1)

        async def hear(error: Exception, heard: deque[Exception] = heard) -> None:
            heard.append(error)

        driver = Driver()
        link = Link(driver, settings.stream)
        try:
            attempt = driver.connect(
                [server.url],
                name="gatewayctl",
                allow_reconnect=False,
                max_reconnect_attempts=1,  # 0 would mean: try for ever
                reconnect_time_wait=0,
                connect_timeout=CONNECT_S,  # type: ignore[arg-type]
                ping_interval=5,
                error_cb=hear,
                **credentials(server, settings),
            )
            await within(3 * CONNECT_S, attempt)
        except Exception as error:  # of the driver, the socket, a file: this server is of no use, whatever it was
            reasons.append(f"{server.url}: {_reason(heard[0] if heard else error)}")
            await link.close()
        else:
            return link
    raise Failed(Code.UNREACHABLE, *reasons)
