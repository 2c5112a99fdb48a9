"""How the cost of a unit of work changes as there is more of it: ``python -m benchmarks.growth``, in three minutes.

It measures connections that talk, connections that are idle, sizes of messages, workers of gunicorn, and the calls of
``connections()``.  It writes a table and a drawing into ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine, work, workers
from benchmarks.cases import rate_and_cpu
from benchmarks.drawing import MARGIN, TOP, WIDTH, page, text
from benchmarks.figures import Spread, shown
from benchmarks.processes import COMPILER, HERE, OURS, Bench, Running, raise_limit_of_files, two_cores

RESULTS = HERE / "results"

#: How fast the cost of a unit can grow: with the tenth root of the work, a quarter more for ten times the work.
MAX_EXPONENT = 0.1

ROUNDS, SECONDS, WARM_UP = 5, 0.4, 0.1

#: Connections of the load that measures how idle connections, or larger messages, change the cost of a request.
ACTIVE, FEW = 100, 10


@dataclass(frozen=True)
class Series:
    """A kind of work: *measure* returns the microseconds for a unit of it, for one of *amounts*."""

    title: str
    work: str  # what there is more of
    unit: str  # what the cost is for
    amounts: Sequence[int]
    measure: Callable[[Bench, int], float]


@dataclass(frozen=True)
class Growth:
    """The cost of a unit, in microseconds, for each amount of work."""

    series: Series
    costs: dict[int, Spread]

    @property
    def exponent(self) -> float:
        """How the cost of a unit grows: with the amount to the power of this, which is 0 if the cost stays the same."""
        return slope([(math.log(amount), math.log(cost.median)) for amount, cost in self.costs.items()])

    @property
    def is_bounded(self) -> bool:
        return self.exponent <= MAX_EXPONENT


def slope(points: Iterable[tuple[float, float]]) -> float:
    """The slope of the line through *points* that has the least squares."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def active(bench: Bench, connections: int) -> float:
    with bench.serving(OURS, "echo") as running:
        return _for_a_request(bench, running, connections=connections)


def idle(bench: Bench, connections: int) -> float:
    with bench.serving(OURS, "echo") as running, bench.held(running, connections):
        return _for_a_request(bench, running, connections=ACTIVE)


def size(bench: Bench, request: int) -> float:
    """The cost of a byte."""
    with bench.serving(OURS, "echo") as running:
        return _for_a_request(bench, running, connections=FEW, request=request) / request


def _for_a_request(bench: Bench, running: Running, **options: int) -> float:
    report = bench.load("echo", running, seconds=SECONDS, warm_up=WARM_UP, **options)
    _, cost = rate_and_cpu(report)
    return cost.value


def of_workers(bench: Bench, count: int) -> float:
    """The processor time of all workers for a request of ``benchmarks.workers``."""
    # They have both cores, and the load, which is small, has what they leave.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
    try:
        with workers.gunicorn(count) as path, contextlib.ExitStack() as stack:
            sockets = workers.connect(path, count)
            processes = set()
            for sock in sockets:
                stack.enter_context(sock)
                workers.request(sock)
                processes.add(workers.answer(sock))
            before, began = _processor_time(processes), time.monotonic()
            rate = workers.rate(sockets, SECONDS)
            return (_processor_time(processes) - before) * 1e6 / (rate * (time.monotonic() - began))
    finally:
        os.sched_setaffinity(0, cores)


def _processor_time(processes: Iterable[int]) -> float:
    return sum(Running(process, 0).processor_time() for process in processes)


def of_connections(bench: Bench, count: int) -> float:
    """The time of a call of ``connections()`` for each of *count* connections."""
    with (
        bench.serving(OURS, "connections") as running,
        bench.held(running, count - 1),
        socket.create_connection(("127.0.0.1", running.port)) as sock,
    ):
        sock.sendall(work.TIME_CONNECTIONS)
        (seconds,) = struct.unpack("d", sock.recv(8, socket.MSG_WAITALL))
    return float(seconds) * 1e6 / count


SERIES = (
    Series("Active connections", "connections", "request of 64 B", (10, 100, 1_000, 10_000), active),
    Series("Idle connections", "connections", "request on others", (10, 100, 1_000, 9_000), idle),
    Series("Size of messages", "bytes", "byte", (1, 16, 256, 4_096, 65_536, 1_048_576), size),
    Series("Workers of gunicorn", "workers", "request", (1, 2, 4), of_workers),
    Series("Calls of connections()", "connections", "connection", (2, 10, 100, 1_000, 10_000), of_connections),
)


def measured(bench: Bench, all_series: Sequence[Series], rounds: int) -> list[Growth]:
    """Measure each amount of all series in turn, in so many rounds."""
    found: dict[tuple[str, int], list[float]] = {}
    for number in range(1, rounds + 1):
        for series in all_series:
            for amount in series.amounts:
                cost = series.measure(bench, amount)
                found.setdefault((series.title, amount), []).append(cost)
                print(
                    f"round {number}  {series.title:24} {amount:>9,} {series.work:12} {precise(cost):>8} µs", flush=True
                )
    growths = []
    for series in all_series:
        spreads = ((amount, Spread.of(found[series.title, amount])) for amount in series.amounts)
        growths.append(Growth(series, {amount: spread for amount, spread in spreads if spread}))
    return growths


def markdown(growths: Sequence[Growth], described: dict[str, str], rounds: int) -> str:
    parts = [
        "# Cost as work grows",
        ", ".join(f"{name} {value}" for name, value in described.items()) + ".",
        f"The processor time of the server for a unit of work: medians of {rounds} rounds, with the least and the most "
        "in parentheses. The load runs on the same machine. Workers share its cores with each other and the load.",
        "*Exponent*: the cost of a unit grows with the work to this power. It is 0 if a unit always costs the same, "
        f"and negative if a unit costs less as there is more work. The limit is {MAX_EXPONENT}.",
        "![The cost of a unit of each work](growth.svg)",
    ]
    for growth in growths:
        series = growth.series
        rows = [f"| {amount:,} | {spread(cost)} |" for amount, cost in growth.costs.items()]
        verdict = "" if growth.is_bounded else ": **more than the limit**"
        parts += [
            f"## {series.title}",
            "\n".join([f"| {series.work} | µs for a {series.unit} |", "| ---: | ---: |", *rows]),
            f"Exponent: {growth.exponent:.2f}{verdict}",
        ]
    return "\n\n".join(parts) + "\n"


def spread(cost: Spread) -> str:
    return f"{precise(cost.median)} ({precise(cost.least)}-{precise(cost.most)})"


def precise(figure: float) -> str:
    """A figure with three digits, also if it is much less than 1."""
    return shown(figure) if figure >= 0.01 else f"{figure:.5f}"


# The drawing.

PANEL, PLOT, HEAD = 176, 104, 24
LEFT = 58  # of a plot, for the figures beside it


def svg(growths: Sequence[Growth]) -> str:
    """A panel for each series, with logarithmic axes; each covers at least a factor of ten of the cost."""
    panels = [part for index, growth in enumerate(growths) for part in _panel(TOP + PANEL * index, growth)]
    return page(
        "The cost of a unit of each work, as there is more of it",
        "Cost of a unit as work grows, in µs",
        "Flat: a unit costs the same. Axes are logarithmic.",
        panels,
        TOP + PANEL * len(growths),
    )


def _panel(top: float, growth: Growth) -> list[str]:
    costs = [cost.median for cost in growth.costs.values()]
    middle = math.sqrt(min(costs) * max(costs))
    low, high = min(min(costs), middle / 3.2), max(max(costs), middle * 3.2)
    first, *_, last = growth.costs
    right, bottom = WIDTH - MARGIN - 8, top + HEAD + PLOT

    def at(amount: int, cost: float) -> tuple[float, float]:
        x = LEFT + (right - LEFT) * math.log(amount / first) / math.log(last / first)
        return x, bottom - PLOT * math.log(cost / low) / math.log(high / low)

    points = [at(amount, cost.median) for amount, cost in growth.costs.items()]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    series = growth.series
    return [
        text(MARGIN, top + 14, f"{series.title}: for a {series.unit}", "head"),
        f'<polyline class="axis" points="{LEFT},{top + HEAD} {LEFT},{bottom} {right},{bottom}"/>',
        *(text(MARGIN, at(first, cost)[1] + 4, precise(cost), "fine") for cost in (low, high)),
        f'<polyline class="line" points="{line}"/>',
        *(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points),
        text(LEFT, bottom + 17, f"{first:,}", "fine"),
        f'<text class="fine" text-anchor="end" x="{right}" y="{bottom + 17}">{last:,} {series.work}</text>',
    ]


def write(growths: Sequence[Growth], rounds: int, output: Path) -> None:
    """Write the table and the drawing of *growths*, measured in *rounds*, into *output*."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "growth.md").write_text(markdown(growths, machine.described(), rounds))
    (output / "growth.svg").write_text(svg(growths))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help="how many rounds (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIRECTORY", help="where to write")
    options = parser.parse_args()
    if not COMPILER:
        sys.exit("this needs a C compiler (cc) for the load")
    raise_limit_of_files()
    server_core, load_core = two_cores()
    os.sched_setaffinity(0, {load_core})
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as directory:
        growths = measured(Bench(Path(directory), server_core, load_core), SERIES, options.rounds)
    write(growths, options.rounds, options.output)
    print(f"written to {options.output}")
    return 0 if all(growth.is_bounded for growth in growths) else 1


if __name__ == "__main__":
    sys.exit(main())
