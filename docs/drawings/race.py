"""Draw race.svg, the timeline on the page on simulations: ``python docs/drawings/race.py``.

The programs and the replay are in the blocks of that page.
"""

import re
import sys
from pathlib import Path
from types import ModuleType

from ngi_gevent.testing.simulation import Simulation

HERE = Path(__file__).parent
PAGE = (HERE.parent / "simulation.md").read_text()

LANES = {"bank": 72, "office": 178, "one": 286, "other": 366}
TOP, MILLISECOND = 62, 25  # pixels

STYLE = """
    .drawing { font: 13px sans-serif; fill: var(--color-foreground-primary, #222); }
    .drawing .box { fill: var(--color-background-secondary, #f4f4f8); stroke: var(--color-foreground-muted, #888); }
    .drawing .lane { fill: none; stroke: var(--color-foreground-muted, #888); stroke-dasharray: 2 4; }
    .drawing .race { fill: none; stroke: var(--color-foreground-secondary, #555); stroke-width: 1.5; }
    .drawing .race { marker-end: url(#head-race); }
    .drawing .weak { stroke-dasharray: 5 4; }
    .drawing .head { fill: var(--color-foreground-secondary, #555); stroke: none; }
    .drawing .mark { fill: var(--color-background-primary, #fff); stroke: var(--color-brand-primary, #06c); }
    .drawing .middle { text-anchor: middle; }
    .drawing .data { font: 11px monospace; text-anchor: middle; }
    .drawing .note { font-size: 11px; fill: var(--color-foreground-secondary, #555); }
    .drawing .strong { font-weight: bold; }
"""


def events():
    """The events of the replay that the page shows."""
    for name in "office", "others", "test_office":
        block = re.search(rf":caption: {name}\.py\n(?::.*\n)*(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
        sys.modules[name] = ModuleType(name)
        exec(block[1], sys.modules[name].__dict__)
    replay = re.search(r"--ngi-replay=(\d+:\S+)", PAGE)[1]
    simulation = Simulation(replay=replay, keeps_all_events=True)
    try:
        with simulation:
            sys.modules["test_office"].test_the_last_seat(simulation)
    except AssertionError:
        return simulation.trace.events
    raise RuntimeError("the race did not happen")


def height(time):
    return TOP + round(time * 10_000) * MILLISECOND / 10


def draw():
    lines, marks = [], []
    begun = {}  # the time at which data was sent, or a connection begun
    for time, kind, host, text, piece in events():
        source, target = (name.partition(":")[0] for name in text.split(" -> ")) if " -> " in text else ("", "")
        if kind in ("connect", "send"):
            begun[piece if kind == "send" else text] = time
        elif kind in ("accept", "receive") and not text.endswith("end"):
            start, x, end = begun[piece if kind == "receive" else text], LANES[source], LANES[target]
            shift = 4 if end > x else -4
            weak = " weak" if kind == "accept" else ""
            y, to = height(start), height(time)
            lines.append(f'<path class="race{weak}" d="M {x} {y:g} L {end - shift} {to:g}"/>')
            if kind == "receive":
                buyer = "one" if text.endswith(" 4 bytes") else "other"
                data = {"bank": "paid", "office": "sold" if target != "bank" else buyer}.get(source, source)
                near = x + (end - x) * 0.42  # nearer to the source, with fewer arrows around it
                lines.append(f'<text class="data" x="{near:g}" y="{y + (to - y) * 0.42 - 5:g}">{data}</text>')
            if "office" in (host, source) and "bank" not in (source, target) and kind == "receive":
                number = len(marks) // 2 + 1
                at, side = (time, 13) if target == "office" else (start, -13)
                place = f'x="{LANES["office"] + side}" y="{height(at) + 4:g}"'
                marks.append(f'<circle class="mark" cx="{LANES["office"] + side}" cy="{height(at):g}" r="8"/>')
                marks.append(f'<text class="note middle" {place}>{number}</text>')
    bottom = height(0.0165)
    for name, x in LANES.items():
        lines.insert(0, f'<path class="lane" d="M {x} {TOP - 12} V {bottom:g}"/>')
        lines.insert(0, f'<text class="middle strong" x="{x}" y="34">{name}</text>')
        lines.insert(0, f'<rect class="box" x="{x - 33}" y="14" width="66" height="32" rx="6"/>')
    lines += [f'<text class="note" x="0" y="{height(ms / 1000) + 4:g}">{ms} ms</text>' for ms in range(0, 17, 2)]
    body = "\n  ".join(lines + marks)
    return f"""<svg class="drawing" role="img" aria-label="Timeline of a race in a simulation"
     viewBox="0 0 402 {bottom + 4:g}" width="100%" style="max-width: 31rem" xmlns="http://www.w3.org/2000/svg">
  <style>{STYLE}  </style>
  {body}
  <defs><marker id="head-race" markerWidth="9" markerHeight="9" refX="7" refY="4.5" orient="auto"
    markerUnits="userSpaceOnUse"><path class="head" d="M 0 0 L 9 4.5 L 0 9 Z"/></marker></defs>
</svg>
"""


if __name__ == "__main__":
    (HERE / "race.svg").write_text(draw())
