"""
The metric families of the edge, once, on the registry that is handed in.

Decides names, labels and buckets; label values are bounded: a message type or event type that is not known beforehand
counts as `_other`. Never decides what is counted.
"""

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry

from gatewayd.cells import CounterCell, Counters, Gauges, Histograms

OTHER: Final = "_other"
TRANSPORTS: Final = ("grpc", "websocket", "sse")
_DELIVERY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_KNOWN_EVENTS: Final = ("gateway.server_time", "gateway.heartbeat", "gateway.resume_failed", OTHER)
_REFUSALS: Final = ("authentication", "limit", "malformed", "no_route", "replay", "revoked", "stale", "unavailable")
_OUTCOMES: Final = ("delivered", "no_subscriber", "overflow", "malformed")
_ENDS: Final = ("client", "lost", "idle", "revoked", "overflow", "shutdown", "internal")
_STREAMS: Final = ("sessions", "events")


class EdgeMetrics:
    """The edge's families; whoever counts calls a method and pays for an addition."""

    def __init__(
        self, registry: CollectorRegistry, *, message_types: Iterable[str] = (), event_types: Iterable[str] = ()
    ) -> None:
        self.sessions = Gauges(registry, "edge_sessions", "Sessions held in memory.").labels()
        self._streams = Gauges(registry, "edge_push_streams", "Open push streams.", ("transport",))
        self._events = Counters(
            registry, "edge_push_events_total", "Events by what became of them.", ("event_type", "outcome")
        )
        self._closed = Counters(registry, "edge_push_stream_closed_total", "Push streams that ended.", ("reason",))
        self._refused = Counters(registry, "edge_push_refused_total", "Push streams that were not opened.", ("reason",))
        self.delivery_seconds = (
            Histograms(
                registry,
                "edge_push_delivery_seconds",
                "From the time in the entry's id to the write.",
                bounds=_DELIVERY_BUCKETS,
            )
            .labels()
            .observe
        )
        self._commands = Counters(registry, "edge_commands_total", "Commands answered.", ("message_type", "code"))
        self.command_seconds = (
            Histograms(registry, "edge_command_duration_seconds", "Commands, to the answer.", bounds=_DELIVERY_BUCKETS)
            .labels()
            .observe
        )
        self.replay_rejected = Counters(
            registry, "edge_replay_rejected_total", "Requests whose request_id was used before."
        ).labels()
        self._lag = Gauges(registry, "edge_stream_lag_seconds", "Age of what was read last.", ("stream",))
        self._entries = Counters(
            registry, "edge_stream_entries_total", "Entries read, by what became of them.", ("stream", "outcome")
        )
        self._message_types = {*message_types, OTHER}
        self._event_types = {*event_types, *_KNOWN_EVENTS}
        self.streams = {name: self._streams.labels(name) for name in TRANSPORTS}
        self._event_cells: dict[tuple[str, str], CounterCell] = {
            (event_type, outcome): self._events.labels(event_type, outcome)
            for event_type in sorted(self._event_types)
            for outcome in _OUTCOMES
        }
        # At 0 before the first: a rate misses the first increment of a series that was not there.
        for reason in _ENDS:
            self._closed.labels(reason)
        for reason in _REFUSALS:
            self._refused.labels(reason)
        for message_type in sorted(self._message_types):
            self._commands.labels(message_type, "ok")
        for stream in _STREAMS:
            self._entries.labels(stream, "ok")
            self._entries.labels(stream, "gap")
            self._lag.labels(stream)

    def event(self, event_type: str, outcome: str, count: int = 1) -> None:
        """`count` deliveries of one event: "delivered", "no_subscriber", "overflow" or "malformed"."""
        known = event_type if event_type in self._event_types else OTHER
        self._event_cells[known, outcome].value += count

    def closed(self, reason: str) -> None:
        """One stream ended; `reason` from the table of endings or PushStream.gone()."""
        self._closed.labels(reason).value += 1

    def refused(self, reason: str) -> None:
        """One stream was not opened; `reason` from the table of endings."""
        self._refused.labels(reason).value += 1

    def command(self, message_type: str, code: str) -> None:
        """One command was answered: "ok", the upstream's kind of code folded by the caller, or an ending's reason."""
        known = message_type if message_type in self._message_types else OTHER
        self._commands.labels(known, code).value += 1

    def lag(self, stream: str, seconds: float) -> None:
        """`stream` is "sessions", "events" or "signals", never a key's name."""
        self._lag.labels(stream).set(seconds)

    def entry(self, stream: str, outcome: str, count: int = 1) -> None:
        """`count` entries of `stream`: "ok", "malformed_missing", "gap", ... (a fixed word)."""
        self._entries.labels(stream, outcome).value += count
        if stream == "events" and outcome.startswith("malformed_"):
            self.event(OTHER, "malformed", count)
