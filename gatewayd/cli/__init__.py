"""
gatewayctl, the operator's and the sender's tool.

Decides which commands there are and how every one of them ends: its exit code, and one line on stderr for each thing
that went wrong. Never imports a command's module before that command is asked for, and never imports Twisted.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Final, NoReturn

import click
from click.shell_completion import shell_complete

from gatewayd import __version__
from gatewayd.cli.console import COMPLETION_VARIABLE, EXIT_CODES, PROGRAM, Code, Failed, Surroundings, note
from gatewayd.cli.unit import unit_environment

# Name -> module, and what --help says of it: the help of all of them needs none of their modules.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "sign": ("signing", "Print the headers that sign a webhook's body."),
    "send": ("sending", "Send signed test webhooks and say what became of them."),
    "config": ("settings", "Check the settings, or show those in force."),
    "secret": ("secret", "Make secrets."),
    "env": ("environment", "Show or change the environment file of the systemd unit."),
    "explain": ("explanation", "Say what a GW code means and what to do."),
    "stream": ("streams", "Create, check or follow the stream."),
    "consumer": ("streams", "Create the durable consumer."),
    "dlq": ("dead_letters", "List, show or replay dead letters."),
    "trace": ("tracing", "Say what became of one request."),
    "edge": ("edge", "Make keys, publish and follow events of the edge gateway."),
    "maintenance": ("maintenance", "Switch maintenance on or off."),
    "completion": ("completion", "Print the shell's completion script."),
}

_EPILOG: Final = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in EXIT_CODES.items())


class _Commands(click.Group):
    """The commands of the table above, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"{__name__}.{COMMANDS[cmd_name][0]}"), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above and the modules agree
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def commands() -> None:
    """
    Sign and send webhooks, check settings and the stream, see to dead letters, switch maintenance.

    What was asked for is on stdout, everything else on stderr; --json makes it JSON. Settings are those of the
    gateway, from the environment and --config FILE.
    """


def main() -> NoReturn:
    """The console script."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for the rest of the process
        getattr(sys, name).reconfigure(errors="backslashreplace")
    surroundings = Surroundings.of_this_process()
    sys.exit(run(sys.argv[1:], replace(surroundings, environ=unit_environment(surroundings.environ))))


def run(arguments: Sequence[str], surroundings: Surroundings) -> int:
    """One command line; returns its exit code. Nothing is raised, and no traceback is shown."""
    instruction = surroundings.environ.get(COMPLETION_VARIABLE)
    try:
        if instruction:
            return shell_complete(commands, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
        code = commands.main(list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=surroundings)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        note(error.format_message())
        return Code.WRONG
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else PROGRAM
        note(f"{path}: {one_line(error.format_message()).rstrip('.')}; see `{path} --help`")
        return Code.WRONG
    except Failed as error:
        for line in error.lines:
            note(f"gatewayctl: {one_line(line)}")
        return error.code
    except (click.Abort, KeyboardInterrupt):
        return Code.INTERRUPTED
    except (BrokenPipeError, SystemExit):  # click makes the one into the other
        _drop_output()
        return Code.READER_LEFT
    except OSError as error:
        # Every command answers for the files and servers that it names; what is left is the output.
        _drop_output()
        note(f"gatewayctl: the output cannot be written: {error.strerror or type(error).__name__}")
        return Code.WRONG
    except Exception as error:
        note(f"gatewayctl: a fault of gatewayctl: {type(error).__name__} at {_place(error)}")
        return Code.FAULT
    return code if isinstance(code, int) else Code.OK


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())


def _drop_output() -> None:
    """Let the interpreter flush into nothing at its end: it would complain about the reader that left once more."""
    with suppress(OSError, ValueError):  # a stdout without a descriptor
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def _place(error: BaseException) -> str:
    """File and line of the innermost frame: a text of the error itself might hold what must not be shown."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
