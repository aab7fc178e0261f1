"""
What the stream and its consumer should be, and how what is there differs. Pure.

Decides which differences break a promise, which only weaken one, what to do about each, and what gatewayd may change:
it raises a stream that it made itself (metadata `created-by: gatewayd`) to what the promises need, and never undoes
anything else an operator set. Never talks to a server (ensure.py does).

`info` is everywhere the JSON of $JS.API.STREAM.INFO or CONSUMER.INFO, durations in nanoseconds as there.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gatewayd.times import Wall, parse_rfc3339

NS: Final = 1_000_000_000
CREATOR: Final = "gatewayd"
SUBJECTS: Final = ("signals.>", "dlq.>")
OLDEST_SERVER: Final = (2, 12, 6)
SMALLEST_MAX_PAYLOAD: Final = 2_000_000
FULL_SHARE: Final = 0.7
_VERSION: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)
_SMALLEST_MESSAGE: Final = 2 * 1024 * 1024  # a body of 1 MiB, escaped, with its envelope


@dataclass(frozen=True, slots=True)
class StreamWanted:
    """
    The stream as gatewayd makes it. `duplicate_window_s` is the larger of the idempotency lifetime and every source's
    max_body_age, plus 10 min, and at most `max_age_s`; `max_bytes` is as set, or half the free disk.
    """

    name: str
    max_age_s: float
    max_bytes: int
    duplicate_window_s: float
    subjects: tuple[str, ...] = SUBJECTS
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class ConsumerWanted:
    """The durable pull consumer that the platform reads events with, as the runbooks create it."""

    stream: str
    durable: str
    filter_subject: str = "signals.normalized"
    max_ack_pending: int = 10
    ack_wait_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One difference. `kind` is a stable word, `text` says what is so and what to do. `fatal`: events cannot be stored or
    not once only. `raised`: gatewayd itself puts it right where the stream is its own.
    """

    kind: str
    text: str
    fatal: bool = False
    raised: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known beside the stream's own configuration; None or "" for what is not known."""

    server_version: str = ""
    max_payload: int = 0
    sync_always: bool | None = None
    now: Wall | None = None


def stream_config(wanted: StreamWanted) -> dict[str, Any]:
    """The configuration that a new stream is created with."""
    return {
        "name": wanted.name,
        "subjects": list(wanted.subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": round(wanted.max_age_s * NS),
        "max_bytes": wanted.max_bytes,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "num_replicas": wanted.replicas,
        "duplicate_window": round(wanted.duplicate_window_s * NS),
        "allow_direct": True,
        "allow_msg_ttl": True,
        "metadata": {"created-by": CREATOR},
    }


def consumer_config(wanted: ConsumerWanted) -> dict[str, Any]:
    """The configuration that a new consumer is created with."""
    return {
        "durable_name": wanted.durable,
        "filter_subject": wanted.filter_subject,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": round(wanted.ack_wait_s * NS),
        "max_ack_pending": wanted.max_ack_pending,
        "max_deliver": -1,
        "replay_policy": "instant",
    }


def is_ours(info: Mapping[str, Any]) -> bool:
    """True for a stream that gatewayd created."""
    metadata = info["config"].get("metadata") or {}
    return bool(metadata.get("created-by") == CREATOR)


def differences(info: Mapping[str, Any], wanted: StreamWanted) -> list[Finding]:
    """How the stream differs from what the promises need; empty when they hold. Larger limits are no difference."""
    config = info["config"]
    found = [*_places(config, wanted), *_times(config, wanted)]
    if not config.get("allow_direct"):
        found.append(
            Finding("no_direct_get", "allow_direct is off: every duplicate asks the leader. Switch it on.", raised=True)
        )
    if not config.get("allow_msg_ttl"):
        found.append(Finding("no_message_ttl", "allow_msg_ttl is off. Switch it on.", raised=True))
    if config.get("discard") != "new":
        found.append(
            Finding("discard_old", "A full stream drops its oldest events, acknowledged or not. Set discard to new.")
        )
    if config.get("max_msgs_per_subject", -1) > 0:
        found.append(
            Finding(
                "max_msgs_per_subject",
                "The stream keeps some messages per subject and drops older events for newer ones. Set it to -1.",
            )
        )
    if config.get("storage") != "file":
        found.append(
            Finding("memory_storage", "The stream is in memory: a restart of its server loses events. Make it anew.")
        )
    if config.get("retention", "limits") != "limits":
        found.append(
            Finding(
                "retention",
                f"Retention {config['retention']} removes events once read, and duplicates can no longer be judged. "
                "Use limits.",
            )
        )
    largest = config.get("max_msg_size", -1)
    if 0 < largest < _SMALLEST_MESSAGE:
        found.append(Finding("max_msg_size", f"max_msg_size is {largest}; raise it to {_SMALLEST_MESSAGE} or more."))
    return found


def _places(config: Mapping[str, Any], wanted: StreamWanted) -> list[Finding]:
    """What keeps events from being stored at all."""
    found = []
    subjects = config.get("subjects") or []
    missing = [subject for subject in wanted.subjects if not any(covers(pattern, subject) for pattern in subjects)]
    if missing:
        found.append(
            Finding("subjects", f"The stream does not take {', '.join(missing)}. Add it.", fatal=True, raised=True)
        )
    for name in ("no_ack", "sealed"):
        if config.get(name):
            found.append(
                Finding(name, f"The stream is set {name}: nothing is ever acknowledged. Unset it.", fatal=True)
            )
    if config.get("mirror"):
        found.append(Finding("mirror", "The stream is a mirror and takes no events. Name its origin.", fatal=True))
    return found


def _times(config: Mapping[str, Any], wanted: StreamWanted) -> list[Finding]:
    """What shortens the promise against duplicates."""
    found = []
    window_s = config.get("duplicate_window", 0) / NS
    if window_s < wanted.duplicate_window_s:
        found.append(
            Finding(
                "duplicate_window",
                f"Duplicates are recognised for {window_s:g} s only, {wanted.duplicate_window_s:g} s are needed. "
                f"Raise duplicate_window.",
                raised=True,
            )
        )
    age_s = config.get("max_age", 0) / NS
    if 0 < age_s < wanted.duplicate_window_s:
        found.append(
            Finding(
                "max_age",
                f"Events are kept for {age_s:g} s, less than the {wanted.duplicate_window_s:g} s for which duplicates "
                f"must be recognised. Raise max_age.",
                raised=True,
            )
        )
    return found


def id_memory_s(info: Mapping[str, Any]) -> float:
    """
    Seconds for which an event is remembered by its id and must be in the stream; 0 where readers remove events.

    A tenth less than its age limit: messages expire up to that limit by themselves.
    """
    config = info["config"]
    if config.get("retention", "limits") != "limits":
        return 0.0
    window_s, age_s = config.get("duplicate_window", 0) / NS, config.get("max_age", 0) / NS
    return float(min(window_s, 0.9 * age_s) if age_s else window_s)


def covers(pattern: str, subject: str) -> bool:
    """True when everything that `subject` matches (it may have wildcards itself) is matched by `pattern` too."""
    ours, theirs = pattern.split("."), subject.split(".")
    for i, part in enumerate(ours):
        if part == ">":
            return len(theirs) > i
        if i >= len(theirs) or theirs[i] == ">" or (part not in ("*", theirs[i])):
            return False
    return len(ours) == len(theirs)


def raised(info: Mapping[str, Any], wanted: StreamWanted) -> dict[str, Any] | None:
    """
    The whole configuration to update the stream with, so that what gatewayd may raise is raised; None for a stream of
    somebody else's, and when there is nothing to raise.
    """
    kinds = {finding.kind for finding in differences(info, wanted) if finding.raised}
    if not kinds or not is_ours(info):
        return None
    config = dict(info["config"])
    if "subjects" in kinds:
        present = list(config.get("subjects") or [])
        config["subjects"] = present + [one for one in wanted.subjects if not any(covers(has, one) for has in present)]
    window = round(wanted.duplicate_window_s * NS)
    if "duplicate_window" in kinds:
        config["duplicate_window"] = window
    if "max_age" in kinds:
        config["max_age"] = max(window, round(wanted.max_age_s * NS))
    config["allow_direct"] = config["allow_msg_ttl"] = True
    return config


def warnings(info: Mapping[str, Any], around: Surroundings) -> list[Finding]:
    """What is worth an operator's look although events are stored: the server, its disk, the stream's fill."""
    found = []
    release = parse_version(around.server_version)
    if release is not None and release < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        found.append(Finding("server_old", f"nats-server {around.server_version} is old. Use {oldest} or later."))
    if around.sync_always is False:
        found.append(
            Finding(
                "no_fsync",
                "nats-server acknowledges before the disk has the event: a power loss loses up to sync_interval. "
                "Set jetstream { sync_interval: always }.",
            )
        )
    if 0 < around.max_payload < SMALLEST_MAX_PAYLOAD:
        found.append(
            Finding(
                "max_payload",
                f"The server takes {around.max_payload} bytes a message; bodies of 1 MiB do not fit. "
                "Set max_payload: 2MB.",
            )
        )
    share, limit = fill(info)
    if share > FULL_SHARE:
        found.append(Finding("filling", _filling_text(info, share, limit, around.now)))
    return found


def fill(info: Mapping[str, Any]) -> tuple[float, str]:
    """How full the stream is, 0 to 1, and by which limit (max_bytes or max_msgs, "" without one)."""
    config, state = info["config"], info["state"]
    shares = [(0.0, "")]
    for limit, used in (("max_bytes", "bytes"), ("max_msgs", "messages")):
        if config.get(limit, -1) > 0:
            shares.append((state[used] / config[limit], limit))
    return max(shares)


def hours_left(info: Mapping[str, Any], now: Wall) -> float | None:
    """
    Hours until the stream is full if it goes on filling as it did since its oldest message; None when that cannot be
    said, or when max_age will keep it below its limit.
    """
    config, state = info["config"], info["state"]
    share, limit = fill(info)
    oldest = parse_rfc3339(state.get("first_ts", ""))
    if not limit or not state["messages"] or oldest is None or now <= oldest:
        return None
    share_per_s = share / (now - oldest)
    age_s = config.get("max_age", 0) / NS
    if age_s and share_per_s * age_s < 1.0:
        return None
    return max(0.0, (1.0 - share) / share_per_s / 3600)


def _filling_text(info: Mapping[str, Any], share: float, limit: str, now: Wall | None) -> str:
    left_h = None if now is None else hours_left(info, now)
    when = "" if left_h is None else f", and will be full in about {left_h:.1f} h"
    return f"The stream is {share:.0%} full ({limit}){when}. Raise {limit} or shorten max_age; full, it takes no event."


def parse_version(text: str) -> tuple[int, int, int] | None:
    """The three numbers of a server's version, which may carry a suffix; None when it is none."""
    found = _VERSION.match(text)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


def consumer_differences(info: Mapping[str, Any], wanted: ConsumerWanted) -> list[Finding]:
    """How a consumer differs from what its readers are told it is; it is only reported, never changed."""
    config = info["config"]
    found = []
    if config.get("deliver_subject"):
        found.append(
            Finding("push", "The consumer is a push consumer. Delete it and make a pull consumer.", fatal=True)
        )
    if config.get("ack_policy") != "explicit":
        found.append(
            Finding("ack_policy", f"ack_policy is {config.get('ack_policy')}: what a reader loses is not sent again.")
        )
    filters: Sequence[str] = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
    if not any(covers(one, wanted.filter_subject) for one in filters):
        found.append(
            Finding("filter", f"The consumer reads {', '.join(filters)}, not {wanted.filter_subject}.", fatal=True)
        )
    return found


@dataclass(frozen=True, slots=True)
class Lag:
    """
    How far a consumer is behind: messages it was not sent yet, messages sent and not acknowledged. `acked_sequence`
    is the last stream sequence below which everything is acknowledged: it moves only while somebody reads.
    """

    pending: int
    unacked: int
    acked_sequence: int


def lag(info: Mapping[str, Any]) -> Lag:
    """The lag in a consumer's info."""
    floor = info.get("ack_floor") or {}
    return Lag(
        int(info.get("num_pending", 0)),
        int(info.get("num_ack_pending", 0)),
        int(floor.get("stream_seq", 0)),
    )
