"""A pytest plugin for CI, ``-p tests.costs``: shows the slowest tests, and fails if an unmarked test is slow.

The processor time of a test includes its fixtures, and the programs that the test started and waited for.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator

import pytest

#: The processor time that a test can take unless it is marked slow, in seconds.
MAX_TIME, MAX_PROCESSOR_TIME = 5.0, 2.0

#: The number of tests that are shown.
SHOWN = 20

# If a test starts pytest, that run counts as a part of the test.
os.environ.pop("PYTEST_ADDOPTS", None)


def _processor_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# If a shell replaces itself with a program by exec, the program inherits the shell's children.
_earlier = _processor_time() - time.process_time()

costs: list[tuple[float, float, str]] = []


def _too_slow() -> list[str]:
    return [test for taken, processor, test in costs if taken > MAX_TIME or processor > MAX_PROCESSOR_TIME]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    began, processor_began = time.monotonic(), _processor_time()
    result = yield
    if item.get_closest_marker("slow") is None:
        costs.append((time.monotonic() - began, _processor_time() - processor_began, item.nodeid))
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _too_slow():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("slowest tests: seconds, and seconds of processor time")
    for taken, processor, test in sorted(costs, reverse=True)[:SHOWN]:
        terminalreporter.line(f"{taken:6.2f} {processor:6.2f} {test}")
    terminalreporter.line(f"all tests: {_processor_time() - _earlier:.0f} seconds of processor time")
    for test in _too_slow():
        limits = f"more than {MAX_TIME} seconds, or {MAX_PROCESSOR_TIME} of processor time"
        terminalreporter.line(f"FAILED {test}: takes {limits}, and is not marked slow", red=True)
