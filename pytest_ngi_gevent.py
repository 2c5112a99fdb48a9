"""The pytest plugin of ngi_gevent: fixtures for tests in memory, on real sockets, or on both.

It is a module of its own, and imports nothing but pytest, since pytest imports it in every run, also where nobody has
asked for gevent: only a test that uses a fixture imports the package.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import Any

import pytest

__all__ = ["ngi", "ngi_implementation", "ngi_network", "pytest_runtest_makereport", "pytest_runtest_setup"]

_failed = pytest.StashKey[bool]()


@pytest.fixture
def ngi(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A fresh implementation in memory, with which nothing must be left over at the end of the test.

    Exceptions of handlers are in its list ``raised``, which must be empty then: a test removes those that it expects.
    """
    from ngi_gevent.testing import Implementation

    yield from _watched(request, Implementation)


@pytest.fixture
def ngi_network(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A fresh implementation on the sockets of the loopback interface; otherwise like ``ngi``.

    Listen on None for a free port.  It is served on the hub of the test's thread, whenever the test waits.
    """
    from ngi_gevent import Implementation

    yield from _watched(request, Implementation)


@pytest.fixture(params=["ngi", "ngi_network"], ids=["memory", "network"])
def ngi_implementation(request: pytest.FixtureRequest) -> Any:
    """Either of the two: a test that takes it runs twice, and waits where that takes time on sockets."""
    return request.getfixturevalue(request.param)


def _watched(request: pytest.FixtureRequest, kind: Any) -> Iterator[Any]:
    __tracebackhide__ = True
    from gevent import get_hub

    from ngi_gevent.testing.leaks import Watched

    get_hub()  # or it would count as left over where the test is the first to need one
    watched = Watched(_noting(kind))
    yield watched
    if request.node.stash.get(_failed, False):
        watched.end()  # what a failed test left over is no news
        return
    try:
        watched.check()
    finally:
        raised = watched.raised
        if raised:
            message = f"a handler raised {raised[0]!r:.100}; a test that expects an exception takes it from `raised`"
            raise AssertionError(message) from raised[0]


def _noting(kind: Any) -> Any:
    """Return an implementation of *kind* that notes the exceptions of handlers in its list ``raised``."""

    class Implementation(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            self.raised: list[BaseException] = []
            super().__init__()

        def _on_error(self, registry: Any, peer: Any, where: str, error: BaseException, log: Any) -> None:
            self.raised.append(error)
            super()._on_error(registry, peer, where, error, log)

    return Implementation()


def pytest_runtest_setup() -> None:
    """Forget the plans of earlier tests."""
    _plans().clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the test failed, and have a failure, or what is left over, show the plans that it met."""
    report = yield
    if report.failed:
        item.stash[_failed] = True
        if _plans():
            report.sections.append(("Faulty: plans carried out", "\n".join(map(repr, _plans()))))
    return report


def _plans() -> Any:
    """The plans that the test has carried out, if it has imported what does so."""
    faulty = sys.modules.get("ngi_gevent.testing.faults.faulty")
    return [] if faulty is None else faulty.recent_plans
