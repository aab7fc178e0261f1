"""
`gatewayctl completion`: the script that makes a shell complete gatewayctl's command lines.

Decides nothing: the script is click's own.
"""

import click
from click.shell_completion import get_completion_class

from gatewayd.cli.console import COMPLETION_VARIABLE, PROGRAM, json_option, show_as


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def completion(ctx: click.Context, shell: str, as_json: bool) -> None:
    """
    Print the completion script for SHELL.

    \b
      bash:  eval "$(gatewayctl completion bash)"        in ~/.bashrc
      zsh:   eval "$(gatewayctl completion zsh)"         in ~/.zshrc
      fish:  gatewayctl completion fish > ~/.config/fish/completions/gatewayctl.fish
    """  # noqa: D301 - click's mark for text that is not to be wrapped
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has all three
    script = kind(ctx.find_root().command, {}, PROGRAM, COMPLETION_VARIABLE).source()
    show_as(as_json, {"shell": shell, "script": script}, [script])
