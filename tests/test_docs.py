"""The documentation: its code runs, as a stranger would run it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on files, in a process of its own."""

    def run(**files):
        pytester.makepyfile(**files)
        return pytester.runpytest_subprocess("-q", "-p", "pytest_ngi_gevent", "-p", "no:cacheprovider", "-W", "error")

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return run


def test_the_first_test_can_be_copied(run):
    run(test_greeter="\n".join(blocks("testing.md")[:2])).assert_outcomes(passed=1)


def test_every_block_runs(run):
    code = blocks("testing.md")
    tests = [block for block in code if "contract" not in block]
    assert len(tests) == len(code) - 2
    result = run(test_testing="\n".join(tests))
    named = sum(block.count("def test_") for block in tests)
    both, seeds = 3, 100  # tests over both implementations, and of each seed
    result.assert_outcomes(passed=named + both + seeds - 1)


def test_the_contract_runs_as_it_is_documented(run):
    conftest, test = [block for block in blocks("testing.md") if "contract" in block]
    result = run(conftest=conftest, test_contract=test)
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}
    assert outcomes["passed"] >= 100


def test_what_it_names_is_there():
    text = (ROOT / "docs" / "testing.md").read_text()
    names = re.findall(r"`((?:examples|tests|docs)/[\w./]+\w)`", text)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_test_that_under_fire_names_is_there():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "under_fire.md").read_text())
    assert len(named) > 40
    missing = [(file, name) for file, name in named if not hasattr(importlib.import_module(file[:-3]), name)]
    assert missing == []
