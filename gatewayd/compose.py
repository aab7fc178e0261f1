"""
The wiring diagram: settings in, the tree of services out. The only module that knows every other.

Decides who is handed what, and the order in which parts start and stop. Never decides anything about a request.
"""

# Twisted's services carry no annotations.
# mypy: disable-error-code="no-untyped-call"

import gc
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from prometheus_client import CollectorRegistry
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from gatewayd import __version__, lateness, state_files
from gatewayd.aio import Loop
from gatewayd.answers import Answers
from gatewayd.bus.client import check_private_names, nats_settings_of
from gatewayd.bus.embedded import EmbeddedServer
from gatewayd.bus.keeper import StreamKeeper
from gatewayd.bus.nats import NatsBus
from gatewayd.bus.publication import BusState
from gatewayd.bus.wanted import wanted_consumer, wanted_stream
from gatewayd.config import Loaded
from gatewayd.development import keep_secret, trial_command
from gatewayd.errors import Refused
from gatewayd.exposition import Exposition
from gatewayd.health import Health, Phase
from gatewayd.http.addresses import Kind
from gatewayd.http.inherited import Inherited
from gatewayd.http.message import Request, Response
from gatewayd.http.proxied import Proxies
from gatewayd.http.site import Site
from gatewayd.ingress.addresses import AddressBuckets
from gatewayd.ingress.events import FACTS_HEADER, MSG_ID_HEADER, Events, parse_nonce
from gatewayd.ingress.pipeline import Pipeline
from gatewayd.ingress.repair import Repair
from gatewayd.ingress.resource import WebhookResource, make_within
from gatewayd.ingress.shedding import OVERLOAD, Shedding
from gatewayd.ingress.sources import PREFIX
from gatewayd.ingress.turns import Turns
from gatewayd.interfaces import ILeaf
from gatewayd.journal import Journal
from gatewayd.lifecycle import Ending, Notifier, OrderedServices, Signals, StartFailed, Ticker, watchdog
from gatewayd.lines import LEVELS
from gatewayd.listeners import Listeners, take_inherited
from gatewayd.live import Live
from gatewayd.log import Log, make_log
from gatewayd.maintenance import Maintenance
from gatewayd.metrics import Metrics
from gatewayd.probes import HealthProbe, MetricsProbe
from gatewayd.settings import Settings
from gatewayd.settings_table import secret_name
from gatewayd.standing import Standing
from gatewayd.stores.memory import MemoryAdmission
from gatewayd.times import Monotonic, Wall

_log = Logger()

TICK_S: Final = 1.0
DEAD_SUBJECTS: Final = ("dlq.signals.raw", "dlq.signals.normalized")


class Root(OrderedServices):
    """The tree's root; it also puts our observer in the place of twistd's, which happens when it is adopted."""

    observer: Any = None

    def setServiceParent(self, parent: Any) -> None:
        """Adopted by twistd's Application, which twistd asks for its log observer next."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.observer)
        super().setServiceParent(parent)


class Part(Service):
    """A service made of two functions."""

    def __init__(self, name: str, start: Callable[[], Any], stop: Callable[[], Any]) -> None:
        self.name = name
        self._start = start
        self._stop = stop

    def startService(self) -> Any:
        """Start; a Deferred when it takes time."""
        super().startService()
        return self._start()

    def stopService(self) -> Any:
        """Stop; a Deferred when it takes time."""
        super().stopService()
        return self._stop()


@dataclass(frozen=True, slots=True)
class World:
    """What is around the process: its reactor (whose clock is monotonic), its wall clock, its environment."""

    reactor: Any
    loop: Loop
    wall: Callable[[], Wall]
    environ: Mapping[str, str]

    def now(self) -> Monotonic:
        """The monotonic clock."""
        return Monotonic(self.reactor.seconds())


def build(loaded: Loaded, reactor: Any, event_loop: Any, *, load: Callable[[], Loaded], log_file: str = "") -> Root:
    """The service tree of one gatewayd; `load` reads the settings anew for SIGHUP."""
    if loaded.settings is None:
        raise ValueError("there are no settings to build from")
    check_private_names()
    settings = complete_settings(loaded.settings)
    inherited = take_inherited(os.environ)
    world = World(reactor, Loop(event_loop), cast("Callable[[], Wall]", time.time), dict(os.environ))
    log = make_log(
        reactor,
        world.wall,
        environ=world.environ,
        path=log_file,
        level=LEVELS[settings.log_level.lower()],
    )
    ending = Ending(reactor, log.writer.flush)
    embedded = _embedded_server(world, settings) if settings.embedded_nats else None
    core = Core(world, loaded, settings, load=load, log=log, embedded=embedded, inherited=inherited)
    root = Root(
        reactor,
        ending,
        stop_budget_s=settings.gateway_shutdown_timeout,
        started=lambda: _started(core),
    )
    root.observer = log.observer
    for service in (log.writer, Signals(reactor, ending, _signal_calls(core, log)), *core.services()):
        service.setServiceParent(root)
    return root


class Core:
    """The parts that share state, each handed what it needs; and the few functions that start and stop them."""

    def __init__(
        self,
        world: World,
        loaded: Loaded,
        settings: Settings,
        *,
        load: Callable[[], Loaded],
        log: Log,
        embedded: EmbeddedServer | None,
        inherited: Inherited,
    ) -> None:
        self.world, self.settings, self.log, self.embedded = world, settings, log, embedded
        self.maintenance = Maintenance(
            world.wall,
            on=settings.maintenance_mode,
            until=settings.maintenance_until,
            retry_after_s=settings.maintenance_retry_after,
        )
        self.metrics = Metrics(
            CollectorRegistry(),
            version=__version__,
            subjects=(settings.nats_subject_signals_raw, settings.nats_subject_signals_normalized, *DEAD_SUBJECTS),
            consumer=settings.nats_durable,
        )
        self.live = Live(
            loaded,
            settings,
            load=load,
            complete=complete_settings,
            other_secrets=() if embedded is None else (embedded.password.encode("ascii"),),
            log=log,
            metrics=self.metrics,
            maintenance=self.maintenance,
        )
        self.health = Health(
            maintenance=self.maintenance, now=world.now, wall=world.wall, version=__version__, warnings=self.warnings
        )
        self.answers = Answers(world.wall)
        self.admission = MemoryAdmission(
            world.now,
            nonce_lifetime_s=settings.nonce_lifetime_s,
            identity_lifetime_s=settings.idempotency_ttl_sec,
            entries_bound=settings.admission_entries,
        )
        where = nats_settings_of(settings)
        if embedded is not None:
            where = replace(where, user=embedded.user, password=embedded.password)
        self.bus = NatsBus(where, world.loop, world.reactor, world.wall, self.metrics)
        self.events = Events(
            settings.nats_subject_signals_raw, settings.nats_subject_signals_normalized, settings.signal_schema_version
        )
        self.repair = self._repair()
        self.keeper = self._keeper()
        self.bus.on_connected = self.keeper.prepare
        self.live.widen = self.keeper.widen
        self.site = self._site()
        self.listeners = self._listeners(inherited)
        self.live.load_certificates = self.listeners.load_certificates
        self.standing = self._standing()
        self.lateness = lateness.Lateness()

    def _standing(self) -> Standing:
        return Standing(
            Notifier(self.world.environ),
            health=self.health,
            window=self.maintenance.window,
            nats=lambda: (self.bus.state, self.bus.last_error),
            listening=self.settings.gateway_public_http_addr,
            clean=self.log.redactor.clean,
            wall=self.world.wall,
        )

    def _repair(self) -> Repair:
        world, rules = self.world, self.live.get_rules
        return Repair(
            bus=self.bus, events=self.events, rules=rules, clock=world.reactor, wall=world.wall, counters=self.metrics
        )

    def services(self) -> list[Service]:
        """Every part in the order in which they start; they stop in the opposite one."""
        reactor = self.world.reactor
        services = [
            Part("event loop", lambda: None, self.world.loop.stop),
            self.standing.ticker(reactor),
            Part("public listener", self.listeners.open, self.listeners.close),
            self.embedded,
            Part("NATS", self.start_bus, self.stop_bus),
            Part("repair", lambda: None, self.repair.stop),
            *self.tickers(),
            watchdog(reactor, self.standing.notifier),
            Part("requests", lambda: None, self.drain),
        ]
        return [service for service in services if service is not None]

    def _keeper(self) -> StreamKeeper:
        settings = self.settings
        guess = shutil.disk_usage(_existing(settings.state_directory)).free // 2
        return StreamKeeper(
            self.bus,
            wanted_stream(settings, settings.nats_stream_max_bytes or guess),
            wanted_consumer(settings),
            guessed=settings.nats_stream_max_bytes is None,
            sync_always=None if self.embedded is None else True,
            read_back_s=settings.nonce_lifetime_s,
            shed_above=settings.lag_shed_messages,
            fill=self._fill_nonce,
            forget=self.admission.forget,
            ready=self._ready,
            repair=self.repair.begin,
            now=self.world.now,
            wall=self.world.wall,
        )

    def _webhooks(self) -> WebhookResource:
        """The way of a webhook, from its head to its answer."""
        world = self.world
        pipeline = Pipeline(
            rules=self.live.get_rules,
            admission=self.admission,
            bus=self.bus,
            events=self.events,
            refuse=self.answers.refuse,
            within=make_within(world.reactor),
            elapsed=lambda request: world.now() - request.received_at,
            shed=lambda: self.keeper.shedding,
            report=_report_fault,
            counters=self.metrics,
        )
        refuse = partial(self.answers.refuse, refused=OVERLOAD)
        return WebhookResource(
            rules=self.live.get_rules,
            health=self.health,
            bus=self.bus,
            buckets=AddressBuckets(),
            answers=self.answers,
            turns=Turns(world.reactor, world.loop.soon, Shedding(), pipeline.accept, refuse),
            clock=world.reactor,
        )

    def _listeners(self, inherited: Inherited) -> Listeners:
        proxies = Proxies(self.site, self.live.announces)
        return Listeners(self.world.reactor, self.world.loop.event_loop, self.settings, proxies, inherited)

    def _site(self) -> Site:
        """The channel's factory and the table of paths."""
        world, settings, webhooks = self.world, self.settings, self._webhooks()
        probe = partial(
            HealthProbe,
            health=self.health,
            bus=self.bus,
            rules=self.live.get_rules,
            answers=self.answers,
            buckets=AddressBuckets(),
            clock=world.reactor,
        )
        exposition = Exposition(self.metrics.registry, self.refresh, world.loop.soon)
        metrics = MetricsProbe(exposition, rules=self.live.get_rules, answers=self.answers)
        paths: dict[bytes, ILeaf] = {
            b"/healthz": probe(ready=False),
            b"/readyz": probe(ready=True),
            b"/metrics": metrics,
        }

        def route(path: bytes) -> ILeaf | None:
            return webhooks if path.startswith(PREFIX) else paths.get(path)

        journal = Journal(self.log.access, self.metrics, world.reactor, world.wall)
        return Site(
            route=route,
            refuse=self.answers.refuse,
            failed=self.answer_fault,
            finished=journal.finished,
            clock=world.reactor,
            wall=world.wall,
            max_connections=settings.max_connections,
            max_connections_per_address=settings.max_connections_per_address,
        )

    async def drain(self) -> None:
        """The first thing of a stop: refuse what comes from now on, and wait for the requests in flight."""
        self.standing.stopping()
        self.health.drain(takes_last=self.listeners.all_inherited)
        await self.listeners.drain()

    # The bus.

    async def start_bus(self) -> None:
        """Connect; done when the stream was prepared, or when the first attempt has failed: NATS may come later."""
        servers = () if self.embedded is None else (self.embedded.url,)
        if self.embedded is not None:
            self._publish_client_file(self.embedded)
        prepared = self.keeper.attempt()
        await self.bus.start(servers)
        if self.bus.state is not BusState.DISCONNECTED:
            await prepared
        else:
            _log.warn("NATS is not there yet: {error}", event="nats.absent", error=self.bus.last_error)
        self._say_trial()

    def stop_bus(self) -> Deferred[None]:
        """Wait for pending acknowledgements, close."""
        return self.bus.stop(self.settings.gateway_shutdown_timeout / 2)

    def _publish_client_file(self, embedded: EmbeddedServer) -> None:
        """Where tools find the embedded server of this run; readable by this user only."""
        path = self.settings.state_directory / state_files.CLIENT
        content = msgspec.json.encode({"url": embedded.url, "user": embedded.user, "password": embedded.password})
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)

    def _fill_nonce(self, headers: Mapping[str, str]) -> None:
        found = parse_nonce(headers.get(MSG_ID_HEADER), headers.get(FACTS_HEADER))
        if found is not None:
            nonce, used_by, facts = found
            self.admission.remember_nonce(nonce, used_by, max(0.0, self.world.wall() - facts.accepted_at))

    def _ready(self) -> None:
        if self.health.phase is Phase.STARTING:
            self.health.phase = Phase.READY
            self.listeners.accept()
            _log.info("ready: webhooks are taken", event="ready")

    def _say_trial(self) -> None:
        """In development: one command to try it with, the first text in the log that begins with curl."""
        settings = self.settings
        tcp = [address for address in settings.gateway_public_http_addr if address.kind is Kind.TCP]
        secret_file = settings.state_directory / state_files.SECRET
        if settings.production or not tcp or not secret_file.exists() or settings.gateway_tls_cert is not None:
            return
        port = self.listeners.port_of(tcp[0])
        host = tcp[0].host if tcp[0].host not in ("", "0.0.0.0") else "127.0.0.1"  # noqa: S104 - compared
        _log.info("{command}", event="trial", command=trial_command(f"http://{host}:{port}", secret_file))

    # What is looked at now and then.

    def tickers(self) -> list[Ticker]:
        """Everything that happens once a second."""
        reactor = self.world.reactor
        return [
            Ticker(reactor, TICK_S, self._read_maintenance_file, "maintenance file", at_once=True),
            Ticker(reactor, TICK_S, self.keeper.tick, "stream"),
            Ticker(reactor, lateness.TICK_S, lambda: self.lateness.tick(self.world.now()), "reactor lag"),
        ]

    def _read_maintenance_file(self) -> None:
        path = self.settings.state_directory / state_files.MAINTENANCE
        try:
            content: bytes | None = path.read_bytes()
        except FileNotFoundError:
            content = None
        except OSError:
            content = b""  # it is there; that it cannot be read must not switch maintenance off
        before = self.maintenance.window()
        self.maintenance.read_file(content)
        now = self.maintenance.window()
        if (before is None) != (now is None):
            word = "off" if now is None else "on"
            _log.info("maintenance is {word}", event="maintenance.switched", word=word)

    def refresh(self) -> None:
        """Set the gauges that are read at a scrape."""
        metrics = self.metrics
        metrics.cache_entries.set(self.admission.entries())
        metrics.advance("hits", self.admission.hits)
        metrics.advance("evictions", self.admission.evictions)
        metrics.advance("log_dropped", self.log.writer.dropped)
        metrics.advance("refused_connections", self.site.refused_connections)
        metrics.advance("proxy_headers", self.listeners.proxies.refused)
        metrics.reactor_lag.set(self.lateness.worst(self.world.now()))
        metrics.inflight.set(self.site.in_flight)
        metrics.unacked.set(self.bus.unacked)
        metrics.lag.set(self.keeper.lag)
        metrics.stream_bytes.set(self.keeper.bytes)
        metrics.connected.set(self.bus.state is not BusState.DISCONNECTED)

    def warnings(self) -> list[str]:
        """Everything that /readyz warns of."""
        unconfigured = [
            f"The source {name} has no secret and answers 503 GW-018: set {secret_name(name)}."
            for name in self.live.settings.unconfigured_sources
        ]
        return [*self.live.warnings, *unconfigured, *self.keeper.warnings()]

    def reload(self) -> None:
        """SIGHUP: a reload, which systemd is told of at both ends."""
        self.standing.reloading()
        reloaded = Deferred.fromCoroutine(self.live.reload())
        reloaded.addErrback(_report_failure).addCallback(lambda _: self.standing.reloaded(self.live.last_reload))

    def answer_fault(self, request: Request | None, failure: Failure) -> Response:
        """500 GW-016 for a bug, with its traceback in the log under the same corr_id."""
        response = self.answers.refuse(request, Refused("GW-016"))
        _log.failure("a request failed", failure, event="request.failed", corr_id=response.corr_id)
        return response


def _embedded_server(world: World, settings: Settings) -> EmbeddedServer:
    """The embedded server; its binary may be named by the settings' file as well as by the environment."""
    named = {} if settings.nats_server_bin is None else {"NATS_SERVER_BIN": str(settings.nats_server_bin)}
    return EmbeddedServer(world.reactor, settings.state_directory, {**world.environ, **named})


def _signal_calls(core: "Core", log: Log) -> dict[signal.Signals, Callable[[], object]]:
    """What signals do beside ending the process."""
    return {
        signal.SIGHUP: core.reload,
        signal.SIGUSR1: log.writer.reopen,
        signal.SIGUSR2: partial(_log.warn, "SIGUSR2 does nothing in this version", event="signal.unavailable"),
    }


def _started(core: "Core") -> None:
    """Everything is up. What was made until now stays: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    # A request leaves no cycles behind; the default of 700 looks for them every few requests (2 % of the CPU).
    gc.set_threshold(20_000, 20, 20)
    core.standing.started()


def complete_settings(settings: Settings) -> Settings:
    """The settings, with the secret that development mode makes and keeps where nobody set one."""
    if not settings.generate_secret:
        return settings
    try:
        secret, _ = keep_secret(settings.state_directory)
    except OSError as error:
        raise StartFailed(
            f"{settings.state_directory}: the development secret cannot be kept: {error.strerror}"
        ) from None
    return replace(settings, shared_secrets=(secret,), generate_secret=False, unconfigured_sources=())


def _existing(path: Path) -> Path:
    """The nearest directory above that is there."""
    return path if path.exists() else _existing(path.parent)


def _report_fault(step: str) -> None:
    _log.failure("a body could not be turned into an event: {step}", event="normalisation.failed", step=step)


def _report_failure(failure: Failure) -> None:
    _log.failure("the reload failed", failure, event="config.reload_failed")
