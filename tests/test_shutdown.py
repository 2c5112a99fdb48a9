"""The example server, stopped while it is busy: no client with an answer that has begun loses anything.

What holds until the close timeout: every request of which a client got a part of the answer is answered in whole, and
every client whose connection was made before the server's socket is closed is served.  The exception is one that the
kernel leaves no way around: who connects in the few microseconds between the server's last look at its queue and the
close is reset, having got nothing, as if it had been refused.  These are counted, and there may be few.
"""

from __future__ import annotations

import time

import pytest
from load import Load
from programs import Server
from test_echo_server import running

#: How often it is stopped under load.
ROUNDS = 25


def load_on(server: Server, **clients: int) -> Load:
    return Load(("127.0.0.1", server.port), **clients)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stopped_under_load_it_finishes_what_it_began():
    refused = 0
    for _ in range(ROUNDS):
        with running() as server:
            load = load_on(server)
            load.wait_for(150)
            began = time.monotonic()
            server.stop()
            assert server.end() == (0, "stopped, ending 0 connections\n", "")
            assert time.monotonic() - began < 5
            load.join()
            assert load.wrong == []
            refused += load.refused
    assert refused < ROUNDS / 3


@pytest.mark.slow
def test_stopped_under_load_it_ends_those_that_stay_when_their_time_is_over_and_not_before():
    with running("--close-timeout", "1") as server:
        load = load_on(server, stay=4)
        load.wait_for(300)
        began = time.monotonic()
        server.stop()
        assert server.end() == (0, "stopped, ending 4 connections\n", "")
        assert 1 <= time.monotonic() - began < 4
        load.join()
        assert load.wrong == []
        assert len(load.ended) == 4
        assert min(load.ended) >= began + 1
