"""
The documents as tests read them: blocks of code by the mark before them, texts without what differs each time.

A block that a test needs has a mark on the line before it: `<!-- run: name -->` for what people run, `<!-- shown: name
-->` for what they see.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
_MARKED = re.compile(r"^<!-- (run|shown): ([a-z-]+) -->\n```[a-z]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARYING = (
    (
        re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{3})?Z"),
        lambda found: "<time to the ms>" if "." in found[0] else "<time>",
    ),
    (re.compile(r"req_[0-9a-f]{20}"), lambda found: "<corr_id>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), lambda found: "<digest>"),
)


def read(page: str) -> str:
    """A page of this repository."""
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, kind: str) -> dict[str, str]:
    """The marked blocks of one kind, by name; a name that stands twice is an error."""
    found = [(name, text) for marked, name, text in _MARKED.findall(read(page)) if marked == kind]
    assert len({name for name, _ in found}) == len(found), found
    return dict(found)


def run_of(name: str) -> str:
    """What the README tells people to run under that name."""
    return blocks("README.md", "run")[name]


def shown_of(name: str) -> str:
    """What the README shows under that name."""
    return blocks("README.md", "shown")[name]


def steady(text: str) -> str:
    """`text` with times, ids and digests named instead of shown: equal for two runs of the same thing."""
    for form, name in _VARYING:
        text = form.sub(name, text)
    return text.strip()
