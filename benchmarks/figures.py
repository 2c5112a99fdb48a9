"""The figures of a run: the measurements of each round, their medians, and the ratios between servers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.processes import OURS, Server


@dataclass(frozen=True)
class Measurement:
    """The result of one round.  *value* is in the unit of its row.  Shares of processor time are for one core."""

    value: float
    median_us: float | None = None
    p99_us: float | None = None
    load_cpu: float | None = None
    server_cpu: float | None = None
    # The share of time for which another process used the core of the server or the load.
    disturbed: float | None = None


@dataclass(frozen=True)
class Failure:
    """An error in place of a measurement.  Rounds are counted from 1."""

    row: str
    server: str
    round: int
    error: str


@dataclass(frozen=True)
class Spread:
    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """The median of *values*, or None if there are none."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values)) if values else None


def shown(figure: float) -> str:
    """A figure in readable form, with at least three digits, and a separator for thousands."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


class Figures:
    """All measurements, by row, server and round."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self._measured: dict[tuple[str, str], dict[int, Measurement]] = {}

    def add(self, row: str, server: Server, round_number: int, measurement: Measurement) -> None:
        self._measured.setdefault((row, server.name), {})[round_number] = measurement

    def failed(self, row: str, server: Server, round_number: int, error: str) -> None:
        self.failures.append(Failure(row, server.name, round_number, error))

    def measurements(self, row: str, server: Server) -> list[Measurement]:
        return list(self._measured.get((row, server.name), {}).values())

    def failures_of(self, row: str, server: Server) -> list[Failure]:
        return [failure for failure in self.failures if (failure.row, failure.server) == (row, server.name)]

    def spread(self, row: str, server: Server, what: str = "value") -> Spread | None:
        """The median of an attribute, over the measurements that have it."""
        values = (getattr(measurement, what) for measurement in self.measurements(row, server))
        return Spread.of(value for value in values if value is not None)

    def against(self, row: str, server: Server, base_row: str | None = None) -> Spread | None:
        """The ratio of this project in *row* to each *server* in the same row, or in *base_row*.

        Ratios are taken within each round, so that a temporary slowdown of the machine cancels out.
        """
        ours = self._measured.get((row, OURS.name), {})
        others = self._measured.get((base_row or row, server.name), {})
        pairs = ((ours[number].value, others[number].value) for number in ours if number in others)
        return Spread.of(one / other for one, other in pairs if one and other)
