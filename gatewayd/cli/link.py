"""
One connection to NATS for one command, on asyncio.

Decides which server is asked and how long, and tells an answer from a refusal. Never connects again by itself, and
never shows a credential.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import nats.errors

from gatewayd import state_files
from gatewayd.bus.api import api, read_api
from gatewayd.bus.client import NatsSettings, credentials, describe, nats_settings_of
from gatewayd.bus.publication import Ack, Message, Unpublished
from gatewayd.bus.servers import parse_server
from gatewayd.cli.bulk import BulkDriver
from gatewayd.cli.console import Code, Failed, json_or_none, plain

if TYPE_CHECKING:
    from gatewayd.settings import Settings

CONNECT_S: Final = 2.0
CLOSE_S: Final = 1.0
PUBLISH_S: Final = 3.0
_NO_STREAM: Final = "(10059)"  # what the API's error ends with

Result = TypeVar("Result")


def nats_settings(settings: "Settings") -> NatsSettings:
    """Where NATS is: NATS_URL and its logins; without it the server that a gateway in development runs now."""
    if settings.embedded_nats:
        return _embedded(settings)
    return nats_settings_of(settings)


def _embedded(settings: "Settings") -> NatsSettings:
    path = settings.state_directory / state_files.CLIENT
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


def refused(answer: Unpublished) -> Failed:
    """What a command ends with when JetStream refuses a call."""
    if answer.error.endswith(_NO_STREAM):
        return Failed(Code.NOT_IN_ORDER, "there is no stream; `gatewayctl stream ensure` makes it")
    return Failed(Code.NOT_IN_ORDER, f"NATS refuses: {plain(answer.error)}")


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


async def pause(seconds: float) -> None:
    """Let so much time go by."""
    await asyncio.sleep(seconds)


class Link:
    """An open connection; made by open_link()."""

    def __init__(self, driver: BulkDriver, stream: str) -> None:
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

    async def request(
        self, subject: str, payload: bytes, timeout_s: float, headers: dict[str, str] | None = None
    ) -> bytes | Unpublished:
        """One request and its answer (see bus.api.Api); Failed when there is none."""
        try:
            asked = self.driver.request(subject, payload, timeout=timeout_s, headers=headers)
            message = await within(timeout_s + 1, asked)
        except nats.errors.NoRespondersError:
            raise Failed(
                Code.UNREACHABLE, "the server has no JetStream for this user, or its stream has no leader now"
            ) from None
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise Failed(Code.UNREACHABLE, f"NATS does not answer: {describe(error)}") from None
        return message.data

    async def ask(self, call: str, members: Mapping[str, Any]) -> dict[str, Any] | Unpublished:
        """One call of the JetStream API, `$JS.API.` left out; Failed when there is no answer."""
        return await api(self, f"$JS.API.{call}", members)

    async def publish(self, message: Message) -> Ack | Unpublished:
        """Store one message. Failed when there is no answer: it may be stored all the same."""
        lines = f"{message.headers.decode('ascii')}Nats-Expected-Stream: {self.stream}".split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        found = await self.request(message.subject.decode("ascii"), message.body, PUBLISH_S, headers)
        answer = found if isinstance(found, Unpublished) else read_api(found)
        if isinstance(answer, Unpublished):
            return answer
        return Ack(int(answer["seq"]), bool(answer.get("duplicate")))

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

        driver = BulkDriver()
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
