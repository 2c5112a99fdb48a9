"""Running a test under many seeds, and finding the fewest random draws that make it fail."""

from __future__ import annotations

import itertools

import gevent
import pytest
from gevent.event import Event

from ngi_gevent.testing.simulation import Simulation
from ngi_gevent.testing.simulation.errors import SimulationError, Stuck
from ngi_gevent.testing.simulation.exploring import MOST_RUNS, FailedSeed, explore, minimise, shrink


def race(simulation):
    """Fail if the second of two greenlets, which wake at the same time, runs first in the second round."""
    order = []

    def work(number):
        for _ in range(10):
            gevent.sleep(1)
            order.append(number)

    gevent.joinall([gevent.spawn(work, number) for number in range(2)])
    assert order[2:4] != [1, 0], "overtaken"


def test_the_first_failing_seed_is_reported_with_the_draws_that_are_needed():
    with pytest.raises(FailedSeed) as failure:
        explore(race)
    lines = str(failure.value).splitlines()
    seed, _, draws = failure.value.replay.partition(":")
    assert lines[0] == f"seed {seed} fails with AssertionError; run it again with Simulation(seed={seed})"
    assert lines[1].startswith("draws that are needed: 1 of ")
    assert lines[1].endswith(f"Simulation(replay='{seed}:{draws}')")
    assert f"choose    {draws}: 1" in str(failure.value)
    assert "the greenlets at the end:" in lines
    assert str(failure.value.__cause__).startswith("overtaken")
    assert shrink(race, int(seed)) == failure.value.replay
    with pytest.raises(AssertionError, match="overtaken"), Simulation(replay=failure.value.replay) as simulation:
        race(simulation)
    with Simulation(replay=f"{seed}:") as simulation:
        race(simulation)
    explore(race, range(int(seed)))


def test_a_failure_under_every_seed_needs_no_draws():
    def test(simulation):
        simulation.host("server")
        gevent.joinall([gevent.spawn(gevent.sleep, 1) for _ in range(20)])
        Event().wait()

    with pytest.raises(FailedSeed, match=r"draws that are needed: 0 of \d\d") as failure:
        explore(test, [5])
    assert failure.value.replay == "5:"
    assert isinstance(failure.value.__cause__, Stuck)
    assert "server       start" in str(failure.value)
    assert "crash" not in str(failure.value)


def test_exceptions_of_greenlets_and_of_pytest_are_failures():
    with pytest.raises(FailedSeed) as failure:
        explore(lambda simulation: gevent.spawn(int, "x").join(), [1])
    assert isinstance(failure.value.__cause__, ValueError)
    with pytest.raises(FailedSeed, match="fails with Failed"):
        explore(lambda simulation: pytest.fail("so"), [1])
    with pytest.raises(pytest.skip.Exception):
        explore(lambda simulation: pytest.skip("so"), [1])


def test_a_test_that_depends_on_more_than_its_seed_is_reported():
    runs = itertools.count()

    def test(simulation):
        gevent.sleep(next(runs))
        assert next(runs) > 1

    with pytest.raises(FailedSeed, match="the test depends on something that no seed decides"):
        explore(test, [3])


@pytest.mark.parametrize("needed", [(), (7,), (0, 999), (3, 500, 501), tuple(range(10, 20))])
def test_few_runs_find_the_draws_that_are_needed(needed):
    runs = []

    def run(kept):
        runs.append(kept)
        return kept if {f"s{number}" for number in needed} <= set(kept) else None

    assert minimise([f"s{number}" for number in range(1000)], run) == [f"s{number}" for number in needed]
    assert len(runs) <= 130


def test_the_number_of_runs_is_limited():
    runs = []

    def run(kept):
        runs.append(kept)
        return kept if len(kept) > 600 else None

    assert len(minimise([f"s{number}" for number in range(1000)], run)) < 800
    assert len(runs) == MOST_RUNS


def test_an_invalid_argument_is_refused_at_the_call():
    with pytest.raises(TypeError, match="test must be a callable that takes a simulation; got 5"):
        explore(5)
    with pytest.raises(TypeError, match="test must be"):
        shrink(None, 5)
    with pytest.raises(TypeError, match="seed must be an int; got 'one'"):
        explore(race, ["one"])
    with pytest.raises(ValueError, match="seeds must have at least one seed"):
        explore(race, [])
    with pytest.raises(SimulationError, match="it passes under seed 0"):
        shrink(race, 0)
    with Simulation(), pytest.raises(SimulationError, match="already runs a simulation"):
        explore(race)
