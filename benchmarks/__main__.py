"""``python -m benchmarks``: measure, and write the results."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from benchmarks import against, machine, report
from benchmarks.cases import CASES, FULL, QUICK, Settings
from benchmarks.processes import COMPILER, HERE, Bench, kill_children, raise_limit_of_files, two_cores
from benchmarks.rounds import measured, planned

T = TypeVar("T", int, float)

RESULTS = HERE / "results"

#: Open files in addition to the idle connections.
OTHER_FILES = 500

DESCRIPTION = """\
Measure how fast ngi_gevent is, beside other servers doing the same work, one after the other, in several rounds.

The whole takes some thirteen minutes.  It needs Linux, and a C compiler (cc) for the load that drives the servers.
Without one, only the cases that need no sockets are measured.  RESP and HTTP need redis-benchmark and wrk.  Leave the
machine alone during the run.
"""


def main() -> int:
    options = parser().parse_args()
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("this needs Linux, to pin processes to cores")
    signal.signal(signal.SIGTERM, terminated)
    if options.against is not None:
        return against.main(options.against, quick=options.quick, rounds=options.rounds, seconds=options.seconds)
    settings, notes = settings_for(options)
    cases = CASES if COMPILER else [case for case in CASES if not case.on_sockets]
    steps = planned(cases, settings.rounds, options.only)
    missing = {part.name: why for step in steps for part in (step.case, step.server) if (why := part.missing)}
    notes += [f"{name} was left out: {why}." for name, why in missing.items()]
    steps = [step for step in steps if not missing.keys() & {step.case.name, step.server.name}]
    for note in notes:
        print(note, flush=True)
    if not steps:
        print(f"nothing to measure is called like {options.only.pattern!r}", file=sys.stderr)
        return 2

    server_core, load_core = two_cores()
    os.sched_setaffinity(0, {load_core})  # nothing else must run here while a server is measured
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as directory:
        bench = Bench(Path(directory), server_core, load_core)
        figures = measured(bench, steps, settings)

    run = report.Run(machine.described(), settings, cases, figures, notes)
    output = options.output or (None if options.quick or options.only.pattern else RESULTS)
    if output is None:
        print("\n" + report.markdown(run))
    else:
        report.write(run, output)
        print(f"written to {output}")
    return 1 if figures.failures else 0


def settings_for(options: argparse.Namespace) -> tuple[Settings, list[str]]:
    """The settings for *options* on this machine, and facts about the machine."""
    settings: Settings = QUICK if options.quick else FULL
    settings = replace(settings, rounds=options.rounds or settings.rounds, seconds=options.seconds or settings.seconds)
    notes = []
    if len(set(two_cores())) == 1:
        notes.append("There is one core only, which the server and the load took turns on.")
    files = raise_limit_of_files()
    idle = max(10, min(settings.idle, files - OTHER_FILES))
    if idle < settings.idle:
        notes.append(f"No more than {idle:,} connections were idle: a process may have {files:,} files open only.")
        settings = replace(settings, idle=idle)
    if not COMPILER:
        notes.append("There is no C compiler (cc) to build the load with: nothing was measured on sockets.")
    return settings, notes


def terminated(signal_number: int, frame: object) -> NoReturn:
    """End as Ctrl-C does, and end all child processes."""
    raise KeyboardInterrupt


def positive(kind: type[T]) -> Callable[[str], T]:
    """Return a parser for an option that is a number of *kind*, and more than 0."""

    def read(text: str) -> T:
        number = kind(text)
        if not 0 < number < float("inf"):
            raise ValueError
        return number

    read.__name__ = f"positive {kind.__name__}"  # argparse uses this name in its message about other errors
    return read


def pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--quick", action="store_true", help="one round of shorter measurements, for a first look")
    result.add_argument("--rounds", type=positive(int), metavar="N", help=f"how many rounds (default: {FULL.rounds})")
    result.add_argument(
        "--seconds", type=positive(float), metavar="S", help=f"how long each is measured (default: {FULL.seconds})"
    )
    result.add_argument(
        "--only",
        metavar="PATTERN",
        type=pattern,
        default="",
        help="the steps in whose 'CASE SERVER', as the progress shows them, the regular expression PATTERN is found; "
        "for instance 'echo-64x100 (ngi|uvloop)'",
    )
    result.add_argument(
        "--against",
        nargs="?",
        const="",
        metavar="REV",
        help="compare the processor time for each message with the time of another revision (default: the one whose "
        "results are published), in two minutes, or a quarter of one with --quick; exit with code 1 if this checkout "
        f"takes more than {against.LIMIT} times as much",
    )
    result.add_argument(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        help="where to write (default: benchmarks/results; with --quick or --only the tables are printed instead)",
    )
    return result


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        kill_children()
        sys.exit("interrupted: nothing is written")
