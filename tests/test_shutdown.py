"""The example server, stopped while it is busy: each client receives all of an answer that has begun.

Both rules hold until the close timeout.  If a client has received a part of an answer, it receives the whole answer.
If a client connects before the server closes its socket, it is served.

The kernel makes one exception unavoidable.  It resets a client that connects in the few microseconds between the last
check of the queue and the close.  That client has received nothing, as if it had been refused.  These clients are
counted, and few are allowed.
"""

from __future__ import annotations

import time

import pytest
from load import Load
from programs import Server
from test_echo_server import running

#: How often the server is stopped under load.
ROUNDS = 25


def load_on(server: Server, **clients: int) -> Load:
    return Load(("127.0.0.1", server.port), **clients)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_stopped_under_load_completes_each_answer_that_has_begun():
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
def test_a_server_stopped_under_load_ends_remaining_clients_at_the_close_timeout():
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
