"""The chart: processor time for each request, as bars, in an SVG that can be read on a phone, and on dark pages."""

from __future__ import annotations

from html import escape

from benchmarks.cases import CASES
from benchmarks.figures import Figures, shown
from benchmarks.processes import FLOOR, OURS, SERVERS, Server

#: The rows that have a panel.
CHARTED = ("echo-64x1-cpu", "echo-64x100-cpu", "resp-x50-cpu", "http-x50-cpu")

#: Pixels: as wide as a phone, on which the image is not made smaller.
WIDTH = 380
MARGIN = 14
LABEL = 106  # width of the names
FIGURE = 46  # width of the figures after the bars
BAR = 20  # height of a bar and its space
HEAD = 26  # height of the title of a panel

STYLE = """
  svg { font: 14px system-ui, sans-serif; }
  .page { fill: #ffffff; stroke: #d0d7de; }
  text { fill: #1f2328; }
  .head, .ours text { font-weight: 600; }
  .fine { fill: #59636e; font-size: 12px; }
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
    """The chart of *figures*: a panel for each charted row that was measured, each with its own scale."""
    titles = {row.name: row.title.partition(":")[0] for case in CASES for row in case.rows}
    panels = []
    top = MARGIN + 42.0
    for row in CHARTED:
        bars = {server: spread.median for server in SERVERS if (spread := figures.spread(row, server))}
        bars |= {server: 0.0 for server in SERVERS if server not in bars and figures.failures_of(row, server)}
        if bars:
            panels += _panel(top, titles[row], bars)
            top += HEAD + BAR * len(bars) + 14
    height = top + 36
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" role="img">',
            "<title>Processor time of each server for a request</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8"/>',
            _text(MARGIN, MARGIN + 12, "Processor time for a request, in µs", "head"),
            _text(MARGIN, MARGIN + 30, "Less is better. Medians, each panel with its own scale.", "fine"),
            *panels,
            _text(MARGIN, height - 30, f"Python {machine['Python'].split()[-1]}, {machine['date']}.", "fine"),
            _text(MARGIN, height - 14, f"{FLOOR.name}: a loop in C that does the same work.", "fine"),
            "</svg>\n",
        ]
    )


def _panel(top: float, title: str, bars: dict[Server, float]) -> list[str]:
    parts = [_text(MARGIN, top + 14, title, "head")]
    for index, (server, value) in enumerate(bars.items()):
        y = top + HEAD + BAR * index
        length = (WIDTH - 2 * MARGIN - LABEL - FIGURE) * value / (max(bars.values()) or 1)
        kind = {OURS: "ours", FLOOR: "floor"}.get(server, "other")
        parts += [
            f'<g class="{kind}">',
            _text(MARGIN, y + 11, server.name),
            f'<rect class="bar" x="{MARGIN + LABEL:g}" y="{y:g}" width="{length:.1f}" height="13" rx="2"/>',
            _text(MARGIN + LABEL + length + 6, y + 11, shown(value) if value else "failed"),
            "</g>",
        ]
    return parts


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:g}">{escape(text)}</text>'
