"""
The wiring of the edge: who is handed what, and in which order its parts start and stop.

Decides nothing about a request or an event. Imported only where the edge is on: what it needs (h2, protobuf, a client
for Redis) is not loaded for webhooks alone.
"""

import os
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from msgspec import structs
from prometheus_client import CollectorRegistry
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredSemaphore

from gatewayd.address_gate import AddressGate
from gatewayd.answers import Answers
from gatewayd.bus.nats import NatsBus
from gatewayd.commands import auth_requests
from gatewayd.commands.composed import make_routes
from gatewayd.commands.guarded import Complaints
from gatewayd.commands.public_auth import AuthService, PublicAuth, Refuse, in_this_shape
from gatewayd.edge_metrics import EdgeMetrics
from gatewayd.http.inherited import Inherited
from gatewayd.http.message import Request
from gatewayd.http.proxied import Proxies
from gatewayd.interfaces import ILeaf
from gatewayd.lifecycle import Overrun, Ticker, within
from gatewayd.live import Live
from gatewayd.maintenance import Maintenance
from gatewayd.published_keys import PATH as KEYS_PATH
from gatewayd.published_keys import PublishedKeys
from gatewayd.push import opening
from gatewayd.push.connections import Connections
from gatewayd.push.delivery import Delivery
from gatewayd.push.feeding import events_reader, feed_events
from gatewayd.push.frames import EventSigner
from gatewayd.push.grpc_listener import GrpcListener
from gatewayd.push.grpc_server import GrpcServer
from gatewayd.push.health import Health
from gatewayd.push.hub import Bounds, Hub
from gatewayd.push.position import EVENTS, SIGNALS
from gatewayd.push.signals import SignalFollower, SignalStream, feed_signals
from gatewayd.push.websocket import Services
from gatewayd.push.wishes import parse_grants
from gatewayd.sessions import envelope as envelopes
from gatewayd.sessions.cache import SessionCache
from gatewayd.sessions.endings import LIMITED, UNAVAILABLE_NOW, Ending
from gatewayd.sessions.execution import Execution
from gatewayd.sessions.keys import SigningKeys
from gatewayd.sessions.limits import Limits
from gatewayd.sessions.reservations import Reservations
from gatewayd.sessions.signing import event_input
from gatewayd.sessions.values import Envelope, Reply, Session
from gatewayd.sessions.verification import Verification
from gatewayd.settings import Settings
from gatewayd.settings_edge import EdgeSettings
from gatewayd.stores.redislink import RedisLink
from gatewayd.stores.redismemory import LOOK_S, RedisMemory
from gatewayd.stores.redismetrics import RedisMetrics
from gatewayd.stores.redisplace import RedisPlace
from gatewayd.streams.entries import parse_client_event
from gatewayd.streams.poller import Feed, StreamPoller
from gatewayd.streams.redis_stream import RedisStream
from gatewayd.streams.session_feed import session_feed
from gatewayd.world import Part, World

LINK: Final = "Redis (GATEWAY_REDIS_MASTER_ADDR)"
FIRST_READ_S: Final = 2.0
"""How long a request of the first moments waits until the streams have been read as far as they must be."""
FIRST_AT_ONCE: Final = 64
"""How many of those that waited are verified at a time."""
CLOSING_S: Final = 1.0
"""What connections without an open stream have for their end at the most."""


class Edge:
    """
    The edge of one process: `paths` and `prefixes` are what it serves on the public listener; `first` and `services`
    are in the order in which they start, before NATS and behind it. `redis` is the RedisMetrics that there is already,
    or None; `stopping` says that the process is about to end.
    """

    def __init__(
        self,
        world: World,
        settings: Settings,
        edge: EdgeSettings,
        *,
        live: Live,
        bus: NatsBus,
        answers: Answers,
        maintenance: Maintenance,
        stopping: Callable[[], bool],
        registry: CollectorRegistry,
        redis: Any,
        inherited: Inherited,
        proxies: Proxies,
    ) -> None:
        self._world, self._settings, self._edge = world, settings, edge
        self._live, self._bus, self._maintenance = live, bus, maintenance
        self._stopping = stopping
        self._upstreams: list[Any] = []
        self._waited = DeferredSemaphore(FIRST_AT_ONCE)
        self._routes = make_routes(
            edge.gateway_command_routes,
            bus=bus,
            upstream=lambda: self._upstream(envelopes.MAX_PAYLOAD_BYTES),
            clock=world.reactor,
            random=os.urandom,
        )
        self.metrics = EdgeMetrics(registry, message_types=self._routes.names)
        counted = redis or RedisMetrics(registry)
        self._link = self._make_link(counted)
        self._memory = RedisMemory(self._link, counted.evicted)
        self.keys = SigningKeys(
            str(edge.gateway_response_signer_private_key_pem_path),
            str(edge.gateway_response_signer_previous_key_pem_path or ""),
        )
        self.keys.use(self.keys.load())
        self._sessions = SessionCache(
            self._link,
            clock=world.reactor,
            key_prefix=edge.gateway_session_redis_key_prefix,
            on_revoked=self._revoke,
            on_size=self.metrics.sessions.set,
        )
        rates = edge.limits
        self.limits = Limits(
            session=rates["session"],
            user=rates["user"],
            message_type=rates["message_type"],
            group=self._routes.group,
        )
        self._verification = self._make_verification()
        self._delivery = self._make_delivery()
        self._signals = self._make_signals()
        self._connections = Connections(world.reactor, world.loop.soon)
        self._services = self._make_services()
        self._grpc = self._make_grpc(inherited, proxies)
        self._pollers = self._make_pollers()
        self.paths: Mapping[bytes, ILeaf] = self._make_paths(answers)
        self.prefixes: Mapping[bytes, ILeaf] = {auth_requests.PREFIX: self._make_public_auth()}

    @property
    def first(self) -> Sequence[Service]:
        """What tells at once that the process cannot do its work: an address that is taken, a Redis that refuses it."""
        addresses = Part("gRPC (GATEWAY_AUTHENTICATED_GRPC_ADDR)", self._grpc.open, self._grpc.close)
        return addresses, Part(LINK, self._link.start, self._link.stop)

    def services(self) -> Sequence[Service]:
        """
        Everything else, in the order in which it starts. Stopping goes the other way: no new client, no new entry,
        streams closed with their reason, calls in flight, then what they stand on.
        """
        sessions, events = self._pollers
        budget_s = self._settings.gateway_shutdown_timeout
        return (
            Ticker(self._world.reactor, LOOK_S, self._memory.look, "the edge's Redis memory", at_once=True),
            Part("sessions", lambda: None, self._sessions.stop),
            Part("upstreams", lambda: None, self._stop_upstreams),
            Part("gRPC", lambda: None, self._grpc.close),
            Part("push connections", lambda: None, lambda: self._connections.stop(min(CLOSING_S, budget_s / 4))),
            Part("push hub", self._delivery.start, lambda: self._delivery.stop(budget_s / 2)),
            *(() if self._signals is None else (Part("signals as push", self._signals.start, self._signals.stop),)),
            events,
            sessions,
            Part("gRPC listener", self._grpc.serve, self._grpc.leave),
        )

    def taken(self, edge: EdgeSettings) -> None:
        """A reload: take over what may change."""
        self.limits.use(**edge.limits)

    def load_certificates(self) -> Callable[[], None]:
        """Read keys and certificates anew; gives what puts them in force. StartFailed or CannotListen says why not."""
        keys, use = self.keys.load(), self._grpc.load_certificates()

        def use_all() -> None:
            self.keys.use(keys)
            use()

        return use_all

    def warnings(self) -> list[str]:
        """What /readyz warns of."""
        silent = (
            [] if self._link.connected else [f"{LINK} does not answer: {self._link.last_error.rstrip('.') or 'lost'}."]
        )
        return [*self.keys.warnings, *silent, *self._memory.warnings()]

    def states(self) -> Mapping[str, str]:
        """/healthz's members."""
        return {"redis": "ok" if self._link.connected else "error"}

    # -- parts -------------------------------------------------------------------------------------------------------

    def _make_link(self, redis: Any) -> RedisLink:
        edge = self._edge
        address = edge.gateway_redis_master_addr
        place = RedisPlace(address.host, address.port, edge.gateway_redis_db, edge.gateway_redis_password)
        timeout_s = edge.gateway_redis_operation_timeout
        return RedisLink(place, self._world.reactor, redis, name=LINK, timeout_s=timeout_s)

    def _make_verification(self) -> Verification:
        world, edge = self._world, self._edge
        window_ms = round(edge.gateway_freshness_window * 1000)
        reserve_s = edge.gateway_replay_redis_reserve_timeout
        reservations = Reservations(
            self._link,
            clock=world.reactor,
            key_prefix=edge.gateway_replay_redis_key_prefix,
            window_ms=window_ms,
            timeout_s=None if edge.gateway_redis_operation_timeout <= reserve_s else reserve_s,
        )
        return Verification(
            self._sessions,
            reserve=reservations.reserve,
            limits=self.limits,
            window_ms=window_ms,
            now=world.now,
            wall=world.wall,
            replayed=self.metrics.replay_rejected.inc,
        )

    async def _verify(self, envelope: Envelope) -> Session | Ending:
        """The session, unless nothing is taken now."""
        closed = self._closed()
        if closed is not None:
            return closed
        sessions, _ = self._pollers
        if sessions.current_at >= 0 or not self._link.connected:
            return await self._verification.verify(envelope)
        # Clients come back as soon as there is a listener; until the snapshots are read all would be refused.
        try:
            await within(self._world.reactor, sessions.caught_up(), FIRST_READ_S)
        except Overrun:
            return UNAVAILABLE_NOW
        # Two thousand of them in one turn would take a second, in which Redis is not heard.
        await self._waited.acquire()
        try:
            return await self._verification.verify(envelope)
        finally:
            self._waited.release()

    async def _verify_subscriber(self, envelope: Envelope) -> Session | Ending:
        """The same, once there are events to subscribe to: what was published lately is read back first."""
        begun = self._feeding.begun()
        if not begun.called:
            with suppress(Overrun):  # then the hub refuses
                await within(self._world.reactor, begun, FIRST_READ_S)
        return await self._verify(envelope)

    def _make_delivery(self) -> Delivery:
        world, edge = self._world, self._edge
        bounds = Bounds(
            queue_events=edge.gateway_push_queue_events,
            queue_bytes=edge.gateway_push_queue_bytes,
            heartbeat_s=edge.gateway_push_heartbeat,
        )
        self._events = RedisStream(edge.gateway_client_events_redis_stream, self._link, _new_epoch)
        self._signal_stream = SignalStream(
            self._bus, self._settings.nats_stream, self._settings.nats_subject_signals_normalized
        )
        return Delivery(
            Hub(bounds, EventSigner(self.keys.sign, event_input)),
            verify=self._verify_subscriber,
            grants=parse_grants(edge.gateway_signals_grants),
            readers={EVENTS: events_reader(self._events), SIGNALS: self._signal_stream.read},
            metrics=self.metrics,
            clock=world.reactor,
            wall=world.wall,
            soon=world.loop.soon,
            chance=random.random,
        )

    def _make_signals(self) -> SignalFollower | None:
        world = self._world
        if not self._edge.gateway_signals_grants:
            return None
        feeding = feed_signals(self._delivery, self._signal_stream, world.reactor)
        return SignalFollower(
            self._signal_stream,
            feeding,
            metrics=self.metrics,
            clock=world.reactor,
            wall=world.wall,
            soon=world.loop.soon,
            chance=random.random,
        )

    def _make_services(self) -> Services:
        execution = Execution(
            self._verify,
            self._routes,
            sign=self.keys.sign,
            now=self._world.now,
            wall=self._world.wall,
            counts=self.metrics,
            group=self._routes.group,
        )

        def execute(envelope: Envelope, deadline_s: float | None) -> Deferred[Reply | Ending]:
            return Deferred.fromCoroutine(execution.execute(envelope, deadline_s))

        return Services(self._delivery.subscribe, execute, envelopes.read_json, envelopes.write_json)

    def _make_grpc(self, inherited: Inherited, proxies: Proxies) -> GrpcListener:
        world, settings, services = self._world, self._settings, self._services
        server = GrpcServer(
            read_envelope=envelopes.read_protobuf,
            write_reply=envelopes.write_protobuf,
            execute=services.execute,
            subscribe=services.subscribe,
            health=Health(),
            clock=world.reactor,
            soon=world.loop.soon,
            capacity=proxies.capacity,
        )
        return GrpcListener(
            world.reactor,
            world.loop.event_loop,
            server,
            self._edge.gateway_authenticated_grpc_addr,
            inherited=inherited,
            proxies=proxies,
            certificate=str(settings.gateway_tls_cert or ""),
            private_key=str(settings.gateway_tls_key or ""),
            close_s=settings.gateway_shutdown_timeout / 2,
        )

    def _make_pollers(self) -> tuple[StreamPoller[Any], StreamPoller[Any]]:
        world, edge = self._world, self._edge
        around: dict[str, Any] = {
            "counts": self.metrics,
            "clock": world.reactor,
            "wall": world.wall,
            "jitter": random.random,
        }
        hub = self._delivery.hub
        snapshots = RedisStream(edge.gateway_session_events_redis_stream, self._link, _new_epoch)
        followed = session_feed(self._sessions, lambda: hub.sessions)
        sessions: StreamPoller[Any] = StreamPoller(
            "sessions", snapshots, self._link.reader(), followed, from_beginning=True, **around
        )
        self._feeding = feeding = feed_events(self._delivery, self._events, world.reactor)
        pushed = Feed(parse_client_event, feeding.deliver, feeding.placed, feeding.gap, lambda at: None)
        events: StreamPoller[Any] = StreamPoller(
            "events", self._events, self._link.reader(), pushed, from_beginning=False, **around
        )
        return sessions, events

    def _make_paths(self, answers: Answers) -> Mapping[bytes, ILeaf]:
        rules, now = self._live.get_rules, self._world.now
        gate = AddressGate(rules, now)
        return {
            opening.PATH: opening.Opening(
                services=self._services,
                connections=self._connections,
                origins=self._origins,
                gate=lambda request: self._refuse(request, gate),
            ),
            KEYS_PATH: PublishedKeys(self.keys.document, AddressGate(rules, now), answers),
        }

    def _make_public_auth(self) -> PublicAuth:
        world, url = self._world, self._edge.gateway_auth_service_base_url
        service = None
        if url is not None:
            complain = Complaints(world.reactor).about("public auth")
            upstream = self._upstream(auth_requests.MAX_ANSWER_BYTES)
            service = AuthService(url, upstream, now=world.now, complain=complain)
        gate = AddressGate(self._live.get_rules, world.now, auth_requests.ADDRESS)

        def closed() -> Any:
            if self._stopping():
                return auth_requests.STOPPING
            return None if self._maintenance.window() is None else auth_requests.MAINTENANCE

        return PublicAuth(service, gate, closed=closed, now=world.now)

    # -- while it runs -----------------------------------------------------------------------------------------------

    def refusing(self, refuse: Refuse) -> Refuse:
        """How the public listener refuses: on the public authentication paths in their shape."""
        return in_this_shape(refuse)

    def _origins(self) -> frozenset[bytes]:
        edge = self._live.settings.edge
        return frozenset(origin.encode("ascii") for origin in (edge.gateway_push_allowed_origins if edge else ()))

    def _revoke(self, device_session_id: str) -> None:
        self._delivery.revoke(device_session_id)

    def _closed(self) -> Ending | None:
        """Maintenance is for the edge too."""
        window = self._maintenance.window()
        if window is None:
            return None
        wait_ms = max(1000, round(window.retry_after_s * 1000))
        return structs.replace(UNAVAILABLE_NOW, message="the gateway is in maintenance", retry_after_ms=wait_ms)

    def _refuse(self, request: Request, gate: AddressGate) -> Ending | None:
        closed = self._closed()
        if closed is not None:
            return closed
        limited = gate.refuse(request)
        return None if limited is None else structs.replace(LIMITED, retry_after_ms=round(limited.wait_s * 1000))

    def _upstream(self, longest_bytes: int) -> Any:
        """A client for HTTP; treq takes 0.3 s to import, for those who have a service behind the gateway."""
        from gatewayd.commands.upstream import Upstream

        upstream = Upstream(self._world.reactor, longest_bytes)
        self._upstreams.append(upstream)
        return upstream

    async def _stop_upstreams(self) -> None:
        for upstream in self._upstreams:
            await upstream.stop()


def _new_epoch() -> str:
    return secrets.token_hex(8)
