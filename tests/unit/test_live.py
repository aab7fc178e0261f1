"""Reloading: everything or nothing, one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, globalLogPublisher

from gatewayd.config import Loaded
from gatewayd.http.addresses import CannotListen
from gatewayd.lifecycle import StartFailed
from gatewayd.lines import Level
from gatewayd.live import Live
from gatewayd.maintenance import Maintenance
from gatewayd.metrics import Metrics
from gatewayd.settings import Settings
from gatewayd.times import Wall
from tests.unit.edge.test_settings_edge import FIVE
from tests.unit.settings_case import OTHER, PRODUCTION, STRONG, SettingsCase, load_from

LONGER = '[sources.test]\nmax_body_age = "2h"'


@dataclass
class Log:
    """What of the log a reload changes."""

    level: Any = None
    levels: list[Any] = field(default_factory=list)
    secrets: list[bytes] = field(default_factory=list)

    def set_level(self, level: Any) -> None:
        self.level = level
        self.levels.append(level)

    def renew_secrets(self, secrets: Sequence[bytes]) -> None:
        self.secrets = list(secrets)


class LiveTest(SettingsCase):
    """A Live whose next settings, certificates and stream are the test's."""

    def setUp(self) -> None:
        self.loaded: list[Loaded] = []
        self.in_force: list[str] = []
        self.certificates: str | CannotListen = "first"
        self.widening: list[Deferred[str | None]] = []
        self.log = Log()
        self.metrics = Metrics(CollectorRegistry(), version="1", subjects=("signals.raw",), consumer="c")
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.failing: Exception | None = None
        first = load_from(PRODUCTION)
        assert first.settings is not None
        self.live = Live(
            first,
            first.settings,
            load=self.load,
            complete=self.complete,
            other_secrets=(),
            log=self.log,  # type: ignore[arg-type]
            metrics=self.metrics,
            maintenance=Maintenance(lambda: Wall(0.0), on=False, until=None, retry_after_s=300.0),
        )
        self.live.load_certificates = self.load_certificates
        self.live.widen = self.widen

    def load(self) -> Loaded:
        return self.loaded.pop(0)

    def complete(self, settings: Settings) -> Settings:
        if self.failing is not None:
            raise self.failing
        return settings

    def load_certificates(self) -> Callable[[], None]:
        if isinstance(self.certificates, CannotListen):
            raise self.certificates
        found = self.certificates
        return lambda: self.in_force.append(found)

    def widen(self, _: float) -> Deferred[str | None]:
        self.widening.append(Deferred())
        return self.widening[-1]

    def reload(self, toml: str | None = None, **changed: str) -> Deferred[None]:
        """SIGHUP, after these variables and the file were changed."""
        self.loaded.append(load_from({**PRODUCTION, **changed}, toml))
        return Deferred.fromCoroutine(self.live.reload())

    def reloads(self, result: str) -> float:
        found = self.metrics.registry.get_sample_value("gateway_config_reloads_total", {"result": result})
        return 0.0 if found is None else found

    def test_everything(self) -> None:
        """Secrets, rules, log level and certificates are those of the new settings, at once."""
        self.successResultOf(self.reload(API_KEY_HMAC_SECRET=f"{OTHER},{STRONG}", LOG_LEVEL="DEBUG"))
        self.assertEqual(self.in_force, ["first"])
        self.assertEqual([len(source.keys) for source in self.live.rules.sources.values()], [2, 2, 2])
        self.assertEqual(self.log.level, Level.DEBUG)
        self.assertIn(OTHER.encode(), self.log.secrets)
        self.assertEqual((self.reloads("ok"), self.reloads("failed")), (1.0, 0.0))

    def test_the_line_is_shown_at_either_level(self) -> None:
        """Whoever switches to WARNING, or back, reads that it was done."""
        self.successResultOf(self.reload(LOG_LEVEL="WARNING"))
        self.successResultOf(self.reload(LOG_LEVEL="INFO"))
        self.assertEqual(self.log.levels, [Level.INFO, Level.WARNING, Level.INFO, Level.INFO])

    def test_who_holds_values_is_told(self) -> None:
        """Of the edge, limits and lists are taken over and the rest waits; whoever holds such values is told, once."""
        told: list[Settings] = []
        self.live.taken = told.append
        edge = load_from({**PRODUCTION, **FIVE}).settings
        assert edge is not None
        self.live.settings = edge
        more = {"GATEWAY_SESSION_RPS": "7", "GATEWAY_REDIS_DB": "3"}
        self.successResultOf(self.reload(**FIVE, **more))
        self.assertEqual(told, [self.live.settings])
        found = self.live.settings.edge
        assert found is not None
        self.assertEqual((found.gateway_session_rps, found.gateway_redis_db), (7.0, 0))
        self.assertIn("changed GATEWAY_SESSION_RPS, a restart is due for GATEWAY_REDIS_DB", self.live.last_reload)
        self.successResultOf(self.reload(RATE_LIMIT_RPS="many"))
        self.assertEqual(len(told), 1)
        self.successResultOf(self.reload())
        self.assertEqual(self.live.settings.edge, found)

    def assert_kept(self, reason: str) -> None:
        """Nothing is changed, and one line says why."""
        self.assertEqual([len(source.keys) for source in self.live.rules.sources.values()], [1, 1, 1])
        self.assertEqual((self.in_force, self.log.level), ([], None))
        self.assertEqual((self.reloads("ok"), self.reloads("failed")), (0.0, 1.0))
        (refused,) = [event for event in self.events if event.get("event") == "config.reload_refused"]
        self.assertEqual(refused["reason"], reason)

    def test_a_certificate_that_cannot_be_used(self) -> None:
        """Good settings with a bad certificate change nothing."""
        self.certificates = CannotListen("/etc/key.pem is not the unencrypted PEM key of /etc/cert.pem")
        self.successResultOf(self.reload(API_KEY_HMAC_SECRET=f"{OTHER},{STRONG}", LOG_LEVEL="DEBUG"))
        self.assert_kept("/etc/key.pem is not the unencrypted PEM key of /etc/cert.pem")

    def test_a_bad_setting(self) -> None:
        """A bad setting keeps the certificates too."""
        self.successResultOf(self.reload(API_KEY_HMAC_SECRET=OTHER, RATE_LIMIT_RPS="many"))
        (refused,) = [event for event in self.events if event.get("event") == "config.reload_refused"]
        self.assert_kept(refused["reason"])
        self.assertIn("RATE_LIMIT_RPS=many", refused["reason"])

    def test_a_stream_that_cannot_be_widened(self) -> None:
        """Certificates that were read already are not put in force when the stream stays as it is."""
        done = self.reload(LONGER, API_KEY_HMAC_SECRET=OTHER)
        self.assertNoResult(done)
        self.widening[0].callback("no answer")
        self.successResultOf(done)
        self.assert_kept("the stream's duplicate window cannot be made longer: no answer")

    def test_what_development_makes_cannot_be_made(self) -> None:
        """That the made secret cannot be read again is a reason like any other, not a traceback."""
        self.failing = StartFailed("/var: the development secret cannot be kept: No space left on device")
        self.successResultOf(self.reload(LOG_LEVEL="DEBUG"))
        self.assert_kept("/var: the development secret cannot be kept: No space left on device")

    def test_one_after_the_other(self) -> None:
        """A second SIGHUP while the first one waits for the stream is not overtaken by it: the last settings win."""
        first = self.reload(LONGER, RATE_LIMIT_RPS="7")
        second = self.reload(RATE_LIMIT_RPS="8")
        self.assertEqual(len(self.loaded), 1)
        self.widening[0].callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.live.settings.rate_limit_rps, 8.0)
        self.assertEqual(self.reloads("ok"), 2.0)
