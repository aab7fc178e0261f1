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

from gatewayd.cli.console import Code, Failed, Surroundings, json_option, note, plain, show_as
from gatewayd.cli.situation import config_option, require_settings

if TYPE_CHECKING:
    from gatewayd.bus.stream import ConsumerWanted, Finding, StreamWanted
    from gatewayd.cli.link import Link, Refusal
    from gatewayd.settings import Settings

_NO_STREAM: Final = 10059
_NO_CONSUMER: Final = 10014
_NO_ROOM: Final = 10047
_MIB: Final = 1024 * 1024
_SMALLEST_GUESS: Final = 64 * _MIB


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


def wanted_stream(settings: "Settings", max_bytes: int) -> "StreamWanted":
    """The stream that these settings ask for."""
    from gatewayd.bus.stream import StreamWanted, covers

    wanted = StreamWanted(settings.nats_stream, settings.nats_stream_max_age, max_bytes, settings.duplicate_window_s)
    own = (settings.nats_subject_signals_raw, settings.nats_subject_signals_normalized)
    more = [subject for subject in own if not any(covers(pattern, subject) for pattern in wanted.subjects)]
    if not more:
        return wanted
    return StreamWanted(wanted.name, wanted.max_age_s, max_bytes, wanted.duplicate_window_s, (*wanted.subjects, *more))


def wanted_consumer(settings: "Settings") -> "ConsumerWanted":
    """The consumer that these settings ask for."""
    from gatewayd.bus.stream import ConsumerWanted

    return ConsumerWanted(settings.nats_stream, settings.nats_durable, settings.nats_subject_signals_normalized)


async def _info(link: "Link", call: str, missing: int) -> dict[str, Any] | None:
    """An INFO call's answer; None when there is no such thing."""
    from gatewayd.cli.link import Refusal

    answer = await link.ask(call, {})
    if not isinstance(answer, Refusal):
        return answer
    if answer.number == missing:
        return None
    raise _refused(answer)


def _refused(refusal: "Refusal") -> Failed:
    if refusal.number == _NO_STREAM:
        return Failed(Code.NOT_IN_ORDER, "there is no stream; `gatewayctl stream ensure` makes it")
    return Failed(Code.NOT_IN_ORDER, f"NATS refuses: {plain(refusal.text)} ({refusal.number})")


async def _check(link: "Link", settings: "Settings", surroundings: Surroundings, *, as_json: bool) -> int:
    info = await _info(link, f"STREAM.INFO.{settings.nats_stream}", _NO_STREAM)
    if info is None:
        from gatewayd.bus.stream import Finding

        text = f"There is no stream {settings.nats_stream}. Make it with `gatewayctl stream ensure`."
        finding = Finding("stream_missing", text, fatal=True)
        show_as(as_json, _value(settings.nats_stream, "missing", None, [finding]), _finding_lines([finding]))
        return Code.NOT_IN_ORDER
    findings = _findings(link, info, wanted_stream(settings, 0), settings, surroundings)
    found = await _info(link, f"CONSUMER.INFO.{settings.nats_stream}.{settings.nats_durable}", _NO_CONSUMER)
    lines = [_stream_line(info)]
    value = _value(settings.nats_stream, "present", info, findings)
    if found is None:
        note(f"there is no consumer {settings.nats_durable}; `gatewayctl consumer ensure` makes it")
        value["consumer"] = None
    else:
        from gatewayd.bus.stream import consumer_differences

        more = consumer_differences(found, wanted_consumer(settings))
        findings += more
        value["findings"] += [_finding_value(finding) for finding in more]
        value["consumer"] = _lag_value(found)
        lines.append(_consumer_line(found))
    value["ok"] = not findings
    show_as(as_json, value, [*lines, *_finding_lines(findings)])
    return Code.NOT_IN_ORDER if findings else Code.OK


async def _ensure(link: "Link", settings: "Settings", surroundings: Surroundings, *, as_json: bool) -> int:
    from gatewayd.bus.stream import raised
    from gatewayd.cli.link import Refusal

    wanted = wanted_stream(settings, 0)
    found = await _info(link, f"STREAM.INFO.{wanted.name}", _NO_STREAM)
    info: dict[str, Any] | Refusal
    if found is None:
        info, done = await _create(link, settings), "made"
    elif (config := raised(found, wanted)) is not None:
        info, done = await link.ask(f"STREAM.UPDATE.{wanted.name}", config), "raised"
    else:
        info, done = found, "present"
    if isinstance(info, Refusal):
        raise _refused(info)
    findings = _findings(link, info, wanted, settings, surroundings)
    value = _value(wanted.name, done, info, findings)
    show_as(as_json, value, [f"{done}: {_stream_line(info)}", *_finding_lines(findings)])
    return Code.NOT_IN_ORDER if findings else Code.OK


async def _create(link: "Link", settings: "Settings") -> "dict[str, Any] | Refusal":
    """
    A new stream. Where nobody said how large it may become, half of this machine's free disk is a guess: one that the
    server has no room for is halved until it fits.
    """
    from gatewayd.bus.stream import stream_config
    from gatewayd.cli.link import Refusal

    max_bytes = settings.nats_stream_max_bytes or _half_free_disk(settings.state_directory)
    while True:
        config = stream_config(wanted_stream(settings, max_bytes))
        answer = await link.ask(f"STREAM.CREATE.{settings.nats_stream}", config)
        full = isinstance(answer, Refusal) and answer.number == _NO_ROOM
        if not full or settings.nats_stream_max_bytes is not None or max_bytes < _SMALLEST_GUESS:
            return answer
        max_bytes //= 2


def _half_free_disk(directory: Path) -> int:
    """Of the disk that holds the directory, or will."""
    present = next(path for path in (directory, *directory.parents) if path.exists())
    return shutil.disk_usage(present).free // 2 // _MIB * _MIB


async def _ensure_consumer(link: "Link", settings: "Settings", *, as_json: bool) -> int:
    from gatewayd.bus.stream import consumer_config, consumer_differences
    from gatewayd.cli.link import Refusal

    wanted = wanted_consumer(settings)
    info: dict[str, Any] | Refusal | None = await _info(
        link, f"CONSUMER.INFO.{wanted.stream}.{wanted.durable}", _NO_CONSUMER
    )
    done = "present"
    if info is None:
        call = f"CONSUMER.CREATE.{wanted.stream}.{wanted.durable}.{wanted.filter_subject}"
        members = {"stream_name": wanted.stream, "config": consumer_config(wanted), "action": "create"}
        info, done = await link.ask(call, members), "made"
    if isinstance(info, Refusal):
        raise _refused(info)
    findings = consumer_differences(info, wanted)
    value = {
        "consumer": wanted.durable,
        "state": done,
        "ok": not findings,
        "findings": [_finding_value(finding) for finding in findings],
        **_lag_value(info),
    }
    show_as(as_json, value, [f"{done}: {_consumer_line(info)}", *_finding_lines(findings)])
    return Code.NOT_IN_ORDER if findings else Code.OK


def _findings(
    link: "Link", info: dict[str, Any], wanted: "StreamWanted", settings: "Settings", surroundings: Surroundings
) -> "list[Finding]":
    from gatewayd.bus import stream as rules

    # The embedded server writes to the disk before it acknowledges; another one does not say.
    around = rules.Surroundings(
        link.server_version, link.max_payload, True if settings.embedded_nats else None, surroundings.wall()
    )
    return [*rules.differences(info, wanted), *rules.warnings(info, around)]


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
