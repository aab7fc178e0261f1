"""The command line as a whole: what it offers, how it ends, what it imports."""

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

import click
from twisted.trial.unittest import SynchronousTestCase

from gatewayd import __version__
from gatewayd.cli import COMMANDS, commands, run
from gatewayd.cli.console import EXIT_CODES, Code, Failed, plain
from tests.unit.cli.invocation import World, gatewayctl

SCRIPT = "import sys; from gatewayd.cli import main; main()"


def every_command() -> Iterator[tuple[str, ...]]:
    """The words of every command that does something."""
    context = click.Context(commands, info_name="gatewayctl")
    for name in COMMANDS:
        command = commands.get_command(context, name)
        if isinstance(command, click.Group):
            yield from ((name, sub) for sub in command.commands)
        else:
            yield (name,)


class TestCommands(SynchronousTestCase):
    def test_every_command_has_help_and_json(self) -> None:
        """Each command explains itself and offers --json."""
        found = list(every_command())
        self.assertGreaterEqual(len(found), 13)
        for words in found:
            ended = gatewayctl(*words, "--help")
            self.assertEqual(ended.code, 0, words)
            self.assertIn(f"Usage: gatewayctl {' '.join(words)}", ended.out)
            self.assertIn("--json", ended.out, words)

    def test_help_names_every_command_and_exit_code(self) -> None:
        """gatewayctl --help lists the commands and documents the exit codes."""
        ended = gatewayctl("--help")
        self.assertEqual(ended.code, 0)
        for name, (_, text) in COMMANDS.items():
            self.assertIn(f"{name} ", ended.out)
            self.assertIn(text, ended.out)
        for code, text in EXIT_CODES.items():
            self.assertIn(f"{code}  {text}", ended.out)

    def test_the_table_says_what_each_command_says_of_itself(self) -> None:
        """The short help of the table opens the command's own help, but for `sign` and its kin, which say more."""
        for name, (_, text) in COMMANDS.items():
            first = gatewayctl(name, "--help").out.split("\n\n")[1].split()[0]
            self.assertEqual(first, text.split()[0], name)

    def test_version(self) -> None:
        """--version prints the name and the version."""
        self.assertEqual(gatewayctl("--version").out, f"gatewayctl {__version__}\n")

    def test_no_command_is_a_usage_error_that_helps(self) -> None:
        """Without a command the help goes to stderr, and the exit code is 2."""
        ended = gatewayctl()
        self.assertEqual((ended.code, ended.out), (2, ""))
        self.assertIn("maintenance", ended.err)

    def test_wrong_words_are_one_line_and_exit_code_2(self) -> None:
        """A misspelt command, option or choice ends with one line on stderr."""
        for words in (
            ("sing",),
            ("sign", "--sauce", "x"),
            ("sign", "--scheme", "md5"),
            ("stream", "tail", "--last", "0"),
        ):
            ended = gatewayctl(*words)
            self.assertEqual((ended.code, ended.out), (2, ""), words)
            self.assertEqual(ended.err.count("\n"), 1, ended.err)
            self.assertIn("--help`", ended.err)

    def test_completion_prints_clicks_script(self) -> None:
        """The three shells get a script that names the program."""
        for shell in ("bash", "zsh", "fish"):
            ended = gatewayctl("completion", shell)
            self.assertEqual(ended.code, 0)
            self.assertIn("_GATEWAYCTL_COMPLETE", ended.out)
            self.assertEqual(gatewayctl("completion", shell, "--json").json["shell"], shell)

    def test_completion_completes(self) -> None:
        """What the script calls answers with the commands and sub-commands that begin so."""
        for words, expected in (("gatewayctl ma", "maintenance"), ("gatewayctl stream t", "tail")):
            environ = {**os.environ, "_GATEWAYCTL_COMPLETE": "bash_complete", "COMP_WORDS": words}
            environ["COMP_CWORD"] = str(words.count(" "))
            ended = subprocess.run(
                [sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, check=False
            )
            self.assertEqual(ended.stdout.split(), [f"plain,{expected}"], ended.stderr)


@commands.command("broken", hidden=True)
@click.argument("how")
def broken(how: str) -> None:
    """End as told."""
    secret = "canary-secret"
    raise {
        "fault": RuntimeError(secret),
        "pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),
        "full": OSError(errno.ENOSPC, "No space left on device"),
        "interrupt": KeyboardInterrupt(),
        "failed": Failed(Code.UNREACHABLE, "one\nline", "another"),
    }[how]


class TestEnds(SynchronousTestCase):
    def end(self, how: str) -> tuple[int, str, str]:
        """Run a command that ends so, around the table of commands."""
        out, err = io.StringIO(), io.StringIO()
        self.patch(type(commands), "get_command", lambda self, ctx, name: broken)
        with redirect_stdout(out), redirect_stderr(err):
            code = run(["broken", how], World().surroundings)
        return int(code), out.getvalue(), err.getvalue()

    def test_a_fault_shows_neither_traceback_nor_text(self) -> None:
        """An exception that nobody expected is exit code 70 and one line that says where, not what."""
        code, out, err = self.end("fault")
        self.assertEqual((code, out), (70, ""))
        self.assertRegex(err, r"\Agatewayctl: a fault of gatewayctl: RuntimeError at [\w.]+:\d+\n\Z")
        self.assertNotIn("canary", err)

    def test_a_reader_that_left_is_silent(self) -> None:
        """A broken pipe says nothing and is exit code 141, as a shell would have it."""
        self.assertEqual(self.end("pipe"), (141, "", ""))

    def test_a_full_disk_is_one_line(self) -> None:
        """Output that cannot be written is exit code 2."""
        code, _, err = self.end("full")
        self.assertEqual((code, err), (2, "gatewayctl: the output cannot be written: No space left on device\n"))

    def test_interrupted(self) -> None:
        """Ctrl-C is exit code 130."""
        self.assertEqual(self.end("interrupt")[0], 130)

    def test_failed_has_a_line_for_each_reason(self) -> None:
        """A failure's lines each begin with the program's name and have no line break inside."""
        self.assertEqual(self.end("failed"), (3, "", "gatewayctl: one line\ngatewayctl: another\n"))


class TestPlain(SynchronousTestCase):
    def test_nothing_moves_the_cursor(self) -> None:
        """Control characters, also of the second set, and line separators are written as escapes."""
        self.assertEqual(plain("a\x1b[2J\r\n\x9bé\u2028"), "a\\x1b[2J\\r\\n\\x9bé\\u2028")

    def test_long_text_is_cut(self) -> None:
        """At most so many characters, with a sign that there was more."""
        self.assertEqual(plain("x" * 10, 4), "xxxx…")


class TestImports(SynchronousTestCase):
    def modules_of(self, *arguments: str) -> set[str]:
        """The modules that a command of its own process imported."""
        script = (
            "import sys, json, atexit\n"
            "atexit.register(lambda: print('MODULES' + json.dumps(sorted(sys.modules))))\n" + SCRIPT
        )
        environ = {
            **os.environ,
            "API_KEY_HMAC_SECRET": "x" * 40,
            "STATE_DIRECTORY": "/",
            "NATS_URL": "nats://127.0.0.1:9",
        }
        ended = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=environ, capture_output=True, text=True, check=False
        )
        self.assertNotIn("fault", ended.stderr)
        found: list[str] = json.loads(ended.stdout.rpartition("MODULES")[2])
        return set(found)

    def test_no_command_imports_twisted_and_only_those_of_the_stream_import_nats(self) -> None:
        """Neither Twisted nor, where it is not needed, nats-py is imported."""
        needs_nats = {"stream", "consumer", "dlq", "trace"}
        for words in (
            ("--help",),
            ("explain",),
            ("sign", "--data", "{}"),
            ("send", "--url", "http://127.0.0.1:9", "--retries", "0"),
            ("config", "check"),
            ("config", "show"),
            ("secret", "new"),
            ("maintenance", "status"),
            ("completion", "bash"),
            ("stream", "check"),
            ("stream", "ensure"),
            ("stream", "tail"),
            ("consumer", "ensure"),
            ("dlq", "list"),
            ("dlq", "show", "1"),
            ("dlq", "replay", "--all"),
            ("trace", "req_1"),
            ("edge", "keys", "--url", "http://127.0.0.1:9"),
            ("edge", "revoke", "s"),
            ("edge", "publish", "--user", "u", "--type", "t"),
            ("edge", "subscribe", "--session", "s", "--key-file", "/nonexistent"),
            ("edge", "subscribe", "--session", "s", "--key-file", "/nonexistent", "--websocket"),
            ("edge", "command", "t", "--session", "s", "--key-file", "/nonexistent"),
        ):
            modules = self.modules_of(*words)
            self.assertNotIn("twisted", modules, words)
            self.assertNotIn("rich", modules, words)
            self.assertEqual("nats" in modules, words[0] in needs_nats, words)
            if words[0] in ("--help", "explain", "secret"):
                self.assertNotIn("gatewayd.config", modules, words)
                self.assertNotIn("asyncio", modules, words)
