"""A short soak, with every warning an error.  ``python tests/soak.py --minutes 10`` runs a longer one."""

from __future__ import annotations

import pytest
from soak import soak

DEEDS = (
    *("talks", "says_all_and_listens", "says_it_byte_by_byte", "is_silent", "asks_for_trouble"),
    *("resets", "sends_garbage", "never_reads", "leaves", "is_in_a_crowd"),
)


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_server_is_the_same_after_a_soak_as_before(tls):
    result = soak(8, 2, dev=True, tls=tls)
    assert all(result["done"][deed] > 10 for deed in DEEDS)
    assert result["last"]["limited"]["max_per_host"] > 5
    assert 0.05 < result["last"]["longest turn"] < 5
    assert result["done"]["bytes"] > 10_000_000
    assert result["last"]["logged"].keys() == {"ngi_gevent.connection", "ngi_gevent.listener"}
