"""
`gatewayctl dlq`: the bodies that were refused and kept.

Decides how dead letters are printed, and when a choice of them is wide enough to be asked for by name. Never decides
what a letter becomes (ingress.replaying does) and never changes a letter.
"""

import base64
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gatewayd.cli.console import Code, Failed, Surroundings, json_option, note, plain, show, show_as, show_json
from gatewayd.cli.situation import complete_file, config_option, read_body, require_settings

if TYPE_CHECKING:
    from gatewayd.cli.choosing import Box, Choice, Entry
    from gatewayd.cli.link import Link
    from gatewayd.cli.replaying import Replaying, Told
    from gatewayd.settings import Settings

LIMIT: Final = 1000
LISTED: Final = 50
_SHOWN_BYTES: Final = 4096


def _choice_options(limit: int) -> Callable[[Any], Any]:
    options = (
        click.option("--since", metavar="TIME", help="Stored since: RFC 3339, or 10m, 2h, 1d for so long ago."),
        click.option("--until", metavar="TIME", help="Stored until, in the same forms."),
        click.option("--code", "codes", metavar="CODE", multiple=True, help="Refused with it; may be repeated."),
        click.option("--source", "sources", metavar="NAME", multiple=True, help="Sent by it; may be repeated."),
        click.option(
            "--limit", metavar="N", type=click.IntRange(1, LIMIT), default=limit, show_default=True, help="At most N."
        ),
    )

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group()
def dlq() -> None:
    """
    List, show or replay dead letters: authenticated bodies that could not become events.

    A letter is named by its sequence in the stream. `list` prints it, and so does `trace` with the refusal's corr_id.
    """


@dlq.command("list")
@_choice_options(LISTED)
@click.option("--pending", "replayed", flag_value=False, type=bool, default=None, help="Only what is not replayed yet.")
@click.option("--replayed", "replayed", flag_value=True, type=bool, help="Only what is replayed.")
@config_option
@json_option
@click.pass_obj
def list_letters(
    surroundings: Surroundings, /, *, limit: int, config_file: Path | None, as_json: bool, **given: Any
) -> int:
    """
    Print one line for each dead letter: sequence, time, code, source, bytes, state, and the first reason.

    The newest --limit of those that match are printed, the oldest first. The state is pending, claimed (a replay has
    begun and not ended: the next `dlq replay` finishes it) or replayed.
    """
    from gatewayd.cli.choosing import Choice

    settings = require_settings(surroundings.environ, config_file)
    choice = Choice.of(surroundings.wall(), **given)

    async def work(link: "Link") -> int:
        found = (await _read_box(link, choice, surroundings)).chosen(choice)
        if len(found) > limit:
            note(f"gatewayctl: {len(found) - limit} older ones match too; --limit, --since and --until choose")
        found = found[-limit:]
        if as_json:
            show_json([_members(entry) for entry in found])
            return Code.OK
        for line in _table(found):
            show(line)
        return Code.OK

    return _run(settings, work)


@dlq.command("show")
@click.argument("sequence", type=click.IntRange(1))
@click.option("--raw", is_flag=True, help="Write the received bytes to stdout, and nothing else.")
@config_option
@json_option
@click.pass_obj
def show_letter(
    surroundings: Surroundings, *, sequence: int, raw: bool, config_file: Path | None, as_json: bool
) -> int:
    """
    Print a dead letter: why it was refused, where in the body, and the body.

    With --raw exactly the received bytes are written, to be corrected and replayed with `dlq replay --body`.
    """
    if raw and as_json:
        raise click.UsageError("--raw and --json: give one of them")
    settings = require_settings(surroundings.environ, config_file)

    async def work(link: "Link") -> int:
        from gatewayd.cli.choosing import Entry
        from gatewayd.cli.reading import read_last, read_message
        from gatewayd.ingress.letters import parse_letter
        from gatewayd.ingress.replaying import parse_record, record_subject

        stored = await read_message(link, sequence)
        if stored is None or not stored.subject.startswith("dlq.signals."):
            raise Failed(
                Code.WRONG, f"there is no dead letter {sequence}; `gatewayctl dlq list` prints those there are"
            )
        if raw:
            click.echo(stored.body, nl=False)
            return Code.OK
        last = await read_last(link, record_subject(sequence))
        entry = Entry(sequence, parse_letter(stored), None if last is None else parse_record(last))
        show_as(as_json, _whole_members(entry, stored.headers, stored.body), _page(entry, stored.body))
        return Code.OK

    return _run(settings, work)


@dlq.command("replay")
@click.argument("sequences", metavar="[SEQUENCE]...", nargs=-1, type=click.IntRange(1))
@_choice_options(LIMIT)
@click.option("--all", "everything", is_flag=True, help="Every one that is not replayed yet.")
@click.option("--body", metavar="FILE", shell_complete=complete_file, help="The corrected body of the one letter.")
@click.option("--dry-run", "dry", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--rate", metavar="R", type=click.FloatRange(0, 10_000, min_open=True), help="At most R a second.")
@config_option
@json_option
@click.pass_obj
def replay_letters(
    surroundings: Surroundings,
    /,
    *,
    sequences: tuple[int, ...],
    limit: int,
    everything: bool,
    body: str | None,
    dry: bool,
    rate: float | None,
    config_file: Path | None,
    as_json: bool,
    **given: Any,
) -> int:
    """
    Store dead letters as events, each of them once, whatever happens in between.

    Each body is read again under the settings in force now; one that is a signal now is stored as raw and normalised
    event, however old it is. What still is none stays, and is said. With --body one letter is replayed as the bytes of
    FILE (`-`: stdin).

    A run may be repeated at any time, also after it was killed and also while another one runs: what is in the stream
    already is not stored again, and what was begun is finished. Exit code 0 when all of the letters are in the stream
    now, 1 when some are not, 3 when NATS could not be reached.
    """
    from gatewayd.cli.choosing import Choice

    if not (sequences or everything or any(given.values())):
        raise click.UsageError("which of them? Give sequences, --since, --until, --code or --source, or --all")
    if body is not None and len(set(sequences)) != 1:
        raise click.UsageError("--body is for one letter: give its sequence")
    settings = require_settings(surroundings.environ, config_file)
    corrected = None if body is None else read_body(surroundings, body, None)
    choice = Choice.of(surroundings.wall(), sequences=sequences, replayed=None if sequences else False, **given)

    async def work(link: "Link") -> int:
        found = (await _read_box(link, choice, surroundings)).chosen(choice)
        missing = sorted(choice.sequences - {entry.sequence for entry in found})
        if missing:
            numbers = ", ".join(str(number) for number in missing)
            raise Failed(Code.WRONG, f"no dead letter that was asked for: {numbers}")
        if len(found) > limit:
            note(f"gatewayctl: the oldest {limit} of {len(found)}; --since and --until choose the others")
        return await _replay(
            link, settings, surroundings, found[:limit], corrected, dry=dry, rate=rate, as_json=as_json
        )

    return _run(settings, work)


def _run(settings: "Settings", work: "Callable[[Link], Coroutine[Any, Any, int]]") -> int:
    """Connect, do the work on the link, close."""
    from gatewayd.cli.link import nats_settings, open_link, run

    async def whole() -> int:
        link = await open_link(nats_settings(settings))
        try:
            return await work(link)
        finally:
            await link.close()

    return run(whole())


async def _read_box(link: "Link", choice: "Choice", surroundings: Surroundings) -> "Box":
    from gatewayd.cli.choosing import SUBJECTS, Box
    from gatewayd.cli.reading import Progress, Stretch

    box = Box()
    progress = Progress(surroundings.monotonic, "reading dead letters")
    await Stretch(link, SUBJECTS, since=choice.since, progress=progress.say).read(box.see)
    return box


async def _replay(
    link: "Link",
    settings: "Settings",
    surroundings: Surroundings,
    entries: "list[Entry]",
    corrected: bytes | None,
    *,
    dry: bool,
    rate: float | None,
    as_json: bool,
) -> int:
    from gatewayd.cli.replaying import GOOD, Replaying
    from gatewayd.ingress.events import Events
    from gatewayd.ingress.sources import make_rules

    subjects = (settings.nats_subject_signals_raw, settings.nats_subject_signals_normalized)
    told: list[Told] = []

    def tell(one: "Told") -> None:
        told.append(one)
        if not as_json:
            show(one.line(dry=dry))

    events = Events(*subjects, settings.signal_schema_version)
    replaying = Replaying(link, make_rules(settings), events, subjects, surroundings, dry=dry, rate=rate, tell=tell)
    try:
        await replaying.run(entries, corrected)
    finally:  # after Ctrl-C and a lost connection too
        _report(replaying, [one.members(dry=dry) for one in told], dry=dry, as_json=as_json)
    return Code.OK if replaying.tally.keys() <= GOOD else Code.NOT_IN_ORDER


def _report(replaying: "Replaying", told: list[dict[str, Any]], *, dry: bool, as_json: bool) -> None:
    counts = {outcome.value: number for outcome, number in replaying.tally.items()}
    if as_json:
        show_json({"dry_run": dry, "letters": told, "counts": counts, "left": replaying.left})
        return
    words = [f"{number} {outcome}" for outcome, number in counts.items()]
    if replaying.left:
        words.append(f"{replaying.left} not looked at; run the same command again")
    show(("dry run, nothing was stored: " if dry else "") + (", ".join(words) or "no dead letter"))


def _members(entry: "Entry") -> dict[str, Any]:
    """An entry as JSON."""
    from gatewayd.times import format_wall

    members: dict[str, Any] = {"sequence": entry.sequence, "state": entry.state, "source": entry.sources[-1]}
    letter, record = entry.letter, entry.record
    if letter is not None:
        members |= {
            "subject": letter.subject,
            "stored_at": format_wall(letter.stored_at),
            "received_at": letter.received_at or None,
            "code": letter.code or None,
            "corr_id": letter.corr_id or None,
            "size_bytes": letter.size_bytes,
            "position": None if letter.position is None else list(letter.position),
            "reasons": list(letter.reasons),
        }
    if record is not None:
        members["replay"] = {
            "at": format_wall(record.at),
            "corr_id": record.corr_id,
            "stored": None if record.stored is None else list(record.stored),
        }
    return members


def _table(entries: "list[Entry]") -> "Iterator[str]":
    from gatewayd.times import format_wall

    rows = [("LETTER", "STORED", "CODE", "SOURCE", "BYTES", "STATE", "REASON")]
    for entry in entries:
        letter = entry.letter
        place = "" if letter is None or letter.position is None else f"{letter.position[0]}:{letter.position[1]}: "
        reason = (
            "(the letter has expired)" if letter is None else place + (letter.reasons[0] if letter.reasons else "-")
        )
        size = "-" if letter is None else str(letter.size_bytes)
        code = "-" if letter is None else plain(letter.code, 12) or "-"
        words = (
            str(entry.sequence),
            format_wall(entry.at),
            code,
            plain(entry.sources[-1], 64) or "-",
            size,
            entry.state,
        )
        rows.append((*words, plain(reason, 120)))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        cells = [
            word.rjust(width) if at in (0, 4) else word.ljust(width)
            for at, (word, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield "  ".join((*cells, row[6]))


def _whole_members(entry: "Entry", headers: Any, body: bytes) -> dict[str, Any]:
    members = {**_members(entry), "headers": dict(headers)}
    try:
        members["body"] = body.decode("utf-8")
    except UnicodeDecodeError:
        members["body_base64"] = base64.b64encode(body).decode("ascii")
    return members


def _page(entry: "Entry", body: bytes) -> "Iterator[str]":
    """An entry with its letter, for people."""
    from gatewayd.errors import TABLE
    from gatewayd.ingress.letters import point_at
    from gatewayd.times import format_wall

    letter, record = entry.letter, entry.record
    assert letter is not None  # noqa: S101 - it was just read
    yield f"dead letter {letter.sequence} on {plain(letter.subject)}, stored {format_wall(letter.stored_at)}"
    meaning = f" {TABLE[letter.code].message}" if letter.code in TABLE else ""
    yield f"code      {plain(letter.code) or '-'}{meaning}"
    yield f"source    {plain(letter.source) or '-'}"
    yield f"corr_id   {plain(letter.corr_id) or '-'}"
    yield f"received  {plain(letter.received_at) or '-'}"
    if letter.key is not None:
        yield f"key       {plain(letter.key)}{' (says which event it is)' if letter.key_is_identity else ''}"
    state = entry.state
    if record is not None:
        state += f" since {format_wall(record.at)} as {record.corr_id}"
        if record.stored is not None:
            state += f", stored as {' and '.join(str(sequence) for sequence in record.stored if sequence)}"
    yield f"state     {state}"
    for reason in letter.reasons:
        yield f"reason    {plain(reason)}"
    if letter.position is not None:
        line, caret = point_at(body, letter.position)
        yield f"position  line {letter.position[0]}, column {letter.position[1]}"
        yield f"  {line}"
        yield f"  {caret}"
    yield f"body      {letter.size_bytes} bytes{', the first 4096 of them' if len(body) > _SHOWN_BYTES else ''}"
    for line in body[:_SHOWN_BYTES].decode("utf-8", "replace").split("\n"):
        yield f"  {plain(line.removesuffix(chr(13)), _SHOWN_BYTES)}"
