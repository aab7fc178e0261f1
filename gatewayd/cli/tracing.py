"""
`gatewayctl trace`: everything that is known of one request.

Decides where it is looked for and how far back. Never decides what the findings mean (story does) and never changes
anything.
"""

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gatewayd.cli.console import Code, Failed, Surroundings, json_option, json_or_none, note, plain, show_as
from gatewayd.cli.situation import complete_file, config_option, require_settings

if TYPE_CHECKING:
    from gatewayd.bus.publication import Stored
    from gatewayd.cli.choosing import Entry
    from gatewayd.cli.link import Link
    from gatewayd.cli.story import Scene, Story
    from gatewayd.settings import Settings
    from gatewayd.times import Wall

LINES: Final = 1000
"""Lines of the log, and messages, of one request at the most."""

_CORR_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


@click.command()
@click.argument("corr_id")
@click.option(
    "--since", metavar="TIME", default="1d", show_default=True, help="How far back: RFC 3339, or 10m, 2h, 1d."
)
@click.option(
    "--log", "log_file", metavar="FILE", shell_complete=complete_file, help="The gateway's log, `-` for stdin."
)
@click.option("--unit", metavar="UNIT", help="The systemd unit whose journal is the log.")
@config_option
@json_option
@click.pass_obj
def trace(
    surroundings: Surroundings,
    *,
    corr_id: str,
    since: str,
    log_file: str | None,
    unit: str | None,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """
    Say what became of one request: its events, its dead letter, its replay and its lines in the log.

    CORR_ID is the answer's `corr_id` (header X-Correlation-ID). With the log also the X-Correlation-ID that a client
    sent will do. Everything found is printed in order of time, and what it means comes last.

    Exit code 0 when the event is stored, whole and once; 1 when it is not.
    """
    if _CORR_ID.fullmatch(corr_id) is None:
        raise click.UsageError("CORR_ID: letters, digits, _ and -, at most 128")
    if log_file is not None and unit is not None:
        raise click.UsageError("--log and --unit: give one of them")
    settings = require_settings(surroundings.environ, config_file)
    from gatewayd.cli.choosing import parse_moment
    from gatewayd.cli.link import nats_settings, open_link, run

    moment = parse_moment("--since", since, surroundings.wall())
    tracing = _Tracing(settings, surroundings, corr_id, moment)

    async def whole() -> "list[Story]":
        link = await open_link(nats_settings(settings))
        try:
            with _log_lines(surroundings, log_file, unit, moment) as lines:
                return await tracing.run(link, lines)
        finally:
            await link.close()

    stories = run(whole())
    tracing.report(stories, as_json=as_json)
    from gatewayd.cli.story import IN_ORDER

    return Code.OK if all(story.kind in IN_ORDER for story in stories) else Code.NOT_IN_ORDER


class _Tracing:
    """One search."""

    def __init__(self, settings: "Settings", surroundings: Surroundings, corr_id: str, since: "Wall") -> None:
        self._settings = settings
        self._surroundings = surroundings
        self._corr_id = corr_id
        self._since = since
        self._wanted = {corr_id}
        self._scenes: list[Scene] = []

    async def run(self, link: "Link", lines: Iterable[bytes]) -> "list[Story]":
        """
        Look everywhere. Dead letters first, which are few: a replay ties two corr_ids together; then the log, which
        knows clients' own ids; the events, which are many, last and once.
        """
        from gatewayd.cli import story
        from gatewayd.cli.choosing import SUBJECTS, Box
        from gatewayd.cli.reading import Progress, Stretch, stream_info
        from gatewayd.times import format_wall, parse_rfc3339

        box = Box()
        monotonic = self._surroundings.monotonic
        state = (await stream_info(link))["state"]
        first = parse_rfc3339(state.get("first_ts", "")) if state["messages"] else None
        begin = format_wall(self._since if first is None else max(first, self._since))
        letters = Stretch(link, SUBJECTS, since=self._since, progress=Progress(monotonic, "dead letters").say)
        await letters.read(box.see)
        self._follow(box.entries.values())
        self._read_log(lines)
        entries = self._follow(box.entries.values())
        subjects = (self._settings.nats_subject_signals_raw, self._settings.nats_subject_signals_normalized)
        found: list[Stored] = []

        def see(stored: "Stored") -> None:
            if stored.headers.get("Corr-ID") in self._wanted:
                self._keep(found, stored)

        progress = Progress(monotonic, f"looking for {', '.join(sorted(self._wanted)[:3])}")
        await Stretch(link, subjects, since=self._since, progress=progress.say).read(see)
        for stored in found:
            self._scenes.append(story.scene_of_event(stored, await self._body(link, stored)))
        for entry in entries:
            self._scenes.extend(story.scenes_of_letter(entry))
        self._scenes = story.in_time(self._scenes)
        # A client's own id stands in no message; what it led to does.
        told = sorted(self._wanted & {scene.corr_id for scene in self._scenes}) or [self._corr_id]
        return [
            story.tell(family, self._scenes, entries, subjects[0], begin) for family in story.families(told, entries)
        ]

    def report(self, stories: "list[Story]", *, as_json: bool) -> None:
        """Everything in order of time, and what it means."""
        value = {
            "corr_id": self._corr_id,
            "stories": [{"corr_ids": list(one.corr_ids), "kind": one.kind, "text": one.text} for one in stories],
            "scenes": [scene.value for scene in self._scenes],
        }
        several = len(stories) > 1
        verdicts = (f"{one.corr_ids[0]}: {one.text}" if several else one.text for one in stories)
        show_as(as_json, value, [*(scene.line for scene in self._scenes), *verdicts])

    def _follow(self, entries: "Iterable[Entry]") -> "list[Entry]":
        """The letters of what is wanted; their corr_ids and those of their events are wanted from now on."""
        from gatewayd.cli import story

        found = [entry for entry in entries if story.belongs(entry, self._wanted)]
        for entry in found:
            self._wanted |= {one.corr_id for one in (entry.letter, entry.record) if one is not None and one.corr_id}
        return found

    def _read_log(self, lines: Iterable[bytes]) -> None:
        from gatewayd.cli import story

        words = [corr_id.encode("ascii", "replace") for corr_id in self._wanted]
        for line in lines:
            if not any(word in line for word in words):
                continue
            members = json_or_none(line[max(0, line.find(b"{")) :])
            if not isinstance(members, dict):
                continue
            ids = {members.get(name) for name in ("corr_id", "requestId", "client_corr_id")}
            if ids & self._wanted and self._keep(self._scenes, story.scene_of_line(members)):
                self._wanted |= {self._scenes[-1].corr_id} - {""}

    def _keep(self, into: list[Any], one: Any) -> bool:
        if len(into) == LINES:
            note(f"gatewayctl: more than {LINES} lines or messages have this id; the others are left out")
        elif len(into) < LINES:
            into.append(one)
            return True
        return False

    async def _body(self, link: "Link", stored: "Stored") -> Any:
        """The JSON value of a normalised event, numbers as the text that they were sent as."""
        from gatewayd.cli.reading import read_message

        if stored.subject != self._settings.nats_subject_signals_normalized:
            return None
        whole = await read_message(link, stored.sequence)
        try:
            return None if whole is None else json.loads(whole.body, parse_float=str, parse_int=str)
        except ValueError:
            return None


@contextmanager
def _log_lines(
    surroundings: Surroundings, log_file: str | None, unit: str | None, since: "Wall"
) -> Iterator[Iterable[bytes]]:
    """The log's lines: of a file, of stdin, of a unit's journal; none where nothing was given."""
    if unit is not None:
        with _journal(unit, since) as lines:
            yield lines
    elif log_file == "-":
        yield surroundings.stdin()
    elif log_file is not None:
        try:
            opened = Path(log_file).open("rb")  # noqa: SIM115 - closed below; only its opening is answered for here
        except OSError as error:
            raise Failed(Code.WRONG, f"{log_file} cannot be read: {error.strerror}") from None
        with opened:
            yield opened
    else:
        yield ()


@contextmanager
def _journal(unit: str, since: "Wall") -> Iterator[Iterable[bytes]]:
    command = ["journalctl", f"--unit={unit}", f"--since=@{int(since)}", "--output=cat", "--no-pager", "--quiet"]
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)  # noqa: S603 - no shell
    except OSError as error:
        raise Failed(Code.WRONG, f"journalctl cannot be run: {error.strerror}; give the log with --log") from None
    with process:
        assert process.stdout is not None  # noqa: S101 - a pipe, as asked for
        assert process.stderr is not None  # noqa: S101
        try:
            yield process.stdout
            said = process.stderr.read(1000).decode("utf-8", "replace").strip()
            if process.wait() != 0:
                raise Failed(Code.WRONG, f"journalctl: {plain(said) or 'failed'}")
        finally:
            process.kill()
