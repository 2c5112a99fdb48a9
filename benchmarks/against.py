"""``python -m benchmarks --against REV``: the processor time for each message, beside the time of another revision.

Both revisions run their own ``benchmarks.servers.ngi`` with the same Python and libraries, and take turns.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.cases import FULL, Case, Settings, connect_case, echo, http, resp
from benchmarks.figures import Figures, Spread, shown
from benchmarks.processes import HERE, OURS, Bench, Server, two_cores
from benchmarks.report import ratio
from benchmarks.rounds import EVERY, measured, planned

#: How many times the processor time of the other revision is too much.
LIMIT = 1.3

#: Seconds of each measurement, and of the warm-up before it.
SECONDS, WARM_UP = 0.4, 0.1

ROUNDS, QUICK_ROUNDS = 11, 5

RESULT = HERE / "results" / "result.json"

QUICK = (echo(64, 1), echo(64, 100))
CASES = (*QUICK, echo(4 * 1024, 100), connect_case(), resp(50, pipelined=16), http(50))


@dataclass(frozen=True)
class Comparison:
    """The processor time for each message of one work, in µs, and its ratio to the other revision's."""

    title: str
    ours: Spread
    other: Spread
    ratio: Spread

    @property
    def is_slower(self) -> bool:
        """Whether this revision takes more than ``LIMIT`` times as much, by the medians and by the least times.

        Other programs on the machine only add time.  They can raise the median, but hardly all times of one revision.
        """
        return min(self.ratio.median, self.ours.least / self.other.least) > LIMIT

    def __str__(self) -> str:
        return f"{self.title:40} {shown(self.other.median):>8} {shown(self.ours.median):>8}  × {ratio(self.ratio)}"


def checkout(revision: str, directory: Path) -> str:
    """Write the files of *revision* into *directory*.  Return the name of its commit.

    :raises SystemExit: git does not have the revision.
    """
    commit = git("rev-parse", "--short", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as archive:
        archive.extractall(directory, filter="data")
    return commit


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True)
    if done.returncode:
        sys.exit(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def compared(figures: Figures, cases: Sequence[Case], other: Server) -> Iterator[Comparison]:
    """The comparisons of all *cases* that both were measured in."""
    for case in cases:
        row = next(row for row in case.rows if row.name.endswith("-cpu"))
        ours, others = figures.spread(row.name, OURS), figures.spread(row.name, other)
        compared_to = figures.against(row.name, other)
        if ours and others and compared_to:
            yield Comparison(f"{case.rows[0].title}, {row.unit}", ours, others, compared_to)


def published() -> str:
    """The revision whose results are published."""
    revision: str = json.loads(RESULT.read_text())["machine"]["revision"]
    return revision


def main(revision: str, *, quick: bool, rounds: int | None, seconds: float | None) -> int:
    """Measure, print the table, and return the exit code: 1 if a work takes more than ``LIMIT`` times as much."""
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    settings: Settings = replace(FULL, rounds=rounds, seconds=seconds or SECONDS, warm_up=WARM_UP)
    server_core, load_core = two_cores()
    os.sched_setaffinity(0, {load_core})
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as directory:
        tree = Path(directory, "other")
        commit = checkout(revision or published(), tree)
        other = replace(OURS, name=commit, tree=tree)
        cases = [replace(case, servers=(other, OURS)) for case in (QUICK if quick else CASES) if not case.missing]
        bench = Bench(Path(directory), server_core, load_core)
        figures = measured(bench, planned(cases, settings.rounds, EVERY), settings)
    comparisons = list(compared(figures, cases, other))
    print(f"\n{'processor time (less is better)':40} {commit:>8} {'this':>8}  this × {commit}: median (least-most)")
    for comparison in comparisons:
        print(comparison)
    slower = [comparison.title for comparison in comparisons if comparison.is_slower]
    for title in slower:
        print(f"more than {LIMIT} times as much: {title}")
    return 1 if slower or figures.failures or not comparisons else 0
