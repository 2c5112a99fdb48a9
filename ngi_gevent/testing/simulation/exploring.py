"""The functions that run one test under many seeds, and shrink a schedule under which it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ngi_gevent.testing.simulation.errors import SimulationError
from ngi_gevent.testing.simulation.simulation import Simulation
from ngi_gevent.testing.simulation.trace import Event

__all__ = ["MOST_RUNS", "FailedSeed", "describe_choices", "describe_end", "explore", "minimise", "replay_of", "shrink"]

#: The maximum number of runs that shrinking takes.
MOST_RUNS = 200

#: The numbers of events, choices and greenlets in a report.
_SHOWN_EVENTS = 20
_SHOWN_CHOICES = 5
_SHOWN_GREENLETS = 30

Test = Callable[[Simulation], object]


class FailedSeed(SimulationError, AssertionError):
    """The test failed under a seed.  The test's exception is the cause.

    :ivar replay: the seed, and the draws that are needed, for ``Simulation(replay=...)``.  Only the seed, if a second
        run gave another result.
    """

    def __init__(self, message: str, replay: str) -> None:
        super().__init__(message)
        self.replay = replay


def explore(test: Test, seeds: Iterable[int] = range(1000), **options: Any) -> None:
    """Call *test* with a new simulation for each seed, until it fails.  Blocks until then, or until all seeds are
    tried.

    A failing schedule is shrunk, as by :func:`shrink`, with up to 200 more runs.

    :param options: options of ``Simulation``.
    :raises FailedSeed: *test* failed, or a handler raised; the message says how to replay it, and how it ended.
    :raises TypeError: *test* is not callable, or a seed is not an int.
    :raises ValueError: there are no seeds.
    """
    _check_test(test)
    seed = None
    for seed in seeds:
        failure = _run(test, Simulation(seed, **options))
        if failure is not None:
            raise _as_failed_seed(test, seed, failure, options) from failure.error
    if seed is None:
        raise ValueError("seeds must have at least one seed; got none")


def shrink(test: Test, seed: int, **options: Any) -> str:
    """Return the fewest draws of *seed* with which *test* still fails, as text for ``Simulation(replay=...)``.

    All other draws are plain, as under seed 0.  A run counts as a failure if it raises an exception of the same class.
    Blocks for up to 200 runs of *test*, and then returns the fewest draws found so far.

    :param options: options of ``Simulation``.
    :raises TypeError: *test* is not callable, or *seed* is not an int.
    :raises SimulationError: *test* does not fail under *seed*.
    """
    _check_test(test)
    failure = _run(test, Simulation(seed, **options))
    if failure is None:
        raise SimulationError(f"the test must fail to be shrunk; it passes under seed {seed}")
    return replay_of(seed, _shrink(test, seed, failure, options))


def minimise(deviations: list[str], run: Callable[[list[str]], list[str] | None]) -> list[str]:
    """Return few of *deviations* with which a run fails.

    :param run: called with some of them, up to 200 times.  If the run fails, it returns the deviations that were made,
        otherwise None.
    """
    left = MOST_RUNS

    def attempt(kept: list[str]) -> list[str] | None:
        nonlocal left
        left -= 1
        made = run(kept)
        if made is None:
            return None
        allowed = set(kept)
        return [deviation for deviation in made if deviation in allowed]

    if deviations and attempt([]) is not None:
        return []
    size = len(deviations)
    while size:
        size = max(1, size // 2)
        begin, before = 0, len(deviations)
        while begin < len(deviations) and left:
            made = attempt(deviations[:begin] + deviations[begin + size :])
            if made is None:
                begin += size
            else:
                deviations = made
        if not left or (size == 1 and len(deviations) == before):
            break
    return deviations


def replay_of(seed: int, deviations: list[str]) -> str:
    """Return the text that makes these draws of *seed* only."""
    return f"{seed}:{','.join(deviations)}"


def describe_end(events: Iterable[Event], waiting: list[str], raised: Iterable[BaseException] = ()) -> str:
    """Return a report of the end of a run: exceptions of handlers, the last events, and where greenlets wait."""
    lines = [f"a handler or a greenlet raised {error!r:.200}" for error in raised]
    last = list(events)[-_SHOWN_EVENTS:]
    if last:
        lines += [f"the last {len(last)} events:", *map(str, last)]
    if waiting:
        lines += ["the greenlets at the end:", *(f"  {line}" for line in waiting[:_SHOWN_GREENLETS])]
    if len(waiting) > _SHOWN_GREENLETS:
        lines.append(f"  and {len(waiting) - _SHOWN_GREENLETS} more greenlets")
    return "\n".join(lines)


def describe_choices(events: Iterable[Event]) -> str:
    """Return a report of the last choices of a run that made few.  Each has the event that it was about."""
    happened = list(events)
    chosen = [index for index, event in enumerate(happened) if event.kind == "choose"][-_SHOWN_CHOICES:]
    if not chosen:
        return "no choice differs from the plain schedule, so it also fails under seed 0"
    # The network draws a duration after the data has left.  The schedule draws before the event happens.
    about = {index - 1 if happened[index].text.startswith("n") else index + 1 for index in chosen}
    shown = sorted({*chosen, *about} & set(range(len(happened))))
    return "\n".join(["the last choices, and what they were about:", *(str(happened[index]) for index in shown)])


class _Failure(NamedTuple):
    """The failure of a run."""

    error: BaseException
    simulation: Simulation
    #: Saved before the simulation ends, because its end adds events and ends greenlets.
    events: list[Event]
    waiting: list[str]


def _run(test: Test, simulation: Simulation) -> _Failure | None:
    events: list[Event] = []
    waiting: list[str] = []
    has_begun = False
    try:
        with simulation:
            has_begun = True
            is_fine = False
            try:
                test(simulation)
                is_fine = not simulation.raised
            finally:
                if not is_fine:
                    events, waiting = list(simulation.trace.events), simulation.describe_waiting()
    except BaseException as error:
        if not has_begun or isinstance(error, _no_failures()):
            raise
        return _Failure(error, simulation, events, waiting)
    return None


def _no_failures() -> tuple[type[BaseException], ...]:
    """Return the classes of exceptions that end a run without being a result of the test."""
    pytest = sys.modules.get("pytest")
    outcomes = () if pytest is None else (pytest.skip, pytest.xfail, pytest.exit)
    return (KeyboardInterrupt, SystemExit, *(outcome.Exception for outcome in outcomes))


def _shrink(test: Test, seed: int, failure: _Failure, options: dict[str, Any]) -> list[str]:
    def run(kept: list[str]) -> list[str] | None:
        found = _run(test, Simulation(replay=replay_of(seed, kept), **options))
        is_same = found is not None and type(found.error) is type(failure.error)
        return found.simulation.deviations if found is not None and is_same else None

    return minimise(failure.simulation.deviations, run)


def _as_failed_seed(test: Test, seed: int, failure: _Failure, options: dict[str, Any]) -> FailedSeed:
    error, simulation, events, waiting = failure
    head = f"seed {seed} fails with {type(error).__name__}; run it again with Simulation(seed={seed})"
    end = describe_end(events, waiting)
    again = _run(test, Simulation(seed, **options))
    if again is None or again.simulation.digest != simulation.digest:
        unstable = "in a second run, something else happened: the test depends on something that no seed decides"
        return FailedSeed("\n".join([head, unstable, end]), str(seed))
    kept = _shrink(test, seed, failure, options)
    replay = replay_of(seed, kept)
    shrunk = Simulation(replay=replay, **{**options, "keeps_all_events": True})
    _run(test, shrunk)
    fewest = f"draws that are needed: {len(kept)} of {len(simulation.deviations)}, in Simulation(replay={replay!r})"
    return FailedSeed("\n".join([head, fewest, describe_choices(shrunk.trace.events), end]), replay)


def _check_test(test: Any) -> None:
    if not callable(test):
        raise TypeError(f"test must be a callable that takes a simulation; got {test!r:.100}")
