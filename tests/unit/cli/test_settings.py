"""gatewayctl config."""

from twisted.trial.unittest import SynchronousTestCase

from tests.directories import temporary_path
from tests.unit.cli.invocation import gatewayctl

SECRET = "canary-" + "x" * 33


class TestCheck(SynchronousTestCase):
    def test_in_order(self) -> None:
        """Settings without a problem or warning: exit code 0."""
        ended = gatewayctl("config", "check")
        self.assertEqual((ended.code, ended.out), (0, "the settings are in order\n"))
        self.assertEqual(
            gatewayctl("config", "check", "--json").json, {"ok": True, "problems": [], "warnings": [], "notes": []}
        )

    def test_all_problems_at_once(self) -> None:
        """Every problem has its line on stdout; exit code 1."""
        ended = gatewayctl(
            "config", "check", environ={"PORT": "0x", "RATE_LIMIT_RPS": "-1", "GATEWAY_PUBLIC_HTP_ADDR": ":1"}
        )
        self.assertEqual(ended.code, 1)
        for name in ("PORT=0x", "RATE_LIMIT_RPS=-1", "GATEWAY_PUBLIC_HTP_ADDR"):
            self.assertIn(f"problem: {name}", ended.out)

    def test_warnings_are_no_problems(self) -> None:
        """A weak secret is a warning: shown, exit code 0, the secret not shown."""
        ended = gatewayctl("config", "check", environ={"API_KEY_HMAC_SECRET": "canary"})
        self.assertEqual(ended.code, 0)
        self.assertIn("warning: API_KEY_HMAC_SECRET", ended.out)
        self.assertNotIn("canary", ended.out + ended.err)

    def test_file(self) -> None:
        """--config is checked too; one that cannot be read is a problem of its own."""
        path = temporary_path(self)
        path.write_text("prot = 1\n")
        problems = gatewayctl("config", "check", "--config", str(path), "--json").json["problems"]
        self.assertEqual([problem["setting"] for problem in problems], ["prot"])
        self.assertEqual(gatewayctl("config", "check", "--config", "/nonexistent").code, 1)


class TestShow(SynchronousTestCase):
    def test_everything_with_its_origin(self) -> None:
        """Every setting has its line; secrets are counted and measured only."""
        ended = gatewayctl("config", "show", environ={"PORT": "9001", "API_KEY_HMAC_SECRET": SECRET})
        self.assertEqual(ended.code, 0)
        self.assertIn("PORT=9001  # environment", ended.lines)
        self.assertIn("NATS_STREAM=trading-events  # default", ended.lines)
        self.assertIn("API_KEY_HMAC_SECRET=<set: 1 secret, 40 bytes>  # environment", ended.lines)
        self.assertNotIn("canary", ended.out + ended.err)

    def test_some(self) -> None:
        """Only the settings named, in their order, whatever their case; an unknown one is exit code 2."""
        ended = gatewayctl("config", "show", "port", "RATE_LIMIT_RPS", "sources.test.format")
        self.assertEqual(
            [line.partition("=")[0] for line in ended.lines], ["PORT", "RATE_LIMIT_RPS", "sources.test.format"]
        )
        self.assertEqual(
            gatewayctl("config", "show", "PORT", "--json").json, {"PORT": {"value": "8001", "origin": "default"}}
        )
        self.assertEqual(gatewayctl("config", "show", "PROT").code, 2)

    def test_problems(self) -> None:
        """Wrong settings cannot be shown: every problem on stderr, exit code 2."""
        ended = gatewayctl("config", "show", environ={"PORT": "0x", "ENV": "prod"})
        self.assertEqual((ended.code, ended.out), (2, ""))
        self.assertIn("PORT=0x", ended.err)
        self.assertIn("ENV=prod", ended.err)
