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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from prometheus_client import CollectorRegistry
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from gatewayd import __version__, lateness
from gatewayd.address_gate import AddressGate
from gatewayd.admin import Admin
from gatewayd.aio import Loop
from gatewayd.answers import Answers
from gatewayd.bus.client import check_private_names, nats_settings_of
from gatewayd.bus.embedded import EmbeddedServer
from gatewayd.bus.keeper import StreamKeeper
from gatewayd.bus.nats import NatsBus
from gatewayd.bus.publication import BusState
from gatewayd.bus.wanted import wanted_consumer, wanted_stream
from gatewayd.config import Loaded
from gatewayd.development import complete_settings
from gatewayd.errors import Refused
from gatewayd.exposition import Exposition
from gatewayd.health import Health, Phase
from gatewayd.http.capacity import Capacity
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
from gatewayd.lifecycle import Ending, Notifier, OrderedServices, Signals, Ticker, watchdog
from gatewayd.lines import LEVELS
from gatewayd.listeners import Listeners, take_inherited
from gatewayd.live import Live
from gatewayd.log import Log, make_log
from gatewayd.maintenance import Maintenance
from gatewayd.metrics import Metrics
from gatewayd.presence import MaintenanceFile, publish_client_file, say_trial
from gatewayd.probes import Gate, HealthProbe, MetricsProbe
from gatewayd.settings import Settings
from gatewayd.settings_edge import EdgeSettings
from gatewayd.settings_table import secret_name
from gatewayd.standing import Standing
from gatewayd.stores.chosen import choose_store
from gatewayd.times import Wall
from gatewayd.world import Part, World

if TYPE_CHECKING:
    from gatewayd.commands.public_auth import Refuse
    from gatewayd.edge import Edge

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
        self.live = self._live(loaded, load)
        self.store = choose_store(settings, world.reactor, world.now, self.metrics)
        self.health = Health(
            maintenance=self.maintenance,
            now=world.now,
            wall=world.wall,
            version=__version__,
            warnings=self.warnings,
            stores=self.states,
        )
        self.answers = Answers(world.wall)
        self.journal = Journal(self.log.access, self.metrics, world.reactor, world.wall)
        self.exposition = Exposition(self.metrics.registry, self.refresh, world.loop.soon)
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
        capacity = Capacity(settings.max_connections, settings.max_connections_per_address)
        self.proxies = Proxies(capacity, world.reactor, self.live.announces)
        self.edge = None if settings.edge is None else self._edge(settings.edge, inherited)
        self.live.taken = self._taken
        self.site = self._site()
        loop = world.loop.event_loop
        self.listeners = Listeners(world.reactor, loop, settings, self.site, proxies=self.proxies, inherited=inherited)
        self.admin = self._admin()
        self.live.load_certificates = self._load_certificates
        self.standing = self._standing()
        self.lateness = lateness.Lateness()

    def _live(self, loaded: Loaded, load: Callable[[], Loaded]) -> Live:
        return Live(
            loaded,
            self.settings,
            load=load,
            complete=complete_settings,
            other_secrets=() if self.embedded is None else (self.embedded.password.encode("ascii"),),
            log=self.log,
            metrics=self.metrics,
            maintenance=self.maintenance,
        )

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
            *self.store.services,
            *(() if self.edge is None else self.edge.first),
            Part("NATS", self.start_bus, self.stop_bus),
            Part("repair", lambda: None, self.repair.stop),
            *self.tickers(),
            watchdog(reactor, self.standing.notifier),
            Part("requests", lambda: None, self.listeners.drain),
            *(() if self.edge is None else self.edge.services()),
            Part("admin listener", self.admin.open, self.admin.close),
            Part("readiness", lambda: None, self.announce_stop),
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
            forget=self.store.admission.forget,
            ready=self._ready,
            repair=self.repair.begin,
            recognised=self.store.recognise,
            now=self.world.now,
            wall=self.world.wall,
        )

    def _webhooks(self) -> WebhookResource:
        """The way of a webhook, from its head to its answer."""
        world = self.world
        pipeline = Pipeline(
            rules=self.live.get_rules,
            admission=self.store.admission,
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

    def _site(self) -> Site:
        """The channel's factory and the table of paths."""
        world, webhooks = self.world, self._webhooks()
        paths = self._operations(trusts_all=False)
        prefixes: dict[bytes, ILeaf] = {}
        refuse: Refuse = self.answers.refuse
        if self.edge is not None:
            paths.update(self.edge.paths)
            prefixes.update(self.edge.prefixes)
            refuse = self.edge.refusing(refuse)

        def route(path: bytes) -> ILeaf | None:
            if path.startswith(PREFIX):
                return webhooks
            leaf = paths.get(path)
            if leaf is None and prefixes:
                leaf = next((found for prefix, found in prefixes.items() if path.startswith(prefix)), None)
            return leaf

        return Site(
            route=route,
            refuse=refuse,
            failed=self.answer_fault,
            finished=self.journal.finished,
            clock=world.reactor,
            wall=world.wall,
            capacity=self.proxies.capacity,
        )

    def _operations(self, *, trusts_all: bool) -> dict[bytes, ILeaf]:
        """The paths for those who run the gateway."""
        limits = AddressGate(self.live.get_rules, self.world.now)
        gate = Gate(self.live.get_rules, self.answers, limits, trusts_all=trusts_all)
        return {
            b"/healthz": HealthProbe(gate, self.health, self.bus, ready=False),
            b"/readyz": HealthProbe(gate, self.health, self.bus, ready=True),
            b"/metrics": MetricsProbe(gate, self.exposition),
        }

    def _admin(self) -> Admin:
        """The admin listener; without an address it does nothing."""
        world = self.world
        return Admin(
            world.reactor,
            world.loop.event_loop,
            self.settings,
            self._operations(trusts_all=True),
            refuse=self.answers.refuse,
            failed=self.answer_fault,
            finished=self.journal.finished,
            wall=world.wall,
        )

    def _edge(self, settings: EdgeSettings, inherited: Inherited) -> "Edge":
        from gatewayd.edge import Edge

        return Edge(
            self.world,
            self.settings,
            settings,
            live=self.live,
            bus=self.bus,
            answers=self.answers,
            maintenance=self.maintenance,
            stopping=lambda: self.health.phase is Phase.DRAINING,
            registry=self.metrics.registry,
            redis=self.store.redis,
            inherited=inherited,
            proxies=self.proxies,
        )

    def announce_stop(self) -> None:
        """The first thing of a stop: say so, and refuse what comes from now on."""
        self.standing.stopping()
        self.health.drain(takes_last=self.listeners.all_inherited)

    # The bus.

    async def start_bus(self) -> None:
        """Connect; done when the stream was prepared, or when the first attempt has failed: NATS may come later."""
        servers = () if self.embedded is None else (self.embedded.url,)
        if self.embedded is not None:
            publish_client_file(self.settings.state_directory, self.embedded)
        prepared = self.keeper.attempt()
        await self.bus.start(servers)
        if self.bus.state is not BusState.DISCONNECTED:
            await prepared
        else:
            _log.warn("NATS is not there yet: {error}", event="nats.absent", error=self.bus.last_error)
        say_trial(self.settings, self.listeners)

    def stop_bus(self) -> Deferred[None]:
        """Wait for pending acknowledgements, close."""
        return self.bus.stop(self.settings.gateway_shutdown_timeout / 2)

    def _fill_nonce(self, headers: Mapping[str, str]) -> None:
        found = parse_nonce(headers.get(MSG_ID_HEADER), headers.get(FACTS_HEADER))
        if found is not None:
            nonce, used_by, facts = found
            self.store.admission.remember_nonce(nonce, used_by, max(0.0, self.world.wall() - facts.accepted_at))

    def _ready(self) -> None:
        if self.health.phase is Phase.STARTING:
            self.health.phase = Phase.READY
            self.listeners.accept()
            _log.info("ready: webhooks are taken", event="ready")

    # What is looked at now and then.

    def tickers(self) -> list[Ticker]:
        """Everything that happens once a second."""
        reactor = self.world.reactor
        switch = MaintenanceFile(self.settings.state_directory, self.maintenance)
        return [
            Ticker(reactor, TICK_S, switch.look, "maintenance file", at_once=True),
            Ticker(reactor, TICK_S, self.keeper.tick, "stream"),
            Ticker(reactor, lateness.TICK_S, lambda: self.lateness.tick(self.world.now()), "reactor lag"),
        ]

    def refresh(self) -> None:
        """Set the gauges that are read at a scrape."""
        metrics = self.metrics
        self.store.refresh()
        metrics.advance("log_dropped", self.log.writer.dropped)
        metrics.advance("refused_connections", self.proxies.capacity.refused)
        metrics.advance("proxy_headers", self.proxies.refused)
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
        edge = [] if self.edge is None else self.edge.warnings()
        stores = [*self.keeper.warnings(), *self.store.warnings()]
        return [*self.live.warnings, *unconfigured, *stores, *edge, *self.admin.warnings()]

    def states(self) -> dict[str, str]:
        """The stores' members of /healthz; one Redis of two that does not answer is an error."""
        found = [self.store.states(), {} if self.edge is None else self.edge.states()]
        return dict(sorted({item for states in found for item in states.items()}, key=lambda item: item[1] == "error"))

    def _taken(self, settings: Settings) -> None:
        if self.edge is not None and settings.edge is not None:
            self.edge.taken(settings.edge)

    def _load_certificates(self) -> Callable[[], None]:
        """Every certificate, and the keys that the edge signs with, read anew before any is put in force."""
        loads = [self.listeners.load_certificates, self.admin.load_certificates]
        uses = [load() for load in (*loads, *(() if self.edge is None else (self.edge.load_certificates,)))]

        def use_all() -> None:
            for use in uses:
                use()

        return use_all

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


def _existing(path: Path) -> Path:
    """The nearest directory above that is there."""
    return path if path.exists() else _existing(path.parent)


def _report_fault(step: str) -> None:
    _log.failure("a body could not be turned into an event: {step}", event="normalisation.failed", step=step)


def _report_failure(failure: Failure) -> None:
    _log.failure("the reload failed", failure, event="config.reload_failed")
