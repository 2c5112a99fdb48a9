"""The counters of listeners: the counts, the log entries, and the output for Prometheus."""

from __future__ import annotations

import itertools
import logging
import re
import socket
import struct
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.socket
import pytest
from stages import PATIENCE, ThreadedStage, UnixStage, Witness, in_thread

import ngi_gevent
from ngi_gevent import Limits, metrics
from ngi_gevent.core.counters import LIMITS
from ngi_gevent.core.threads import Flag
from ngi_gevent.sockets import acceptor, network, watchdog
from ngi_gevent.testing.contract import playing


class Echo(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


def echo(stage: Any, client: Any, data: bytes) -> None:
    """Send *data*, and wait for the answer."""
    size = client.size + len(data)
    client.connection.write(data)
    stage.until(lambda: client.size == size)


# Bytes.


def bytes_of(listener: Any) -> tuple[int | None, int | None]:
    return listener.metrics().bytes_received, listener.metrics().bytes_sent


@pytest.mark.parametrize("kind", ["tcp", "simulated"])
@pytest.mark.parametrize("end", ["by the client", "by the server", "after write_eof", "abort of the server"])
def test_bytes_are_counted_exactly_while_a_connection_is_open_and_after_its_end(request, kind, end):
    stage = request.getfixturevalue(kind)
    listener = stage.listen(Echo)
    for count in 1, 2, 3:
        client = stage.client(listener)
        echo(stage, client, b"hello")
        echo(stage, client, b"x" * 20_000)
        assert bytes_of(listener) == (20_005 * count, 20_005 * count)
        server = stage.served[-1].connection
        if end == "by the client":
            client.connection.close()
        elif end == "by the server":
            server.close()
        elif end == "after write_eof":
            server.write_eof()
            stage.until(lambda client=client: client.closed)
        else:
            server.abort()
        stage.until(lambda: listener.metrics().open == 0)
        assert bytes_of(listener) == (20_005 * count, 20_005 * count)


def test_an_answer_just_before_the_end_of_its_connection_is_counted(tcp):
    """The peer has not acknowledged the answer when the socket is closed."""
    listener = tcp.listen(Echo)
    for _ in range(20):
        with socket.create_connection(listener.address) as client:  # a blocking socket that is never read
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            tcp.until(lambda: tcp.served and tcp.served[-1].closed)
            tcp.until(lambda: listener.metrics().open == 0)
        tcp.served.clear()
    assert bytes_of(listener) == (100, 100)


def test_an_end_of_input_that_is_pending_is_not_counted_as_a_byte(tcp):
    listener = tcp.listen(Echo)
    client = tcp.client(listener)
    echo(tcp, client, b"hello")
    server = tcp.served[0]
    server.connection.pause_reading()
    client.connection.close()
    tcp.until(lambda: server.connection._transport.peer_has_finished())
    assert bytes_of(listener) == (5, 5)
    server.connection.resume_reading()
    tcp.until(lambda: server.closed)
    assert bytes_of(listener) == (5, 5)


def test_a_reset_is_not_counted_as_a_byte_even_after_the_end_of_output(tcp):
    listener = tcp.listen(Echo)
    with gevent.socket.create_connection(listener.address) as client:
        client.sendall(b"hello")
        tcp.until(lambda: tcp.served and tcp.served[0].size == 5)
        tcp.served[0].connection.write_eof()
        answer = client.recv(5)
        while data := client.recv(5):
            answer += data
        assert answer == b"HELLO"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.until(lambda: tcp.served[0].closed)
    assert listener.metrics().bytes_received == 5


def test_no_connection_counts_twice_while_it_ends(tcp, monkeypatch):
    """Other threads can read the counters at any moment.  Prometheus takes a smaller sum for a restarted counter."""
    told = []

    def close(network, sock):
        told.append(bytes_of(listener))
        original(network, sock)

    listener = tcp.listen(Echo)
    original = network.Network.close
    monkeypatch.setattr(network.Network, "close", close)
    for count in 1, 2:
        client = tcp.client(listener)
        echo(tcp, client, b"hello")
        client.connection.close()
        tcp.until(lambda count=count: len(told) == 2 * count)  # one close for each side
    assert {received for received, _ in told} == {5, 10}
    assert told == sorted(told)


def test_bytes_never_decrease(tcp, monkeypatch):
    listener = tcp.listen(Echo)
    echo(tcp, tcp.client(listener), b"hello")
    assert bytes_of(listener) == (5, 5)
    # This is the moment before the connection's bytes are added to the bytes of ended connections.
    monkeypatch.setattr(type(tcp.served[0].connection), "traffic", lambda connection: (0, 0))
    assert bytes_of(listener) == (5, 5)


def test_bytes_of_tls_are_counted_as_sent_over_the_network(tls):
    listener = tls.listen(Echo)
    client = tls.client(listener)
    tls.until(lambda: tls.served)
    received, sent = bytes_of(listener)
    assert received > 200
    assert sent > 500  # including a certificate
    echo(tls, client, b"x" * 1000)
    assert [after - before for after, before in zip(bytes_of(listener), (received, sent), strict=True)] == [1022, 1022]


def test_bytes_over_unix_sockets_are_not_counted(folder):
    for stage in playing(UnixStage, folder):
        listener = stage.listen(Echo)
        echo(stage, stage.client(listener), b"hello")
        assert bytes_of(listener) == (None, None)


def test_bytes_in_memory_and_times_in_a_simulation_are_unknown(simulated):
    listener = ngi_gevent.testing.Implementation().listener(None, Echo, slow_callback=1)
    assert listener.metrics()[6:8] == (None, None)
    assert listener.metrics()[9:] == (None, None)
    threads = threading.active_count()
    assert simulated.listen(Echo, slow_callback=1).metrics()[9:] == (None, None)
    assert threading.active_count() == threads


# Limits.


def limited(listener: Any) -> dict[str, int]:
    """Return the limits that have had an effect, and how often."""
    assert set(listener.metrics().limited) == set(LIMITS)
    return {name: count for name, count in listener.metrics().limited.items() if count}


def test_each_limit_is_counted(simulated):
    full = simulated.listen(Echo, max_connections=1)
    clients = [simulated.client(full) for _ in range(3)]
    gevent.sleep(2 * acceptor.QUIET)
    assert limited(full) == {"max_connections": 1}
    for client in clients:
        client.connection.abort()
    gevent.sleep(3 * acceptor.QUIET)
    again = [simulated.client(full) for _ in range(2)]
    gevent.sleep(1)
    assert limited(full) == {"max_connections": 2}
    assert all(client.connection for client in again)

    of_host = simulated.listen(Echo, limits=Limits(max_per_host=1))
    for _ in range(3):
        simulated.client(of_host)
    gevent.sleep(1)
    assert limited(of_host) == {"max_per_host": 2}
    assert of_host.metrics()[1:3] == (1, 3)

    short = simulated.listen(Echo, limits=Limits(max_lifetime=60))
    simulated.client(short)
    simulated.client(short).connection.close()  # before its maximum lifetime
    gevent.sleep(61)
    assert limited(short) == {"max_lifetime": 1}
    assert short.metrics().ended == {"end of input": 1, "Timeout": 1}


def test_a_refusal_by_the_kernel_is_counted(simulated):
    server = simulated.simulation.host("server", max_descriptors=3)
    listener = server.listener(("server", 80), simulated.server(Echo), max_connections=20)
    for _ in range(5):
        simulated.implementation.connect(listener.address, Witness(simulated))
    gevent.sleep(10)
    assert limited(listener) == {"system": 1}
    server.close()


def test_handshakes_are_counted(tls):
    listener = tls.listen(Echo, handshake_timeout=0.1, limits=Limits(max_handshakes=1))
    with ExitStack() as sockets:
        for _ in range(3):
            sockets.enter_context(gevent.socket.create_connection(listener.address))
        with gevent.Timeout(PATIENCE):
            while listener.metrics().failed_handshakes < 3:
                gevent.sleep(0.005)
    metrics = listener.metrics()
    assert (metrics.accepted, metrics.failed_handshakes, metrics.ended) == (3, 3, {})
    assert limited(listener) == {"max_handshakes": 1}


# Threads.


def test_the_counters_can_be_read_while_a_callback_blocks_the_hub(folder):
    class Blocks(Witness):
        def handle_input(self, connection, data):
            entered.set()
            assert go_on.acquire(timeout=PATIENCE)  # blocks the thread

    entered, go_on = Flag(), threading.Lock()
    go_on.acquire()
    for stage in playing(ThreadedStage, folder):
        listener = stage.listen(Blocks)
        stage.client(listener).connection.write(b"hello")
        assert entered.wait(PATIENCE)
        try:
            found = listener.metrics()
        finally:
            go_on.release()
        assert (found.open, found.bytes_received) == (1, 5)


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="the system has no clock for a thread")
def test_the_processor_time_is_measured_on_the_hubs_thread(folder):
    class Computes(Witness):
        def handle_input(self, connection, data):
            began = time.thread_time()
            while time.thread_time() < began + 0.03:
                pass
            connection.write(data)

    for stage in playing(ThreadedStage, folder):
        listener = stage.listen(Computes)
        client = stage.client(listener)
        before = listener.metrics().cpu_seconds
        began = time.thread_time()
        while time.thread_time() < began + 0.05:  # processor time of this thread, which is not the hub's
            pass
        echo(stage, client, b"?")
        assert listener.metrics().cpu_seconds - before >= 0.03


# Slow callbacks.


@pytest.fixture
def slow_lines(caplog):
    """A function that returns the log entries about slow callbacks so far."""
    return lambda: [message for message in caplog.messages if "has blocked the hub" in message]


class Blocking(Witness):
    """A handler that blocks the thread until the log has an entry about that."""

    def handle_input(self, connection, data):
        deadline = time.monotonic() + PATIENCE
        while not self.lines() and time.monotonic() < deadline:
            self.call_that_blocks()
        super().handle_input(connection, data)

    def call_that_blocks(self):
        time.sleep(0.001)


@pytest.mark.parametrize("kind", ["tcp", "threaded"])
def test_the_log_names_a_callback_that_blocks(folder, kind, slow_lines, caplog, request):
    class Blocks(Blocking):
        lines = staticmethod(slow_lines)

    stages = playing(ThreadedStage, folder) if kind == "threaded" else [request.getfixturevalue("tcp")]
    for stage in stages:
        listener = stage.listen(Blocks, slow_callback=0.05)
        assert listener.metrics().longest_turn == 0
        client = stage.client(listener)
        began = time.monotonic()
        client.connection.write(b"?")
        stage.until(lambda stage=stage: stage.served and stage.served[0].data)
        assert time.monotonic() - began > 0.05
        name = "handle_input" if sys.version_info < (3, 11) else "Blocking.handle_input"
        (line,) = slow_lines()
        pattern = (
            rf"{name} has blocked the hub for 0\.\d+ seconds \(slow_callback=0\.05\);"
            rf" now at {re.escape(__file__)}:\d+"
        )
        assert re.fullmatch(pattern, line)
        (record,) = (record for record in caplog.records if record.getMessage() == line)
        assert (record.name, record.levelname) == ("ngi_gevent.listener", "WARNING")
        assert listener.metrics().longest_turn >= 0.05


def test_a_call_that_keeps_other_threads_from_running_is_logged_after_it(tcp, slow_lines):
    class Computes(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            began = time.monotonic()
            while time.monotonic() < began + 0.1:
                sum(range(2_000_000))

    client = tcp.client(tcp.listen(Computes, slow_callback=0.05))
    deadline = time.monotonic() + PATIENCE
    while not slow_lines() and time.monotonic() < deadline:
        size = tcp.served[0].size if tcp.served else 0
        client.connection.write(b"?")
        tcp.until(lambda size=size: tcp.served and tcp.served[0].size > size)
    assert "handle_input" in slow_lines()[0]


def test_a_callback_that_waits_is_not_slow(tcp, slow_lines):
    class Waits(Witness):
        def handle_input(self, connection, data):
            gevent.sleep(0.1)
            super().handle_input(connection, data)

    listener = tcp.listen(Waits, slow_callback=0.05)
    client = tcp.client(listener)
    client.connection.write(b"?")
    gevent.sleep(0.1)  # idle time, which is not slow either
    tcp.until(lambda: tcp.served[0].data)
    # On a busy machine, another turn can be slow.
    assert not any("Waits" in line or "hub.py" in line for line in slow_lines())


def test_the_log_names_a_callback_that_blocks_for_long_only_once(tcp, slow_lines):
    class BlocksForLong(Witness):
        def handle_input(self, connection, data):
            time.sleep(0.2)
            super().handle_input(connection, data)

    tcp.client(tcp.listen(BlocksForLong, slow_callback=0.02)).connection.write(b"?")
    tcp.until(lambda: tcp.served and tcp.served[0].data)
    assert sum("BlocksForLong" in line or "handle_input" in line for line in slow_lines()) == 1


@pytest.mark.parametrize("clock", ["the clock was set", "the thread that watches had to wait"])
def test_many_short_turns_do_not_count_as_a_slow_one(tcp, slow_lines, monkeypatch, clock):
    def work():
        for _ in range(100):
            time.sleep(0.003)
            gevent.sleep(0.0001)

    looks = itertools.count()
    if clock == "the clock was set":
        clocks = SimpleNamespace(wall=lambda: time.time() + 86400, now=time.monotonic)
    else:
        clocks = SimpleNamespace(wall=time.time, now=lambda: next(looks))
    monkeypatch.setattr(watchdog, "clock", clocks)
    tcp.listen(Echo, slow_callback=0.1)
    gevent.spawn(work).join(PATIENCE)
    # On a busy machine, one turn can be slow, but not every turn.
    assert len(slow_lines()) <= 1


def is_watched() -> bool:
    """Return whether a thread watches any hub."""
    return any(frame.f_code is watchdog.Watchdog._run.__code__ for frame in sys._current_frames().values())


def wait_for_watching(is_expected: bool) -> None:
    with gevent.Timeout(PATIENCE):
        while is_watched() is not is_expected:
            gevent.sleep(0.005)


def test_the_watching_thread_ends_with_the_listener_and_its_last_connection(tcp):
    wait_for_watching(False)  # other tests' listeners are no longer watched
    listener = tcp.listen(Echo, slow_callback=0.01)
    client = tcp.client(listener)
    wait_for_watching(True)
    listener.close(lambda listener: None)
    gevent.sleep(0.02)
    assert is_watched()
    client.connection.close()
    wait_for_watching(False)


def test_a_listener_whose_watching_thread_cannot_start_leaves_nothing_open(tcp, monkeypatch):
    def start_new_thread(function, arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(watchdog, "start_new_thread", start_new_thread)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    with pytest.raises(RuntimeError):
        tcp.implementation.listener(address, Echo, slow_callback=1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_slow_turns_do_not_fill_the_log(tcp, slow_lines):
    class BlocksOften(Witness):
        def handle_input(self, connection, data):
            for _ in range(watchdog.MOST_SLOW + 5):
                time.sleep(0.02)
                gevent.sleep(0.001)
            super().handle_input(connection, data)

    tcp.client(tcp.listen(BlocksOften, slow_callback=0.005)).connection.write(b"?")
    tcp.until(lambda: tcp.served and tcp.served[0].data)
    assert len(slow_lines()) == watchdog.MOST_SLOW == 10


def test_a_slow_callback_is_named_by_the_first_function_of_the_application():
    def callback():
        return sys._getframe()

    frames = []
    gevent.spawn(lambda: frames.append(callback())).join()
    name, place = watchdog.describe(frames[0])
    assert "<lambda>" in name
    assert place == f"{__file__}:{callback.__code__.co_firstlineno + 1}"


# In the log.


def test_the_log_gets_the_counters_each_minute(simulated, caplog):
    caplog.set_level(logging.INFO)
    listener = simulated.listen(Echo, max_connections=2)
    logging_metrics = gevent.spawn(metrics.log_metrics, listener)
    clients = [simulated.client(listener) for _ in range(2)]
    echo(simulated, clients[0], b"hello")
    gevent.sleep(61)
    clients[0].connection.close()
    gevent.sleep(60)
    listener.close()
    gevent.sleep(60)
    assert logging_metrics.ready()
    began = f"listener on {listener.address!r} in 60.0 seconds: "
    rest = "0 times limited, 0 failed handshakes, "
    assert [message.removeprefix(began) for message in caplog.messages if message.startswith(began)] == [
        f"2 accepted, 0 ended, {rest}5 bytes received, 5 sent; now: 2 open, 0 bytes pending",
        f"0 accepted, 1 ended, {rest}0 bytes received, 0 sent; now: 1 open, 0 bytes pending",
        f"0 accepted, 1 ended, {rest}0 bytes received, 0 sent; now: 0 open, 0 bytes pending",
    ]


def test_a_thread_without_gevent_can_log_the_counters(tcp, caplog):
    caplog.set_level(logging.INFO)
    listener = tcp.listen(Echo)
    gevent.spawn_later(0.03, listener.close)
    in_thread(metrics.log_metrics, listener, 0.01)
    assert any("in 0.01 seconds: 0 accepted" in message for message in caplog.messages)


@pytest.mark.parametrize(("interval", "error"), [(0, ValueError), (-1, ValueError), ("60", TypeError)])
def test_an_impossible_interval_is_refused(tcp, interval, error):
    with pytest.raises(error, match="interval"):
        metrics.log_metrics(tcp.listen(Echo), interval)


def test_only_listeners_of_connections_have_metrics_to_log(tcp):
    datagrams = tcp.implementation.udp_listener(None, print)
    for wrong in None, datagrams:
        with pytest.raises(TypeError, match="only listeners of connections have metrics; got"):
            metrics.log_metrics(wrong)
    datagrams.close()


# For Prometheus.


def scrape(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("ngi_gevent_")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@pytest.mark.slow
def test_prometheus_scrapes_the_counters_over_http(tcp):
    """The client is a real one, on another thread.  Data from a peer does not become a label."""
    prometheus_client = pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")

    class Fails(Echo):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.fail(data.decode())

    listeners = {"echo": tcp.listen(Echo, slow_callback=10), "fails": tcp.listen(Fails)}
    registry = prometheus_client.CollectorRegistry()
    registry.register(metrics.Collector(listeners))
    echo(tcp, tcp.client(listeners["echo"]), b"hello")
    client = tcp.client(listeners["fails"])
    client.connection.write(b'injected"} 1')
    tcp.until(lambda: client.closed)
    tcp.until(lambda: listeners["fails"].metrics().open == 0)
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
    try:
        found = in_thread(scrape, f"http://127.0.0.1:{server.server_port}/metrics")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert found['ngi_gevent_accepted_total{listener="echo"}'] == 1
    assert found['ngi_gevent_connections{listener="echo"}'] == 1
    assert found['ngi_gevent_accepting{listener="echo"}'] == 1
    assert found['ngi_gevent_received_bytes_total{listener="echo"}'] == 5
    assert found['ngi_gevent_sent_bytes_total{listener="echo"}'] == 5
    assert found['ngi_gevent_pending_bytes{listener="echo"}'] == 0
    assert found['ngi_gevent_limited_total{limit="max_per_host",listener="echo"}'] == 0
    assert found['ngi_gevent_longest_turn_seconds{listener="echo"}'] == 0
    assert found['ngi_gevent_cpu_seconds_total{listener="echo"}'] > 0
    assert found['ngi_gevent_failed_handshakes_total{listener="echo"}'] == 0
    assert found['ngi_gevent_ended_total{listener="fails",reason="failed"}'] == 1
    assert 'ngi_gevent_longest_turn_seconds{listener="fails"}' not in found
    assert not any("injected" in name for name in found)
    labels = {name.partition("{")[2] for name in found}
    assert all('listener="echo"' in label or 'listener="fails"' in label for label in labels)


@pytest.mark.slow
def test_a_collector_requires_names_and_listeners(tcp):
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    for wrong in [tcp.listen(Echo)], {1: tcp.listen(Echo)}, tcp.listen(Echo):
        with pytest.raises(TypeError, match="listeners must be a mapping of names to listeners; got"):
            metrics.Collector(wrong)
    with pytest.raises(TypeError, match="only listeners of connections have metrics; got None"):
        metrics.Collector({"echo": None})
