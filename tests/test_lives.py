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


def test_output_that_the_kernel_has_is_not_lost_if_the_peer_does_not_read_for_a_while_and_goes_on_sending():
    """Seed 210 of the lives.  The linger took a second without input for the end, though the kernel had output left."""
    with Simulation() as simulation:
        server, client = simulation.host("server"), simulation.host("client")
        served, reader = testing.Recorder(), testing.Recorder()
        server.listener(("server", 80), served.connected)
        client.connect(("server", 80), reader)
        reader.wait_connected().pause_reading()
        served.wait_connected().write(b"x" * 200_000)
        served.connection.close()
        gevent.sleep(5)
        reader.connection.write(b"more")
        gevent.sleep(5)
        reader.connection.resume_reading()
        reader.wait_closed()
        assert len(reader.data) == 200_000


def test_a_peer_that_never_takes_what_the_kernel_has_is_reset_after_half_a_minute(caplog):
    caplog.set_level("INFO", "ngi_gevent.connection")
    with Simulation() as simulation:
        server, client = simulation.host("server"), simulation.host("client")
        served, reader = testing.Recorder(), testing.Recorder()
        server.listener(("server", 80), served.connected)
        client.connect(("server", 80), reader)
        reader.wait_connected().pause_reading()
        served.wait_connected().write(b"x" * 200_000)
        began = simulation.now()
        served.connection.close()
        served.wait_until(lambda: served.gone, 100)
        assert 30 <= simulation.now() - began < 33
        # Those, and the end, which the kernel counts as a byte.
        assert "broken off: 68929 bytes were left to send" in caplog.text
        reader.wait_until(lambda: reader.closed, 100)
        assert isinstance(reader.closed, ConnectionResetError)
