"""What the stream should be, what differs, and what is raised."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.stream import (
    NS,
    ConsumerWanted,
    Lag,
    StreamWanted,
    Surroundings,
    consumer_config,
    consumer_differences,
    covers,
    differences,
    hours_left,
    lag,
    parse_version,
    raised,
    stream_config,
    warnings,
)
from gatewayd.times import Wall, format_wall

WANTED = StreamWanted("trading-events", 86_400.0, 10_000_000, 4_200.0)
NOW = Wall(1_700_000_000.0)


def info(messages: int = 0, used: int = 0, age_s: float = 0.0, **members: Any) -> dict[str, Any]:
    config = {**stream_config(WANTED), **members}
    state = {"messages": messages, "bytes": used, "first_ts": format_wall(NOW - age_s), "last_seq": messages}
    return {"config": config, "state": state, "created": "2024-01-01T00:00:00Z"}


def kinds(read: dict[str, Any], wanted: StreamWanted = WANTED) -> list[str]:
    return [finding.kind for finding in differences(read, wanted)]


class DifferencesTests(SynchronousTestCase):
    def test_a_stream_as_created_has_none(self) -> None:
        """What gatewayd creates is what it wants."""
        self.assertEqual(differences(info(), WANTED), [])
        self.assertIsNone(raised(info(), WANTED))

    def test_larger_is_no_difference(self) -> None:
        """A longer window, more bytes, more subjects, no age at all: an operator's choice."""
        config = {"duplicate_window": 10**15, "max_bytes": -1, "max_age": 0, "subjects": ["signals.>", "dlq.>", "x"]}
        self.assertEqual(differences(info(**config), WANTED), [])

    def test_each_difference_is_named_and_only_some_are_fatal(self) -> None:
        """One finding for each, whose text says what to do."""
        cases: list[tuple[dict[str, Any], str, bool]] = [
            ({"subjects": ["signals.*"]}, "subjects", True),
            ({"no_ack": True}, "no_ack", True),
            ({"sealed": True}, "sealed", True),
            ({"mirror": {"name": "x"}}, "mirror", True),
            ({"duplicate_window": 120 * NS}, "duplicate_window", False),
            ({"max_age": 60 * NS}, "max_age", False),
            ({"allow_direct": False}, "no_direct_get", False),
            ({"allow_msg_ttl": False}, "no_message_ttl", False),
            ({"discard": "old"}, "discard_old", False),
            ({"max_msgs_per_subject": 1}, "max_msgs_per_subject", False),
            ({"storage": "memory"}, "memory_storage", False),
            ({"retention": "workqueue"}, "retention", False),
            ({"max_msg_size": 1000}, "max_msg_size", False),
        ]
        for members, kind, fatal in cases:
            found = differences(info(**members), WANTED)
            self.assertEqual([(one.kind, one.fatal) for one in found], [(kind, fatal)])
            self.assertTrue(found[0].text.endswith("."))

    def test_ours_is_raised_to_fit_and_nothing_else_in_it_is_touched(self) -> None:
        """Window, age, subjects and direct get are raised; the operator's own limits and metadata stay."""
        small = info(
            duplicate_window=120 * NS, max_age=60 * NS, subjects=["signals.>"], allow_direct=False,
            max_msgs=5, discard="old", description="mine",
        )  # fmt: skip
        config = raised(small, WANTED)
        assert config is not None
        self.assertEqual(kinds({**small, "config": config}), ["discard_old"])
        changed = {name for name in config if config[name] != small["config"].get(name)}
        self.assertEqual(changed, {"duplicate_window", "max_age", "subjects", "allow_direct"})
        self.assertEqual(config["subjects"], ["signals.>", "dlq.>"])

    def test_a_foreign_stream_is_never_changed(self) -> None:
        """Without our mark differences are only reported."""
        for metadata in ({}, None, {"created-by": "terraform"}):
            foreign = info(metadata=metadata, duplicate_window=120 * NS)
            self.assertEqual(kinds(foreign), ["duplicate_window"])
            self.assertIsNone(raised(foreign, WANTED))

    def test_subjects_that_cover(self) -> None:
        """A pattern covers what is matched by it wholly."""
        yes = [("signals.>", "signals.>"), (">", "dlq.>"), ("*.raw", "signals.raw"), ("a.b", "a.b"), ("a.>", "a.*.c")]
        no = [
            ("signals.*", "signals.>"),
            ("signals.>", "signals"),
            ("a.b", "a.*"),
            ("a", "a.b"),
            ("a.b.c", "a.b"),
            ("*", ">"),
        ]
        self.assertEqual([pair for pair in yes if not covers(*pair)], [])
        self.assertEqual([pair for pair in no if covers(*pair)], [])


class WarningsTests(SynchronousTestCase):
    def test_the_server(self) -> None:
        """An old server, acknowledgements before fsync, a small max_payload; nothing when they are not known."""
        around = Surroundings("2.12.5", 1_048_576, False)
        self.assertEqual([one.kind for one in warnings(info(), around)], ["server_old", "no_fsync", "max_payload"])
        self.assertEqual(warnings(info(), Surroundings("2.12.6", 2_097_152, True)), [])
        self.assertEqual(warnings(info(), Surroundings()), [])

    def test_versions(self) -> None:
        """Three numbers, with or without a suffix."""
        self.assertEqual(parse_version("2.15.1"), (2, 15, 1))
        self.assertEqual(parse_version("2.14.0-RC.3+x"), (2, 14, 0))
        self.assertIsNone(parse_version("dev"))

    def test_filling(self) -> None:
        """Above 70 % of bytes or messages, with the hours that are left at the rate so far."""
        around = Surroundings(now=NOW)
        self.assertEqual(warnings(info(10, 7_000_000, 3600.0), around), [])
        (full,) = warnings(info(10, 8_000_000, 3600.0), around)
        self.assertIn("80% full (max_bytes), and will be full in about 0.2 h", full.text)
        (full,) = warnings(info(90, 10, 3600.0, max_msgs=100), around)
        self.assertIn("90% full (max_msgs)", full.text)
        self.assertEqual([one.kind for one in warnings(info(10, 8_000_000), Surroundings())], ["filling"])

    def test_hours_are_not_said_when_age_keeps_it_below(self) -> None:
        """A stream that expires faster than it fills never is full; an empty or new one says nothing."""
        self.assertIsNone(hours_left(info(10, 9_000_000, 86_400.0), NOW))
        self.assertIsNone(hours_left(info(), NOW))
        self.assertIsNone(hours_left(info(1, 1, -5.0), NOW))
        self.assertIsNone(hours_left(info(1, 1, 5.0, max_bytes=-1), NOW))
        left = hours_left(info(10, 5_000_000, 3600.0, max_age=0), NOW)
        assert left is not None
        self.assertAlmostEqual(left, 1.0)


class ConsumerTests(SynchronousTestCase):
    def test_a_consumer_as_created_has_no_differences(self) -> None:
        """What gatewayd creates is what it wants; more in flight or longer waits are the reader's choice."""
        wanted = ConsumerWanted("trading-events", "gateway-consumer")
        self.assertEqual(consumer_differences({"config": consumer_config(wanted)}, wanted), [])
        other = {**consumer_config(wanted), "max_ack_pending": 1000, "filter_subject": ""}
        self.assertEqual(consumer_differences({"config": other}, wanted), [])

    def test_differences(self) -> None:
        """Push, another filter, no acknowledgements."""
        wanted = ConsumerWanted("trading-events", "gateway-consumer")
        config = {"deliver_subject": "x", "ack_policy": "none", "filter_subjects": ["signals.raw"]}
        found = consumer_differences({"config": config}, wanted)
        self.assertEqual(
            [(one.kind, one.fatal) for one in found], [("push", True), ("ack_policy", False), ("filter", True)]
        )

    def test_lag(self) -> None:
        """Pending, unacknowledged and how far the acknowledgements are."""
        floor = {"consumer_seq": 1, "stream_seq": 9, "last_active": "2024-01-01T00:00:00Z"}
        self.assertEqual(lag({"num_pending": 5, "num_ack_pending": 2, "ack_floor": floor}), Lag(5, 2, 9))
        self.assertEqual(lag({}), Lag(0, 0, 0))
