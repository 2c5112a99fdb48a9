"""A client that reconnects: its pauses and its ends, in memory, on sockets, and in simulations."""

from __future__ import annotations

import random
import threading
from itertools import pairwise

import gevent
import pytest
from stages import PATIENCE, Witness

import ngi_gevent
from ngi_gevent import testing
from ngi_gevent.core import clock
from ngi_gevent.reconnecting import FIRST_PAUSE, LONGEST_PAUSE, Backoff, reconnecting

#: The longest time for data between two hosts of a simulation, there and back, in seconds.
ROUND_TRIP = 0.01


class Client(testing.Recorder):
    """A client that records its connections and failures, with their times."""

    def __init__(self):
        super().__init__()
        self.connected_at = []
        self.failures = []
        self.reasons = []

    def connected(self, connection):
        self.connected_at.append(clock.now())
        super().connected(connection)

    def failed_connect(self, reason):
        self.failures.append((clock.now(), reason))
        self._wake()

    def handle_close(self, connection, reason):
        self.reasons.append(reason)
        super().handle_close(connection, reason)


def begin(simulation, client, serve=testing.Recorder, **options):
    """Start *serve* on one host, and connect *client* from another.  Return both hosts, and the reconnecting client."""
    simulation.set_links(latency=0.001)
    server = simulation.host("server", lambda host: host.listener(("server", 8000), serve))
    host = simulation.host("client")
    gevent.sleep(0.1)
    backoff = Backoff(random=random.Random(simulation.seed), **options)
    return server, host, reconnecting(host.connect, ("server", 8000), client, backoff)


def test_a_client_reconnects_after_a_crash_of_its_server(simulation):
    client = Client()
    server, _, _ = begin(simulation, client, longest=4)
    for count in range(1, 4):
        gevent.sleep(10)
        assert len(client.connected_at) == count
        server.crash()
        gevent.sleep(20)
        server.restart()
    gevent.sleep(10)
    assert len(client.connected_at) == 4
    assert [type(reason) for reason in client.reasons] == [ConnectionResetError] * 3
    assert {type(reason) for _, reason in client.failures} == {ConnectionRefusedError}


def test_pauses_double_up_to_the_longest_and_are_shortened_at_random(simulation):
    client = Client()
    server, _, _ = begin(simulation, client)
    gevent.sleep(10)
    crashed = clock.now()
    server.crash()
    gevent.sleep(1000)
    times = [crashed, *(time for time, _ in client.failures)]
    pauses = [after - before for before, after in pairwise(times)]
    assert len(pauses) > 20
    for number, pause in enumerate(pauses):
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)
        assert longest / 2 <= pause <= longest + ROUND_TRIP
    last = [pause / LONGEST_PAUSE for pause in pauses[8:]]
    assert max(last) - min(last) > 0.2


def test_a_partition_ends_attempts_until_it_is_healed(simulation):
    client = Client()
    server, host, _ = begin(simulation, client, longest=5)
    gevent.sleep(1)
    simulation.partition(host, server)
    client.connection.write(b"lost")
    client.connection.abort()
    gevent.sleep(300)
    assert {type(reason) for _, reason in client.failures} == {ngi_gevent.ConnectionTimeout}
    simulation.heal(host, server)
    gevent.sleep(70)
    assert len(client.connected_at) == 2
    client.connection.write(b"found")
    gevent.sleep(1)
    assert client.connection


def test_pauses_grow_if_the_server_closes_each_connection_at_once(simulation):
    def serve(connection):
        connection.set_handler(testing.Recorder())
        if lasts:
            gevent.sleep(lasts)
        connection.close()

    lasts = 0
    client = Client()
    begin(simulation, client, serve, longest=60)
    gevent.sleep(200)
    assert len(client.connected_at) < 12
    before = client.connected_at[-1] - client.connected_at[-2]
    assert before > 15
    lasts = 90  # seconds, which is longer than any pause
    gevent.sleep(1000)
    pauses = [after - since for since, after in pairwise(client.connected_at)]
    assert all(pause < 90 + FIRST_PAUSE + ROUND_TRIP for pause in pauses[-3:])
    assert client.failures == []


def test_a_crashed_host_reconnects_only_after_its_restart(simulation):
    def start(host):
        reconnecting(host.connect, ("server", 8000), clients[-1], Backoff(random=random.Random(1)))

    clients = [Client()]
    simulation.host("server").listener(("server", 8000), testing.Recorder)
    host = simulation.host("client", start)
    gevent.sleep(1)
    host.crash()
    gevent.sleep(100)
    clients.append(Client())
    host.restart()
    gevent.sleep(1)
    assert [len(client.connected_at) for client in clients] == [1, 1]


def test_equal_random_numbers_lead_to_equal_pauses():
    pauses = [
        [Backoff(random=random.Random(seed))(failures) for failures in [*range(1, 20), 5000]] for seed in (1, 1, 2)
    ]
    assert pauses[0] == pauses[1] != pauses[2]


def test_in_memory_reconnecting_waits_for_a_listener(ngi):
    client = Client()
    listener = ngi.listener("server", testing.Recorder)
    again = reconnecting(ngi.connect, "server", client)
    for connection in listener.connections():
        connection.close()
    assert len(client.connected_at) == 2
    listener.close()
    assert len(client.connected_at) == 2
    with pytest.raises(ngi_gevent.Timeout, match="DelayedAttempt to 'server'"):
        ngi.wait()
    listener = ngi.listener("server", testing.Recorder)
    assert len(client.connected_at) == 3
    listener.close()
    ngi.connectable("server", testing.Connection())
    assert len(client.connected_at) == 4
    again.stop()
    client.connection.close()
    ngi.wait()
    assert client.failures == []


def test_in_memory_endless_reconnecting_is_stopped(ngi):
    listener = ngi.listener("server", lambda connection: connection.close())
    with pytest.raises(ngi_gevent.NGIError, match="reconnected to 'server' forever"):
        reconnecting(ngi.connect, "server", Client())
    ngi.close()
    listener.close()


def test_each_attempt_to_an_address_without_a_listener_fails(ngi_implementation):
    ngi = ngi_implementation
    listener = ngi.listener(None, testing.Recorder)
    listener.close()
    client = Client()
    again = reconnecting(ngi.connect, listener.address, client, lambda failures: 0.001 * failures)
    client.wait_until(lambda: client.failures)
    back = ngi.listener(listener.address, testing.Recorder)
    client.wait_until(lambda: client.connected_at)
    again.stop()
    back.close()
    client.wait_until(lambda: client.gone)
    assert "stopped" in repr(again)
    assert len(client.connected_at) == 1


@pytest.mark.parametrize("moment", ["pausing", "connecting", "connected", "in failed_connect"])
def test_stop_ends_reconnecting_at_any_moment(stage, moment):
    class Stopping(Witness):
        def failed_connect(self, reason):
            if moment == "in failed_connect" and again is not None:  # in memory, reconnecting has not returned yet
                again.stop()
            super().failed_connect(reason)

    listener = stage.listen()
    client = Stopping(stage)
    again = None
    if moment in ("pausing", "in failed_connect"):
        listener.close()
    again = reconnecting(stage.implementation.connect, listener.address, client, lambda failures: 1000)
    if moment in ("pausing", "in failed_connect"):
        stage.until(lambda: client.failed)
    elif moment == "connected":
        stage.until(lambda: client.connection)
    again.stop()
    again.stop()
    if client.connection is not None:
        client.connection.close()
    listener.close()
    stage.implementation.wait(PATIENCE)
    assert client.failed != "stopped"


def test_a_handler_that_raises_is_logged_and_the_client_reconnects(stage, caplog):
    class Failing(Witness):
        def failed_connect(self, reason):
            super().failed_connect(reason)
            raise ValueError("in failed_connect")

        def connected(self, connection):
            super().connected(connection)
            count.append(1)
            if len(count) == 1:
                raise ValueError("in connected")

    count = []
    listener = stage.listen()
    listener.close()
    client = Failing(stage)
    again = reconnecting(stage.implementation.connect, listener.address, client, lambda failures: 0.001)
    stage.until(lambda: client.failed)
    stage.listeners.append(stage.implementation.listener(listener.address, stage.server()))
    stage.until(lambda: len(count) == 2)
    again.stop()
    assert {str(record.exc_info[1]) for record in caplog.records} == {"in failed_connect", "in connected"}


def test_closing_the_implementation_ends_a_pause(stage):
    listener = stage.listen()
    listener.close()
    client = Witness(stage)
    again = reconnecting(stage.implementation.connect, listener.address, client, lambda failures: 1000)
    stage.until(lambda: client.failed)
    stage.implementation.close()
    stage.until(lambda: client.failed == "stopped")
    stage.implementation.wait(PATIENCE)
    stage.implementation = stage.make()
    assert "stopped" in repr(again)


def test_an_invalid_pause_is_logged_and_ends_reconnecting(stage, caplog):
    client = Witness(stage)
    listener = stage.listen()
    again = reconnecting(stage.implementation.connect, listener.address, client, lambda failures: float("inf"))
    stage.until(lambda: client.connection)
    client.connection.close()
    stage.until(lambda: caplog.records)
    assert str(caplog.records[0].exc_info[1]) == (
        "the pause that backoff returns must be a finite number of seconds; got inf"
    )
    assert "stopped" in repr(again)


def test_a_threaded_waits_for_reconnecting_and_any_thread_can_stop_it():
    client, served = Client(), testing.Recorder()
    with ngi_gevent.Threaded() as other, ngi_gevent.Threaded() as implementation:
        listener = other.listener(None, served.connected)
        again = reconnecting(implementation.connect, listener.address, client, lambda failures: 0.005)
        client.wait_connected()
        waiting = threading.Thread(target=implementation.wait, args=[PATIENCE])
        waiting.start()
        served.wait_connected().close()  # for a moment, nothing is pending
        client.wait_until(lambda: len(client.connected_at) == 2)
        listener.close()
        client.wait_until(lambda: len(client.failures) > 2)
        assert waiting.is_alive()
        again.stop()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, "address", Client()), TypeError, "connect must be callable; got None"),
        ((print, "address", None), TypeError, "client connect handler"),
        ((print, "address", Client(), 0.5), TypeError, "backoff must be callable; got 0.5"),
        (
            (print, "address", Client(), Backoff),
            TypeError,
            r"; pass Backoff\(\), not the class Backoff$",
        ),
        ((ngi_gevent.connect, 8000, Client()), TypeError, "8000"),
    ],
)
def test_bad_input_is_refused_at_the_call(arguments, error, message):
    with pytest.raises(error, match=message):
        reconnecting(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"first": 0}, ValueError, "first must be over 0 and at most longest; got first=0"),
        ({"first": 70}, ValueError, "got first=70, longest=60"),
        ({"first": "1"}, TypeError, "first"),
        ({"longest": float("inf")}, ValueError, "longest must be a finite number of seconds; got inf"),
        ({"longest": None}, ValueError, "longest must be a finite number of seconds; got None"),
        ({"random": random.Random}, TypeError, "random must be an object"),
        ({"random": 1}, TypeError, "random must be an object such as random\\.Random\\(\\), or None; got 1"),
    ],
)
def test_invalid_options_of_a_backoff_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Backoff(**options)
