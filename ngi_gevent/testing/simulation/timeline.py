"""The timeline of a simulation: an HTML page that shows the events on each host, and the data between them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from ngi_gevent.testing.simulation.trace import Event

__all__ = ["MOST_SHOWN", "render_timeline"]

#: The maximum of events on a page, counted from the last. A browser scrolls through so many without delay.
MOST_SHOWN = 2000

#: If no event happens for so many virtual seconds, the page marks a silence.
SILENCE = 1.0

# Sizes in pixels.
_LANE = 154  # width of a lane
_DOT = 22  # from the left edge of a lane to its dots
_ROW = 20  # between two events at the same time
_STRETCH = 24  # added for time, at most
_BREAK = 34  # added for a silence
_SHOWN_LETTERS = 24  # offset of a label in a lane

#: The style of each kind of event. Other kinds have the style of time.
_LOOKS = {
    "data": ("send", "receive", "datagram"),
    "connection": ("connect", "accept", "end", "close", "start", "heal", "release"),
    "fault": ("refuse", "reset", "lost", "hold", "crash", "partition", "pause", "raise"),
    "choice": ("choose",),
}
_LOOK_OF = {kind: look for look, kinds in _LOOKS.items() for kind in kinds}

_LEGEND = {
    "data": "data",
    "connection": "connections and hosts",
    "fault": "faults and errors",
    "choice": "choices of the seed",
    "time": "timers, greenlets and logs",
}

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c2128; --faint: #57606a; --line: #c8d0d8; --bar: #eef2f6;
  --data: #0a5cad; --connection: #1a7233; --fault: #c3241f; --choice: #7d3fc8; --time: #57606a; }
@media (prefers-color-scheme: dark) { :root { --page: #10151b; --text: #e6ebf1; --faint: #9ba7b4; --line: #3b4652;
  --bar: #1d2630; --data: #6cb2fa; --connection: #5cc471; --fault: #ff857d; --choice: #c6a0ff; --time: #9ba7b4; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem; background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
p, ul { margin: .3rem 0; max-width: 44rem; }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1rem; }
i { display: inline-block; width: .65rem; height: .65rem; border-radius: 50%; margin-right: .35rem; }
.box { overflow: auto; border: 1px solid var(--line); border-radius: 6px; }
#chart { max-height: 85vh; margin-top: .6rem; }
.row { display: flex; width: max-content; min-width: 100%; }
.head { position: sticky; top: 0; z-index: 2; background: var(--bar); }
.head b { flex: none; padding: .35rem 0 .35rem 12px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.axis { position: sticky; left: 0; z-index: 1; flex: none; width: 82px; background: var(--bar); }
.head .axis { padding: .35rem 5px; text-align: right; color: var(--faint); }
svg { display: block; flex: none; font: 11px system-ui, sans-serif; fill: var(--text); }
.axis text { text-anchor: end; fill: var(--faint); font-variant-numeric: tabular-nums; }
.lane, .down { stroke: var(--line); stroke-width: 2; }
.down { stroke-dasharray: 2 5; }
.break { stroke: var(--line); stroke-dasharray: 7 5; }
svg .silence { fill: var(--faint); font-style: italic; }
path { fill: none; stroke: var(--data); stroke-width: 1.3; opacity: .75; }
marker path { fill: var(--data); stroke: none; }
.lost { stroke: var(--fault); stroke-dasharray: 4 2; }
.cross { stroke: var(--fault); stroke-width: 2; opacity: 1; }
g text { paint-order: stroke; stroke: var(--page); stroke-width: 3.5px; stroke-linejoin: round; }
g.on circle { stroke: var(--text); stroke-width: 2.5; }
path.on { stroke-width: 2.8; opacity: 1; }
.data { fill: var(--data); background: var(--data); }
.connection { fill: var(--connection); background: var(--connection); }
.fault { fill: var(--fault); background: var(--fault); }
.choice { fill: var(--choice); background: var(--choice); }
.time { fill: var(--time); background: var(--time); }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .15rem .5rem; border-bottom: 1px solid var(--line); }
td:first-child { font-variant-numeric: tabular-nums; }
td:last-child { overflow-wrap: anywhere; min-width: 8rem; }
#note { position: fixed; inset: auto 0 0 0; z-index: 3; padding: .5rem 1rem; max-height: 35vh; overflow: auto;
  background: var(--bar); border-top: 1px solid var(--line); overflow-wrap: anywhere; }
#note:empty { display: none; }
@media (max-width: 600px) { body { padding: .7rem; } table { font-size: .78rem; } th, td { padding: .15rem .3rem; } }
"""

# The script shows the event under the pointer or finger, with the arrows of its data.
_SCRIPT = """
const chart = document.getElementById("chart"), note = document.getElementById("note");
function show(happening) {
  const mark = happening.target.closest("[data-event]");
  for (const old of chart.querySelectorAll(".on")) old.classList.remove("on");
  note.textContent = "";
  if (!mark) return;
  mark.classList.add("on");
  for (const same of chart.querySelectorAll(`[data-piece="${mark.dataset.piece}"]`)) same.classList.add("on");
  const [time, ...cells] = document.getElementById("e" + mark.dataset.event).cells;
  note.textContent = time.textContent + " s: " + cells.map((cell) => cell.textContent).join(" ");
}
chart.addEventListener("pointerover", show);
chart.addEventListener("click", show);
"""


def render_timeline(events: Iterable[Event], seed: int | str, title: str) -> str:
    """Return an HTML page with a lane for each host, a dot for each event, and an arrow for each piece of data.

    The page does not need any other file. It shows the last 2,000 events, and says how many it omits.

    :param seed: the seed, or text with its draws, as for ``Simulation(replay=...)``.
    """
    happened = list(events)
    shown = happened[-MOST_SHOWN:]
    heading = escape(_printable(title))
    looks = {_look(event) for event in shown}
    legend = "".join(f'<li><i class="{look}"></i>{text}</li>' for look, text in _LEGEND.items() if look in looks)
    left_out = ""
    if len(shown) < len(happened):
        missing = f"The first {len(happened) - len(shown):,} of {len(happened):,} events are left out."
        left_out = f"<p><strong>{missing}</strong></p>\n"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{heading}</h1>\n"
        f"<p>Seed {escape(_schedule(seed))}, {_extent(happened)}.</p>\n{left_out}"
        "<p>Time runs down. Its scale is compressed: a gap of twice the time is drawn less than twice as long, and"
        f" {SILENCE:g} second or more without an event is a dashed line. An arrow is a piece of data. It ends in a"
        " cross if the data was lost, or had not arrived at the end. Point at a dot, or tap it, for its text.</p>\n"
        f"<ul>{legend}</ul>\n{_Chart(shown).render()}\n"
        f'<h2>All events in a table</h2>\n<div class="box">{_table(shown)}</div>\n'
        f'<div id="note" aria-hidden="true"></div>\n<script>{_SCRIPT}</script></body></html>\n'
    )


class _Chart:
    """The lanes, as SVG."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events
        self._hosts = list(dict.fromkeys(["", *(event.host for event in events)]))
        self._x = {host: index * _LANE + _DOT for index, host in enumerate(self._hosts)}
        self._y: list[float] = []
        self._silences: list[tuple[float, float]] = []  # the vertical place of each event, and its time in seconds
        y, before = 0.0, events[0].time if events else 0.0
        for event in events:
            gap = event.time - before
            y += _ROW + min(_STRETCH, 8 * math.log10(1 + max(0.0, gap) / 1e-4))
            if gap >= SILENCE:
                y += _BREAK
                self._silences.append((y - _BREAK / 2 - _ROW, gap))
            self._y.append(round(y, 1))
            before = event.time
        self._height = round(y + 3 * _ROW)

    def render(self) -> str:
        head = "".join(f'<b style="width:{_LANE}px">{_name(host)}</b>' for host in self._hosts)
        width = len(self._hosts) * _LANE + _DOT
        return (
            f'<div id="chart" class="box" tabindex="0" role="region" aria-label="Timeline">'
            f'<div class="row head" aria-hidden="true"><span class="axis">seconds</span>{head}</div>'
            f'<div class="row" aria-hidden="true"><div class="axis"><svg width="82" height="{self._height}">'
            f'{self._axis()}</svg></div><svg width="{width}" height="{self._height}">'
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="12" refY="4" markerWidth="8" markerHeight="8" orient="auto"'
            ' markerUnits="userSpaceOnUse"><path d="M0 0L8 4L0 8z"/></marker></defs>'
            f"{self._lanes()}{self._breaks(width)}{self._arrows()}{self._dots()}</svg></div></div>"
        )

    def _axis(self) -> str:
        texts, before = [], None
        for event, y in zip(self._events, self._y, strict=True):
            if event.time != before:
                texts.append(f'<text x="77" y="{y + 4:g}">{event.time:.6f}</text>')
                before = event.time
        return "".join(texts)

    def _lanes(self) -> str:
        """Return a line for each host, dashed while it is down."""
        lines = []
        for host, x in self._x.items():
            begin, look = 0.0, "lane"
            for event, y in zip(self._events, self._y, strict=True):
                after = {"crash": "down", "start": "lane"}.get(event.kind, look) if event.host == host else look
                if after != look:
                    lines.append(f'<line class="{look}" x1="{x}" x2="{x}" y1="{begin:g}" y2="{y:g}"/>')
                    begin, look = y, after
            lines.append(f'<line class="{look}" x1="{x}" x2="{x}" y1="{begin:g}" y2="{self._height}"/>')
        return "".join(lines)

    def _breaks(self, width: int) -> str:
        return "".join(
            f'<line class="break" x1="0" x2="{width}" y1="{y:g}" y2="{y:g}"/>'
            f'<text class="silence" x="{_DOT + 8}" y="{y - 4:g}">{seconds:,.6g} s of silence</text>'
            for y, seconds in self._silences
        )

    def _arrows(self) -> str:
        sent: dict[int, tuple[Event, float]] = {}
        arrived: set[int] = set()
        drawn = []
        for event, y in zip(self._events, self._y, strict=True):
            piece = event.piece
            if not piece or event.kind in ("hold", "release"):
                continue
            if piece not in sent:
                if event.kind not in ("receive", "lost"):  # otherwise the beginning of the arrow is omitted
                    sent[piece] = event, y
                continue
            origin, begin = sent[piece]
            arrived.add(piece)
            if event.kind == "lost":
                drawn.append(self._stub(origin, begin, y))
            else:
                drawn.append(self._arrow(piece, self._x[origin.host], begin, self._x[event.host], y))
        drawn += [self._stub(*sent[piece], sent[piece][1] + 2 * _ROW) for piece in sent if piece not in arrived]
        return "".join(drawn)

    def _arrow(self, piece: int, x1: int, y1: float, x2: int, y2: float) -> str:
        way = f"L{x2} {y2:g}" if x1 != x2 else f"C{x1 - 20} {y1:g} {x1 - 20} {y2:g} {x2} {y2:g}"
        return f'<path data-piece="{piece}" marker-end="url(#tip)" d="M{x1} {y1:g}{way}"/>'

    def _stub(self, origin: Event, y1: float, y2: float) -> str:
        """Return an arrow that ends in a cross, toward its target, if the text names the target."""
        x1 = self._x[origin.host]
        x2 = self._x.get(_host_of(_way(origin)[1]), x1)
        x = x1 + (x2 - x1) * 0.4 if x2 != x1 else x1 - 14
        y = y1 + min(y2 - y1, 2 * _ROW) * 0.8
        return (
            f'<path class="lost" data-piece="{origin.piece}" d="M{x1} {y1:g}L{x:g} {y:g}"/>'
            f'<path class="cross" d="M{x - 4:g} {y - 4:g}l8 8m0 -8l-8 8"/>'
        )

    def _dots(self) -> str:
        dots = []
        for index, (event, y) in enumerate(zip(self._events, self._y, strict=True)):
            x = self._x[event.host]
            label = _label(event)
            if len(label) > _SHOWN_LETTERS:
                label = label[: _SHOWN_LETTERS - 1] + "…"
            piece = f' data-piece="{event.piece}"' if event.piece else ""
            dots.append(
                f'<g data-event="{index}"{piece}><circle class="{_look(event)}" cx="{x}" cy="{y:g}" r="4.5"/>'
                f'<text x="{x + 9}" y="{y + 4:g}">{escape(label)}</text></g>'
            )
        return "".join(dots)


def _table(events: list[Event]) -> str:
    rows = "".join(
        f'<tr id="e{index}"><td>{event.time:.6f}</td><td>{_name(event.host)}</td>'
        f"<td>{escape(_printable(event.kind))}</td><td>{escape(_printable(event.text))}</td></tr>\n"
        for index, event in enumerate(events)
    )
    head = "".join(f"<th>{title}</th>" for title in ("seconds", "host", "event", "text"))
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"


def _label(event: Event) -> str:
    """Return a short text for a lane. It omits the addresses of data, since arrows show them."""
    origin, target, rest = _way(event)
    if target and not rest:
        rest = f"to {target}" if _host_of(origin) == event.host else f"from {origin}"
    return _printable(f"{event.kind} {rest}".rstrip())


def _way(event: Event) -> tuple[str, str, str]:
    """Return the two addresses in a text, and the rest of the text: ``client:40001 -> server:8000 12 bytes``."""
    origin, arrow, rest = event.text.partition(" -> ")
    if not arrow:
        return "", "", event.text
    target, _, rest = rest.partition(" ")
    return origin, target, rest


def _host_of(address: str) -> str:
    return address.rpartition(":")[0]


def _look(event: Event) -> str:
    return _LOOK_OF.get(event.kind, "time")


def _name(host: str) -> str:
    return escape(_printable(host)) or "(test)"


def _printable(text: str) -> str:
    """Return *text* with escapes for control characters and for characters that change the direction of text."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _schedule(seed: int | str) -> str:
    number, colon, draws = _printable(str(seed)).partition(":")
    return number + (colon and (f" with only the draws {draws.replace(',', ', ')}" if draws else " without draws"))


def _extent(events: list[Event]) -> str:
    if not events:
        return "no events"
    return f"{len(events):,} event{'s' * (len(events) > 1)} until {events[-1].time:,.6f} virtual seconds"
