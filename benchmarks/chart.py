"""The chart: requests per second of each echo, as bars, in an SVG that is readable on light and on dark pages."""

from __future__ import annotations

from html import escape

from benchmarks.cases import ECHO_ROWS
from benchmarks.figures import Figures
from benchmarks.processes import FLOOR, OURS, SERVERS, Server

WIDTH = 760
COLUMNS = 2
MARGIN = 20
GAP = 40  # between the columns
PANEL = (WIDTH - 2 * MARGIN - GAP) / COLUMNS
LABEL = 92  # of a panel, for the names
FIGURE = 62  # and for the figures behind the bars
BAR = 17  # from one bar to the next
HEAD = 26  # of a panel

STYLE = """
  svg { font: 12px system-ui, sans-serif; }
  .page { fill: #ffffff; stroke: #d0d7de; }
  text { fill: #1f2328; }
  .head, .ours text { font-weight: 600; }
  .fine { fill: #59636e; font-size: 11px; }
  .bar { fill: #9aa7b4; }
  .ours .bar { fill: #1f6feb; }
  .floor .bar { fill: none; stroke: #9aa7b4; stroke-dasharray: 3 2; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d; }
    text { fill: #e6edf3; }
    .fine { fill: #9198a1; }
    .bar { fill: #5b6673; }
    .ours .bar { fill: #4493f8; }
    .floor .bar { stroke: #5b6673; }
  }
"""


def svg(figures: Figures, machine: dict[str, str]) -> str:
    """The chart of *figures*: a panel for each echo that was measured, each with a scale of its own."""
    panels = []
    top = MARGIN + 30.0
    lowest = top
    for index, row in enumerate(ECHO_ROWS):
        column = index % COLUMNS
        if column == 0:
            top = lowest
        bars = {server: spread.median for server in SERVERS if (spread := figures.spread(row.name, server))}
        bars |= {server: 0.0 for server in SERVERS if server not in bars and figures.failures_of(row.name, server)}
        panels += _panel(MARGIN + column * (PANEL + GAP), top, row.title, bars)
        lowest = max(lowest, top + HEAD + BAR * len(bars) + 12)
    height = lowest + 34
    where = f"{machine['processor']}, Python {machine['Python'].split()[-1]}, {machine['date']}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">',
            "<title>Echo: requests per second of each server</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8"/>',
            _text(
                MARGIN, MARGIN + 10, "Echo on one core: requests per second, by size of message × connections", "head"
            ),
            *panels,
            _text(
                MARGIN,
                height - 32,
                f"Medians. Each panel has a scale of its own. {FLOOR.name} is the floor, in C.",
                "fine",
            ),
            _text(MARGIN, height - 15, where, "fine"),
            "</svg>\n",
        ]
    )


def _panel(left: float, top: float, title: str, bars: dict[Server, float]) -> list[str]:
    parts = [_text(left, top + 14, title, "head")]
    for index, (server, value) in enumerate(bars.items()):
        y = top + HEAD + BAR * index
        length = (PANEL - LABEL - FIGURE) * value / (max(bars.values()) or 1)
        kind = {OURS: "ours", FLOOR: "floor"}.get(server, "other")
        parts += [
            f'<g class="{kind}">',
            _text(left, y + 9, server.name),
            f'<rect class="bar" x="{left + LABEL:g}" y="{y:g}" width="{length:.1f}" height="11" rx="2"/>',
            _text(left + LABEL + length + 6, y + 9, f"{value:,.0f}" if value else "failed"),
            "</g>",
        ]
    return parts


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:g}">{escape(text)}</text>'
