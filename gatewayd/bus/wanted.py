"""
What these settings want of NATS: the stream and its consumer. Pure.

Decides nothing that the settings do not say. One copy for the daemon and for gatewayctl.
"""

from gatewayd.bus.stream import SUBJECTS, ConsumerWanted, StreamWanted, covers
from gatewayd.settings import Settings


def wanted_stream(settings: Settings, max_bytes: int) -> StreamWanted:
    """The stream, which takes the signals' own subjects too where they are configured outside its usual ones."""
    own = (settings.nats_subject_signals_raw, settings.nats_subject_signals_normalized)
    more = [subject for subject in own if not any(covers(pattern, subject) for pattern in SUBJECTS)]
    return StreamWanted(
        settings.nats_stream, settings.nats_stream_max_age, max_bytes, settings.duplicate_window_s, (*SUBJECTS, *more)
    )


def wanted_consumer(settings: Settings) -> ConsumerWanted:
    """The durable consumer that reads the normalised events."""
    return ConsumerWanted(settings.nats_stream, settings.nats_durable, settings.nats_subject_signals_normalized)
