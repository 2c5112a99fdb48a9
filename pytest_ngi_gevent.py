"""The pytest plugin of ngi_gevent: fixtures for tests in memory, in a simulation, on real sockets, or on all of them.

This is a separate module that imports only pytest, because pytest imports it in every run, even if no test uses gevent.
A test that uses a fixture imports the package.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

__all__ = [
    "ngi",
    "ngi_implementation",
    "ngi_network",
    "pytest_addoption",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_runtest_makereport",
    "pytest_runtest_protocol",
    "pytest_runtest_setup",
    "pytest_write_timeline",
    "simulation",
]

#: The seeds of a test without a mark: the plain schedule, and two others.
FEW_SEEDS = 3

_failed = pytest.StashKey[bool]()
_error = pytest.StashKey[type[BaseException]]()
_replay = pytest.StashKey[str]()
_simulation = pytest.StashKey[Any]()
_end = pytest.StashKey[str]()
_events = pytest.StashKey[list[Any]]()


# Options.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for simulations."""
    group = parser.getgroup("ngi_gevent", "simulations of ngi_gevent")
    group.addoption(
        "--ngi-seeds", type=int, metavar="N", help="run each test in a simulation under N seeds, whatever its mark says"
    )
    group.addoption(
        "--ngi-replay",
        metavar="SEED[:DRAWS]",
        help="run tests in a simulation under this seed only; if one fails, find the fewest draws with which it does",
    )
    group.addoption(
        "--ngi-timeline",
        metavar="FOLDER",
        help="write an HTML page for each test in a simulation that fails, or that --ngi-replay runs",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the mark for simulations, and check the options."""
    config.addinivalue_line("markers", "ngi_seeds(n): run the test in a simulation under n seeds, from 0")
    seeds, replay, folder = (config.getoption(f"ngi_{name}") for name in ("seeds", "replay", "timeline"))
    if seeds is not None and seeds < 1:
        raise pytest.UsageError(f"--ngi-seeds must be an int >= 1; got {seeds}")
    if seeds is not None and replay is not None:
        raise pytest.UsageError("--ngi-seeds and --ngi-replay exclude each other; pass one of them")
    if replay is not None:
        from ngi_gevent.testing.simulation.schedule import parse_replay

        try:
            parse_replay(replay)
        except ValueError as error:
            raise pytest.UsageError(f"--ngi-replay: {error}") from None
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise pytest.UsageError(f"--ngi-timeline must be a folder; got {folder!r}, which is a file")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test with its seeds."""
    if _is_used(metafunc, "simulation"):
        seeds = _seeds(metafunc)
        metafunc.parametrize("simulation", seeds, indirect=True, ids=_ids(seeds))
    if _is_used(metafunc, "ngi_implementation"):
        seeds = _seeds(metafunc)
        ways = ["ngi", "ngi_network", *seeds]
        metafunc.parametrize("ngi_implementation", ways, indirect=True, ids=["memory", "network", *_ids(seeds)])


def _is_used(metafunc: pytest.Metafunc, name: str) -> bool:
    """Return whether the test uses the fixture of this plugin, and not just another one with the same name."""
    # pytest has no public attributes for this.
    for definition in reversed(metafunc._arg2fixturedefs.get(name, ())):
        if definition.func.__module__ == __name__:
            return True
        if name not in definition.argnames:
            return False
    return False


def _seeds(metafunc: pytest.Metafunc) -> list[str]:
    """Return the seeds of a test, as texts for ``Simulation(replay=...)``."""
    replay = metafunc.config.getoption("ngi_replay")
    if replay is not None:
        return [replay]
    count = metafunc.config.getoption("ngi_seeds")
    if count is None:
        mark = metafunc.definition.get_closest_marker("ngi_seeds")
        count = FEW_SEEDS if mark is None else mark.args[0] if len(mark.args) == 1 and not mark.kwargs else None
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            pytest.fail(f"ngi_seeds takes one argument, an int >= 1; got {mark}", pytrace=False)
    return list(map(str, range(count)))


def _ids(seeds: list[str]) -> list[str]:
    # The draws of a replay are omitted, so that the test has the same name as under the seed alone.
    return [f"seed{seed.partition(':')[0]}" for seed in seeds]


# Fixtures.


@pytest.fixture
def ngi(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A fresh implementation in memory.  At the end of the test, nothing must be left open.

    Exceptions of handlers are added to its list ``raised``, which must be empty at the end.  A test removes the
    exceptions that it expects.
    """
    from ngi_gevent.testing import Implementation

    yield from _watched(request, _noting(Implementation))


@pytest.fixture
def ngi_network(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A fresh implementation on sockets of the loopback interface; otherwise like ``ngi``.

    To listen on a free port, pass None.  The hub of the test's thread serves it whenever the test waits.
    """
    from ngi_gevent import Implementation

    yield from _watched(request, _noting(Implementation))


@pytest.fixture
def simulation(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A simulation that has begun, and ends after the test.  The test runs once for each of its seeds.

    By default, the seeds are 0, 1 and 2.  The mark ``ngi_seeds(n)`` or the option ``--ngi-seeds`` sets their number.
    """
    with _simulated(request, getattr(request, "param", "0")) as simulation:
        yield simulation


@pytest.fixture
def ngi_implementation(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An implementation in memory, on sockets, or on a host of a simulation.  A test that takes it runs on each.

    In the simulation, the test runs once for each seed, as with ``simulation``.
    """
    if request.param in ("ngi", "ngi_network"):
        yield request.getfixturevalue(request.param)
        return
    with _simulated(request, request.param) as simulation:
        host = simulation.host("host")
        host.raised = simulation.raised
        yield from _watched(request, host)


@contextmanager
def _simulated(request: pytest.FixtureRequest, replay: str) -> Iterator[Any]:
    from ngi_gevent.testing.simulation import Simulation

    stash = request.node.stash
    keeps_all = request.config.getoption("ngi_timeline") is not None or _replay in stash
    simulation = Simulation(replay=stash.get(_replay, replay), keeps_all_events=keeps_all)
    with simulation:
        stash[_simulation] = simulation
        try:
            yield simulation
        finally:
            # The end of a simulation adds events, and ends greenlets.
            stash[_end] = _describe_end(simulation)
            stash[_events] = list(simulation.trace.events) if keeps_all else []
            if stash.get(_failed, False):
                simulation.raised.clear()  # the report of the failure shows these


def _watched(request: pytest.FixtureRequest, implementation: Any) -> Iterator[Any]:
    __tracebackhide__ = True
    from gevent import get_hub

    from ngi_gevent.testing.leaks import Watched

    get_hub()  # before the test, because the first use would otherwise count as left over
    watched = Watched(implementation)
    yield watched
    if request.node.stash.get(_failed, False):
        watched.end()  # after a failure, leftovers are not reported
        return
    try:
        watched.check()
    finally:
        raised = watched.raised[:]
        watched.raised.clear()
        if raised:
            message = f"a handler raised {raised[0]!r:.100}; a test that expects an exception takes it from `raised`"
            raise AssertionError(message) from raised[0]


def _noting(kind: Any) -> Any:
    """Return an implementation of *kind* that adds the exceptions of handlers to its list ``raised``."""

    class Implementation(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            self.raised: list[BaseException] = []
            super().__init__()

        def _on_error(self, registry: Any, peer: Any, where: str, error: BaseException, log: Any) -> None:
            self.raised.append(error)
            super()._on_error(registry, peer, where, error, log)

    return Implementation()


# Reports.


def pytest_runtest_setup() -> None:
    """Forget the plans of earlier tests."""
    _plans().clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record whether the test failed, and show the seed of a failure and the plans that the test carried out."""
    report = yield
    if report.failed:
        item.stash[_failed] = True
        if call.excinfo is not None:
            item.stash[_error] = call.excinfo.type
        if _plans():
            report.sections.append(("Faulty: plans carried out", "\n".join(map(repr, _plans()))))
        if _simulation in item.stash:
            simulation = item.stash[_simulation]
            end = item.stash.get(_end, None)
            if end is None:  # the recursion ends after the test
                end = _describe_end(simulation)
            command = _command(item, _replay_of(item))
            report.sections.append(("simulation", f"seed {simulation.seed}; replay it with\n{command}\n{end}"))
    return report


def _plans() -> Any:
    """The plans that the test has carried out, if it has imported the module for faults."""
    faulty = sys.modules.get("ngi_gevent.testing.faults.faulty")
    return [] if faulty is None else faulty.recent_plans


def _describe_end(simulation: Any) -> str:
    from ngi_gevent.testing.simulation.exploring import describe_end

    return describe_end(simulation.trace.events, simulation.describe_waiting(), simulation.raised)


def _replay_of(item: pytest.Item) -> str:
    return item.stash.get(_replay, item.config.getoption("ngi_replay") or str(item.stash[_simulation].seed))


def _command(item: pytest.Item, replay: str) -> str:
    """Return the command that runs only this test, with only these draws."""
    config = item.config
    # Relative to the root of pytest, which may not be the current directory
    file, colons, name = item.nodeid.partition("::")
    path = os.path.relpath(config.rootpath / file, config.invocation_params.dir)
    words = ["pytest", path + colons + name, f"--ngi-replay={replay}"]
    given = [str(argument) for argument in config.invocation_params.args]
    if any(argument.startswith("-m") for argument in given):
        words += ["-m", config.getoption("markexpr")]
    return shlex.join(words)


@pytest.hookimpl(specname="pytest_runtest_protocol", wrapper=True)
def pytest_write_timeline(item: pytest.Item) -> Generator[None, object, object]:
    """Write the timeline of the last run of a test, if the option asks for it."""
    result = yield
    folder, replay = (item.config.getoption(f"ngi_{name}") for name in ("timeline", "replay"))
    has_failed = item.stash.get(_failed, False)
    if folder is not None and _events in item.stash and (has_failed or replay is not None):
        from ngi_gevent.testing.simulation.timeline import render_timeline

        events: list[Any] = item.stash[_events]
        page = render_timeline(events, _replay_of(item), item.nodeid)
        name = re.sub(r"[^\w.=-]+", "-", item.nodeid).strip("-")[-200:]
        path = Path(folder) / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    return result


# Shrinking.


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test that is replayed.  If it fails, run it again, to find the fewest draws with which it fails."""
    replay = item.config.getoption("ngi_replay")
    is_simulated = {"simulation", "ngi_implementation"} & set(getattr(item, "fixturenames", ()))
    if replay is None or ":" in replay or not is_simulated or item.config.getoption("usepdb"):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    failed = [report for report in reports if report.failed]
    if failed and _simulation in item.stash:
        failed[-1].sections.append(("simulation, shrunk", _shrink(item, nextitem)))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _shrink(item: pytest.Item, nextitem: pytest.Item | None) -> str:
    from ngi_gevent.testing.simulation.exploring import describe_choices, minimise, replay_of

    stash = item.stash
    first, error = stash[_simulation], stash.get(_error, None)

    def run(kept: list[str]) -> list[str] | None:
        stash[_replay] = replay_of(first.seed, kept)
        stash[_failed] = False
        for key in (_simulation, _end):
            if key in stash:
                del stash[key]
        runtestprotocol(item, nextitem=nextitem, log=False)
        has_failed = stash[_failed] and stash.get(_error, None) is error and _simulation in stash
        return stash[_simulation].deviations if has_failed else None

    kept = minimise(first.deviations, run)
    if run(kept) is None:
        return f"run again, seed {first.seed} does not fail: the test depends on something that no seed decides"
    events = stash[_simulation].trace.events
    needed = f"draws that are needed: {len(kept)} of {len(first.deviations)}; this command makes only these:"
    return f"{needed}\n{_command(item, replay_of(first.seed, kept))}\n{describe_choices(events)}"
