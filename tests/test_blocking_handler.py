"""The handler behind a pair of files, on every implementation: held input, waiting, and closing in any order."""

from __future__ import annotations

import threading

import gevent
import pytest
from file_pairs import MUCH, PIECE, talk
from stages import PATIENCE, Witness

from ngi_gevent import (
    ConnectionClosed,
    Deadlock,
    Timeout,
    adapters,
    blocking,
    testing,
)
from ngi_gevent.core import clock, threads
from ngi_gevent.core.threads import Flag


class Echo(Witness):
    def handle_input(self, connection, data):
        connection.write(data.upper())


def test_a_fast_sender_waits_for_a_slow_reader(socket_stage):
    came = 0

    class Counting(adapters.Base):
        def handle_input(self, connection, data):
            nonlocal came
            came += len(data)
            super().handle_input(connection, data)

    output, input, peer = talk(socket_stage, Counting)
    peer.send(bytes(MUCH))
    peer.finish()
    read = most = 0
    while data := input.read(1000, PATIENCE):
        read += len(data)
        most = max(most, came - read)
        if read < 200 * 1000:  # the kernel's buffers grow as more is read
            gevent.idle()  # let all ready greenlets run
            assert peer.sent < MUCH
    assert read == came == MUCH
    assert PIECE - 1000 <= most <= 2 * PIECE


def test_a_read_of_many_bytes_returns_them_together(stage):
    output, input, peer = talk(stage)
    peer.send(bytes(5 * 1024 * 1024))
    assert input.read(5 * 1024 * 1024, PATIENCE) == bytes(5 * 1024 * 1024)


def test_a_closed_input_discards_what_arrives(socket_stage):
    output, input, peer = talk(socket_stage)
    peer.send(b"x")
    assert input.read(1, PATIENCE) == b"x"
    input.close()
    peer.send(bytes(MUCH))
    socket_stage.until(lambda: peer.sent == MUCH + 1)
    assert not input._handler.arrived
    output.write(b"still there")
    peer.read()
    socket_stage.until(lambda: peer.received == b"still there")
    peer.finish()
    output.close()
    socket_stage.until(lambda: peer.ended)


@pytest.mark.parametrize("end", ["abort", "close", "stop"])
def test_unread_input_does_not_keep_a_connection_open(socket_stage, end):
    output, input, peer = talk(socket_stage)
    peer.send(b"x\nunread\n")
    assert input.readline(timeout=PATIENCE) == b"x\n"
    (connection,), (listener,) = socket_stage.connections, socket_stage.listeners
    closed = Flag()
    connection.when_closed(closed.set)
    {"abort": connection.abort, "close": connection.close, "stop": listener.close}[end]()
    peer.finish()
    assert closed.wait(PATIENCE)
    assert input.readline(timeout=PATIENCE) == b"unread\n"


def test_unread_input_does_not_hide_that_the_peer_has_gone(socket_stage):
    output, input, peer = talk(socket_stage)
    peer.send(b"x\nunread\n")
    assert input.readline(timeout=PATIENCE) == b"x\n"
    peer.reset()

    def write_for_ever():
        while output.write(b"x"):
            gevent.idle()

    with pytest.raises(ConnectionClosed), gevent.Timeout(PATIENCE):
        write_for_ever()
    assert input.readline() == b"unread\n"
    with pytest.raises(OSError, match=r"reset|Broken"):
        input.readline()


def test_the_answers_to_many_lines_wait_until_the_peer_reads(socket_stage):
    """The answers to 12,000 requests in one write are 24 MB, of which little is pending at a time."""
    count, most_pending = 12_000, 0

    @blocking.server
    def server(input, output):
        nonlocal most_pending
        connection = output._handler.connection
        for _ in input:
            output.write(bytes(2000))
            most_pending = max(most_pending, socket_stage.waiting(connection))

    peer = socket_stage.peer(socket_stage.listen(server, output_limit=1_000_000))
    peer.send(b"\n" * count)
    peer.read()
    socket_stage.until(lambda: peer.size == count * 2000 or peer.ended)
    assert peer.ended is None
    assert most_pending < 200_000


def test_a_read_waits_for_output_that_the_peer_does_not_read_no_longer_than_its_timeout(simulated):
    output, input, peer = talk(simulated)
    peer.send(b"\n" * 20_000)
    with pytest.raises(Timeout, match="output"):
        for _ in range(20_000):
            assert input.readline(timeout=60) == b"\n"
            output.write(bytes(2000))
    assert clock.now() == pytest.approx(60, abs=0.1)


@pytest.mark.parametrize("timeout", [-1, "1"])
def test_an_invalid_timeout_is_refused(stage, timeout):
    output, input, peer = talk(stage)
    for call in (
        lambda: input.read(1, timeout),
        lambda: input.readline(1, timeout),
        lambda: input.readlines(1, timeout),
        lambda: output.write(b"", timeout),
        lambda: output.writelines([], timeout),
        lambda: output.flush(timeout),
        lambda: blocking.open(testing.Connection(), timeout=timeout),
    ):
        with pytest.raises((TypeError, ValueError), match="timeout"):
            call()


@pytest.mark.parametrize("order", ["output", "input", "output input", "input output", "output output input input"])
def test_files_can_be_closed_in_any_order(stage, order):
    output, input, peer = talk(stage)
    peer.send(b"asked\nmore")
    assert input.readline(timeout=PATIENCE) == b"asked\n"
    output.write(b"answer" * 10_000)
    files = {"output": output, "input": input}
    for name in order.split():
        files[name].close()
    for name, file in files.items():
        assert file.closed == (name in order)
    peer.read()
    stage.until(lambda: peer.received == b"answer" * 10_000)
    if "output" not in order:
        output.close()
    if "input" not in order:
        assert (input.read(), input.read()) == (b"more", b"")
    stage.until(lambda: peer.ended == "end")


def test_reading_does_not_wait_until_the_connection_is_closed(stage):
    output, input, peer = talk(stage)
    peer.send(b"asked\nmore")
    assert input.readline(timeout=PATIENCE) == b"asked\n"
    output.write(bytes(MUCH))  # the peer does not read this
    output.close()
    assert input.read(timeout=1) == b"more"


def test_files_are_context_managers(stage):
    output, input, peer = talk(stage)
    peer.read()
    with output as same_output, input as same_input:
        assert (same_output, same_input) == (output, input)
        output.write(b"x")
    assert (output.closed, input.closed) == (True, True)
    stage.until(lambda: (peer.received, peer.ended) == (b"x", "end"))


def test_files_report_their_direction_and_state(stage):
    output, input, peer = talk(stage)
    assert (output.readable(), output.writable()) == (False, True)
    assert (input.readable(), input.writable()) == (True, False)
    assert not input.seekable()
    assert not output.seekable()
    assert "open" in repr(input)
    input.close()
    assert "closed" in repr(input)


@pytest.mark.parametrize(
    "use",
    [
        lambda output, input: input.read(),
        lambda output, input: input.read(0),
        lambda output, input: input.read1(),
        lambda output, input: input.readinto(bytearray(1)),
        lambda output, input: input.readline(),
        lambda output, input: input.readlines(),
        lambda output, input: iter(input),
        lambda output, input: next(input),
        lambda output, input: input.__enter__(),
        lambda output, input: output.write(b""),
        lambda output, input: output.writelines([]),
        lambda output, input: output.flush(),
        lambda output, input: output.__enter__(),
    ],
)
def test_use_after_close_is_an_error(stage, use):
    output, input, peer = talk(stage)
    peer.send(b"unread")
    output.close()
    input.close()
    with pytest.raises(ValueError, match="closed file"):
        use(output, input)


@pytest.mark.parametrize("adapter", [lambda connection: connection, lambda c: adapters.Lines(adapters.Base(c))])
@pytest.mark.parametrize(
    "wait",
    [
        lambda output, input: input.read(timeout=PATIENCE),
        lambda output, input: input.read1(timeout=PATIENCE),
        lambda output, input: input.readline(timeout=PATIENCE),
        lambda output, input: input.readlines(timeout=PATIENCE),
        lambda output, input: next(input),
    ],
)
@pytest.mark.parametrize("callback", ["server", "handle_input"])
def test_waiting_in_a_callback_of_the_connection_is_refused(stage, adapter, wait, callback):
    caught = []

    class Handler:
        def handle_input(self, connection, data):
            output, input = blocking.open(adapter(connection))
            with pytest.raises(Deadlock) as refused:
                wait(output, input)
            caught.append(refused.value)
            input.close()
            stage.happened()

    def serve(connection):
        handler = Handler()
        if callback == "server":
            handler.handle_input(connection, b"")
        else:
            connection.set_handler(handler)

    peer = stage.peer(stage.listen(serve))
    peer.send(b"x")
    with gevent.Timeout(PATIENCE):  # otherwise the hub would end the wait
        stage.until(lambda: caught)


def test_waiting_for_another_connection_in_a_callback_is_allowed(tcp):
    class Proxy(Witness):
        def handle_input(self, connection, data):
            output, input = blocking.open(echo.address, tcp.implementation.connect)
            with output, input:
                output.write(data)
                output.flush(PATIENCE)
                connection.write(input.read(len(data), PATIENCE))

    echo = tcp.listen(Echo)
    client = tcp.client(tcp.listen(Proxy))
    client.connection.write(b"hello")
    tcp.until(lambda: client.data == b"HELLO")


def test_input_that_has_arrived_can_be_read_in_a_callback(stage):
    output, input, peer = talk(stage)
    peer.send(b"a\nb\nc")
    assert input.readline(timeout=PATIENCE) == b"a\n"
    read = []

    class Client(Witness):
        def connected(self, connection):
            super().connected(connection)
            read.append(input.readline())

    stage.client(stage.listen(), Client)
    assert read == [b"b\n"]


@pytest.mark.parametrize("writes", [True, False])
def test_in_memory_a_read_without_a_timeout_waits_while_other_threads_run(monkeypatch, writes):
    """The read fails when the last other thread has ended: any of them could have sent the input."""
    monkeypatch.setattr(threads, "CHECK_INTERVAL", 0.001)
    connection, begins = testing.Connection(testing.Recorder()), threading.Event()
    _, input = blocking.open(connection)

    def run():
        assert begins.wait(PATIENCE)
        if writes:
            connection.peer.write(b"from a thread")

    gevent.sleep(0)  # this creates the hub
    thread = threading.Thread(target=run)
    thread.start()
    gevent.spawn(begins.set)  # this runs once the read waits
    if writes:
        assert input.read(4) == b"from"
    else:
        with pytest.raises(Deadlock):
            input.read(4)
    thread.join(PATIENCE)


def test_a_read_that_nothing_can_end_is_an_error():
    output, input = blocking.open(testing.Connection(testing.Recorder()))
    with pytest.raises(Deadlock):
        input.read()
