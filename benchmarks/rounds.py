"""The rounds: the order of the steps, and a line of progress for each."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cases import Case, Settings
from benchmarks.figures import Figures, Measurement, shown
from benchmarks.processes import Bench, Failed, Server

#: The pattern of all steps.
EVERY = re.compile("")


@dataclass(frozen=True)
class Step:
    """A case on a server, in a round.  Rounds are counted from 1."""

    round: int
    case: Case
    server: Server


class Progress:
    """The progress: a line for each step, with its result, and an estimate of the remaining time."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._left = list(steps)
        self._took: dict[str, list[float]] = defaultdict(list)
        self._total = len(steps)

    def done(self, took: float, outcome: str) -> None:
        """Count the next step, which has taken *seconds*."""
        step = self._left.pop(0)
        self._took[step.case.name].append(took)
        where = f"[{self._total - len(self._left):3}/{self._total}] round {step.round}"
        print(f"{where}  {step.case.name:14} {step.server.name:13} {outcome:58} {self._remaining()} left", flush=True)

    def _remaining(self) -> str:
        """The remaining minutes and seconds, estimated from the averages of the cases."""
        means = {name: sum(took) / len(took) for name, took in self._took.items()}
        overall = sum(means.values()) / len(means)
        minutes, seconds = divmod(round(sum(means.get(step.case.name, overall) for step in self._left)), 60)
        return f"{minutes}:{seconds:02}"


def planned(cases: Sequence[Case], rounds: int, pattern: re.Pattern[str]) -> list[Step]:
    """All steps in order.  In each round, the servers take turns, and another server is first."""
    steps = []
    for round_number in range(1, rounds + 1):
        for case in cases:
            first = (round_number - 1) % len(case.servers)
            for server in case.servers[first:] + case.servers[:first]:
                if pattern.search(f"{case.name} {server.name}"):
                    steps.append(Step(round_number, case, server))
    return steps


def measured(bench: Bench, steps: Sequence[Step], settings: Settings) -> Figures:
    """Run all *steps*.  If one fails, its error is added to the figures."""
    figures = Figures()
    progress = Progress(steps)
    for step in steps:
        began = time.monotonic()
        try:
            measurements = step.case.measure(bench, step.server, settings)
        except Failed as error:
            for row in step.case.rows:
                figures.failed(row.name, step.server, step.round, str(error))
            outcome = "FAILED: " + " ".join(str(error).split())
        else:
            for row, measurement in zip(step.case.rows, measurements, strict=True):
                figures.add(row.name, step.server, step.round, measurement)
            outcome = outcome_of(step.case, measurements)
        progress.done(time.monotonic() - began, outcome)
    return figures


def outcome_of(case: Case, measurements: Sequence[Measurement]) -> str:
    pairs = zip(case.rows, measurements, strict=True)
    return ", ".join(f"{shown(measurement.value)} {row.unit}" for row, measurement in pairs)
