"""gatewayctl sign: the headers, and which secret makes them."""

import json
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.ingress.signature import Signed, sign
from tests.directories import temporary_path
from tests.unit.cli.invocation import NOW_TEXT, Ended, gatewayctl

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "webhook_signatures.json").read_text())
BODY = '{"ticker":"EURUSD"}'


def expected(secret: str, body: str = BODY, key: str = "", nonce: str = "nonce-0001") -> str:
    """The header line that signs the body with the standing clock and the first nonce."""
    signed = Signed(NOW_TEXT.encode(), nonce.encode(), key.encode(), body.encode())
    return f"X-Signature: {sign('v1', secret.encode(), signed).decode()}"


class TestSign(SynchronousTestCase):
    def test_published_vectors(self) -> None:
        """Every published test vector comes out of the command."""
        for vector in VECTORS:
            words = ["sign", "--data", vector["body"], "--scheme", vector["scheme"], "--json"]
            if vector["scheme"] == "v1":
                words += ["--timestamp", vector["timestamp"], "--nonce", vector["nonce"]]
            if vector.get("idempotency_key"):
                words += ["--idempotency-key", vector["idempotency_key"]]
            ended = gatewayctl(*words, environ={"API_KEY_HMAC_SECRET": vector["secret"]})
            self.assertEqual(ended.json["headers"]["X-Signature"], vector["signature"])

    def test_header_lines_for_curl(self) -> None:
        """One header a line, all that the gateway asks for, nothing else on stdout or stderr."""
        ended = gatewayctl(
            "sign", "--data", BODY, "--idempotency-key", "order-17", environ={"API_KEY_HMAC_SECRET": "s3"}
        )
        self.assertEqual(
            ended.lines,
            [
                expected("s3", key="order-17"),
                "Content-Type: application/json",
                f"X-Timestamp: {NOW_TEXT}",
                "X-Nonce: nonce-0001",
                "Idempotency-Key: order-17",
            ],
        )
        self.assertEqual((ended.code, ended.err), (0, ""))

    def test_the_bytes_of_the_input_are_signed_as_they_are(self) -> None:
        """stdin and a file are signed with their last line break and with bytes that are no UTF-8."""
        body = b'{"a":1}\xff\r\n'
        path = temporary_path(self)
        path.write_bytes(body)
        signed = Signed(NOW_TEXT.encode(), b"nonce-0001", b"", body)
        line = f"X-Signature: {sign('v1', b's3', signed).decode()}"
        environ = {"API_KEY_HMAC_SECRET": "s3"}
        self.assertEqual(gatewayctl("sign", "-", environ=environ, stdin=body).lines[0], line)
        self.assertEqual(gatewayctl("sign", str(path), environ=environ).lines[0], line)

    def test_what_the_gateway_would_refuse_is_not_signed(self) -> None:
        """A time, nonce or key of a wrong form is exit code 2 and no header."""
        for words in (
            ("--timestamp", "2024-01-15 10:30"),
            ("--timestamp", "٣"),
            ("--nonce", "short"),
            ("--nonce", "has a blank in it"),
            ("--idempotency-key", ""),
            ("--idempotency-key", "two words"),
            ("--idempotency-key", "x" * 256),
        ):
            ended = gatewayctl("sign", "--data", "{}", *words, environ={"API_KEY_HMAC_SECRET": "s3"})
            self.assertEqual((ended.code, ended.out), (2, ""), words)
            self.assertIn("the gateway would refuse this: GW-0", ended.err)

    def test_a_body_is_needed_once(self) -> None:
        """No body, two bodies or a file that is not there: exit code 2."""
        for words in ((), ("-", "--data", "{}"), ("/nonexistent/body.json",)):
            self.assertEqual(gatewayctl("sign", *words, environ={"API_KEY_HMAC_SECRET": "s3"}).code, 2, words)

    def test_a_body_beyond_all_bounds_is_refused(self) -> None:
        """More than 16 MiB are not read."""
        ended = gatewayctl("sign", "-", environ={"API_KEY_HMAC_SECRET": "s3"}, stdin=bytes(16 * 1024 * 1024 + 1))
        self.assertEqual((ended.code, ended.out), (2, ""))


class TestSecretChoice(SynchronousTestCase):
    def sign(self, *words: str, **environ: str) -> Ended:
        """Sign the body."""
        return gatewayctl("sign", "--data", BODY, *words, environ=environ)

    def test_key_picks_from_a_list(self) -> None:
        """The first of a list by default, --key N another, beyond its end exit code 2."""
        secrets = {"API_KEY_HMAC_SECRET": "first, second"}
        self.assertEqual(self.sign(**secrets).lines[0], expected("first"))
        self.assertEqual(self.sign("--key", "2", **secrets).lines[0], expected("second"))
        ended = self.sign("--key", "3", **secrets)
        self.assertEqual((ended.code, ended.err), (2, "gatewayctl: --key 3: there are only 2\n"))

    def test_source_picks_its_own_secret(self) -> None:
        """A source's own secret where it has one, else the shared one."""
        secrets = {"API_KEY_HMAC_SECRET": "shared", "API_KEY_HMAC_SECRET_MY_BOT": "own"}
        self.assertEqual(self.sign("--source", "my-bot", **secrets).lines[0], expected("own"))
        self.assertEqual(self.sign("--source", "custom", **secrets).lines[0], expected("shared"))
        self.assertEqual(self.sign(**secrets).lines[0], expected("shared"))

    def test_a_sender_needs_no_other_setting(self) -> None:
        """Settings of the gateway that are incomplete here do not keep a sender from signing."""
        ended = self.sign(
            "--source", "partner", ENV="production", API_KEY_HMAC_SECRET="shared", NATS_URL="?!", PORT="x"
        )
        self.assertEqual(ended.lines[0], expected("shared"))

    def test_secret_file(self) -> None:
        """--secret-file comes before the environment; its last line break is no part of the secret."""
        path = temporary_path(self)
        path.write_text("from-file,other\n")
        ended = self.sign("--secret-file", str(path), API_KEY_HMAC_SECRET="shared")
        self.assertEqual(ended.lines[0], expected("from-file"))
        ended = self.sign("--secret-file", str(path), "--key", "2")
        self.assertEqual(ended.lines[0], expected("other"))

    def test_named_file_and_credential(self) -> None:
        """API_KEY_HMAC_SECRET_FILE and $CREDENTIALS_DIRECTORY work as for the gateway."""
        directory = Path(tempfile.mkdtemp())
        (directory / "API_KEY_HMAC_SECRET").write_text("held\n")
        named = str(directory / "API_KEY_HMAC_SECRET")
        self.assertEqual(self.sign(API_KEY_HMAC_SECRET_FILE=named).lines[0], expected("held"))
        self.assertEqual(self.sign(CREDENTIALS_DIRECTORY=str(directory)).lines[0], expected("held"))

    def test_settings_file(self) -> None:
        """--config reads a source's secret from its table, and asks for settings without a problem."""
        path = temporary_path(self)
        path.write_text('[sources.custom]\nsecret = "of-the-table"\n')
        self.assertEqual(self.sign("--source", "custom", "--config", str(path)).lines[0], expected("of-the-table"))
        ended = self.sign("--source", "unknown", "--config", str(path), API_KEY_HMAC_SECRET="shared")
        self.assertEqual((ended.code, ended.err), (2, "gatewayctl: --source unknown: not in ALLOWED_SOURCES\n"))
        path.write_text("prot = 1\n")
        self.assertEqual(self.sign("--config", str(path)).code, 2)

    def test_the_generated_secret_of_development(self) -> None:
        """Without any secret the one is used that a gateway in development keeps in the state directory."""
        directory = Path(tempfile.mkdtemp())
        (directory / "hmac-secret").write_bytes(b"generated\n")
        self.assertEqual(self.sign(STATE_DIRECTORY=str(directory)).lines[0], expected("generated"))
        self.assertEqual(self.sign(STATE_DIRECTORY=str(directory), API_KEY_HMAC_SECRET="set").lines[0], expected("set"))

    def test_no_secret_at_all(self) -> None:
        """Exit code 2, with what to do."""
        ended = self.sign(STATE_DIRECTORY="/nonexistent")
        self.assertEqual((ended.code, ended.out), (2, ""))
        self.assertIn("API_KEY_HMAC_SECRET", ended.err)

    def test_no_secret_is_ever_shown(self) -> None:
        """Neither a secret nor what stands where a file's name is expected comes out, whatever is wrong."""
        path = temporary_path(self)
        path.write_text("canary-1,,canary-2\n")
        for words, environ in (
            (("--secret-file", str(path)), {}),
            (("--secret-file", "canary-3"), {}),
            (("--secret-file", "canary\0-4"), {}),
            ((), {"API_KEY_HMAC_SECRET": "canary-5,,"}),
            ((), {"API_KEY_HMAC_SECRET": "canary-6", "API_KEY_HMAC_SECRET_FILE": "canary-7"}),
            (("--key", "canary-11"), {"API_KEY_HMAC_SECRET": "x"}),
            (("--key", "9"), {"API_KEY_HMAC_SECRET": "canary-8"}),
            (("--nonce", "bad"), {"API_KEY_HMAC_SECRET": "canary-9"}),
            ((), {"API_KEY_HMAC_SECRET": "canary-10"}),
        ):
            ended = self.sign(*words, **environ)
            self.assertNotIn("canary", ended.out + ended.err, words)
            self.assertNotIn("fault", ended.err, words)
        self.assertEqual(ended.code, 0)
