"""Connections on sockets only: handlers that block, system calls, and peers that misbehave."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import sys
import threading
import time
import weakref

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from stages import PATIENCE, Witness, end_by

import ngi_gevent
from ngi_gevent import ConnectionClosed, Deadlock, ImplementationClosed, adapters, blocking, testing
from ngi_gevent.core import clock
from ngi_gevent.core import output as output_module
from ngi_gevent.core.options import LINGER_TIMEOUT
from ngi_gevent.sockets import hub_connection, hub_registry, linger, probe, sender
from ngi_gevent.sockets.dispatcher import Dispatcher
from ngi_gevent.sockets.network import Network
from ngi_gevent.testing.contract.simulated import BlockingSocket


class Blocking(Witness):
    """A handler that blocks in handle_input until it is released."""

    def __init__(self, stage, connection=None):
        self.release = Event()
        super().__init__(stage, connection)

    def handle_input(self, connection, data):
        self.trace.append("in")
        self.stage.happened()
        connection.write(b"before")
        self.release.wait()
        connection.write(b"after")
        self.trace.append("out")
        super().handle_input(connection, data)


def test_callbacks_wait_for_a_callback_that_blocks(socket_stage):
    def lines():
        yield b" line"
        raise error

    error = ValueError("in an iterator")
    peer = socket_stage.peer(socket_stage.listen(Blocking))
    peer.send(b"one")
    socket_stage.until(lambda: socket_stage.served and socket_stage.served[0].trace)
    served = socket_stage.served[0]
    peer.send(b"two")
    peer.finish()
    peer.read()
    served.connection.writelines(lines())
    socket_stage.until(lambda: peer.received == b"before line")
    assert served.trace == ["in"]
    served.release.set()
    socket_stage.until(lambda: served.closed)
    assert served.trace == [
        *("in", "out", b"one"),
        ("exception", error),
        *("in", "out", b"two"),
        ("close", "end of input"),
    ]


def test_input_does_not_wake_a_handler_that_blocks(tcp):
    """Other connections are ready in the same turn, and each switches to the next one."""

    class Blocked(Blocking):
        def handle_input(self, connection, data):
            if data == b"block":
                super().handle_input(connection, data)
            else:
                Witness.handle_input(self, connection, data)

    clients = [tcp.client(tcp.listen(Blocked))]
    clients += [tcp.client(tcp.listeners[0]) for _ in range(8)]
    tcp.until(lambda: len(tcp.served) == 9)
    middle = next(
        served for served in tcp.served if served.connection.peer_address == clients[4].connection.local_address
    )
    clients[4].connection.write(b"block")
    tcp.until(lambda: middle.trace == ["in"])
    for client in clients:
        client.connection.write(b"all at once")
    tcp.until(lambda: all(served.data for served in tcp.served if served is not middle))
    assert middle.trace == ["in"]
    middle.release.set()
    tcp.until(lambda: middle.trace == ["in", "out", b"block", b"all at once"])


def test_writes_leave_when_the_handler_blocks(socket_stage):
    client, served = socket_stage.talk(Blocking)
    client.connection.write(b"x")
    socket_stage.until(lambda: client.data == b"before")
    served.release.set()
    socket_stage.until(lambda: client.data == b"beforeafter")


def test_a_blocked_handler_receives_a_stop_when_it_returns(socket_stage):
    peer = socket_stage.peer(socket_stage.listen(Blocking))
    peer.send(b"x")
    peer.read()
    socket_stage.until(lambda: socket_stage.served and socket_stage.served[0].trace)
    served = socket_stage.served[0]
    gone = []
    socket_stage.listeners[0].close(lambda listener: (gone.append(1), socket_stage.happened()))
    socket_stage.listeners[0].close()
    socket_stage.until(lambda: peer.ended)
    peer.finish()
    assert peer.received == b"before"
    assert (served.trace, gone) == (["in"], [])
    served.release.set()
    socket_stage.until(lambda: gone)
    # The second write raised, since the connection is closed. The handler did not catch that exception.
    assert served.trace == ["in", ("close", "stopped")]


def test_a_handler_that_blocks_does_not_delay_others_and_uses_no_processor_time(tcp):
    class Sleep(Witness):
        def handle_input(self, connection, data):
            if data == b"sleep":
                self.trace.append("asleep")
                self.stage.happened()
                awake.wait()
                connection.write(b"slept")
            else:
                connection.write(data)

    awake = Event()
    sleeper, served = tcp.talk(Sleep)
    other = tcp.client(tcp.listeners[0])
    sleeper.connection.write(b"sleep")
    tcp.until(lambda: served.trace)
    sleeper.connection.write(b"more, which stays unread")
    for answers in range(1, 51):
        other.connection.write(b"?")
        tcp.until(lambda answers=answers: len(other.data) == answers)
    used = time.process_time()
    gevent.sleep(0.1)
    assert time.process_time() - used < 0.05
    assert not sleeper.data
    awake.set()
    tcp.until(lambda: sleeper.data.startswith(b"slept"))


def test_nagles_algorithm_is_off_and_keep_alive_on(tcp):
    client, served = tcp.talk()
    for connection in client.connection, served.connection:
        assert connection._transport.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert served.connection._transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def recorded_sends(connection):
    """Return a list of the system calls for output of *connection*, each as the lengths of its pieces."""
    sends = []

    def recorded(call):
        def record(argument, *flags):
            if not isinstance(argument, int):  # receiving passes a size
                sends.append([len(piece) for piece in (argument if isinstance(argument, list) else [argument])])
            return call(argument, *flags)

        return record

    connection._transport.wrap_calls(recorded)
    return sends


def test_small_writes_take_one_system_call(tcp):
    class Small(Witness):
        def handle_input(self, connection, data):
            for _ in range(100):
                connection.write(b"small ")

    client, served = tcp.talk(Small)
    sends = recorded_sends(served.connection)
    client.connection.write(b"go")
    tcp.until(lambda: len(client.data) == 600)
    assert sends == [[600]]


def test_many_pieces_are_joined_and_large_ones_are_not(tcp):
    client, served = tcp.talk()
    sends = recorded_sends(served.connection)
    for _ in range(20_000):
        served.connection.write(b"x" * 50)
    large = b"y" * 3_000_000
    served.connection.write(large)
    tcp.until(lambda: client.size == 4_000_000)
    assert client.data == b"x" * 1_000_000 + large
    assert len(sends) < 100


@pytest.mark.parametrize("sizes", [(100_000, 10, 200_000, 10, 10, 70_000), (1_000_000,) * 40])
def test_pieces_of_all_sizes_are_sent_together_and_in_order(tcp, sizes):
    pieces = [bytes([65 + index % 26]) * size for index, size in enumerate(sizes)]
    client, served = tcp.talk()
    sends = recorded_sends(served.connection)
    for piece in pieces:
        served.connection.write(piece)
    tcp.until(lambda: client.size == sum(sizes))
    assert client.data == b"".join(pieces)
    assert max(map(len, sends)) > 1


def test_a_reset_in_the_middle_of_an_answer_is_not_logged(socket_stage, caplog):
    class Answer(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(b"x" * 24_000_000)

    caplog.set_level(logging.INFO, logger="ngi_gevent.connection")
    peer = socket_stage.peer(socket_stage.listen(Answer))
    peer.send(b"x")
    socket_stage.until(lambda: socket_stage.served and socket_stage.served[0].data)
    peer.reset()
    socket_stage.until(lambda: socket_stage.served[0].closed)
    assert isinstance(socket_stage.served[0].closed, OSError)
    assert caplog.records == []
    assert socket_stage.client(socket_stage.listeners[0]).connection


def test_a_reset_is_reported_after_a_handler_that_continues_to_write(tcp):
    """Writing to a closed peer is not a mistake of the handler. The handler receives the end in its turn."""

    class WriteOn(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            self.release = Event()
            self.stage.happened()
            for _ in range(3):
                self.release.wait()
                self.release.clear()
                connection.write(b"x" * 100_000)
                self.stage.happened()
            connection.writelines([b"x"])

    peer = tcp.peer(tcp.listen(WriteOn))
    peer.send(b"x")
    tcp.until(lambda: tcp.served and tcp.served[0].data)
    served = tcp.served[0]
    peer.reset()
    for _ in range(3):
        served.release.set()
        gevent.sleep(0)
        gevent.sleep(0)
    tcp.until(lambda: served.closed)
    assert isinstance(served.closed, OSError)
    assert served.trace == [b"x", ("close", served.closed)]


def test_input_before_a_failed_send_is_still_delivered(socket_stage):
    """The peer sends its last data and closes, while output to it is being sent."""

    class Answer(Blocking):
        def handle_input(self, connection, data):
            Witness.handle_input(self, connection, data)
            if connection:
                connection.write(b"before")
                self.release.wait()
                connection.write(b"after")

    peer = socket_stage.peer(socket_stage.listen(Answer))
    peer.send(b"first")
    socket_stage.until(lambda: socket_stage.served and socket_stage.served[0].trace)
    served = socket_stage.served[0]
    peer.send(b"last words")
    socket_stage.until(lambda: peer.sent == 15)
    socket_stage.settle()
    peer.close()  # "before" is unread there, so the kernel resets the connection
    served.release.set()
    socket_stage.until(lambda: served.closed)
    assert served.data == b"firstlast words"
    assert isinstance(served.closed, OSError)


def test_the_write_watcher_stops_when_all_output_is_sent(tcp):
    """A started watcher would wake the loop again and again."""
    peer = tcp.peer(tcp.listen())
    tcp.until(lambda: tcp.served)
    connection = tcp.served[0].connection
    connection.write(bytes(24_000_000))
    with gevent.Timeout(PATIENCE):
        while not connection._output.is_waiting_for_peer():
            gevent.sleep(0.001)
    peer.read()
    tcp.until(lambda: peer.size == 24_000_000)
    with gevent.Timeout(PATIENCE):
        while connection._output.is_waiting_for_peer():
            gevent.sleep(0.001)


def test_input_is_delivered_before_the_end_of_a_peer_that_stopped_reading(tcp, tmp_path):
    """On a Unix socket, the peer can end only one direction, so the library cannot recognize the end of both."""

    class Once(Blocking):
        def handle_input(self, connection, data):
            Witness.handle_input(self, connection, data)
            if connection:
                connection.write(b"x")
                self.release.wait()

    listener = tcp.implementation.listener(str(tmp_path / "socket"), tcp.server(Once))
    with gevent.socket.socket(socket.AF_UNIX) as peer:
        peer.connect(listener.address)
        peer.shutdown(socket.SHUT_RD)
        peer.sendall(b"one")
        tcp.until(lambda: tcp.served and tcp.served[0].data)
        peer.sendall(b"two")
        tcp.served[0].release.set()
        tcp.until(lambda: tcp.served[0].closed)
    assert tcp.served[0].data == b"onetwo"
    assert isinstance(tcp.served[0].closed, BrokenPipeError)
    listener.close()


def test_undelivered_output_does_not_keep_an_implementation_from_closing(tcp):
    """The connection is already false.  Its end is pending, since it has no handler yet."""

    class Holding(Witness):
        def connected(self, connection):
            self.meet(connection)

    client, served = tcp.talk(witness=Holding)
    connection = client.connection
    served.connection.abort()
    with gevent.Timeout(PATIENCE):
        while connection:
            connection.write(b"x")
            gevent.sleep(0)
    tcp.implementation.close()
    tcp.until(lambda: connection._lifecycle.is_gone())


def test_a_handler_that_loops_notices_the_end_of_its_peer(socket_stage, caplog):
    """An example is a subscription, whose handler only writes, and waits in between."""

    class News(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            while connection:
                connection.write(b"news")
                gevent.sleep(0.001)
            self.trace.append("over")

    peer = socket_stage.peer(socket_stage.listen(News))
    peer.send(b"subscribe")
    socket_stage.until(lambda: socket_stage.served and socket_stage.served[0].data)
    served = socket_stage.served[0]
    peer.send(b"last words")
    socket_stage.until(lambda: peer.sent == 19)
    peer.reset()
    socket_stage.until(lambda: served.closed)
    assert served.trace == [b"subscribe", "over", b"last words", "over", ("close", served.closed)]
    assert isinstance(served.closed, OSError)
    assert caplog.records == []


def test_a_write_after_output_was_dropped_is_refused_and_nothing_else(tcp, caplog):
    """A send fails while an iterator waits for the peer, and the handler answers earlier input."""

    class Answer(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data != b"last words":
                connection.write(b"x" * 24_000_000)
            connection.writelines(b"x" * 65536 for _ in range(10))

    peer = tcp.peer(tcp.listen(Answer))
    peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its last output leaves at once
    peer.send(b"first")
    tcp.until(lambda: tcp.served and tcp.served[0].data)
    served = tcp.served[0]
    peer.send(b"second")
    with gevent.Timeout(20):
        while not (served.connection._output.is_pausing and served.connection._output.feeder.is_waiting):
            gevent.sleep(0)
    peer.send(b"last words")
    tcp.until(lambda: peer.sent == 21)
    peer.close()  # much is unread there, so the kernel resets the connection
    tcp.until(lambda: served.closed)
    assert served.data == b"firstsecondlast words"
    assert isinstance(served.closed, OSError)
    assert served.exceptions == []
    tcp.until(lambda: served.connection._lifecycle.is_gone())
    assert caplog.records == []


def test_a_peer_that_never_reads_delays_a_closed_connection_until_a_timeout(simulated):
    simulated.peer(simulated.listen())
    simulated.until(lambda: simulated.served)
    connection = simulated.served[0].connection
    connection.write(b"x" * 24_000_000)
    closed_at = clock.now()
    connection.close()
    simulated.until(lambda: simulated.served[0].gone)
    assert clock.now() - closed_at == pytest.approx(linger.SEND_TIMEOUT, abs=0.01)
    assert simulated.served[0].trace == []


@pytest.mark.parametrize("seconds", [LINGER_TIMEOUT, 25])
def test_a_peer_that_never_closes_delays_a_closed_connection_until_a_timeout(simulated, seconds):
    options = {} if seconds == LINGER_TIMEOUT else {"linger_timeout": seconds}
    peer = simulated.peer(simulated.listen(**options))
    peer.read()
    simulated.until(lambda: simulated.served)
    connection = simulated.served[0].connection
    connection.write(b"bye")
    closed_at = clock.now()
    connection.close()
    simulated.until(lambda: simulated.served[0].gone)
    assert clock.now() - closed_at == pytest.approx(seconds, abs=0.01)
    assert (peer.received, peer.ended) == (b"bye", "end")


def test_an_iterator_can_block(socket_stage):
    def lines():
        yield b"one "
        release.wait()
        yield b"two "

    release = Event()
    client, served = socket_stage.talk()
    served.connection.writelines(lines())
    served.connection.write(b"three")
    served.connection.close()
    socket_stage.until(lambda: client.data == b"one ")
    other = socket_stage.client(socket_stage.listeners[0])
    assert other.connection
    release.set()
    socket_stage.until(lambda: client.closed)
    assert client.data == b"one two three"


@pytest.mark.parametrize("end", ["abort", "stop", "reset"])
def test_an_iterator_that_blocks_is_dropped_with_its_connection(tcp, caplog, end):
    def lines():
        try:
            yield b"one "
            Event().wait()  # waits forever
        finally:
            closed.append(True)
            tcp.happened()

    closed = []
    peer = tcp.peer(tcp.listen())
    peer.read()
    tcp.until(lambda: tcp.served)
    connection = tcp.served[0].connection
    connection.writelines(lines())
    connection.writelines([b"never"])
    tcp.until(lambda: peer.received == b"one ")
    assert not closed
    end_by(end, tcp, connection, peer)
    tcp.until(lambda: closed)
    tcp.until(lambda: connection._lifecycle.is_gone())
    assert not caplog.records
    assert tcp.served[0].exceptions == []


def test_an_iterator_paused_by_its_peer_is_dropped_with_its_connection(tcp):
    def lines():
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.append(True)
            tcp.happened()

    closed = []
    tcp.peer(tcp.listen())
    tcp.until(lambda: tcp.served)
    connection = tcp.served[0].connection
    connection.writelines(lines())
    with gevent.Timeout(20):
        while connection._output._write_watcher is None:
            gevent.sleep(0)
    assert not closed
    connection.abort()
    tcp.until(lambda: closed)


def test_an_iterator_of_tiny_pieces_does_not_delay_others(tcp):
    def lines():
        nonlocal pulled
        while True:
            pulled += 1
            yield b"x"

    pulled = 0
    peer = tcp.peer(tcp.listen())
    peer.read()
    tcp.until(lambda: tcp.served)
    tcp.served[0].connection.writelines(lines())
    for _ in range(10):
        before = pulled
        gevent.sleep(0)
        assert pulled - before < 2000


def test_an_iterator_without_output_does_not_delay_others(tcp):
    def silence():
        while not over:
            yield b""
        yield b"over"

    over = []
    client, served = tcp.talk()
    served.connection.writelines(silence())
    other = tcp.client(tcp.listeners[0])
    other.connection.write(b"still there")
    tcp.until(lambda: len(tcp.served) == 2 and tcp.served[1].data)
    over.append(True)
    tcp.until(lambda: client.data == b"over")


def test_a_timeout_in_an_iterator_without_output_is_its_error(tcp):
    """The timeout expires while the library runs other greenlets.  Output after the iterator is still sent."""

    class Server(Witness):
        def handle_input(self, connection, data):
            connection.writelines(self.poll())
            connection.write(b"after")

        def poll(self):
            with gevent.Timeout(0.01):
                while True:
                    yield b""

    peer = tcp.peer(tcp.listen(Server))
    peer.send(b"x")
    peer.read()
    tcp.until(lambda: peer.received and tcp.served[0].exceptions)
    assert peer.received == b"after"
    assert isinstance(tcp.served[0].exceptions[0], gevent.Timeout)
    tcp.served[0].connection.close()
    tcp.until(lambda: peer.ended)
    assert peer.ended == "end"


class NoMemory:
    """A context that cannot be copied, as if there was no memory for a greenlet."""

    def copy(self):
        raise MemoryError


def test_a_connection_that_can_have_no_greenlet_is_closed(tcp, capfd):
    listener = tcp.listen(max_connections=1)
    context, listener._context = listener._context, NoMemory()
    with socket.create_connection(listener.address, PATIENCE) as peer:  # accepted by the kernel only
        peer.setblocking(False)
        with contextlib.suppress(ConnectionResetError), gevent.Timeout(PATIENCE):
            gevent.socket.wait_read(peer.fileno())
            assert peer.recv(1) == b""
    assert not listener._connections
    listener._context = context
    assert tcp.client(listener).connection
    assert "MemoryError" in capfd.readouterr().err


def test_output_after_a_waiting_iterator_is_limited(tcp):
    """While an iterator waits, answers accumulate after it, and reading stops."""

    def lines():
        release.wait()
        yield b"late"

    class Echo(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(data)

    release = Event()
    peer = tcp.peer(tcp.listen(Echo))
    tcp.until(lambda: tcp.served)
    served = tcp.served[0]
    served.connection.writelines(lines())
    peer.send(b"x" * 16_000_000)
    tcp.until(lambda: served.connection._output.is_pausing)
    assert served.size < 1_000_000
    release.set()
    peer.read()
    tcp.until(lambda: peer.size == 16_000_004)
    assert not served.connection._output.is_pausing


@pytest.mark.parametrize("error", [gevent.Timeout(0), gevent.GreenletExit()])
def test_an_exception_that_gevent_raises_in_a_handler_counts_as_the_handlers(tcp, caplog, error):
    class Ended(Witness):
        def handle_input(self, connection, data):
            connection.write(b"before")
            raise error

    client, served = tcp.talk(Ended)
    client.connection.write(b"x")
    tcp.until(lambda: client.closed and served.closed)
    assert served.closed is error
    assert client.data == b"before"
    assert len(caplog.records) == 1


def test_a_greenlet_killed_while_it_waits_closes_its_connection(tcp, caplog):
    class Slow(Witness):
        def handle_close(self, connection, reason):
            self.trace.append("told")
            self.stage.happened()
            self.release = Event()
            self.release.wait()
            super().handle_close(connection, reason)

    client, served = tcp.talk(Slow)
    gevent.kill(served.connection.resume.__self__)
    tcp.until(lambda: served.trace == ["told"])
    client.connection.write(b"must not disturb handle_close")
    client.connection.close()
    tcp.until(lambda: client.connection._lifecycle.is_gone())
    assert served.trace == ["told"]
    served.release.set()
    tcp.until(lambda: served.closed)
    assert isinstance(served.closed, gevent.GreenletExit)


def test_a_timeout_that_an_iterator_left_running_is_the_iterators_error(tcp):
    def lines():
        with timeout:
            while True:
                yield b"x" * 65536

    timeout = gevent.Timeout(0.03)
    peer = tcp.peer(tcp.listen())
    tcp.until(lambda: tcp.served)
    served = tcp.served[0]
    served.connection.writelines(lines())
    served.connection.write(b"rest")
    tcp.until(lambda: served.exceptions)
    assert served.exceptions == [timeout]
    peer.read()
    tcp.until(lambda: peer.received.endswith(b"rest"))
    timeout.close()


def test_an_iterators_error_is_reported_before_a_later_end(tcp, caplog):
    peer = tcp.peer(tcp.listen(Blocking))
    peer.send(b"x")
    tcp.until(lambda: tcp.served and tcp.served[0].trace)
    served = tcp.served[0]
    served.connection.writelines([5])
    with gevent.Timeout(20):
        while not served.connection._exceptions:
            gevent.sleep(0)
    tcp.listeners[0].close()
    served.trace.clear()
    served.handle_input = None
    gevent.kill(served.connection.resume.__self__)
    tcp.until(lambda: served.closed)
    assert [kind for kind, _ in served.trace] == ["exception", "close"]
    assert served.closed == "stopped"


def test_a_closing_implementation_lets_closed_clients_finish_delivering(socket_stage):
    class Last(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"x" * 24_000_000)
            connection.close()
            clients.close()

    clients = socket_stage.make()
    listener = socket_stage.listen()
    clients.connect(listener.address, Last(socket_stage))
    socket_stage.until(lambda: socket_stage.served and socket_stage.served[0].closed)
    served = socket_stage.served[0]
    assert (len(served.data), served.closed) == (24_000_000, "end of input")


def test_the_end_of_a_with_statement_waits_until_closed_connections_have_delivered(socket_stage):
    listener = socket_stage.listen()
    with socket_stage.make() as clients:
        connection = blocking.connect(listener.address, clients.connect, PATIENCE)
        connection.write(b"x" * 24_000_000)
        connection.close()
    socket_stage.until(lambda: socket_stage.served[0].closed)
    served = socket_stage.served[0]
    assert (served.size, served.closed) == (24_000_000, "end of input")
    clients.wait(PATIENCE)


@pytest.mark.parametrize("output", ["much", "an iterator that waits"])
def test_the_end_of_a_with_statement_does_not_wait_forever(simulated, output):
    """A peer that reads nothing cannot delay the end forever, and neither can an iterator that yields nothing."""
    never = Event()
    simulated.peer(simulated.listen(lambda connection: None))
    with simulated.make() as clients:
        connection = blocking.connect(simulated.listeners[0].address, clients.connect, PATIENCE)
        connection.writelines([b"x" * 24_000_000] if output == "much" else (never.wait() for _ in range(1)))
        connection.close()
        closed_at = clock.now()
    assert clock.now() - closed_at == pytest.approx(hub_registry.SEND_TIMEOUT, abs=1.1)
    connection.abort()
    clients.wait(PATIENCE)


def test_the_end_of_a_with_statement_waits_for_a_peer_that_reads_slowly(simulated):
    def serve(connection):
        connection.write(bytes(2_000_000))
        connection.close()

    def read():
        peer = BlockingSocket(simulated.implementation, address)
        while piece := peer.recv(100_000):
            received.append(len(piece))
            gevent.sleep(10)
        peer.close()

    received = []
    with simulated.make() as server:
        address = server.listener((server.addresses[0], 0), serve).address
        reading = gevent.spawn(read)
        gevent.sleep(1)
    assert clock.now() > 100
    reading.join()
    assert sum(received) == 2_000_000


def test_the_end_of_a_with_statement_does_not_wait_for_a_blocked_handler(simulated):
    listener = simulated.listen()
    client = Blocking(simulated)
    with simulated.make() as clients:
        clients.connect(listener.address, client)
        simulated.until(lambda: simulated.served and client.connection)
        simulated.served[0].connection.write(b"x")
        simulated.until(lambda: client.trace)
        closed_at = clock.now()
    assert clock.now() - closed_at < LINGER_TIMEOUT + hub_registry.CHECK_INTERVAL
    assert client.trace == ["in"]
    client.release.set()
    clients.wait(PATIENCE)


def test_the_end_of_a_with_statement_does_not_wait_for_its_own_callback(tcp):
    class Server(Witness):
        def handle_input(self, connection, data):
            with clients:
                connection.write(b"done")

    clients = ngi_gevent.Implementation()
    peer = tcp.peer(clients.listener(None, tcp.server(Server)))
    peer.send(b"x")
    peer.read()
    tcp.until(lambda: peer.ended)
    peer.finish()
    assert peer.received == b"done"
    clients.wait(PATIENCE)


def test_a_connection_attempt_fails_if_its_implementation_has_closed(tcp, tmp_path):
    for address in None, tmp_path / "socket":
        listener = tcp.implementation.listener(address, tcp.server())
        tcp.listeners.append(listener)
        client = Witness(tcp)
        implementation = type(tcp.implementation)()
        implementation.connect(listener.address, client)
        implementation.close()
        tcp.until(lambda client=client: client.failed)
        assert (client.failed, client.connection) == ("stopped", None)


def test_a_listener_made_while_its_implementation_closes_is_refused(tcp):
    implementation = type(tcp.implementation)()
    making = gevent.spawn(implementation.listener, ("localhost", 0), tcp.server())
    gevent.sleep(0)  # the name is being resolved
    implementation.close()
    with pytest.raises(ImplementationClosed):
        making.get(timeout=10)


def test_a_server_can_close_its_listener(socket_stage, capfd):
    def server(connection):
        connection.write(b"bye")
        connection.close()
        connection.control.close()

    peer = socket_stage.peer(socket_stage.listen(server))
    peer.read()
    socket_stage.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"bye", "end")
    assert capfd.readouterr().err == ""


def test_a_callback_that_waits_for_itself_is_refused_everywhere(tcp, caplog):
    class Unlucky(Witness):
        def failed_connect(self, reason):
            try:
                tcp.implementation.wait(10)
            except Deadlock:
                super().failed_connect("deadlock")

    def lines():
        with pytest.raises(Deadlock):
            served.connection.control.close_wait(10)
        yield b"refused"

    listener = tcp.listen()
    listener.close()
    assert tcp.client(listener, Unlucky).failed == "deadlock"
    client, served = tcp.talk()
    served.connection.writelines(lines())
    tcp.until(lambda: client.data == b"refused")


def test_a_greenlet_of_the_application_is_in_no_callback_whatever_its_attributes(tcp):
    class Worker(gevent.Greenlet):
        def __init__(self, connection, function, *arguments):
            super().__init__(function, *arguments)
            self.connection = connection

    def work(connection, function, *arguments):
        worker = Worker(connection, function, *arguments)
        worker.start()
        return worker.get(timeout=PATIENCE)

    client, served = tcp.talk()
    _, lines = blocking.open(served.connection)
    client.connection.write(b"hello\n")
    assert work(served.connection, lines.readline, None, PATIENCE) == b"hello\n"
    assert work(served.connection, tcp.listeners[0].close_wait, 0) == 1
    for connection in served.connection, {}:  # a dict cannot even be hashed
        work(connection, tcp.implementation.wait, PATIENCE)


def test_waits_that_time_out_leave_nothing_behind(tcp):
    tcp.listen()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            tcp.implementation.wait(0)
    (outstanding,) = tcp.implementation._on_hub.values()
    assert outstanding._wakers == []


def test_an_attempt_to_a_busy_unix_socket_waits_without_using_the_processor(tcp, tmp_path):
    path = str(tmp_path / "busy")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        client = Witness(tcp)
        tcp.implementation.connect(path, client)
        used = time.process_time()
        gevent.sleep(0.1)
        assert time.process_time() - used < 0.05
        assert client.connection is None
        assert client.failed is None
        busy.accept()[0].close()
        tcp.until(lambda: client.connection)
        client.connection.abort()
        tcp.implementation.wait(10)


def test_a_dropped_iterator_can_block_during_its_cleanup(tcp):
    def lines():
        try:
            while True:
                yield b"x" * 65536
        finally:
            gevent.sleep(0)
            cleaned.append(True)
            tcp.happened()

    cleaned = []
    peer = tcp.peer(tcp.listen())
    tcp.until(lambda: tcp.served)
    connection = tcp.served[0].connection
    connection.writelines(lines())
    with gevent.Timeout(20):
        while connection._output._write_watcher is None:
            gevent.sleep(0)
    peer.reset()
    tcp.until(lambda: cleaned)


def test_a_closed_connection_delivers_even_after_a_long_silence_of_its_iterator(simulated):
    def lines():
        yield b"x" * 24_000_000
        gevent.sleep(1000)
        yield b"end"

    peer = simulated.peer(simulated.listen())
    peer.read()
    simulated.until(lambda: simulated.served)
    connection = simulated.served[0].connection
    connection.writelines(lines())
    connection.close()
    simulated.until(lambda: peer.ended)
    assert (len(peer.received), peer.ended) == (24_000_003, "end")


def test_a_stopped_connection_with_an_unresponsive_peer_ends_after_the_linger_timeout(simulated):
    peer = simulated.peer(simulated.listen())
    simulated.until(lambda: simulated.served)
    connection = simulated.served[0].connection
    connection.write(b"x" * 24_000_000)
    gevent.sleep(0.1)
    assert connection._output._write_watcher is not None
    simulated.listeners[0].close()
    while len(peer.received) < 100_000:  # enough to make the socket writable once more
        peer._pieces.append(peer.socket.recv(1_000_000))
    closed_at = clock.now()
    simulated.until(lambda: simulated.served[0].gone)
    assert clock.now() - closed_at < LINGER_TIMEOUT + 0.01


def test_a_handler_can_write_to_many_connections(socket_stage):
    """The server is a chat: each client receives the lines of all clients."""

    class Chat(Witness):
        def handle_input(self, connection, data):
            for other in connection.control.connections():
                other.write(b"a guest said " + data)

    clients = [socket_stage.client(socket_stage.listen(Chat))]
    clients += [socket_stage.client(socket_stage.listeners[0]) for _ in range(19)]
    socket_stage.until(lambda: len(socket_stage.served) == 20)
    clients[7].connection.write(b"hello")
    socket_stage.until(lambda: all(client.data == b"a guest said hello" for client in clients))


def test_a_peer_that_reads_slowly_is_not_treated_as_unresponsive(simulated):
    peer = simulated.peer(simulated.listen())
    simulated.until(lambda: simulated.served)
    connection = simulated.served[0].connection
    connection.write(b"x" * 24_000_000)
    connection.close()
    taken = 0
    for _ in range(10):
        taken += len(peer.socket.recv(200_000))
        gevent.sleep(29)
    peer.read()
    simulated.until(lambda: peer.ended)
    assert (taken + len(peer.received), peer.ended) == (24_000_000, "end")


class SlowResolver:
    """A resolver that finds every name on this machine, after a moment, on a thread of gevent's pool."""

    def getaddrinfo(self, host, port, family, *arguments):
        if host == "example.org":
            gevent.get_hub().threadpool.apply(time.sleep, (0.03,))
        return socket.getaddrinfo("127.0.0.1", port, family, *arguments)


def test_no_connection_attempt_times_out_because_of_a_stall(tcp, monkeypatch):
    """The whole process stands still for longer than the timeout, and the name is resolved during this time."""
    monkeypatch.setattr(gevent.get_hub(), "resolver", SlowResolver())
    client = Witness(tcp)
    tcp.implementation.connect(("example.org", tcp.listen().address[1]), client, timeout=0.05)
    gevent.sleep(0.001)
    time.sleep(0.08)
    tcp.until(lambda: client.connection or client.failed)
    assert client.failed is None


def test_a_pending_connection_attempt_ends_with_its_implementation(tcp):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(0)
    queue = [socket.socket() for _ in range(4)]  # more than the kernel queues, so later attempts wait
    for waiting in queue:
        waiting.setblocking(False)
        waiting.connect_ex(sock.getsockname())
    client = Witness(tcp)
    tcp.implementation.connect(sock.getsockname(), client)
    gevent.sleep(0)
    tcp.implementation.close()
    tcp.until(lambda: client.failed)
    assert client.failed == "stopped"
    for each in sock, *queue:
        each.close()
    tcp.implementation = type(tcp.implementation)()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_the_program_reaches_the_main_greenlet(tcp, caplog, error):
    class End(Witness):
        def handle_input(self, connection, data):
            raise error

    client, served = tcp.talk(End)
    client.connection.write(b"x")
    with pytest.raises(error):
        tcp.until(lambda: served.closed and not served.closed)
    tcp.until(lambda: served.closed)


def test_closed_connections_leave_nothing_in_the_loop(tcp):
    dispatcher = Dispatcher.current()
    client, served = tcp.talk()
    assert dispatcher._users == 2
    client.connection.close()
    tcp.until(lambda: client.connection._lifecycle.is_gone() and served.connection._lifecycle.is_gone())
    assert dispatcher._users == 0
    assert not dispatcher._turn.active


def test_close_wait_lets_clients_finish(simulated):
    """There is one client that finishes in time, one that never does, and a new one."""

    class Slow(Witness):
        def handle_input(self, connection, data):
            gevent.sleep(599)
            connection.write(b"x" * 300_000)
            connection.close()

    listener = simulated.listen(Slow)
    finishing, staying = simulated.peer(listener), simulated.peer(listener)
    finishing.read()
    staying.read()
    finishing.send(b"please")
    simulated.until(lambda: len(simulated.served) == 2)
    began = clock.now()
    waiting = gevent.spawn(listener.close_wait, 600)
    gevent.sleep(0)
    late = Witness(simulated)
    listener.connect(late)
    simulated.until(lambda: late.failed)
    simulated.until(lambda: finishing.ended)
    assert not waiting.ready()
    assert waiting.get() == 1
    assert clock.now() - began == pytest.approx(600, abs=0.01)
    simulated.until(lambda: staying.ended)
    assert (len(finishing.received), finishing.ended, staying.ended) == (300_000, "end", "end")


def test_handlers_receive_the_end_before_close_wait_returns(tcp):
    client, served = tcp.talk()
    assert tcp.listeners[0].close_wait(0) == 1
    assert served.closed == "stopped"


def test_close_wait_returns_when_the_last_client_has_finished(simulated):
    listener = simulated.listen()
    peers = [simulated.peer(listener) for _ in range(3)]
    simulated.until(lambda: len(simulated.served) == 3)
    waiting = gevent.spawn(listener.close_wait, 30)
    gevent.sleep(10)
    for peer in peers:
        peer.finish()
    assert waiting.get() == 0
    assert clock.now() == pytest.approx(10, abs=0.01)


def test_wait_serves_until_nothing_is_outstanding(tcp):
    class Leave(Witness):
        def handle_input(self, connection, data):
            connection.close()

    client = tcp.client(tcp.listen(Leave))
    tcp.listeners[0].close(lambda listener: None)
    client.connection.write(b"x")
    tcp.implementation.wait(10)
    assert client.closed == "end of input"


def test_wait_raises_a_timeout(simulated):
    simulated.listen()
    with pytest.raises(TimeoutError, match="StreamListener"):
        simulated.implementation.wait(60)
    assert clock.now() == pytest.approx(60, abs=0.01)


def test_reading_continues_after_a_list_while_a_later_iterator_waits(tcp):
    """Only the fixed size of the iterator counts as pending then, and the iterator may wait for that input."""

    def late():
        release.wait()
        yield b"late"

    class Answer(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"1":
                connection.writelines([b"x" * 1_000_000] * 16)
            elif data == b"2":
                connection.writelines([b"x" * 1_000_000] * 4)
                connection.writelines(late())
            else:
                release.set()

    release = Event()
    listener = tcp.listen(Answer)
    with gevent.socket.create_connection(listener.address) as peer:
        peer.sendall(b"1")
        tcp.until(lambda: tcp.served and tcp.served[0].data == b"1")
        peer.sendall(b"2")
        tcp.until(lambda: tcp.served[0].data == b"12")
        assert tcp.served[0].connection._output.is_pausing
        left = 20_000_000
        while left:
            left -= len(peer.recv(left))
        peer.sendall(b"3")
        with gevent.Timeout(5):
            assert peer.recv(100) == b"late"


def test_a_timeout_that_an_iterator_left_running_loses_no_output(tcp):
    def careless():
        timeouts.append(gevent.Timeout.start_new(0.03))
        yield b"first"

    timeouts = []

    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.writelines(careless())
            connection.write(b"x" * 20_000_000)
            connection.write(b"last")

        def handle_exception(self, connection, exception):
            self.trace.append(exception)
            self.stage.happened()

    peer = tcp.peer(tcp.listen(Answer))
    peer.send(b"go")
    tcp.until(lambda: tcp.served and tcp.served[0].trace)
    assert isinstance(tcp.served[0].trace[0], gevent.Timeout)
    peer.read()
    tcp.until(lambda: peer.size == 20_000_009)
    assert peer.received == b"first" + b"x" * 20_000_000 + b"last"
    timeouts[0].close()


def test_a_closed_connection_waits_for_its_peer_however_long_its_handler_computed(simulated):

    class Compute(Witness):
        def handle_input(self, connection, data):
            simulated.simulation.compute(10)  # until then, neither the loop nor any greenlet runs
            connection.close()
            self.closed_at = clock.now()

    simulated.peer(simulated.listen(Compute)).send(b"x")
    simulated.until(lambda: simulated.served and simulated.served[0].gone)
    assert clock.now() - simulated.served[0].closed_at == pytest.approx(LINGER_TIMEOUT, abs=0.01)


def test_a_slow_peer_that_still_sends_gets_all_output_from_before_the_close(simulated):
    """Input after the close of the socket would reset the connection, and the kernel would drop unread output."""

    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * 3_000_000)  # most of it waits at the server
            connection.close()

    received = 0
    peer = simulated.peer(simulated.listen(Answer)).socket
    peer.sendall(b"go")
    while data := peer.recv(100_000):
        received += len(data)
        if received < 2_500_000:
            peer.sendall(b".")
            gevent.sleep(5)
    assert received == 3_000_000


def test_a_write_to_a_closed_peer_is_refused(tcp):
    """The handler is still blocked, and has not received the end yet."""
    peer = tcp.peer(tcp.listen(Blocking))
    peer.send(b"one")
    tcp.until(lambda: tcp.served and tcp.served[0].trace)
    connection = tcp.served[0].connection
    connection.write(b"x" * 24_000_000)
    peer.reset()
    with gevent.Timeout(PATIENCE):
        while connection:
            gevent.sleep(0.01)
    for write, output in (connection.write, b"x"), (connection.writelines, iter([b"x"])):
        with pytest.raises(ConnectionClosed, match=r"broken \((ConnectionReset|BrokenPipe)Error"):
            write(output)
    assert connection._output.size == 0
    assert tcp.served[0].closed is None
    tcp.served[0].release.set()
    tcp.until(lambda: tcp.served[0].closed)


class KeepsItsConnection:
    def __init__(self, connection):
        self.connection = connection
        connection.set_handler(self)

    def handle_input(self, connection, data):
        connection.write(data)


class OverLines(KeepsItsConnection):
    def __init__(self, connection):
        adapters.Lines(connection).set_handler(self)


def answer_in_files(input, output):
    for line in input:
        output.write(line)


def reset_while_output_waits(peer, connection):
    connection.write(b"x" * 24_000_000)
    connection._output.send_pending()
    peer.reset()


def send_rubbish(peer, connection):
    """Send data that is not a TLS record, and the end.  A plain connection receives some input, and the end."""
    send = getattr(peer.socket, "_sock", peer.socket).sendall
    peer._tasks.put(lambda: send(b"\x17\x03\x03\0\x05xxxxx"))
    peer._tasks.put(lambda: peer.socket.shutdown(socket.SHUT_WR))


@pytest.mark.parametrize(
    "end",
    [
        lambda peer, connection: peer.finish(),
        lambda peer, connection: peer.reset(),
        lambda peer, connection: connection.abort(),
        reset_while_output_waits,
        send_rubbish,
    ],
    ids=["finished", "reset", "aborted", "reset while output waits", "rubbish"],
)
@pytest.mark.parametrize(
    "server", [KeepsItsConnection, OverLines, blocking.server(answer_in_files)], ids=["handler", "lines", "files"]
)
@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_an_ended_connection_is_freed_without_garbage_collection(kind, server, end, request):
    """A connection can use tens of kilobytes, and full collections are rare."""

    def serve(connection):
        connections.append(weakref.ref(connection, lambda _: stage.happened()))
        server(connection)
        stage.happened()

    stage = request.getfixturevalue(kind)
    connections = []
    peer = stage.peer(stage.listen(serve, idle_timeout=100))
    gc.disable()
    try:
        peer.send(b"hello\n")
        stage.until(lambda: peer.sent and connections)
        end(peer, connections[0]())
        stage.until(lambda: connections[0]() is None)
    finally:
        gc.enable()


def test_input_just_before_a_reset_is_delivered_and_then_the_reset(tcp):
    class Late(Witness):
        """A handler that blocks on the first input, while the rest of it and the reset arrive."""

        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"first":
                self.release.wait(PATIENCE)

        release = Event()

    listener = tcp.listen(Late)
    peer = socket.create_connection(listener.address)
    peer.sendall(b"first")
    tcp.until(lambda: tcp.served and tcp.served[0].data)
    peer.sendall(b"last")
    Network().reset_on_close(peer)
    peer.close()
    Late.release.set()
    tcp.until(lambda: tcp.served[0].closed)
    assert tcp.served[0].data == b"firstlast"
    assert isinstance(tcp.served[0].closed, ConnectionResetError)


@pytest.mark.parametrize("before", [b"", b"x" * 1000])
def test_a_signal_handler_can_write_in_the_middle_of_a_write(tcp, before):
    """Python runs signal handlers at calls.  A profiler runs there too, before and after each call."""
    files = {module.__file__ for module in (hub_connection, sender, output_module)}
    client, served = tcp.talk()
    connection = served.connection

    def write_at(moment):
        def profile(frame, event, argument):
            nonlocal count
            count += frame.f_code.co_filename in files
            if count == moment + 1:
                sys.setprofile(None)
                connection.write(b"signal\n")

        count = 0
        sys.setprofile(profile)
        try:
            if before:
                connection.write(before)
            connection.write(b"written\n")
            tcp.until(lambda: client.data.count(b"written\n") == moment + 1)
        finally:
            sys.setprofile(None)
        return count == moment + 1

    moment = 0
    while write_at(moment):
        moment += 1
    assert moment > 5
    tcp.until(lambda: client.data.count(b"signal\n") == moment)
    assert (connection._output.size, connection._output.pieces) == (0, [])


def test_a_connection_that_ends_while_it_pauses_raises_nothing_on_the_hub(tcp, capfd):
    class Server(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(bytes(20_000_000))
            if len(self.data) > 1:
                connection.close()
                connection.abort()

    peer = tcp.peer(tcp.listen(Server))
    peer.send(b"1")
    tcp.until(lambda: tcp.served and tcp.served[0].data)
    peer.send(b"2")
    tcp.until(lambda: tcp.served[0].gone)
    gevent.sleep(0)
    assert capfd.readouterr().err == ""


def test_a_failed_send_just_after_another_threads_abort_raises_nothing(tcp):
    class Server(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(bytes(20_000_000))
            connection.close()

    peer = tcp.peer(tcp.listen(Server))
    peer.send(b"x")
    tcp.until(lambda: tcp.served and tcp.served[0].data)
    connection = tcp.served[0].connection
    gevent.sleep(0)
    sender = connection._output
    peer.reset()
    other_thread = threading.Thread(target=connection.abort)
    other_thread.start()
    other_thread.join()  # the hub makes that call only after the sender has reported its failure
    sender.send_pending()
    assert tcp.served[0].gone


def test_a_pause_delays_input_of_a_peer_that_closes_its_unix_socket(simulated):
    """Such a socket has then ended in both directions, but that is not a reset."""
    served = testing.Recorder()

    def serve(connection):
        connection.pause_reading()
        served.connected(connection)

    listener = simulated.implementation.listener("/socket", serve)
    peer = BlockingSocket(simulated.implementation, listener.address)
    peer.sendall(b"last words")
    peer.close()
    connection = served.wait_connected()
    gevent.sleep(100 * probe.PROBE_INTERVAL)
    assert connection
    connection.resume_reading()
    assert served.wait_closed() == "end of input"
    assert served.data == b"last words"
    listener.close()


def test_a_dropped_parser_can_block_during_its_cleanup(tcp):
    """The end of a paused connection is noticed on the hub, where nothing can block."""

    class Parser(adapters.Base):
        def handle_input(self, connection, data):
            self.deliver(self.records(data))

        def records(self, data):
            try:
                yield data[:1]
                self.pause_reading()
                yield data[1:]
            finally:
                gevent.sleep(0)
                closed.append(True)
                tcp.happened()

    class Parsed(Witness):
        def connected(self, connection):
            super().connected(Parser(connection))

    closed = []
    client, served = tcp.talk(Parsed)
    client.connection.write(b"12")
    tcp.until(lambda: served.data)
    tcp.listeners[0].close()
    tcp.until(lambda: closed)
    assert served.trace == [b"1", ("close", "stopped")]


def test_a_reset_is_noticed_while_hanging_iterables_stop_reading(simulated):
    """Nothing is pending, so no watcher runs."""

    class Hanging(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            for _ in range(40):
                connection.writelines(hang())

    def hang():
        try:
            yield b""
            Event().wait()
        finally:
            closed.append(True)

    closed = []
    peer = simulated.peer(simulated.listen(Hanging))
    peer.send(b"one")
    simulated.until(lambda: simulated.served and simulated.served[0].data == b"one")
    peer.send(b"two")
    simulated.until(lambda: simulated.served[0].data == b"onetwo")
    peer.send(b"unread")
    gevent.sleep(10 * probe.PROBE_INTERVAL)
    reset_at = clock.now()
    peer.reset()
    simulated.until(lambda: simulated.served[0].closed)
    assert simulated.served[0].data == b"onetwounread"
    assert clock.now() - reset_at < probe.PROBE_INTERVAL + 0.01
    assert closed
