"""The targets: the ratio that each work must reach, and whether it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.figures import Figures, Spread
from benchmarks.processes import ASYNCIO, OURS, PYTHON_SERVERS, STREAM_SERVER, TWISTED, UVLOOP, Server


@dataclass(frozen=True)
class Target:
    """A target for a row of the results: *claim* compares the result of *measure* with *amount*."""

    row: str
    claim: str
    amount: float
    measure: Callable[[Figures, str], Spread | None]
    at_most: bool = False

    def reached(self, measured: Spread) -> bool:
        return measured.median <= self.amount if self.at_most else measured.median >= self.amount


def best_of(figures: Figures, row: str) -> Server | None:
    """The best of the other servers in Python: the one with the least processor time, or the highest rate."""
    spreads = {server: figures.spread(row, server) for server in PYTHON_SERVERS if server is not OURS}
    medians = {server: spread.median for server, spread in spreads.items() if spread}
    choose = min if row.endswith("-cpu") else max
    return choose(medians, key=lambda server: medians[server], default=None)


def _against(server: Server) -> Callable[[Figures, str], Spread | None]:
    return lambda figures, row: figures.against(row, server)


def _against_best(figures: Figures, row: str) -> Spread | None:
    best = best_of(figures, row)
    return figures.against(row, best) if best else None


def _against_row(base: str) -> Callable[[Figures, str], Spread | None]:
    return lambda figures, row: figures.against(row, OURS, base)


def _figure(figures: Figures, row: str) -> Spread | None:
    return figures.spread(row, OURS)


_NAMED = {"stream_server": STREAM_SERVER, "uvloop": UVLOOP, "asyncio": ASYNCIO, "twisted": TWISTED}


def _at_least(row: str, **factors: float) -> list[Target]:
    return [
        Target(row, f"≥ {factor} × {_NAMED[name].name}", factor, _against(_NAMED[name]))
        for name, factor in factors.items()
    ]


def _at_most(row: str, **factors: float) -> list[Target]:
    return [
        Target(row, f"≤ {factor} × {_NAMED[name].name}", factor, _against(_NAMED[name]), at_most=True)
        for name, factor in factors.items()
    ]


TARGETS = [
    *_at_least("echo-64x100", stream_server=2.5, uvloop=1.0, asyncio=3.0, twisted=2.0),
    *_at_most("echo-64x100-cpu", uvloop=1.05),
    *_at_least("echo-4Kx100", stream_server=2.5, uvloop=1.0, asyncio=3.0, twisted=2.0),
    Target("echo-64Kx100", "≥ 1.0 × the best other", 1.0, _against_best),
    *_at_most("echo-64Kx100-cpu", uvloop=1.0),
    *_at_least("echo-64x1", stream_server=1.0, uvloop=0.9, asyncio=1.0, twisted=1.0),
    *_at_most("echo-64x1-cpu", uvloop=1.35, stream_server=0.75),
    *_at_most("echo-64x8-cpu", uvloop=1.15),
    *_at_least("echo-64x1000", stream_server=1.0, uvloop=0.9, asyncio=1.0, twisted=1.0),
    *_at_least("connect", stream_server=1.0),
    *_at_most("connect-cpu", stream_server=0.95),
    Target("stream-out", "≥ 1.0 × the best other", 1.0, _against_best),
    Target("stream-in", "≥ 1.0 × the best other", 1.0, _against_best),
    *(
        Target(f"{work}-cpu", "≤ 1.0 × the best other", 1.0, _against_best, at_most=True)
        for work in ("resp-x50", "resp-x50-pipelined", "resp-x1", "http-x50", "http-x1")
    ),
    *_at_most("idle", stream_server=1.0),
    Target("echo-beside-idle", "≥ 0.9 × the same with none idle", 0.9, _against_row("echo-alone")),
    Target("lines", "≥ 1,000,000 lines/s", 1_000_000, _figure),
    Target("round-trips", "≥ 200,000 round trips/s", 200_000, _figure),
    Target("simulated-seconds", "≥ 1,000 simulated s/s", 1_000, _figure),
    Target("simulated-races", "≥ 17 seeds/s: 1,000 in a minute", 17, _figure),
]
