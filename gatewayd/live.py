"""
The settings, rules and certificates in force, and how SIGHUP replaces them.

Decides that a reload takes everything or nothing, and says in one line what came of it. Never decides what may be
reloaded (the settings' table does).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from gatewayd.config import Loaded
from gatewayd.http.addresses import CannotListen
from gatewayd.ingress.sources import Rules, make_rules
from gatewayd.lifecycle import StartFailed
from gatewayd.lines import LEVELS
from gatewayd.log import Log
from gatewayd.maintenance import Maintenance
from gatewayd.metrics import Metrics
from gatewayd.settings import Settings, changes, value_of
from gatewayd.settings_edge import NAMES
from gatewayd.settings_table import TABLE

_log = Logger()


class Live:
    """
    What may change while the process runs.

    `load` reads the settings anew, `complete` adds what development mode makes; `other_secrets` are to be kept out of
    the log beside those of the settings; `widen` makes the stream's duplicate window at least so many seconds and fires
    with None, or with the reason why it is not; `load_certificates` reads the files of all certificates and returns
    what puts them in force, or raises CannotListen; `taken` is told of the settings that a reload has put in force;
    `last_reload` says what came of the last one, "" before it.
    """

    def __init__(
        self,
        loaded: Loaded,
        settings: Settings,
        *,
        load: Callable[[], Loaded],
        complete: Callable[[Settings], Settings],
        other_secrets: Iterable[bytes],
        log: Log,
        metrics: Metrics,
        maintenance: Maintenance,
    ) -> None:
        self.settings = settings
        self.warnings = loaded.warnings
        self.rules: Rules = make_rules(settings)
        self.last_reload = ""
        self.widen: Callable[[float], Deferred[str | None]] | None = None
        self.load_certificates: Callable[[], Callable[[], None]] = _no_certificates
        self.taken: Callable[[Settings], object] = _nobody
        self._one_at_a_time = DeferredLock()
        self._load = load
        self._complete = complete
        self._other_secrets = tuple(other_secrets)
        self._log = log
        self._metrics = metrics
        self._maintenance = maintenance
        self._know()
        for warning in loaded.warnings:
            _log.warn("{warning}", event="config.warning", warning=warning)
        for note in loaded.notes:
            _log.info("{note}", event="config.note", note=note)

    def get_rules(self) -> Rules:
        """The rules in force."""
        return self.rules

    def announces(self, peer: str) -> bool:
        """True when the peer's connections must begin with a PROXY header."""
        return self.get_rules().proxies.announces(peer)

    async def reload(self) -> None:
        """Read the settings again and put them in force, or keep the old ones and say why. Never fails."""
        # Two at once could end with what the first one has read.
        await self._one_at_a_time.acquire()
        try:
            await self._reload()
        except (CannotListen, StartFailed) as error:
            self._refuse(str(error))
        finally:
            self._one_at_a_time.release()

    async def _reload(self) -> None:
        loaded = self._load()
        if loaded.settings is None:
            self._refuse("; ".join(str(problem) for problem in loaded.problems))
            return
        fresh = self._complete(loaded.settings)
        changed = changes(self.settings, fresh)
        settings = _merge(self.settings, fresh)
        use_certificates = self.load_certificates()
        if settings.duplicate_window_s > self.settings.duplicate_window_s and self.widen is not None:
            reason = await self.widen(settings.duplicate_window_s)
            if reason is not None:
                self._refuse(f"the stream's duplicate window cannot be made longer: {reason}")
                return
        levels = LEVELS[self.settings.log_level.lower()], LEVELS[settings.log_level.lower()]
        self.rules, self.settings, self.warnings = make_rules(settings), settings, loaded.warnings
        self._know()
        use_certificates()
        self.taken(settings)
        # The line below is for whoever changed the level, in either direction.
        self._log.set_level(min(levels, key=lambda level: level.number))
        self._maintenance.configure(
            on=settings.maintenance_mode,
            until=settings.maintenance_until,
            retry_after_s=settings.maintenance_retry_after,
        )
        self._metrics.reloads.labels("ok").inc()
        taken, waiting = ", ".join(changed.reloadable) or "nothing", ", ".join(changed.needs_restart) or "nothing"
        self.last_reload = f"changed {taken}" + (f", a restart is due for {waiting}" if changed.needs_restart else "")
        _log.info(
            "settings reloaded; changed: {changed}; waiting for a restart: {waiting}",
            event="config.reloaded",
            changed=taken,
            waiting=waiting,
        )
        self._log.set_level(levels[1])

    def _know(self) -> None:
        """Tell the log what it must not show, and the metrics which sources and secrets there are."""
        known = [secret.reveal() for secret in self.settings.all_secrets()]
        self._log.renew_secrets([*known, *self._other_secrets])
        self._metrics.know((source.name, len(source.keys)) for source in self.rules.sources.values())

    def _refuse(self, reason: str) -> None:
        self.last_reload = f"refused, the old settings stay: {reason}"
        self._metrics.reloads.labels("failed").inc()
        _log.error("settings not reloaded, the old ones stay: {reason}", event="config.reload_refused", reason=reason)


def _no_certificates() -> Callable[[], None]:
    return lambda: None


def _nobody(_: Settings) -> None:
    """Nobody is told."""


def _merge(old: Settings, new: Settings) -> Settings:
    """The old settings with what may be reloaded of the new: the rest was built into the running parts."""
    taken = {row.name: value_of(new, row) for row in TABLE.values() if row.reloadable}
    edge = old.edge
    if edge is not None and new.edge is not None:
        edge = replace(edge, **{TABLE[name].field: value for name, value in taken.items() if name in NAMES})
    rest = {TABLE[name].field: value for name, value in taken.items() if name not in NAMES}
    return replace(old, **rest, edge=edge, sources=new.sources, unconfigured_sources=new.unconfigured_sources)
