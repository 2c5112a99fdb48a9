"""Fixtures, and a check after every test that no socket is left open."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path

import pytest
from browser import Browser, running
from hypothesis import Phase, settings
from stages import SIMULATIONS, STAGES, IPv6Stage, SocketStage, Stage, TCPStage, TLSStage, UnixStage, params

from ngi_gevent.testing.contract import playing

# Shells start background processes with SIGINT ignored.  The programs of tests about Ctrl-C would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# With this variable, each program that tests start would compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

pytest_plugins = ["pytester"]

# Each run tries the same examples, so that a failure is never by chance.  ``--hypothesis-profile=more`` tries others.
settings.register_profile(
    "same", derandomize=True, deadline=None, database=None, max_examples=50, phases=[Phase.explicit, Phase.generate]
)
settings.register_profile("more", deadline=None, max_examples=10_000, report_multiple_bugs=False)
settings.load_profile("same")


def open_files() -> set[str]:
    """Return the descriptors of this process, if the system shows them."""
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()


def open_sockets(others: Set[str] = frozenset()) -> set[str]:
    """Return the sockets of this process, except those whose descriptors are among *others*."""
    links = set()
    for name in open_files() - others:
        with contextlib.suppress(OSError):  # the descriptor that listed the folder
            links.add(os.readlink(f"/proc/self/fd/{name}"))
    return {link for link in links if link.startswith("socket:")}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line with the number of skipped tests for each reason."""
    skipped = terminalreporter.getreports("skipped")
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.line("skipped: " + ", ".join(f"{count} ({reason})" for reason, count in reasons.items()))


@pytest.fixture(scope="module", autouse=True)
def frozen_objects() -> None:
    """Hide existing objects from the garbage collector: many tests call it, and it would visit the objects of all other
    tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser, shared by the tests of a file."""
    pytest.importorskip("websockets")
    with running(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def no_socket_left() -> Iterator[None]:
    before = open_files()
    yield
    assert open_sockets(before) == set()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stages' Unix sockets.  Creating a folder takes longer than many tests do."""
    return tmp_path_factory.mktemp("stages")


# Only the transport depends on the address family, so tests outside the contract need only one unless they are slow.
KINDS = params([*STAGES, SIMULATIONS[1]], slow=[IPv6Stage, UnixStage, SIMULATIONS[1]])


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def stage(request: pytest.FixtureRequest, folder: Path, no_socket_left: None) -> Iterator[Stage]:
    """The stage of each implementation."""
    yield from playing(request.param, folder)


@pytest.fixture(params=[kind for kind in KINDS if issubclass(kind.values[0], SocketStage)], ids=lambda kind: kind.name)
def socket_stage(request: pytest.FixtureRequest, folder: Path, no_socket_left: None) -> Iterator[Stage]:
    """The stage of each implementation with sockets.  Its handlers can block."""
    yield from playing(request.param, folder)


@pytest.fixture
def tcp(folder: Path, no_socket_left: None) -> Iterator[Stage]:
    """A stage with TCP on IPv4, for rules that do not need every stage."""
    yield from playing(TCPStage, folder)


@pytest.fixture
def tls(folder: Path, no_socket_left: None) -> Iterator[Stage]:
    """A stage with TLS over TCP."""
    yield from playing(TLSStage, folder)


@pytest.fixture
def simulated(folder: Path) -> Iterator[Stage]:
    """A host in a simulation, for tests about time: an hour takes no real time, and is exact."""
    yield from playing(SIMULATIONS[0], folder)
