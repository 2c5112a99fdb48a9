"""From closing to closed: the input that a closed connection discards, and the events that it waits for."""

from __future__ import annotations

import gc
import threading
import weakref

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from stages import PATIENCE, Witness

import ngi_gevent
from ngi_gevent.core import clock
from ngi_gevent.core.threads import Flag
from ngi_gevent.sockets import hub_registry, linger
from ngi_gevent.testing.contract.simulated import BlockingSocket


class Waiting(Witness):
    """Answers with an iterator that waits forever, and records when it is closed."""

    released = False

    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.writelines(self.answer())
        if data == b"close":
            connection.close()

    def answer(self):
        try:
            yield b"first"
            Event().wait()
        finally:
            self.released = True
            self.stage.happened()


@pytest.mark.parametrize("ended_by", ["the peer", "both"])
def test_a_peer_that_finishes_and_then_resets_is_detected_while_an_iterator_waits(simulated, ended_by):
    peer = simulated.peer(simulated.listen(Waiting, max_connections=1))
    peer.send(b"close" if ended_by == "both" else b"x")
    peer.finish()
    gevent.sleep(0.1)
    served = simulated.served[0]
    assert served.connection._lifecycle.input_is_over
    assert not served.connection.is_reading()  # otherwise the end of input would wake the loop again and again
    gevent.sleep(1000)
    assert not served.released
    reset_at = simulated.simulation.now()
    peer.reset()
    simulated.until(lambda: served.released and served.gone)
    assert simulated.simulation.now() - reset_at <= linger.CHECK_INTERVAL
    assert served.closed == (None if ended_by == "both" else "end of input")
    assert simulated.client(simulated.listeners[0]).connection  # the listener has room for another client


def test_a_peer_that_finishes_and_waits_is_not_considered_gone(simulated):
    go_on = Event()

    class Server(Witness):
        def handle_input(self, connection, data):
            connection.writelines(self.answer())

        def answer(self):
            yield b"first"
            go_on.wait()
            yield b"last"

    peer = simulated.peer(simulated.listen(Server))
    peer.send(b"x")
    peer.finish()
    peer.read()
    gevent.sleep(20.5)  # time for twenty checks
    go_on.set()
    simulated.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"firstlast", "end")


class Goodbye(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(b"413 too large")
        connection.close()


def logged_resets(caplog):
    """Return the log entries at INFO about connections that were reset."""
    entries = [record for record in caplog.records if record.levelname == "INFO"]
    return [record.getMessage() for record in entries if " reset: " in record.getMessage()]


def test_the_input_that_a_closed_connection_discards_is_bounded(simulated, caplog):
    """A peer that sends endlessly is throttled, and reset in the end.  This is logged, because the peer may lose the
    answer.
    """
    caplog.set_level("INFO", logger="ngi_gevent.connection")
    listener = simulated.listen(Goodbye)
    peer, began, sent = simulated.peer(listener).socket, simulated.simulation.now(), 0
    with pytest.raises(ConnectionError):
        while True:
            peer.sendall(bytes(65536))
            sent += 65536
    assert simulated.simulation.now() - began == pytest.approx(linger.DISCARD_TIMEOUT, abs=1.1)
    rate = linger.DISCARD_SIZE / linger.DISCARD_PAUSE
    assert sent == pytest.approx(rate * linger.DISCARD_TIMEOUT, rel=0.05)
    simulated.until(lambda: simulated.served[0].gone)
    gevent.idle()
    address = simulated.served[0].connection.peer_address
    assert logged_resets(caplog) == [
        f"connection with {address!r} reset: still sending 30 seconds after the end of the output, which may be lost"
    ]


@pytest.mark.parametrize(("linger_timeout", "silent_for"), [(1, 2), (None, 29)])
def test_a_peer_that_has_stopped_sending_is_not_reset(simulated, caplog, linger_timeout, silent_for):
    caplog.set_level("INFO", logger="ngi_gevent.connection")
    peer = simulated.peer(simulated.listen(Goodbye, linger_timeout=linger_timeout)).socket
    peer.sendall(b"x")
    gevent.sleep(0.5)
    peer.sendall(b"more")
    gevent.sleep(silent_for + 1)
    simulated.until(lambda: simulated.served[0].gone)
    gevent.idle()
    assert simulated.served[0].connection._lifecycle.state == "closed"
    assert logged_resets(caplog) == []


def test_a_large_upload_that_was_answered_early_is_discarded_to_its_end(simulated):
    """The upload takes longer than a closed connection waits for input."""
    peer = simulated.peer(simulated.listen(Goodbye)).socket
    for _ in range(25):
        peer.sendall(bytes(10_000))
        gevent.sleep(0.9)
    peer.shutdown(gevent.socket.SHUT_WR)
    assert peer.recv(100) == b"413 too large"
    simulated.until(lambda: simulated.served[0].gone)
    assert simulated.served[0].closed is None


def test_discarding_pauses_after_much_input_and_then_continues(simulated):
    """The connection detects the end of input only if it discards the input before the end."""
    peer = simulated.peer(simulated.listen(Goodbye))
    peer.send(b"x")
    peer.read()
    simulated.until(lambda: peer.ended)
    began = simulated.simulation.now()
    peer.send(bytes(4 * linger.DISCARD_SIZE + 1))
    peer.finish()
    simulated.until(lambda: simulated.served[0].gone)
    assert simulated.simulation.now() - began == pytest.approx(4 * linger.DISCARD_PAUSE, abs=0.01)


def test_a_reset_by_the_peer_ends_the_discarding(tcp, capfd):
    peer = tcp.peer(tcp.listen(Goodbye, linger_timeout=None))
    peer.send(b"x")
    peer.read()
    tcp.until(lambda: peer.ended)
    peer.reset()
    tcp.until(lambda: tcp.served[0].gone)
    assert capfd.readouterr().err == ""


def test_a_peer_that_first_sends_and_then_reads_gets_its_whole_answer(simulated):
    """Before it reads, it sends for longer than a closed connection waits for input."""

    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.write(bytes(1_000_000))
            connection.close()

    received = 0
    peer = simulated.peer(simulated.listen(Answer)).socket
    for _ in range(12):
        peer.sendall(bytes(1000))
        gevent.sleep(0.9)
    while data := peer.recv(65536):
        received += len(data)
    assert received == 1_000_000


@pytest.mark.parametrize("first", ["the closed connection", "the other"])
def test_a_connection_that_another_handler_closes_in_the_turn_of_its_input_discards_it(tcp, first):
    """The connection's own handler is blocked.  The dispatcher must not mistake the linger's watcher for the
    greenlet's.
    """

    class Server(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"block":
                release.wait()
            elif data == b"close":
                blocked.connection.close()

    release = Event()
    listener = tcp.listen(Server, linger_timeout=None)
    with (
        gevent.socket.create_connection(listener.address) as peer,
        gevent.socket.create_connection(listener.address) as other,
    ):
        peer.sendall(b"block")
        tcp.until(lambda: len(tcp.served) == 2 and any(served.data for served in tcp.served))
        blocked = next(served for served in tcp.served if served.data)
        gevent.sleep(0.001)  # a turn without input, after which epoll reports both sockets in the order of their input
        sending = [(peer, b"more"), (other, b"close")]
        for sock, data in sending if first == "the closed connection" else reversed(sending):
            sock.sendall(data)
        tcp.until(lambda: not blocked.connection)
        peer.shutdown(gevent.socket.SHUT_WR)
        with gevent.Timeout(PATIENCE):
            while blocked.connection._lifecycle.state != "closed":
                gevent.sleep(0.001)
        release.set()
    tcp.until(lambda: blocked.gone)


def test_if_memory_is_too_short_to_discard_input_the_connection_ends(tcp, capfd):
    """Otherwise the error would occur again in every turn of the loop."""

    def no_memory(size):
        raise MemoryError

    peer = tcp.peer(tcp.listen(Goodbye))
    peer.send(b"x")
    tcp.until(lambda: tcp.served and tcp.served[0].data)
    connection = tcp.served[0].connection
    connection._transport.recv = no_memory
    peer.send(b"more")
    tcp.until(lambda: tcp.served[0].gone)
    assert capfd.readouterr().err.count("\nMemoryError\n") == 1


def closed_with(stage, iterable, close):
    """Make a server write *iterable* and close its connection, then call *close*.  Return the peer, and an event for
    the end.
    """

    def serve(connection):
        connection.when_closed(gone.set)
        connection.writelines(iterable)
        connection.close()
        connections.append(connection)
        stage.happened()

    connections, gone = [], Event()
    peer = stage.peer(stage.listen(serve))
    peer.read()
    stage.until(lambda: connections)
    close()
    return peer, gone


@pytest.mark.parametrize("what", ["listener", "implementation"])
def test_an_iterable_that_yields_nothing_ends_with_its_listener(simulated, what):
    """It is closed on a greenlet that can block, and the peer's connection is reset, because the answer is
    incomplete.
    """
    ended = Event()

    def hang():
        try:
            yield b"first"
            Event().wait()
        finally:
            gevent.sleep(0.001)
            ended.set()

    def close():
        (simulated.listeners[0] if what == "listener" else simulated.implementation).close()

    peer, gone = closed_with(simulated, hang(), close)
    assert gone.wait(1000)
    assert simulated.simulation.now() == pytest.approx(linger.SEND_TIMEOUT, abs=0.01)
    assert ended.wait(1000)
    simulated.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"first", "broken")


def test_an_iterable_that_continues_to_yield_is_delivered_after_its_listener_was_closed(simulated):
    def trickle():
        for _ in range(4):
            gevent.sleep(29)
            yield b"x"
        yield b"the last"

    peer, gone = closed_with(simulated, trickle(), lambda: simulated.listeners[0].close())
    simulated.until(lambda: peer.ended)
    peer.close()
    assert gone.wait(1000)
    assert (peer.received, peer.ended) == (b"xxxxthe last", "end")


def test_a_listener_closes_although_another_thread_has_just_aborted_a_lingering_connection(tcp):
    listener = tcp.listen()
    peers = [tcp.peer(listener) for _ in range(2)]
    tcp.until(lambda: len(tcp.served) == 2)
    tcp.served[1].connection.close()
    other_thread = threading.Thread(target=tcp.served[1].connection.abort)
    other_thread.start()
    other_thread.join()  # the loop has not run: the call is made when the listener stops the first connection
    listener.close()
    for peer in peers:
        peer.close()
    tcp.until(lambda: all(served.gone for served in tcp.served))
    assert [served.closed for served in tcp.served] == ["stopped", None]


@pytest.mark.parametrize("waits_for", ["the peer", "the end of a pause", "an iterable"])
def test_the_timer_ends_with_the_connection(tcp, monkeypatch, waits_for):
    monkeypatch.setattr(linger, "DISCARD_PAUSE", 1000)
    monkeypatch.setattr(linger, "DISCARD_SIZE", 1)
    go_on = Event()

    def lines():
        yield b"first"
        go_on.wait()

    class Server(Witness):
        def handle_input(self, connection, data):
            connection.writelines(lines() if waits_for == "an iterable" else [b"answer"])
            connection.close()

    peer = tcp.peer(tcp.listen(Server, linger_timeout=None))
    peer.send(b"x")
    peer.read()
    tcp.until(lambda: peer.received)
    served = tcp.served.pop()
    connection, served.connection = weakref.ref(served.connection), None
    tcp.connections.clear()
    if waits_for == "the peer":
        tcp.until(lambda: peer.ended)
        peer.close()
    elif waits_for == "an iterable":
        tcp.listeners[0].close()
        go_on.set()
        tcp.until(lambda: peer.ended)
        peer.close()
    else:
        peer.send(b"more")
        with gevent.Timeout(PATIENCE):
            while connection()._output.linger._pause is None:
                gevent.sleep(0.001)
        connection().abort()
    tcp.until(lambda: served.gone)
    gevent.sleep(0)
    gc.collect()
    assert connection() is None


def served_without_a_reader(implementation):
    """Listen with a server that writes much and closes.  Return the address, and a flag that is set after that."""

    def serve(connection):
        connection.write(bytes(10_000_000))
        connection.close()
        served.set()

    served = Flag()
    return implementation.listener(None, serve).address, served


def test_the_end_of_a_with_statement_does_not_wait_for_a_peer_that_does_not_read(simulated):
    """The connection is reset, so that the peer does not mistake a part of the answer for all of it."""
    with simulated.make() as implementation:
        address, served = served_without_a_reader(implementation)
        peer = BlockingSocket(implementation, address)
        assert served.wait(PATIENCE)
    assert simulated.simulation.now() == pytest.approx(hub_registry.SEND_TIMEOUT, abs=1.1)
    implementation.wait(PATIENCE)
    with pytest.raises(ConnectionResetError):
        while peer.recv(1 << 20):
            pass
    peer.close()


def test_the_end_of_a_with_statement_of_a_thread_does_not_wait_for_a_peer_that_does_not_read(monkeypatch):
    for module in linger, hub_registry:
        monkeypatch.setattr(module, "SEND_TIMEOUT", 0.05)
    monkeypatch.setattr(hub_registry, "CHECK_INTERVAL", 0.01)
    with gevent.Timeout(PATIENCE), ngi_gevent.Threaded() as implementation:
        address, served = served_without_a_reader(implementation)
        sock = gevent.socket.create_connection(address)
        assert served.wait(PATIENCE)
    implementation.wait(PATIENCE)
    with sock, pytest.raises(ConnectionResetError):
        while sock.recv(1 << 20):
            pass


class Clockwork:
    """Replaces a linger's connection, output, loop and transport.  The test sets the time."""

    linger_timeout = 20
    peer_address = "the peer"

    def __init__(self):
        self.time = 0
        self.timers = []
        self.events = []

    def now(self):
        return self.time

    def queued_output(self):
        return 0

    def timer(self, seconds):
        self.timers.append(seconds)
        return self

    def start(self, callback, update):
        self.expire = callback

    def close(self):
        pass

    def receive(self):
        return b"x"

    def handle(self, event):
        self.events.append(event)


def test_a_linger_takes_at_most_thirty_seconds_whatever_its_timeout(monkeypatch):
    works = Clockwork()
    monkeypatch.setattr(clock, "now", works.now)
    linger.Linger(works, works, works, works).wait_for_peer()
    works.time = 20
    works.expire()  # at this moment, there is input
    assert (works.timers, works.events) == ([20, 10], [])
    works.time = 30
    works.expire()
    assert works.events == ["lose"]
