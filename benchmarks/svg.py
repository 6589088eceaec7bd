"""Line charts as SVG, side by side: enough to look at a benchmark's curves, without a library for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 360, 260, 50, 34, 40
COLOURS = ("#1f6feb", "#d4572a", "#2e8b57", "#8250df")
# Points kept of a line: more cannot be told apart.
_MOST = 600


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: `lines` by name, each of (x, y); `log`: of x."""

    title: str
    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log: bool = False


def drawn(panels: Sequence[Panel]) -> str:
    whole = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{HEIGHT}" font-family="sans-serif" font-size="11">'
    ]
    parts.append(f'<rect width="{whole}" height="{HEIGHT}" fill="white"/>')
    parts += [f'<g transform="translate({n * WIDTH},0)">{_panel(panel)}</g>' for n, panel in enumerate(panels)]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> str:
    points = [point for line in panel.lines.values() for point in line] or [(0.0, 0.0)]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    top = max((y for _, y in points), default=1.0) or 1.0
    right, base = WIDTH - 14, HEIGHT - BOTTOM

    def across(x: float) -> float:
        part = math.log(x / low) / (math.log(high / low) or 1.0) if panel.log else (x - low) / ((high - low) or 1.0)
        return LEFT + part * (right - LEFT)

    def up(y: float) -> float:
        return base - y / top * (base - TOP)

    parts = [f'<text x="{LEFT}" y="16" font-weight="bold">{escape(panel.title)}</text>']
    parts.append(f'<path d="M{LEFT},{TOP}V{base}H{right}" fill="none" stroke="#888"/>')
    for x in (low, math.sqrt(low * high) if panel.log else (low + high) / 2, high):
        parts.append(f'<text x="{across(x):.0f}" y="{base + 14}" text-anchor="middle">{x:.4g}</text>')
    for y in (0.0, top / 2, top):
        parts.append(f'<text x="{LEFT - 4}" y="{up(y) + 4:.0f}" text-anchor="end">{y:.4g}</text>')
    parts.append(f'<text x="{right}" y="{base + 30}" text-anchor="end">{escape(panel.across)}</text>')
    parts.append(f'<text x="{LEFT - 4}" y="{TOP - 6}" text-anchor="end">{escape(panel.up)}</text>')
    for number, (name, line) in enumerate(panel.lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        step = max(1, len(line) // _MOST)
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in [*line[::step], *line[-1:]])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        parts.append(f'<text x="{LEFT + 60 * number}" y="{base + 30}" fill="{colour}">{escape(name)}</text>')
    return "\n".join(parts)
