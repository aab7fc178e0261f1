"""
`gatewayctl stream` and `gatewayctl consumer`: what is in JetStream, made or checked.

Decides how findings are printed and what they are worth as an exit code. Never decides what the stream should be
(bus.stream does), and changes nothing that somebody else made.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gatewayd.cli.console import Code, Surroundings, json_option, note, plain, show_as
from gatewayd.cli.situation import config_option, require_settings

if TYPE_CHECKING:
    from gatewayd.bus import stream as rules
    from gatewayd.bus.ensure import Checked
    from gatewayd.bus.stream import Finding
    from gatewayd.cli.link import Link
    from gatewayd.settings import Settings

_MIB: Final = 1024 * 1024


@click.group()
def stream() -> None:
    """Create, check or follow the stream."""


@click.group()
def consumer() -> None:
    """Create the durable consumer."""


@stream.command("check")
@config_option
@json_option
@click.pass_obj
def check_stream(surroundings: Surroundings, config_file: Path | None, as_json: bool) -> int:
    """Look at the stream and its consumer, and change nothing; exit code 1 when something should be put right."""
    settings = require_settings(surroundings.environ, config_file)
    return _run(settings, lambda link: _check(link, settings, surroundings, as_json=as_json))


@stream.command("ensure")
@config_option
@json_option
@click.pass_obj
def ensure_stream(surroundings: Surroundings, config_file: Path | None, as_json: bool) -> int:
    """
    Make the stream when there is none; raise one that gatewayd made where it has become too small.

    A stream that somebody else made is only checked. Exit code 1 when something is left to put right.
    """
    settings = require_settings(surroundings.environ, config_file)
    return _run(settings, lambda link: _ensure(link, settings, surroundings, as_json=as_json))


@consumer.command("ensure")
@config_option
@json_option
@click.pass_obj
def ensure_consumer(surroundings: Surroundings, config_file: Path | None, as_json: bool) -> int:
    """
    Make the durable pull consumer when there is none; one that is there is only checked.

    It reads normalised events, acknowledges each, waits 30 s for that and has at most 10 unacknowledged.
    """
    settings = require_settings(surroundings.environ, config_file)
    return _run(settings, lambda link: _ensure_consumer(link, settings, as_json=as_json))


@stream.command()
@click.option("--last", metavar="N", type=click.IntRange(1, 1_000_000), help="Begin with the last N messages.")
@click.option("--no-follow", is_flag=True, help="End after them.")
@click.option(
    "--subject", "subjects", metavar="SUBJECT", multiple=True, help="Instead of both signals'; may be repeated."
)
@config_option
@json_option
@click.pass_obj
def tail(
    surroundings: Surroundings,
    *,
    last: int | None,
    no_follow: bool,
    subjects: tuple[str, ...],
    config_file: Path | None,
    as_json: bool,
) -> int:
    """
    Print one line for each message as it is stored: subject, sequence, time, corr_id, source, instrument.

    --json prints headers and body too. Ctrl-C ends it, with exit code 0. A connection that is lost is made again, and
    nothing is left out.
    """
    if no_follow and last is None:
        raise click.UsageError("--no-follow needs --last")
    settings = require_settings(surroundings.environ, config_file)
    from gatewayd.cli.following import Following
    from gatewayd.cli.link import nats_settings, run

    names = subjects or (settings.nats_subject_signals_raw, settings.nats_subject_signals_normalized)
    following = Following(nats_settings(settings), names, last=last, follow=not no_follow, as_json=as_json)
    try:
        run(following.run())
    except KeyboardInterrupt:
        return Code.OK
    return Code.OK


def _run(settings: "Settings", command: Any) -> int:
    """Connect, run the command on the link, close."""
    from gatewayd.cli.link import nats_settings, open_link, run

    async def whole() -> int:
        link = await open_link(nats_settings(settings))
        try:
            code: int = await command(link)
            return code
        finally:
            await link.close()

    return run(whole())


async def _check(link: "Link", settings: "Settings", surroundings: Surroundings, *, as_json: bool) -> int:
    from gatewayd.bus.ensure import check_consumer, check_stream
    from gatewayd.bus.publication import Unpublished
    from gatewayd.bus.stream import Finding
    from gatewayd.bus.wanted import wanted_consumer, wanted_stream
    from gatewayd.cli.link import refused

    stream = await check_stream(link, wanted_stream(settings, 0), _around(link, settings, surroundings))
    if isinstance(stream, Unpublished):
        raise refused(stream)
    if stream is None:
        text = f"There is no stream {settings.nats_stream}. Make it with `gatewayctl stream ensure`."
        missing = [Finding("stream_missing", text, fatal=True)]
        show_as(as_json, _value(settings.nats_stream, "missing", None, missing), _finding_lines(missing))
        return Code.NOT_IN_ORDER
    consumer = await check_consumer(link, wanted_consumer(settings))
    if isinstance(consumer, Unpublished):
        raise refused(consumer)
    findings = [*stream.findings, *(() if consumer is None else consumer.findings)]
    value = _value(settings.nats_stream, "present", stream.info, findings)
    lines = [_stream_line(stream.info)]
    if consumer is None:
        note(f"there is no consumer {settings.nats_durable}; `gatewayctl consumer ensure` makes it")
        value["consumer"] = None
    else:
        value["consumer"] = _lag_value(consumer.info)
        lines.append(_consumer_line(consumer.info))
    show_as(as_json, value, [*lines, *_finding_lines(findings)])
    return Code.NOT_IN_ORDER if findings else Code.OK


async def _ensure(link: "Link", settings: "Settings", surroundings: Surroundings, *, as_json: bool) -> int:
    from gatewayd.bus.ensure import ensure_stream
    from gatewayd.bus.publication import Unpublished
    from gatewayd.bus.wanted import wanted_stream
    from gatewayd.cli.link import refused

    guess = settings.nats_stream_max_bytes or _half_free_disk(settings.state_directory)
    wanted, around = wanted_stream(settings, guess), _around(link, settings, surroundings)
    stream = await ensure_stream(link, wanted, around, guessed=settings.nats_stream_max_bytes is None)
    if isinstance(stream, Unpublished):
        raise refused(stream)
    done = _done(stream)
    value = _value(wanted.name, done, stream.info, stream.findings)
    show_as(as_json, value, [f"{done}: {_stream_line(stream.info)}", *_finding_lines(stream.findings)])
    return Code.NOT_IN_ORDER if stream.findings else Code.OK


def _half_free_disk(directory: Path) -> int:
    """Of the disk that holds the directory, or will."""
    present = next(path for path in (directory, *directory.parents) if path.exists())
    return shutil.disk_usage(present).free // 2 // _MIB * _MIB


def _done(checked: "Checked") -> str:
    return "made" if checked.made else "raised" if checked.raised else "present"


async def _ensure_consumer(link: "Link", settings: "Settings", *, as_json: bool) -> int:
    from gatewayd.bus.ensure import ensure_consumer
    from gatewayd.bus.publication import Unpublished
    from gatewayd.bus.wanted import wanted_consumer
    from gatewayd.cli.link import refused

    wanted = wanted_consumer(settings)
    consumer = await ensure_consumer(link, wanted)
    if isinstance(consumer, Unpublished):
        raise refused(consumer)
    value = {
        "consumer": wanted.durable,
        "state": _done(consumer),
        "ok": not consumer.findings,
        "findings": [_finding_value(finding) for finding in consumer.findings],
        **_lag_value(consumer.info),
    }
    show_as(as_json, value, [f"{_done(consumer)}: {_consumer_line(consumer.info)}", *_finding_lines(consumer.findings)])
    return Code.NOT_IN_ORDER if consumer.findings else Code.OK


def _around(link: "Link", settings: "Settings", surroundings: Surroundings) -> "rules.Surroundings":
    from gatewayd.bus import stream as rules

    # The embedded server writes to the disk before it acknowledges; another one does not say.
    synced = True if settings.embedded_nats else None
    return rules.Surroundings(link.server_version, link.max_payload, synced, surroundings.wall())


def _finding_value(finding: "Finding") -> dict[str, Any]:
    return {"kind": finding.kind, "text": finding.text, "fatal": finding.fatal}


def _finding_lines(findings: "Sequence[Finding]") -> list[str]:
    return [f"{'fatal' if finding.fatal else 'warning'}: {finding.text}" for finding in findings]


def _value(name: str, state: str, info: dict[str, Any] | None, findings: "Sequence[Finding]") -> dict[str, Any]:
    value: dict[str, Any] = {"stream": name, "state": state, "ok": not findings}
    if info is not None:
        numbers = ("messages", "bytes", "first_seq", "last_seq")
        value |= {number: info["state"][number] for number in numbers} | {"config": info["config"]}
    value["findings"] = [_finding_value(finding) for finding in findings]
    return value


def _stream_line(info: dict[str, Any]) -> str:
    from gatewayd.bus.stream import NS, fill
    from gatewayd.settings_values import show_duration

    config, state = info["config"], info["state"]
    limit = f" of {_mib(config['max_bytes'])} ({fill(info)[0]:.0%} full)" if config.get("max_bytes", -1) > 0 else ""
    age = f"kept for {show_duration(config['max_age'] / NS)}" if config.get("max_age") else "kept for ever"
    window = show_duration(config.get("duplicate_window", 0) / NS)
    return (
        f"stream {plain(config['name'])}: {state['messages']} messages, {_mib(state['bytes'])}{limit}, {age}, "
        f"duplicates recognised for {window}"
    )


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"


def _lag_value(info: dict[str, Any]) -> dict[str, Any]:
    from gatewayd.bus.stream import lag

    found = lag(info)
    return {"name": info.get("name"), "pending": found.pending, "unacknowledged": found.unacked}


def _consumer_line(info: dict[str, Any]) -> str:
    value = _lag_value(info)
    return f"consumer {plain(value['name'])}: {value['pending']} waiting, {value['unacknowledged']} not acknowledged"
