"""The same seed causes the same events in the same order, in every process, whatever else the process does."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
import simulated_programs
from greenlet import greenlet
from simulated_programs import run_program

#: The number of programs that the slow test runs.
PROGRAMS = 40


def count_greenlets() -> int:
    gc.collect()
    return sum(isinstance(thing, greenlet) for thing in gc.get_objects())


def digests_in_another_process(seeds: range, hash_seed: int) -> list[str]:
    command = [sys.executable, simulated_programs.__file__, str(seeds.start), str(seeds.stop)]
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_program_repeats_with_its_seed():
    assert run_program(0, 8) == run_program(0, 8) != run_program(1, 8)


def test_a_program_repeats_in_another_process():
    seeds = range(2, 3)
    assert digests_in_another_process(seeds, 1) == [run_program(seed) for seed in seeds]


def test_a_program_repeats_at_every_log_level(caplog):
    def run(level: int) -> str:
        with caplog.at_level(level, "ngi_gevent"):
            return run_program(0, 8)

    assert run(logging.DEBUG) == run(logging.CRITICAL)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, PROGRAMS, 40))
def test_many_programs_repeat_with_their_seeds(first):
    before = count_greenlets()
    seeds = range(first, first + 40)
    digests = []
    for seed in seeds:
        digests.append(run_program(seed))
        # Other activity in the process must not matter.
        garbage = [[number] for number in range(1000)]
        garbage.append(garbage)
        gevent.sleep(0)
    assert count_greenlets() <= before
    assert digests_in_another_process(seeds, 1 + first) == digests
