"""Random lives of connections in the simulation: no seed may break a rule.  Errors that they found have separate
tests.
"""

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


def test_output_in_the_kernel_is_not_lost_if_the_peer_sends_more_before_it_reads():
    """Seed 210 of the lives found this.  The linger considered a second without input the end, although the kernel had
    output.
    """
    with Simulation() as simulation:
        served, reader = write_to_one_that_does_not_read(simulation)
        served.connection.close()
        gevent.sleep(5)
        reader.connection.write(b"more")
        gevent.sleep(5)
        reader.connection.resume_reading()
        reader.wait_closed()
        assert len(reader.data) == 200_000


def test_the_kernel_still_delivers_if_the_peer_has_not_read_for_half_a_minute():
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
