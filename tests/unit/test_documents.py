"""The documents say what the code does."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.development import trial_command
from gatewayd.errors import TABLE
from gatewayd.ingress.normalise import Generic, Signal, read_generic, read_tradingview
from gatewayd.ingress.signature import Signed, sign
from gatewayd.sessions import endings
from gatewayd.settings_table import RETIRED, SECRET_OF_SOURCE
from gatewayd.settings_table import TABLE as SETTINGS
from tests import generated
from tests.documents import PAGES, ROOT, blocks, read, run_of, shown_of, steady
from tests.unit.cli.invocation import gatewayctl
from tests.unit.cli.test_commands import every_command

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def anchors(page: str) -> set[str]:
    """The fragments that a page's headings can be reached by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


class GeneratedTest(SynchronousTestCase):
    """The parts that `make docs` writes."""

    def copy(self) -> Path:
        """The documents in a directory of the test's own."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        root = Path(directory.name)
        shutil.copytree(ROOT / "docs", root / "docs")
        (root / "etc").mkdir()
        for name in ("README.md", "etc/gatewayd.env.example"):
            shutil.copy(ROOT / name, root / name)
        return root

    def test_current(self) -> None:
        """Everything that is generated is what the code says today: `make docs` would change nothing."""
        self.assertEqual(list(generated.stale()), [])

    def test_what_is_stale_is_rewritten(self) -> None:
        """A changed table, page or schema, a missing one and one too many are put right; the rest is untouched."""
        root = self.copy()
        readme = root / "README.md"
        written = readme.read_text()
        readme.write_text(written.replace("`RATE_LIMIT_RPS` | `100`", "`RATE_LIMIT_RPS` | `1`") + "By hand.\n")
        (root / "docs/codes.md").write_text("# Codes\n")
        (root / "docs/schemas/signals.raw-1.1.0.json").write_text("{}")
        (root / "docs/schemas/signals.raw-1.0.0.json").unlink()
        (root / "docs/schemas/signals.raw-0.9.0.json").write_text("{}")
        (root / "etc/gatewayd.env.example").unlink()
        changed = generated.rewrite(root)
        self.assertEqual(
            set(changed),
            {"README.md", "docs/codes.md", "etc/gatewayd.env.example"}
            | {f"docs/schemas/signals.raw-{version}.json" for version in ("0.9.0", "1.0.0", "1.1.0")},
        )
        self.assertEqual(readme.read_text(), written + "By hand.\n")
        self.assertFalse((root / "docs/schemas/signals.raw-0.9.0.json").exists())
        self.assertEqual(generated.stale(root), {})

    def test_schemas_are_copies(self) -> None:
        """docs/schemas has the schemas of the package, byte for byte, and nothing else."""
        shipped = {path.name: path.read_bytes() for path in (ROOT / "gatewayd/schemas").glob("*.json")}
        shown = {path.name: path.read_bytes() for path in (ROOT / "docs/schemas").iterdir()}
        self.assertEqual(shown, shipped)
        self.assertEqual(len(shown), 4)

    def test_markers(self) -> None:
        """A part is put between its two markers; where they are not there once each, nothing is guessed."""
        self.assertEqual(
            generated.between("a\n<!-- x -->\n<!-- /x -->\nb\n", "x", "c"), "a\n<!-- x -->\n\nc\n\n<!-- /x -->\nb\n"
        )
        once = "<!-- x -->\n<!-- /x -->\n"
        for text in ("", "<!-- x -->\n", once + once, "<!-- /x -->\n<!-- x -->\n"):
            self.assertRaises(ValueError, generated.between, text, "x", "c")

    def test_tables_are_whole(self) -> None:
        """Each row of each table has as many cells as its head, and no text is taken for HTML."""
        for page in PAGES:
            for block in re.findall(r"(?:^\|.*\|\n)+", FENCED.sub("", read(page)), re.MULTILINE):
                counts = {line.replace("\\|", "").count("|") for line in block.splitlines()}
                self.assertEqual(len(counts), 1, f"{page}: {block[:200]}")
            without_code = re.sub(r"`[^`\n]*`|<!--.*?-->", "", FENCED.sub("", read(page)))
            self.assertEqual(re.findall(r"<[a-z/]", without_code), [], page)

    def test_every_code(self) -> None:
        """The README and docs/codes.md have one place for each code, with its status, meaning and remedy."""
        readme, page = read("README.md"), read("docs/codes.md")
        for row in TABLE.values():
            (line,) = [line for line in readme.splitlines() if line.startswith(f"| `{row.code}`")]
            for text in (str(row.status), row.slug, row.message):
                self.assertIn(text, line)
            self.assertEqual(page.count(f"## {row.code} `{row.slug}`"), 1)


class NamesTest(SynchronousTestCase):
    """What the documents name is there."""

    def test_links(self) -> None:
        """Every link leads to a file of this repository, and to a heading that is in it."""
        for page in PAGES:
            for link in LINK.findall(FENCED.sub("", read(page))):
                target, _, fragment = link.partition("#")
                path = (ROOT / page).parent / target if target else ROOT / page
                self.assertTrue(path.exists(), f"{page}: {link}")
                if fragment:
                    self.assertIn(fragment, anchors(str(path.resolve().relative_to(ROOT))), f"{page}: {link}")

    def test_codes(self) -> None:
        """Every code that is named exists."""
        for page in PAGES:
            self.assertEqual(set(re.findall(r"GW-\d+", read(page))) - set(TABLE), set(), page)

    def test_metrics(self) -> None:
        """Every metric that is named exists, and every one has its line."""
        known = generated.families()
        for page in PAGES:
            named = set(re.findall(r"`((?:gatewayd?|edge|redis)_[a-z_]+)", read(page)))
            self.assertEqual(named - set(known) - set(generated.edge_families()), set(), page)
        lines = re.findall(r"^\| `((?:gatewayd?|redis)_[a-z_]+)` \|", read("docs/operations.md"), re.MULTILINE)
        self.assertEqual(lines, list(known))

    def test_settings(self) -> None:
        """Every setting that is named exists."""
        others = {"STATE_DIRECTORY", "NOTIFY_SOCKET", "PROMETHEUS_MULTIPROC_DIR", "CREDENTIALS_DIRECTORY"}
        others |= {"WATCHDOG_USEC", "LISTEN_FDS", "PIP_ARGS"}
        others |= {*RETIRED, *(name for name in vars(endings) if name.isupper())}  # statuses of gRPC look like settings
        known = {*SETTINGS, *(f"{name}_FILE" for name, row in SETTINGS.items() if row.filed), *others}
        names = ("edge", "edge-operations", "guarantees", "operations", "schemas", "threat-model")
        pages = (f"docs/{name}.md" for name in names)
        for page in ("README.md", *pages):
            named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)(?:=[^`]*)?`", read(page)))
            self.assertEqual({name for name in named - known if not name.startswith(SECRET_OF_SOURCE)}, set(), page)

    def test_commands(self) -> None:
        """Every command of gatewayctl that the README and docs/operations.md name is one, and has the options named."""
        commands = {" ".join(words): gatewayctl(*words, "--help").out for words in every_command()}
        names = ("edge", "edge-operations", "operations", "guarantees", "codes", "threat-model")
        for page in ("README.md", *(f"docs/{name}.md" for name in names)):
            for line in re.findall(r"gatewayctl ([a-z][^`|#\n]*)", read(page)):
                words = line.split()
                name = next((known for known in (" ".join(words[:2]), words[0]) if known in commands), None)
                assert name is not None, f"{page}: {line}"
                for option in re.findall(r"--[a-z-]+", line):
                    self.assertIn(option, commands[name], f"{page}: {line}")

    def test_every_example_is_run(self) -> None:
        """Each block that people are told to run is run by a test of tests/system/test_readme.py."""
        tests = read("tests/system/test_readme.py")
        for name in blocks("README.md", "run"):
            self.assertIn(f'run_of("{name}")', tests)


class ExamplesTest(SynchronousTestCase):
    """What the README shows is what the code gives."""

    def test_trial(self) -> None:
        """The curl command is the one that the log prints, on several lines, with the usual place of the secret."""
        shown = re.sub(r" \\\n\s*", " ", run_of("trial")).strip()
        printed = trial_command("http://127.0.0.1:8001", Path("/state/hmac-secret"))
        self.assertEqual(shown.replace("~/.local/state/gatewayd", "/state"), printed)

    def test_vector(self) -> None:
        """The signatures to test a client with are the ones that gatewayd wants."""
        text = shown_of("vector")
        fields = dict(re.findall(r"^(secret|X-Timestamp|X-Nonce|body) +(.+)$", text, re.MULTILINE))
        wanted = []
        for scheme, key in (("v1", ""), ("v1", "order-17"), ("sha256", "")):
            texts = (fields["X-Timestamp"], fields["X-Nonce"], key, fields["body"])
            wanted.append(sign(scheme, fields["secret"].encode(), Signed(*(text.encode() for text in texts))).decode())
        self.assertEqual(re.findall(r"^(?:v1|sha256)=[0-9a-f]{64}", text, re.MULTILINE), wanted)

    def test_bodies(self) -> None:
        """Both bodies are taken, and say the same."""
        first, second = shown_of("bodies").encode().splitlines()
        signal, generic = read_tradingview(first), read_generic(second)
        self.assertIsInstance(signal, Signal)
        self.assertIsInstance(generic, Generic)
        assert isinstance(generic, Generic)
        self.assertEqual(generic.signal, signal)

    def test_events_fit_their_schemas(self) -> None:
        """The events that are shown fit the schemas, and belong to the answer that is shown."""
        answer: dict[str, Any] = json.loads(shown_of("trial"))
        for name, file in (("raw", "signals.raw-1.1.0.json"), ("normalised", "signals.normalized-1.1.0.json")):
            event = json.loads(shown_of(name))
            Draft202012Validator(json.loads(generated.schemas()[file])).validate(event)
            self.assertEqual(event["corr_id"], answer["corr_id"])
        self.assertTrue(answer["idempotency_key"].startswith(answer["corr_id"][4:]))

    def test_json_is_as_it_is_sent(self) -> None:
        """No example was made prettier: each line of JSON is as compact as the encoder writes it."""
        for page in PAGES:
            for block in re.findall(r"^```json\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL):
                for line in block.splitlines():
                    self.assertEqual(msgspec.json.format(line, indent=-1), line)

    def test_steady(self) -> None:
        """What differs from run to run is left out of a comparison, and nothing else."""
        self.assertEqual(steady(shown_of("trial")), steady(shown_of("trial").replace("c0b8", "ffff")))
        self.assertNotEqual(steady(shown_of("trial")), steady(shown_of("trial").replace("accepted", "taken")))
