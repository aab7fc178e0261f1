"""gatewayctl explain."""

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.errors import TABLE
from tests.unit.cli.invocation import gatewayctl


class TestExplain(SynchronousTestCase):
    def test_every_spelling(self) -> None:
        """A code is found by its name, its number and its slug, in any case."""
        for spelling in ("GW-005", "gw-5", "gw5", "5", "005", "nats_unavailable", "NATS_UNAVAILABLE"):
            self.assertEqual(gatewayctl("explain", spelling, "--json").json["code"], "GW-005", spelling)

    def test_every_row_is_told_whole(self) -> None:
        """The text holds message, cause and remedy, every status, and the metric."""
        for row in TABLE.values():
            told = " ".join(gatewayctl("explain", row.code).out.split())
            for part in (row.slug, row.message, row.cause, row.remedy, str(row.status)):
                self.assertIn(" ".join(part.split()), told)
            self.assertIn("gateway_" if row.counted else "Metric: none", told)

    def test_the_list(self) -> None:
        """Without an argument every code has its line, and its object in JSON."""
        self.assertEqual([line.split()[0] for line in gatewayctl("explain").lines], list(TABLE))
        listed = gatewayctl("explain", "--json").json
        self.assertEqual([row["code"] for row in listed], list(TABLE))
        self.assertEqual(listed[14]["statuses"], [400, 408, 414, 417, 431, 501, 505])

    def test_unknown(self) -> None:
        """What is no code is exit code 2."""
        for spelling in ("GW-999", "0", "x", "5\n6", "\u0665"):
            self.assertEqual(gatewayctl("explain", spelling).code, 2, spelling)
