"""The chart: processor time for each request, as bars, in an SVG that can be read on a phone, and on dark pages."""

from __future__ import annotations

from benchmarks.cases import CASES
from benchmarks.drawing import MARGIN, TOP, WIDTH, page, text
from benchmarks.figures import Figures, shown
from benchmarks.processes import FLOOR, OURS, SERVERS, Server

#: The rows that have a panel.
CHARTED = ("echo-64x1-cpu", "echo-64x100-cpu", "resp-x50-cpu", "http-x50-cpu")

#: Pixels.
LABEL = 106  # width of the names
FIGURE = 46  # width of the figures after the bars
BAR = 20  # height of a bar and its space
HEAD = 26  # height of the title of a panel


def svg(figures: Figures, machine: dict[str, str]) -> str:
    """The chart of *figures*: a panel for each charted row that was measured, each with its own scale."""
    titles = {row.name: row.title.partition(":")[0] for case in CASES for row in case.rows}
    panels = []
    top = TOP
    for row in CHARTED:
        bars = {server: spread.median for server in SERVERS if (spread := figures.spread(row, server))}
        bars |= {server: 0.0 for server in SERVERS if server not in bars and figures.failures_of(row, server)}
        if bars:
            panels += _panel(top, titles[row], bars)
            top += HEAD + BAR * len(bars) + 14
    height = top + 36
    below = [
        text(MARGIN, height - 30, f"Python {machine['Python'].split()[-1]}, {machine['date']}.", "fine"),
        text(MARGIN, height - 14, f"{FLOOR.name}: a loop in C that does the same work.", "fine"),
    ]
    return page(
        "Processor time of each server for a request",
        "Processor time for a request, in µs",
        "Less is better. Medians, each panel with its own scale.",
        [*panels, *below],
        height,
    )


def _panel(top: float, title: str, bars: dict[Server, float]) -> list[str]:
    parts = [text(MARGIN, top + 14, title, "head")]
    for index, (server, value) in enumerate(bars.items()):
        y = top + HEAD + BAR * index
        length = (WIDTH - 2 * MARGIN - LABEL - FIGURE) * value / (max(bars.values()) or 1)
        kind = {OURS: "ours", FLOOR: "floor"}.get(server, "other")
        parts += [
            f'<g class="{kind}">',
            text(MARGIN, y + 11, server.name),
            f'<rect class="bar" x="{MARGIN + LABEL:g}" y="{y:g}" width="{length:.1f}" height="13" rx="2"/>',
            text(MARGIN + LABEL + length + 6, y + 11, shown(value) if value else "failed"),
            "</g>",
        ]
    return parts
