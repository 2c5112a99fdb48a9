"""Faults on real sockets: peers that reset, do not read, are slow or come in crowds; handlers that gevent or the user
ends.

A fault on one connection must not affect others: in most tests, a bystander on the same listener must be answered.
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import ssl
import subprocess
import sys
from collections import Counter

import gevent
import gevent.socket
import pytest
from certificates import client_context
from gevent.event import Event
from stages import PATIENCE, Witness

import ngi_gevent
from ngi_gevent import generator
from ngi_gevent.core.options import LINGER_TIMEOUT
from ngi_gevent.sockets.network import Network


@pytest.fixture(params=["tcp", "tls"])
def network(request):
    """A stage with TCP, without and with TLS."""
    return request.getfixturevalue(request.param)


class Echo(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


class Bystander:
    """A client of the same listener, which must be answered whatever happens to others."""

    def __init__(self, stage, listener):
        self.stage = stage
        self.client = stage.client(listener)
        self.asked = 0

    def is_answered(self):
        self.asked += 5
        self.client.connection.write(b"hello")
        self.stage.until(lambda: len(self.client.data) >= self.asked)
        assert self.client.data == b"HELLO" * (self.asked // 5)


def until(condition):
    """Wait for a condition that no event reports."""
    with gevent.Timeout(PATIENCE, AssertionError("it did not happen in time")):
        while not condition():
            gevent.sleep(0.001)


def settled(listener, bystander):
    """Wait until only the bystander's connection is left."""
    until(lambda: len(listener._connections) == 1)
    bystander.is_answered()


# Resets.


def blocks_in_a_callback(served, connection):
    served.release.wait()
    connection.write(b"written in vain")


def has_output_pending(served, connection):
    connection.write(b"x" * 8_000_000)


def is_in_a_long_writelines(served, connection):
    def lines():
        try:
            while True:
                yield b"x" * 65536
        finally:
            served.dropped += 1
            served.stage.happened()

    served.dropped -= 1
    connection.writelines(lines())


def is_in_a_blocking_writelines(served, connection):
    def lines():
        try:
            yield b"x"
            Event().wait()  # forever
        finally:
            served.dropped += 1
            served.stage.happened()

    served.dropped -= 1
    connection.writelines(lines())


def is_closing(served, connection):
    connection.write(b"x" * 8_000_000)
    connection.close()


def does_nothing(served, connection):
    pass


@pytest.mark.parametrize(
    "moment",
    [
        does_nothing,
        blocks_in_a_callback,
        has_output_pending,
        is_in_a_long_writelines,
        is_in_a_blocking_writelines,
        is_closing,
    ],
)
def test_a_reset_is_reported_once_whatever_the_server_does(network, caplog, moment):
    """The reset is reported once, after all input, unless the server had closed.  Pending work is discarded
    silently.
    """

    class Served(Witness):
        dropped = 0

        def handle_input(self, connection, data):
            self.release = Event()
            super().handle_input(connection, data)
            if data == b"go":
                moment(self, connection)
            else:
                connection.write(data.upper())

    listener = network.listen(Served)
    bystander = Bystander(network, listener)
    peers = [network.peer(listener) for _ in range(5)]
    network.until(lambda: len(network.served) == 6)
    for peer in peers:
        peer.send(b"go")
    network.until(lambda: all(served.data for served in network.served[1:]))
    bystander.is_answered()
    for peer in peers:
        peer.reset()
    bystander.is_answered()
    for served in network.served[1:]:
        served.release.set()
    settled(listener, bystander)
    for served in network.served[1:]:
        assert served.dropped == 0
        if moment is is_closing:
            assert served.trace == [b"go"]
        else:
            assert served.trace == [b"go", ("close", served.closed)]
            assert isinstance(served.closed, OSError)
    assert caplog.records == []


def test_a_reset_before_a_handler_is_set_is_kept_for_the_handler(network, caplog):
    """The connection keeps the reset, and the input before it, for the handler."""
    held = []
    peer = network.peer(network.listen(lambda connection: (held.append(connection), network.happened())))
    bystander = Bystander(network, network.listen(Echo))
    network.until(lambda: held)
    peer.send(b"last words")
    network.until(lambda: peer.sent == 10)
    bystander.is_answered()
    peer.reset()
    bystander.is_answered()
    late = Witness(network)
    held[0].set_handler(late)
    network.until(lambda: late.closed)
    assert late.trace == [b"last words", ("close", late.closed)]
    assert isinstance(late.closed, OSError)
    assert caplog.records == []


def test_a_reset_before_the_connection_is_accepted_affects_no_other_client(tcp, caplog):
    """The server may or may not get the connection.  No other client is affected, and nothing is left open."""
    listener = tcp.listen(Echo)
    bystander = Bystander(tcp, listener)
    for _ in range(100):
        sock = socket.create_connection(listener.address)  # the hub cannot accept during this call
        sock.send(b"go")
        Network().reset_on_close(sock)
        sock.close()
    tcp.until(lambda: len(tcp.served) == 101)
    settled(listener, bystander)
    for served in tcp.served[1:]:
        assert b"".join(served.trace[:-1]) in (b"", b"go")
        assert isinstance(served.closed, OSError)
    assert caplog.records == []


@pytest.mark.parametrize("flight", [1, 2])
def test_a_reset_at_a_random_byte_of_a_handshake_affects_no_other_client(tls, caplog, flight):
    """The reset is sent within the client's first or last message, or right after it."""
    listener = tls.listen(Echo)
    bystander = Bystander(tls, listener)
    for seed in range(60):
        chance = random.Random(seed)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        stranger = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with gevent.socket.create_connection(listener.address) as sock:
            with pytest.raises(ssl.SSLWantReadError):
                stranger.do_handshake()
            if flight == 2:
                sock.sendall(outgoing.read())
                while not outgoing.pending:
                    incoming.write(sock.recv(65536))
                    with contextlib.suppress(ssl.SSLWantReadError):
                        stranger.do_handshake()
            words = outgoing.read()
            sock.sendall(words[: chance.randrange(len(words) + 1)])
            Network().reset_on_close(sock)
    settled(listener, bystander)
    assert all(isinstance(served.closed, OSError) and served.data == b"" for served in tls.served[1:])
    assert caplog.records == []  # at level WARNING or above


# Slow peers.


def test_peers_that_never_read_do_not_affect_others(network):
    """Their output fills the kernel's buffers.  Then the server stops reading from them, and still answers others."""

    class Count(Witness):
        read = 0

        def handle_input(self, connection, data):
            self.read += len(data)
            connection.write(data.upper())

    def read():
        return [served.read for served in network.served[1:]]

    listener = network.listen(Count)
    bystander = Bystander(network, listener)
    peers = [network.peer(listener) for _ in range(5)]
    for peer in peers:
        for _ in range(16):
            peer.send(b"x" * 1_000_000)
    network.until(lambda: len(read()) == 5 and all(read()))
    before = None
    while before != read():  # as long as the server reads from them
        before = read()
        for _ in range(20):
            bystander.is_answered()
    assert max(before) < 16_000_000
    assert all(served.connection._output.size < 1_000_000 for served in network.served)
    listener.close()
    network.until(lambda: all(served.closed == "stopped" for served in network.served))


def test_peers_that_send_and_read_one_byte_at_a_time_do_not_affect_others(network):
    """Such a peer sends one byte a second.  The test does not wait that long.  After each byte, all others are served,
    and the byte costs one callback.
    """

    class Count(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if self.data.endswith(b"\n"):
                connection.write(self.data.upper())

    listener = network.listen(Count)
    message = b"hello out there\n"
    dawdlers = [network.peer(listener) for _ in range(20)]
    bystander = network.client(listener)
    network.until(lambda: len(network.served) == 21)
    slow = [served for served in network.served if served.connection.peer_address != bystander.connection.local_address]
    for position in range(len(message)):
        for peer in dawdlers:
            peer.send(message[position : position + 1])
        network.until(lambda position=position: all(len(served.data) == position + 1 for served in slow))
        network.served[[s in slow for s in network.served].index(False)].chunks.clear()
        bystander.chunks.clear()
        bystander.connection.write(b"quick\n")
        network.until(lambda: bystander.data == b"QUICK\n")
    assert all(len(served.chunks) == len(message) for served in slow)
    for peer in dawdlers:
        peer.read()
    network.until(lambda: all(peer.received == message.upper() for peer in dawdlers))


# Crowds.


@pytest.mark.slow
def test_of_a_thousand_connections_not_a_byte_is_lost(tcp, caplog):
    """A hundred run at a time: some finish, some wait, some reset.  Each must receive its own data only."""

    class Checked(Witness):
        def connected(self, connection):
            everybody[connection.peer_address] = self
            super().connected(connection)

        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(data)

    def live(seed):
        chance = random.Random(seed)
        message = chance.randbytes(chance.choice([1, 100, 10_000, 200_000]) * chance.randrange(1, 6))
        ending = chance.choice(["finishes", "finishes", "waits", "resets", "goes"])
        fates[ending] += 1
        stays = ending in ("finishes", "waits")
        with gevent.socket.create_connection(listener.address) as sock:
            address = sock.getsockname()
            reading = gevent.spawn(read, sock, len(message) if ending == "waits" else None)
            left = memoryview(message)
            while left and (stays or chance.random() < 0.8):
                size = chance.choice([1, 1000, 50_000, 1_000_000])
                sock.sendall(left[:size])
                left = left[size:]
            if ending == "finishes":
                sock.shutdown(socket.SHUT_WR)
            elif ending == "resets":
                Network().reset_on_close(sock)
            if stays:
                assert reading.get(timeout=PATIENCE) == message
            reading.kill()
        tcp.until(lambda: address in everybody and everybody[address].closed)
        served = everybody.pop(address)
        assert message.startswith(served.data)
        assert served.trace[-1] == ("close", served.closed)
        if stays:
            assert (served.data, served.closed) == (message, "end of input")
        else:
            assert served.closed == "end of input" or isinstance(served.closed, OSError)

    def read(sock, size):
        pieces, missing = [], float("inf") if size is None else size
        while missing and (piece := sock.recv(65536)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    everybody, fates = {}, Counter()
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # answers are sent in many parts
    bound.bind(("127.0.0.1", 0))
    listener = tcp.implementation.listener(bound, tcp.server(Checked))
    tcp.listeners.append(listener)
    bystander = tcp.client(listener)
    seeds = iter(range(1000))
    crowd = [gevent.spawn(lambda: [live(seed) for seed in seeds]) for _ in range(100)]
    gevent.joinall(crowd, timeout=2 * PATIENCE, raise_error=True)
    assert all(greenlet.successful() for greenlet in crowd)
    assert sum(fates.values()) == 1000
    assert len(everybody) == 1
    until(lambda: len(listener._connections) == 1)
    bystander.connection.write(b"all well")
    tcp.until(lambda: bystander.data == b"all well")
    assert caplog.records == []


# Handlers that gevent ends.


@pytest.mark.parametrize("how", ["killed", "its own timeout", "a timeout that it left running"])
def test_if_gevent_ends_a_handler_only_its_connection_ends(network, caplog, how):
    """The handler's output is sent, the handler gets the reason, and one error is logged."""

    class Ended(Echo):
        def handle_input(self, connection, data):
            if data != b"end me":
                super().handle_input(connection, data)
                return
            connection.write(b"before")
            self.greenlet = gevent.getcurrent()
            if how == "a timeout that it left running":
                self.timeout = gevent.Timeout.start_new(0.01)
                return
            if how == "its own timeout":
                self.timeout = gevent.Timeout.start_new(0.01)
            network.happened()
            Event().wait()

        def handle_close(self, connection, reason):
            gevent.sleep(0)  # blocking is allowed again
            super().handle_close(connection, reason)

    listener = network.listen(Ended)
    bystander = Bystander(network, listener)
    client = network.client(listener)
    network.until(lambda: len(network.served) == 2)
    served = network.served[1]
    client.connection.write(b"end me")
    if how == "killed":
        network.until(lambda: hasattr(served, "greenlet"))
        gevent.kill(served.greenlet)
    network.until(lambda: client.closed and served.closed)
    assert client.trace == [b"before", ("close", "end of input")]
    assert isinstance(served.closed, gevent.GreenletExit) if how == "killed" else served.closed is served.timeout
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    bystander.is_answered()
    if how != "killed":
        served.timeout.close()


@pytest.mark.parametrize("where", ["the server", "connected", "a generator"])
def test_if_gevent_ends_a_greenlet_before_a_handler_is_set_only_its_connection_ends(tcp, caplog, where):
    """The rules are the same in a server callable, in ``connected``, and in a generator."""

    def block(connection):
        with gevent.Timeout(0.01):
            Event().wait()

    @generator.handler
    def blocks(connection):
        yield
        block(connection)

    class Blocks(Witness):
        def connected(self, connection):
            self.meet(connection)
            block(connection)

    listener = tcp.listen({"the server": block, "connected": tcp.server(Echo), "a generator": blocks}[where])
    client = tcp.client(listener, Blocks if where == "connected" else Witness)
    if where == "a generator":
        client.connection.write(b"go")
    until(lambda: not client.connection)
    until(lambda: not listener._connections)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.records[0].args[1] == {"a generator": "handle_input"}.get(where, where)
    assert caplog.records[0].exc_info[0] is gevent.Timeout


# Ctrl-C.

PROGRAM = """
import threading
import gevent, ngi_gevent

class Handler:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        if data == b"never return":
            print("busy", flush=True)
            while True:
                pass
        connection.write(data.upper())

    def handle_close(self, connection, reason):
        print("end", type(reason).__name__, reason, flush=True)

def listening(implementation):
    print(implementation.listener(("127.0.0.1", 0), Handler, linger_timeout={linger}).address[1], flush=True)

try:
    {serve}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""

SERVE = {
    "the default": "listening(ngi_gevent); ngi_gevent.wait()",
    "in a sleep": "listening(ngi_gevent); gevent.sleep(60)",
    "Inline": "implementation = ngi_gevent.Inline(); listening(implementation); implementation.wait()",
    "Threaded": "listening(ngi_gevent.Threaded()); threading.Event().wait()",
    "Threaded's wait": "implementation = ngi_gevent.Threaded(); listening(implementation); implementation.wait()",
}


def interrupted(serve, message, first="", linger=LINGER_TIMEOUT):
    """Return the output of a program that gets SIGINT while it has one client, which keeps its side open."""
    program = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", first + PROGRAM.format(serve=serve, linger=linger)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(program.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(message)
            if message == b"hello":
                assert client.recv(100) == b"HELLO"
            else:
                assert program.stdout.readline() == "busy\n"
            program.send_signal(signal.SIGINT)
            out, err = program.communicate(timeout=PATIENCE)
            return program.returncode, out, err
    finally:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("kind", SERVE)
def test_ctrl_c_ends_a_program_that_serves(kind):
    """The main thread gets KeyboardInterrupt at its wait, and the program can then end itself."""
    code, out, err = interrupted(SERVE[kind], b"hello", linger=0.05)
    assert code == 0
    assert out.startswith("interrupted\n")
    # If the signal arrives while the hub itself runs, gevent prints a traceback.
    assert err == "" or "KeyboardInterrupt\n" in err


# Forks a program that waits, many times, and sends SIGINT at the moment when the wait begins.
INTERRUPTED_EARLY = """
import os, random, signal, socket, time
import ngi_gevent

for _ in range(400):
    parent, child = socket.socketpair()
    process = os.fork()
    if process == 0:
        implementation = ngi_gevent.Inline()
        implementation.listener(None, print)
        try:
            child.send(b"about to wait")
            implementation.wait()
        except KeyboardInterrupt:
            child.send(b"interrupted")
        os._exit(0)
    parent.settimeout(10)
    parent.recv(100)
    moment = time.perf_counter() + random.uniform(0, 0.0004)
    while time.perf_counter() < moment:
        pass
    os.kill(process, signal.SIGINT)
    try:
        assert parent.recv(100) == b"interrupted"
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        parent.close()
        child.close()
"""


@pytest.mark.slow
def test_ctrl_c_at_the_moment_when_the_wait_begins_is_not_lost():
    """Without a check each second, one or two of the 400 signals are lost."""
    program = subprocess.run([sys.executable, "-c", INTERRUPTED_EARLY], capture_output=True, text=True)
    assert program.returncode == 0, program.stderr


@pytest.mark.slow  # it takes as many seconds as the package waits
def test_the_thread_of_threaded_ends_before_the_interpreter_although_a_peer_keeps_its_side_open():
    """Otherwise both would end at the same moment, and the interpreter would crash."""
    # The function that is registered first is called last.
    first = "import atexit; atexit.register(lambda: print('ended', implementation._ended.is_set(), flush=True))"
    code, out, err = interrupted(SERVE["Threaded's wait"], b"hello", first)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "ended True"


@pytest.mark.parametrize("kind", ["the default", "Inline"])
def test_ctrl_c_reaches_the_program_through_a_handler_that_never_returns(kind):
    """The handler raises KeyboardInterrupt, and its connection ends.  The program gets the exception, too."""
    code, out, err = interrupted(SERVE[kind], b"never return")
    assert code == 0
    assert "interrupted" in out
    if kind == "the default":
        assert "handle_input raised an exception" in err
    else:  # Inline passes the exception to wait, and does not log it
        assert err == ""


def test_ctrl_c_while_output_is_sent_resets_only_that_connection(tcp, capfd):
    """How much of the output was sent is unknown, and the rest would wait forever.  All other connections continue."""

    def send(data, flags):
        raise KeyboardInterrupt

    def write_and_wait():
        served.connection._transport.send = send
        served.connection.write(b"interrupted")
        tcp.served[1].connection.write(b"all well")
        tcp.until(lambda: False)

    client, served = tcp.talk()
    other = tcp.client(tcp.listeners[0])
    tcp.until(lambda: len(tcp.served) == 2)
    with pytest.raises(KeyboardInterrupt):
        write_and_wait()
    tcp.until(lambda: client.closed and other.data == b"all well")
    assert isinstance(client.closed, OSError)
    assert served.trace == [("close", served.closed)]
    assert isinstance(served.closed, KeyboardInterrupt)
    assert "KeyboardInterrupt" in capfd.readouterr().err


# One byte is sent at the end of the turn, and much output when the callback returns.
@pytest.mark.parametrize("size", [1, 20_000])
def test_no_output_is_sent_twice_after_ctrl_c_during_a_send(tcp, capfd, size):
    class Server(Witness):
        def handle_input(self, connection, data):
            transport = connection._transport
            really_send = transport.send

            def send(piece, flags):
                really_send(piece, flags)
                transport.send = really_send
                raise KeyboardInterrupt

            transport.send = send
            connection.write(bytes(size))

    peer = tcp.peer(tcp.listen(Server))
    with pytest.raises(KeyboardInterrupt):
        peer.send(b"x")
        tcp.until(lambda: False)
    tcp.until(lambda: tcp.served[0].gone)
    peer.read()
    tcp.until(lambda: peer.ended)
    assert (len(peer.received), peer.ended) == (size, "broken")
    assert isinstance(tcp.served[0].closed, KeyboardInterrupt)


def test_an_interrupt_of_a_script_is_raised_by_its_wait(tcp):
    """If a handler of ``Inline`` raises ``KeyboardInterrupt``, ``wait`` raises it, and the handler gets the end
    once.
    """

    class Interrupt(Witness):
        def handle_input(self, connection, data):
            raise KeyboardInterrupt

    inline = ngi_gevent.Inline()
    served = Interrupt(tcp)
    listener = inline.listener(None, served.connected)
    client = Witness(tcp)
    inline.connect(listener.address, client)
    tcp.until(lambda: client.connection)
    client.connection.write(b"go")
    with pytest.raises(KeyboardInterrupt):
        inline.wait(PATIENCE)
    tcp.until(lambda: served.closed)
    assert isinstance(served.closed, KeyboardInterrupt)
    listener.close()
    inline.wait(PATIENCE)
    inline.close()
