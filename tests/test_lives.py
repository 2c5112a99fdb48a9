"""Random lives of connections in the simulation: no rule is broken under any seed; and what they have found."""

from __future__ import annotations

import gevent
import pytest
from lives import live

from ngi_gevent import testing
from ngi_gevent.testing.simulation import Simulation


@pytest.mark.parametrize("first", range(0, 40, 20))
def test_no_rule_is_broken(first):
    for seed in range(first, first + 20):
        live(seed)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(1000, 2000, 250))
def test_no_rule_is_broken_under_a_thousand_seeds(first):
    for seed in range(first, first + 250):
        live(seed)


def write_to_one_that_does_not_read(simulation):
    server, client = simulation.host("server"), simulation.host("client")
    served, reader = testing.Recorder(), testing.Recorder()
    server.listener(("server", 80), served.connected)
    client.connect(("server", 80), reader)
    reader.wait_connected().pause_reading()
    served.wait_connected().write(b"x" * 200_000)
    return served, reader


def test_output_that_the_kernel_has_is_not_lost_if_the_peer_does_not_read_for_a_while_and_goes_on_sending():
    """Seed 210 of the lives.  The linger took a second without input for the end, though the kernel had output left."""
    with Simulation() as simulation:
        served, reader = write_to_one_that_does_not_read(simulation)
        served.connection.close()
        gevent.sleep(5)
        reader.connection.write(b"more")
        gevent.sleep(5)
        reader.connection.resume_reading()
        reader.wait_closed()
        assert len(reader.data) == 200_000


def test_the_kernel_goes_on_delivering_once_the_peer_has_taken_nothing_for_half_a_minute():
    with Simulation() as simulation:
        served, reader = write_to_one_that_does_not_read(simulation)
        began = simulation.now()
        served.connection.close()
        served.wait_until(lambda: served.gone, 100)
        assert 30 <= simulation.now() - began < 33
        gevent.sleep(100)
        reader.connection.resume_reading()
        assert reader.wait_closed() == "end of input"
        assert len(reader.data) == 200_000
