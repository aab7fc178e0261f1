"""
The connection's life on nats-py: connect, notice the end, leave, connect again, for ever.

Decides which server is tried when, how a client proves who it is, and when a server counts as gone. Never decides
what is published (nats.py and the lane do). The only user of nats-py; asyncio is met nowhere else but in aio.py.

One nats-py client is one connection (allow_reconnect=False), for its own reconnecting has three holes (tried with
2.16): it waits for ever in the close of a connection to a frozen server with unsent bytes, telling nobody; an error
that the server sends closes it for good; and what lay in its buffer is sent after the reconnect, when the publisher
has long been told that it failed. A new client has none of them, and there is one way through a loss instead of two.
"""

import asyncio
import contextlib
import random
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import nats.errors
from nats.aio.client import Client as Driver
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from gatewayd.bus.inlet import Acks, Delivery, Inlet
from gatewayd.bus.servers import Server
from gatewayd.bus.sieve import Sieve
from gatewayd.secret import Secret
from gatewayd.settings import Settings

DRIVER: Final = "2.16"
CLOSE_S: Final = 0.1
"""How long nats-py may take to end on a socket that is aborted: a turn of the loop, or for ever (tried)."""

FLUSH_S: Final = 2.0
"""How long a server may take to say that it has a subscription."""

_UNTIL_CLOSED_S: Final = 86400
_LONGEST_PAUSE_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.1
_STEADY_S: Final = 1.0  # a connection that lived shorter counts as one more failed try, for the pause after it
_LAME_DUCK_S: Final = 0.25
_INBOX_LIMIT: Final = 1_000_000  # messages that wait for the loop; the lane and the requests bound what can come


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """
    Where NATS is and who we are there.

    `servers` are nats:// or tls:// URLs, tried in turn; user and password, or a token, may stand in them, with
    percent-encoding. Else `user` and `password`, `token`, `nkey_seed` (the text) or `nkey_file`, or
    `credentials_file` (JWT and seed). Files are read again for every connect. With tls:// or any `tls_` file the
    handshake comes before the first byte of NATS (the server needs handshake_first: true): a connection upgraded
    after the server's greeting can be stripped of its TLS, password included (tried).
    """

    servers: tuple[str, ...] = field(repr=False)
    stream: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    nkey_seed: str | None = field(default=None, repr=False)
    nkey_file: str | None = None
    credentials_file: str | None = None
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    name: str = "gatewayd"
    publish_timeout_s: float = 2.0
    pending_limit: int = 1000
    pending_limit_bytes: int = 64 * 1024 * 1024
    connect_timeout_s: float = 1.0


def nats_settings_of(settings: Settings) -> NatsSettings:
    """What the settings say of NATS; `servers` is empty where one is embedded."""
    return NatsSettings(
        settings.nats_url,
        settings.nats_stream,
        user=settings.nats_user,
        password=_revealed(settings.nats_password),
        token=_revealed(settings.nats_token),
        nkey_seed=_revealed(settings.nats_nkey_seed),
        credentials_file=_text(settings.nats_credentials_file),
        tls_ca_file=_text(settings.nats_tls_ca),
        tls_cert_file=_text(settings.nats_tls_cert),
        tls_key_file=_text(settings.nats_tls_key),
        name=settings.service_name,
        publish_timeout_s=settings.nats_publish_timeout,
    )


def _revealed(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal().decode("utf-8", "surrogateescape")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def check_private_names(driver: Callable[[], object] = Driver) -> None:
    """
    Check what this module takes for granted of nats-py beyond its public names; RuntimeError names what differs.

    Used: the transport's writer, to write a publication's frames in one piece and to abort the socket of a server
    that hangs; the number of pings that were not answered; the end of a subscription's task, which outlives a client
    that could not flush when it closed.
    """
    found = version("nats-py")
    missing = []
    client = driver()
    transport = TcpTransport()  # type: ignore[no-untyped-call]
    for owner, name, kind in ((client, "_transport", type(None)), (client, "_pings_outstanding", int)):
        if not isinstance(getattr(owner, name, owner), kind):
            missing.append(f"Client.{name}")
    if not hasattr(transport, "_io_writer"):
        missing.append("TcpTransport._io_writer")
    if not callable(getattr(Subscription, "_stop_processing", None)):
        missing.append("Subscription._stop_processing")
    if getattr(Subscription(client, 7), "_id", None) != 7:
        missing.append("Subscription._id")
    if not (found == DRIVER or found.startswith(DRIVER + ".")) or missing:
        raise RuntimeError(f"nats-py {DRIVER} is needed, {found} is installed; missing: {', '.join(missing) or 'none'}")


class Listener(Protocol):
    """Who is told of the connection's life. None of these may raise; each is called on the loop."""

    def connected(self, client: "Client") -> None:
        """A connection is ready: its inbox is subscribed and the server knows it."""

    def lost(self, error: str) -> None:
        """The connection that was ready is gone; called once for each."""

    def failed(self, server: Server, error: str) -> None:
        """An attempt to connect failed."""

    def warned(self, error: str) -> None:
        """The server or the driver complained; the connection goes on."""

    def acknowledged(self, acks: Acks) -> None:
        """Acknowledgements of publications arrived, in their usual form."""

    def answered(self, token: str, headers: Mapping[str, str] | None, body: bytes) -> None:
        """Another message arrived at the inbox, with this last part."""


class Client:
    """One connection to one server, from connect to close; `gone` is set once it is of no more use."""

    def __init__(self, server: Server, settings: NatsSettings, listener: Listener) -> None:
        self.server = server
        self.gone = asyncio.Event()
        self.inbox = b""
        self._settings = settings
        self._listener = listener
        self._nats = Driver()
        self._subscriptions: set[Subscription] = set()
        self._flushes: set[asyncio.Task[None]] = set()
        self._ears: dict[int, Callable[[Delivery], object]] = {}
        self._cut = 0
        self._ready = False
        self._pipe: Any = None
        self.last_error = ""

    @property
    def max_payload(self) -> int:
        """Bytes that the server takes as headers and body of one message."""
        return self._nats.max_payload

    @property
    def version(self) -> str:
        """The server's version, as it says."""
        found = self._nats.connected_server_version
        return f"{found.major}.{found.minor}.{found.patch}"

    @property
    def alive(self) -> bool:
        """False when nats-py itself has given the connection up; it does not always say so."""
        return self._nats.is_connected

    @property
    def silent(self) -> bool:
        """True when the server did not answer the last pings: it hangs, or the way to it does."""
        return self._nats._pings_outstanding > 1

    @property
    def unsent_bytes(self) -> int:
        """Bytes handed to the socket that it did not take yet."""
        return int(self._pipe.get_write_buffer_size()) if self._pipe is not None else 0

    async def open(self) -> None:
        """Connect once, subscribe to a new inbox and make sure that the server has it; raises what went wrong."""
        await self._nats.connect(
            [self.server.url],
            name=self._settings.name,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # 0 would mean: try for ever
            reconnect_time_wait=0,
            connect_timeout=self._settings.connect_timeout_s,  # type: ignore[arg-type]
            ping_interval=1,
            max_outstanding_pings=2,
            pending_size=0,
            error_cb=self._error,
            disconnected_cb=self._ended,
            closed_cb=self._ended,
            lame_duck_mode_cb=self._lame_duck,
            **credentials(self.server, self._settings),
        )
        inbox = self._nats.new_inbox()
        self._cut = len(inbox) + 1
        subscription = await self._subscribe(f"{inbox}.*", self._message)
        self.inbox = inbox.encode("ascii")
        self._pipe = self._transport()
        self._inlet = Inlet(self.inbox, subscription._id, self._settings.stream.encode("ascii"))
        self._pipe.set_protocol(
            Sieve(self._pipe.get_protocol(), self._inlet, self._listener.acknowledged, self._deliver)
        )
        if self.gone.is_set():
            raise ConnectionError(self.last_error)
        self._ready = True

    def write(self, frames: bytes) -> None:
        """Write whole frames in one piece, around nats-py's buffer: what it buffers it may send later."""
        if not frames or self.gone.is_set():
            return
        try:
            self._pipe.write(frames)
        except Exception as error:  # uvloop raises RuntimeError after close, a socket OSError
            self.lose(describe(error))

    def lose(self, error: str) -> None:
        """Be done with this connection: say so once, and free its socket whatever the server does."""
        if self.gone.is_set():
            return
        self.last_error = error
        self.gone.set()
        self.abort()
        if self._ready:
            self._listener.lost(self.last_error)

    def abort(self) -> None:
        """Free the socket now. Private names: without them a frozen server with unsent bytes is never left (tried)."""
        pipe = self._transport()
        if pipe is not None:
            pipe.abort()

    async def close(self) -> None:
        """
        Be done with this connection; within 2 * CLOSE_S no task of nats-py is left, and nothing is raised.

        The socket is aborted first, always: whoever closes has waited for what it wanted, and nats-py's own close
        waits for ever for a frozen server with unsent bytes and for a TLS handshake that failed (tried).
        """
        self._ready = False
        self.gone.set()
        self.abort()
        closing = asyncio.ensure_future(self._nats.close())
        closing.add_done_callback(_forget)
        await asyncio.wait({closing}, timeout=CLOSE_S)
        if not closing.done():
            closing.cancel()
            await asyncio.wait({closing}, timeout=CLOSE_S)
        for subscription in self._subscriptions:
            subscription._stop_processing()
        self._subscriptions.clear()
        for flushed in self._flushes:
            flushed.cancel()
        await asyncio.sleep(0)

    def _transport(self) -> Any:
        """The asyncio transport below nats-py's, or None before there is one."""
        writer = getattr(self._nats._transport, "_io_writer", None)
        return None if writer is None else writer.transport

    async def listen(self, heard: Callable[[Delivery], object]) -> "Ear":
        """
        Hear the deliveries to a new inbox, each of them once; the server has the subscription when this returns.

        `heard` must not raise. What JetStream delivers keeps its own subject, so it cannot come to the shared inbox.
        As messages of nats-py's they would cost 45 us each instead of 6, and reading the nonces back delays the start.
        """
        inbox = self._nats.new_inbox()
        subscription = await self._subscribe(inbox, _unheard)
        self._ears[subscription._id] = heard
        self._inlet.ears.add(subscription._id)
        return Ear(inbox, self, subscription)

    def _deliver(self, delivery: Delivery) -> None:
        heard = self._ears.get(delivery.sid)
        if heard is not None:
            heard(delivery)

    async def silence(self, subscription: Subscription) -> None:
        """Unsubscribe; nothing is raised, also when the connection is gone."""
        self._subscriptions.discard(subscription)
        if self._ears.pop(subscription._id, None) is not None:
            self._inlet.ears.discard(subscription._id)
        subscription._stop_processing()
        with contextlib.suppress(nats.errors.Error, OSError):
            await subscription.unsubscribe()

    async def _subscribe(self, subject: str, heard: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Subscribe, and return when the server has it: what is written next goes around nats-py's buffer."""
        subscription = await self._nats.subscribe(
            subject, cb=heard, pending_msgs_limit=_INBOX_LIMIT, pending_bytes_limit=0
        )
        self._subscriptions.add(subscription)
        try:
            await self._flush()
        except BaseException:  # also when whoever waits has given up
            await self.silence(subscription)
            raise
        return subscription

    async def _flush(self) -> None:
        """
        Return when the server has read what was written; raises when the connection ends, or after FLUSH_S.

        nats-py's own flush goes on until its PONG comes or the connection is closed: one that is cancelled or times out
        leaves a dead future behind, and the PONG that comes for it after all ends nats-py's reading, unsaid (tried).
        """
        flushed = asyncio.ensure_future(self._nats.flush(_UNTIL_CLOSED_S))
        self._flushes.add(flushed)
        flushed.add_done_callback(self._flushes.discard)
        flushed.add_done_callback(_forget)
        gone = asyncio.ensure_future(self.gone.wait())  # nats-py does not end a flush whose connection ends
        try:
            await asyncio.wait({flushed, gone}, timeout=FLUSH_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if self.gone.is_set():
            raise ConnectionError(self.last_error)
        if not flushed.done():
            raise TimeoutError(f"no PONG within {FLUSH_S:g} s")
        flushed.result()

    async def _message(self, message: Msg) -> None:
        self._listener.answered(message.subject[self._cut :], message.headers, message.data)

    async def _error(self, error: Exception) -> None:
        """Whatever nats-py reports. An error at the end of the connection is said while it still calls it connected."""
        text = describe(error)
        if isinstance(error, OSError | nats.errors.UnexpectedEOF | nats.errors.StaleConnectionError):
            self.lose(text)
        elif self._ready:
            self._listener.warned(text)
        else:
            self.last_error = text

    async def _ended(self) -> None:
        error = self._nats.last_error
        self.lose(describe(error) if error is not None else "the server closed the connection")

    async def _lame_duck(self) -> None:
        """The server is about to stop: with another one to go to, leave once what is under way had a moment to end."""
        if len(self._settings.servers) > 1:
            asyncio.get_running_loop().call_later(_LAME_DUCK_S, self.lose, "the server is about to stop")


def credentials(server: Server, settings: NatsSettings) -> dict[str, Any]:
    """What nats-py is told to prove who we are, and of TLS; OSError or ssl.SSLError for a file that is no good."""
    options: dict[str, Any] = {}
    user, password = server.user or settings.user, server.password or settings.password
    token = server.token or settings.token
    if user is not None and password is not None:
        options.update(user=user, password=password)
    elif token is not None:
        options["token"] = token
    if settings.nkey_seed is not None:
        options["nkeys_seed_str"] = settings.nkey_seed
    elif settings.nkey_file is not None:
        options["nkeys_seed"] = settings.nkey_file
    elif settings.credentials_file is not None:
        options["user_credentials"] = settings.credentials_file
    if server.tls or settings.tls_ca_file is not None or settings.tls_cert_file is not None:
        context = ssl.create_default_context(cafile=settings.tls_ca_file)
        if settings.tls_cert_file is not None:
            context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
        options.update(tls=context, tls_handshake_first=True)
    return options


def describe(error: BaseException) -> str:
    """One line about an error of the driver, the socket or a file; none of them repeats a credential."""
    text = " ".join(str(error).split())
    if isinstance(error, ssl.SSLError) and "WRONG_VERSION_NUMBER" in text:
        text += " (does the server have handshake_first: true?)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True, slots=True)
class Ear:
    """A subscription that Client.listen() made."""

    inbox: str
    client: Client = field(repr=False)
    subscription: Subscription = field(repr=False)

    async def close(self) -> None:
        """Unsubscribe; nothing is raised, also when the connection is gone."""
        await self.client.silence(self.subscription)


async def _unheard(message: Msg) -> None:
    """A message without headers to an ear: JetStream sends none."""


def _forget(task: asyncio.Task[None]) -> None:
    """A task that nobody waits for any more: its failure is nobody's, and asyncio must not report it."""
    if not task.cancelled():
        task.exception()


class Link:
    """
    One connection after another, until stop(): a server that ends is left, the next one is tried at once, and when
    all were tried, again after a pause that grows to 1 s, with jitter, so that many gateways do not come in step.
    """

    def __init__(self, settings: NatsSettings, listener: Listener) -> None:
        self._settings = settings
        self._listener = listener
        self._stopping = asyncio.Event()
        self._client: Client | None = None

    async def run(self, servers: Sequence[Server]) -> None:
        """Live, as one task, until stop(); `servers` are tried in turn, at least one."""
        turn = tries = 0
        while not self._stopping.is_set():
            client = self._client = Client(servers[turn % len(servers)], self._settings, self._listener)
            turn += 1
            born = asyncio.get_running_loop().time()
            try:
                await self._within(client.open(), 4 * self._settings.connect_timeout_s)
            except Exception as error:  # of the driver, the socket, a file: an attempt that failed, whatever it was
                tries += 1
                if not self._stopping.is_set():
                    self._listener.failed(client.server, client.last_error or describe(error))
            else:
                self._listener.connected(client)
                await client.gone.wait()
                lived_s = asyncio.get_running_loop().time() - born
                tries = 0 if lived_s >= _STEADY_S else tries + 1
            await client.close()
            await self._pause(tries, len(servers))

    def stop(self) -> None:
        """End run(): it closes the connection and returns within 2 * CLOSE_S."""
        self._stopping.set()
        if self._client is not None:
            self._client.gone.set()

    async def _pause(self, tries: int, servers: int) -> None:
        rounds = tries // servers
        if tries < servers or self._stopping.is_set():
            return
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(9, rounds - 1))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({stopping}, timeout=random.uniform(0.5, 1.0) * longest)  # noqa: S311 - jitter
        stopping.cancel()

    async def _within(self, attempt: Coroutine[Any, Any, None], limit_s: float) -> None:
        """Await the attempt, for at most `limit_s` and until stop(); a task that swallows its cancelling is left."""
        task = asyncio.ensure_future(attempt)
        task.add_done_callback(_forget)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({task, stopping}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)
            raise TimeoutError(f"no answer within {limit_s:g} s")
        task.result()
