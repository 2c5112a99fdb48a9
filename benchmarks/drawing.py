"""Drawings of results: an SVG as wide as a phone, which can be read on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

#: Pixels.  A phone is so wide, so it does not make the image smaller.
WIDTH, MARGIN = 380, 14

#: Pixels of the page above its first panel.
TOP = MARGIN + 42.0

STYLE = """
  svg { font: 14px system-ui, sans-serif; }
  .page { fill: #ffffff; stroke: #d0d7de; }
  text { fill: #1f2328; }
  .head, .ours text { font-weight: 600; }
  .fine { fill: #59636e; font-size: 12px; }
  .bar { fill: #9aa7b4; }
  .ours .bar { fill: #1f6feb; }
  .floor .bar { fill: none; stroke: #9aa7b4; stroke-dasharray: 3 2; }
  .axis { stroke: #d0d7de; fill: none; }
  .line { stroke: #1f6feb; stroke-width: 2; fill: none; }
  .point { fill: #1f6feb; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d; }
    text { fill: #e6edf3; }
    .fine { fill: #9198a1; }
    .bar { fill: #5b6673; }
    .ours .bar { fill: #4493f8; }
    .floor .bar { stroke: #5b6673; }
    .axis { stroke: #3d444d; }
    .line { stroke: #4493f8; }
    .point { fill: #4493f8; }
  }
"""


def page(title: str, heading: str, explanation: str, panels: Iterable[str], height: float) -> str:
    """Return an SVG with two lines above its *panels*.  *title* is for readers that do not see it."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8"/>',
            text(MARGIN, MARGIN + 12, heading, "head"),
            text(MARGIN, MARGIN + 30, explanation, "fine"),
            *panels,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:g}">{escape(words)}</text>'
