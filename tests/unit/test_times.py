"""Timestamps as text."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.times import format_wall, parse_header_time, parse_rfc3339


class ParseTests(SynchronousTestCase):
    """RFC 3339 and epoch seconds."""

    def test_instants(self) -> None:
        """Zone, fraction and case are read as RFC 3339 says."""
        for text, instant in (
            ("1970-01-01T00:00:00Z", 0.0),
            ("2024-02-29T12:00:00+02:00", 1709200800.0),
            ("2024-01-15t10:30:00.25z", 1705314600.25),
            ("2024-01-15T10:30:00-00:30", 1705316400.0),
        ):
            assert parse_rfc3339(text) == instant, text

    def test_refused(self) -> None:
        """Days and hours that do not exist, and everything that is no RFC 3339, is None."""
        for text in (
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-01-00T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:60:00Z",
            "2024-01-01T00:00:60Z",
            "1969-12-31T23:59:59Z",
            "9999-12-31T23:59:59Z",
            "2024-01-01T00:00:00",
            "2024-01-01 00:00:00Z",
            "2024-01-01T00:00:00+14:01",
            "2024-01-01T00:00:00+01:60",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00Z\n",
            "",
        ):
            assert parse_rfc3339(text) is None, text

    def test_epoch(self) -> None:
        """A header may have epoch seconds; a body may not."""
        assert parse_header_time("1700000000") == 1_700_000_000
        assert parse_header_time("170000000000") is None
        assert parse_rfc3339("1700000000") is None

    @given(st.text(max_size=40))
    def test_never_raises(self, text: str) -> None:
        """Any text is an instant or None."""
        assert parse_header_time(text) is None or text.isascii()


class FormatTests(SynchronousTestCase):
    """What is written can be read back."""

    @given(st.integers(min_value=0, max_value=253370764799000))
    def test_round_trip(self, ms: int) -> None:
        """Milliseconds survive, also where a double rounds."""
        text = format_wall(ms / 1000)
        back = parse_rfc3339(text)
        assert back is not None
        assert round(back * 1000) == ms
        assert text == datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}Z"
