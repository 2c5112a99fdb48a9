"""A short soak, with every warning an error; ``python tests/soak.py --minutes 10`` runs a longer one."""

from __future__ import annotations

import pytest
from soak import soak

DEEDS = (
    *("talks", "says_all_and_listens", "says_it_byte_by_byte", "is_silent", "asks_for_trouble"),
    *("resets", "sends_garbage", "never_reads", "leaves"),
)


@pytest.mark.slow
def test_a_server_is_afterwards_as_it_was_before():
    result = soak(12, 3, dev=True)
    assert all(result["done"][deed] > 20 for deed in DEEDS)
    assert result["done"]["bytes"] > 10_000_000
    assert result["last"]["logged"].keys() == {"ngi_gevent.connection", "ngi_gevent.listener"}
