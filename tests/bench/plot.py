"""
Lines on logarithmic axes as an SVG. Decides where things stand and what they look like; knows nothing of what is shown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 34, 46
COLOURS = ("#0b6e4f", "#c1440e", "#1f5fa8", "#7a3e9d", "#6b6b6b")
STYLE = (
    "text{font:12px sans-serif;fill:#222}.t{font-weight:bold;font-size:13px}.g{stroke:#ddd}.a{stroke:#555}"
    ".l{fill:none;stroke-width:2}"
)


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: its lines by name; x and y above 0."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Points]


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between both, thinned to at most nine."""
    made = [step * 10.0**power for power in range(-3, 8) for step in (1, 2, 5)]
    inside = [value for value in made if low * 0.999 <= value <= high * 1.001]
    return inside if len(inside) <= 9 else [value for value in inside if f"{value:e}".startswith("1")]


def shown(value: float) -> str:
    """A tick's label: 1,000 or 0.5."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return low / 1.15, high * 1.15


def _panel(panel: Panel, left: float) -> list[str]:
    xs = [x for points in panel.lines.values() for x, _ in points]
    ys = [y for points in panel.lines.values() for _, y in points]
    (x_low, x_high), (y_low, y_high) = _bounds(xs), _bounds(ys)

    def across(value: float) -> float:
        share = math.log(value / x_low) / math.log(x_high / x_low)
        return round(left + LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        share = math.log(value / y_low) / math.log(y_high / y_low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    low, high = HEIGHT - BOTTOM, TOP
    begin, end = left + LEFT, left + WIDTH - RIGHT
    made = [f'<text class="t" x="{begin}" y="{TOP - 14}">{escape(panel.title)}</text>']
    for value in ticks(x_low, x_high):
        at = across(value)
        made.append(f'<line class="g" x1="{at}" y1="{low}" x2="{at}" y2="{high}"/>')
        made.append(f'<text x="{at}" y="{low + 16}" text-anchor="middle">{shown(value)}</text>')
    for value in ticks(y_low, y_high):
        at = down(value)
        made.append(f'<line class="g" x1="{begin}" y1="{at}" x2="{end}" y2="{at}"/>')
        made.append(f'<text x="{begin - 6}" y="{at + 4}" text-anchor="end">{shown(value)}</text>')
    made.append(f'<path class="a" fill="none" d="M{begin} {high}V{low}H{end}"/>')
    made.append(f'<text x="{(begin + end) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(panel.x)}</text>')
    made.append(f'<text x="{left + 4}" y="{TOP - 14}">{escape(panel.y)}</text>')
    for colour, points in zip(COLOURS, panel.lines.values(), strict=False):
        path = "L".join(f"{across(x)} {down(y)}" for x, y in points)
        made.append(f'<path class="l" stroke="{colour}" d="M{path}"/>')
        made.extend(f'<circle cx="{across(x)}" cy="{down(y)}" r="3" fill="{colour}"/>' for x, y in points)
    return made


def draw(panels: Sequence[Panel]) -> str:
    """The panels beside each other, with one legend below; all have the same lines."""
    width, height = WIDTH * len(panels), HEIGHT + 28
    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
    ]
    for number, panel in enumerate(panels):
        made.extend(_panel(panel, number * WIDTH))
    at = LEFT
    for colour, name in zip(COLOURS, panels[0].lines, strict=False):
        made.append(f'<path class="l" stroke="{colour}" d="M{at} {HEIGHT + 12}h22"/>')
        made.append(f'<text x="{at + 28}" y="{HEIGHT + 16}">{escape(name)}</text>')
        at += 60 + 8 * len(name)
    return "\n".join([*made, "</svg>", ""])
