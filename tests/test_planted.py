"""Random lives of connections find mistakes that are planted in the package."""

from __future__ import annotations

import pytest
from planted import MISTAKES, planted, search


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_can_be_planted(name):
    with planted(MISTAKES[name]) as environment:
        assert environment["PYTHONPATH"]


def test_nothing_is_found_without_a_mistake():
    assert search(None, 20) == ""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_found(name):
    assert search(MISTAKES[name])
