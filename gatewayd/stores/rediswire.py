"""
How a connection to Redis is made and logged in.

Decides the order (TCP or UNIX, TLS, password, database, PING) and what is said when it fails. Nothing but this module
imports txredisapi, and only when a wire is made: of that driver we take the protocol, never its factories, which stop
reconnecting for ever when a server goes away while a connection logs in, and which keep what is asked meanwhile. Never
tries again by itself.
"""

# Twisted's endpoints carry no annotations.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.python.failure import Failure

from gatewayd.lifecycle import StartFailed
from gatewayd.stores.redisplace import RedisPlace
from gatewayd.stores.redisreplies import code_of

CONNECT_S: Final = 1.0
"""How long an attempt may take: name, connection, TLS, password, database and PING."""

_PEM: Final = b"-----BEGIN CERTIFICATE-----"


class OpenFailed(Exception):
    """An attempt to connect failed. `ours`: what we were told to log in with is wrong, and waiting cannot cure it."""

    def __init__(self, text: str, *, ours: bool = False) -> None:
        super().__init__(text)
        self.ours = ours


class Wire:
    """How a connection to the place is made and logged in."""

    def __init__(self, place: RedisPlace, reactor: Any) -> None:
        self.place = place
        self._reactor = reactor
        self._endpoint = _endpoint(place, reactor)
        self._make, self._refusal = _driver()
        user = () if place.user is None else (place.user,)
        login = () if place.password is None else (("AUTH", *user, place.password.reveal()),)
        database = (("SELECT", place.db),) if place.db else ()
        self._greeting: Final[Sequence[tuple[Any, ...]]] = (*login, *database, ("PING",))

    def __repr__(self) -> str:
        return f"<Wire to {self.place}>"

    def open(self) -> Deferred[Any]:
        """A connection that has answered PING, within CONNECT_S; fails with OpenFailed, or CancelledError."""
        opening = Deferred.fromCoroutine(self._open())
        return opening.addTimeout(CONNECT_S, self._reactor).addErrback(self._explain)

    async def _open(self) -> Any:
        factory = Factory.forProtocol(partial(self._make, charset=None, convertNumbers=False))
        factory.noisy = False
        connection: Any = await self._endpoint.connect(factory)
        if not self.place.path:
            connection.transport.setTcpNoDelay(True)  # a call behind another must not wait for the other's ACK
        try:
            for command in self._greeting:
                await connection.execute_command(*command)
        except Exception as error:
            connection.transport.abortConnection()
            lost = connection.lost
            raise (error if lost is None or isinstance(error, CancelledError) else lost.value) from None
        return connection

    def _explain(self, failure: Failure) -> Any:
        error = failure.value
        if error is None or isinstance(error, CancelledError):
            return failure
        text = str(error) or type(error).__name__
        if isinstance(error, VerificationError):
            raise OpenFailed(f"TLS: certificate verify failed: it is not for {self.place.host}", ours=True)
        if isinstance(error, SSL.Error) and error.args and error.args[0]:
            text = f"TLS: {', '.join(str(part[-1]) for part in error.args[0])}"
            raise OpenFailed(text, ours="verify failed" in text)
        if not isinstance(error, self._refusal):
            raise OpenFailed("no answer in time" if "TimeoutError" in type(error).__name__ else text)
        # "ERR max number of clients reached" passes; other ERRs answer AUTH and SELECT.
        ours = code_of(text) in ("NOAUTH", "WRONGPASS", "NOPERM", "ERR") and "max number of clients" not in text
        raise OpenFailed(text, ours=ours)


def _endpoint(place: RedisPlace, reactor: Any) -> Any:
    """The place as an endpoint of Twisted's."""
    if place.path:
        return UNIXClientEndpoint(reactor, place.path, timeout=CONNECT_S)
    endpoint = HostnameEndpoint(reactor, place.host, place.port, timeout=CONNECT_S)
    if not place.tls:
        return endpoint
    trust = None
    if place.ca is not None:
        try:
            found = [Certificate.loadPEM(_PEM + part) for part in place.ca.read_bytes().split(_PEM)[1:]]
        except Exception as error:
            raise StartFailed(f"{place.ca}: no certificates can be read from it: {error}") from None
        if not found:
            raise StartFailed(f"{place.ca}: holds no PEM certificate")
        trust = trustRootFromCertificates(found)
    return wrapClientTLS(optionsForClientTLS(place.host, trustRoot=trust), endpoint)


def _driver() -> tuple[Any, type[Exception]]:
    """
    The driver's protocol and its error for a server's refusals. On hiredis only: without that replies have other types,
    and can reach the wrong callers.
    """
    import txredisapi  # here, because importing it installs a reactor where there is none

    if txredisapi.RedisProtocol is not txredisapi.HiredisProtocol:
        raise StartFailed("Redis needs the package hiredis: install gatewayd")
    from hiredis import pack_command

    class Connection(txredisapi.HiredisProtocol):  # type: ignore[misc]
        """The protocol, and why it was lost. Commands are encoded in C, as its own way takes 30 us for ten words."""

        lost: Failure | None = None

        def _build_command(self, *words: bytes | str | int, **_: Any) -> bytes:
            packed: bytes = pack_command(words)  # type: ignore[arg-type]  # its annotation means a tuple of any length
            return packed

        def connectionLost(self, why: Failure) -> None:
            """Keep the reason; then everything that waits fails."""
            self.lost = why
            super().connectionLost(why)

    return Connection, txredisapi.ResponseError
