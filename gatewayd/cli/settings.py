"""
`gatewayctl config`: the settings as the gateway would find them in this environment.

Decides how problems and settings are printed. Never decides what is right (config does) and never shows a secret.
"""

from pathlib import Path

import click

from gatewayd.cli.console import Code, Failed, Surroundings, json_option, note, show_as
from gatewayd.cli.situation import config_option, load_settings


@click.group()
def config() -> None:
    """Check the settings, or show those in force."""


@config.command()
@config_option
@json_option
@click.pass_obj
def check(surroundings: Surroundings, config_file: Path | None, as_json: bool) -> int:
    """
    Look for problems; exit code 1 when there are any.

    As strict as `twistd gatewayd --check-config`: an unknown GATEWAY_ name is a problem. Warnings are none.
    """
    loaded = load_settings(surroundings.environ, config_file, strict=True)
    problems = [
        {"setting": problem.setting, "value": problem.value, "reason": problem.reason} for problem in loaded.problems
    ]
    value = {"ok": not problems, "problems": problems, "warnings": list(loaded.warnings), "notes": list(loaded.notes)}
    lines = [f"problem: {problem}" for problem in loaded.problems]
    lines += [f"warning: {warning}" for warning in loaded.warnings]
    lines += [f"note: {text}" for text in loaded.notes]
    show_as(as_json, value, lines or ["the settings are in order"])
    return Code.NOT_IN_ORDER if problems else Code.OK


@config.command("show")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@config_option
@json_option
@click.pass_obj
def show_settings(
    surroundings: Surroundings,
    names: tuple[str, ...],
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Print the settings in force, or those named, and where each comes from. Of secrets only number and length."""
    from gatewayd.config import effective

    loaded = load_settings(surroundings.environ, config_file)
    if loaded.settings is None:
        raise Failed(Code.WRONG, *(str(problem) for problem in loaded.problems))
    shown = {name: (text, origin) for name, text, origin in effective(loaded.settings, loaded.origins)}
    named = [name if name in shown else name.upper() for name in names]
    unknown = [name for name in named if name not in shown]
    if unknown:
        raise Failed(Code.WRONG, *(f"{name!r} is not a setting" for name in unknown))
    for warning in loaded.warnings:
        note(f"warning: {warning}")
    chosen = named or list(shown)
    show_as(
        as_json,
        {name: {"value": shown[name][0], "origin": shown[name][1]} for name in chosen},
        (f"{name}={shown[name][0]}  # {shown[name][1]}" for name in chosen),
    )
