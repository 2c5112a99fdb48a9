"""Connections as files, and servers written with them, on every implementation."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
from array import array
from contextvars import ContextVar

import gevent
import pytest
from gevent.event import Event
from gevent.exceptions import ConcurrentObjectUseError
from stages import PATIENCE, SocketStage, Witness

from ngi_gevent import (
    ConnectionClosed,
    ConnectionFailed,
    Deadlock,
    LimitExceeded,
    Timeout,
    adapters,
    blocking,
    files,
    testing,
)
from ngi_gevent.sockets import linger

TEXT = b"one\ntwo words\n\nthe rest"
LINES = [b"one\n", b"two words\n", b"\n", b"the rest"]

#: More than the kernel buffers for a peer that does not read, and less than an output_limit.
MUCH = 16 * 1024 * 1024

PIECE = 64 * 1024


def talk(stage, adapter=lambda connection: connection):
    """The output and input of a server connection, and its peer, which knows nothing of NGI."""
    opened = []

    def serve(connection):
        stage.connections.append(connection)
        opened.append(blocking.open(adapter(connection)))
        stage.happened()

    peer = stage.peer(stage.listen(serve))
    stage.until(lambda: opened)
    return (*opened.pop(), peer)


def talk_openly(stage):
    """The files of a client and of its server."""
    opened = []

    def serve(connection):
        stage.connections.append(connection)
        opened.append(blocking.open(connection))
        stage.happened()

    client = blocking.open(stage.listen(serve).address, stage.implementation.connect, timeout=PATIENCE)
    stage.until(lambda: opened)
    return client, opened.pop()


def break_off(stage, output, peer):
    """Have *peer* reset the connection."""
    output.write(b"unread")  # without which a Unix socket knows no reset
    if isinstance(stage, SocketStage):
        output.flush(PATIENCE)
    peer.reset()


def read_all(read, *arguments):
    """What *read* gives until it gives nothing."""
    return list(iter(lambda: read(*arguments, timeout=PATIENCE), b""))


# Input.


@pytest.mark.parametrize("split", [len(TEXT), 1])
@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda input: input.read(timeout=PATIENCE), TEXT),
        (lambda input: input.read(None), TEXT),
        (lambda input: read_all(input.read, 10), [TEXT[:10], TEXT[10:20], TEXT[20:]]),
        (lambda input: [input.read(0), input.read(3), input.read(100)], [b"", TEXT[:3], TEXT[3:]]),
        (lambda input: b"".join(read_all(input.read1)), TEXT),
        (lambda input: b"".join(read_all(input.read1, 3)), TEXT),
        (lambda input: [input.read1(0), input.read1(1), input.read()], [b"", TEXT[:1], TEXT[1:]]),
        (lambda input: read_all(input.readline), LINES),
        (lambda input: read_all(input.readline, 4), [b"one\n", b"two ", b"word", b"s\n", b"\n", b"the ", b"rest"]),
        (lambda input: [input.readline(0), input.readline(None)], [b"", b"one\n"]),
        (lambda input: input.readlines(timeout=PATIENCE), LINES),
        (lambda input: input.readlines(None), LINES),
        (
            lambda input: [input.readlines(4), input.readlines(5), input.readlines(100)],
            [LINES[:1], LINES[1:2], LINES[2:]],
        ),
        (lambda input: input.readlines(5), LINES[:2]),
        (lambda input: list(input), LINES),
        (
            lambda input: [input.readline(), input.read(5), next(input), input.read()],
            [b"one\n", b"two w", b"ords\n", b"\nthe rest"],
        ),
    ],
)
def test_reading(stage, split, read, expected):
    output, input, peer = talk(stage)
    for start in range(0, len(TEXT), split):
        peer.send(TEXT[start : start + split])
    peer.finish()
    assert read(input) == expected
    input.read()
    assert (input.read(), input.read(1), input.readline(), input.readlines(), list(input)) == (b"", b"", b"", [], [])
    assert (input.read1(), input.read1(None), input.readinto(bytearray(1))) == (b"", b"", 0)


def test_what_there_is_can_be_read(stage):
    output, input, peer = talk(stage)
    buffer = array("H", bytes(4))
    with pytest.raises(Timeout):
        input.read1(timeout=0.01)
    with pytest.raises(Timeout):
        input.readinto(buffer, timeout=0.01)
    peer.send(b"abcd")
    assert input.read1(2, PATIENCE) == b"ab"
    assert input.readinto(buffer, PATIENCE) == 2
    assert buffer.tobytes() == b"cd\0\0"
    assert input.readinto(bytearray()) == 0
    buffer.append(1)  # which raises while something else still uses it


def test_the_io_module_reads_and_writes_text(stage):
    output, input, peer = talk(stage)
    peer.send("first\r\nsécond\r".encode())
    reader = io.TextIOWrapper(input, "utf-8")
    assert reader.readline() == "first\n"
    peer.send(b"\nthird")
    peer.finish()
    assert list(reader) == ["sécond\n", "third"]
    reader.close()
    assert input.closed
    client, served = talk_openly(stage)
    with io.TextIOWrapper(client[0], "utf-8") as writer:
        writer.write("grün")
        writer.flush()
        assert served[1].read(5, PATIENCE) == "grün".encode()
        print("more", file=writer)
    assert client[0].closed
    assert served[1].read(timeout=PATIENCE) == b"more\n"


def test_the_io_module_buffers_files(stage):
    (output, _), (_, input) = talk_openly(stage)
    with io.BufferedWriter(output) as writer:
        pickle.dump(TEXT, writer)
        writer.write(TEXT)
    reader = io.BufferedReader(input)
    assert pickle.load(reader) == TEXT
    assert reader.readline() == LINES[0]
    assert reader.peek(1)
    assert reader.read(3) == LINES[1][:3]
    assert reader.read() == TEXT[7:]


def test_lines_end_in_newlines_only(stage):
    output, input, peer = talk(stage)
    peer.send(b"a\rb\x0bc\r\nd\n")
    peer.finish()
    assert input.readlines() == [b"a\rb\x0bc\r\n", b"d\n"]


@pytest.mark.parametrize(
    "read",
    [
        lambda input: input.read(timeout=0.001),
        lambda input: input.read(6, timeout=0.001),
        lambda input: input.readline(timeout=0.001),
        lambda input: input.readline(6, timeout=0),
        lambda input: input.readlines(timeout=0.001),
        lambda input: input.readlines(6, timeout=0.001),
    ],
)
def test_a_read_that_takes_too_long_loses_nothing(stage, read):
    output, input, peer = talk(stage)
    with pytest.raises(Timeout):
        read(input)
    peer.send(b"ab")
    assert input.read(1, PATIENCE) == b"a"
    with pytest.raises(Timeout):
        read(input)
    peer.send(b"c\nd")
    with pytest.raises(Timeout):
        input.read(100, timeout=0.001)
    peer.send(b"e")
    peer.finish()
    assert input.read(timeout=PATIENCE) == b"bc\nde"


def test_a_read_that_is_interrupted_loses_nothing(tcp):
    output, input, peer = talk(tcp)
    peer.send(b"abc")
    assert input.read(1) == b"a"
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        input.read()
    peer.finish()
    assert input.read() == b"bc"


def test_a_broken_connection_is_told_when_everything_is_read(stage):
    output, input, peer = talk(stage)
    peer.send(b"x\nbroken off")
    assert input.readline(timeout=PATIENCE) == b"x\n"
    break_off(stage, output, peer)
    for read in input.read, input.readlines:
        with pytest.raises(ConnectionResetError):
            read(timeout=PATIENCE)  # it must not look like all there was
    assert input.read(100, PATIENCE) == b"broken off"
    for read in input.read, input.readline, input.readlines, lambda: input.read(1), lambda: next(input):
        with pytest.raises(ConnectionResetError):
            read()
    assert isinstance(input.reason, ConnectionResetError)


def test_iterating_stops_at_what_is_broken(stage):
    output, input, peer = talk(stage)
    peer.send(b"1\n2\n3")
    lines = [input.readline(timeout=PATIENCE)]
    break_off(stage, output, peer)
    with pytest.raises(ConnectionResetError):
        lines.extend(iter(input))
    assert lines == [b"1\n", b"2\n", b"3"]


@pytest.mark.parametrize("end", ["stopped", "closed", "aborted"])
def test_half_an_upload_is_not_taken_for_a_whole_one_when_this_side_ends_it(stage, monkeypatch, end):
    monkeypatch.setattr(linger, "DRAIN_TIMEOUT", 0.01)  # the peer does not close its side
    output, input, peer = talk(stage)
    peer.send(b"xhalf of it")
    assert input.read(1, PATIENCE) == b"x"
    connection = stage.connections[0]
    {"stopped": stage.listeners[0].close, "closed": connection.close, "aborted": connection.abort}[end]()
    for read in input.read, input.readlines:
        with pytest.raises(ConnectionClosed, match="stopped" if end == "stopped" else "closed"):
            read(timeout=PATIENCE)
    assert input.reason == ("stopped" if end == "stopped" else None)
    with contextlib.suppress(ConnectionClosed):  # what had come before can be read; how much of it did is up to chance
        assert b"half of it".startswith(input.read(100, PATIENCE))


def test_one_greenlet_reads_at_a_time(tcp):
    output, input, peer = talk(tcp)
    reader = gevent.spawn(input.readline)
    gevent.idle()
    with pytest.raises(ConcurrentObjectUseError):
        input.read()
    peer.send(b"line\n")
    assert reader.get(timeout=PATIENCE) == b"line\n"


def test_closing_an_input_wakes_who_reads(tcp):
    output, input, peer = talk(tcp)
    reader = gevent.spawn(input.readline)
    gevent.idle()
    input.close()
    with pytest.raises(ValueError, match="closed"):
        reader.get(timeout=PATIENCE)


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
        if read < 1000 * 1000:
            gevent.idle()  # let come what may
            assert peer.sent < MUCH
    assert read == came == MUCH
    assert PIECE - 1000 <= most <= 2 * PIECE


def test_nothing_is_held_back_from_who_asked_for_it(stage):
    output, input, peer = talk(stage)
    peer.send(bytes(5 * 1024 * 1024))
    assert input.read(5 * 1024 * 1024, PATIENCE) == bytes(5 * 1024 * 1024)


def test_an_input_that_is_closed_takes_what_comes(socket_stage):
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
    socket_stage.until(lambda: peer.ended)


@pytest.mark.parametrize("end", ["abort", "close", "stop"])
def test_unread_input_keeps_no_connection(socket_stage, end):
    output, input, peer = talk(socket_stage)
    peer.send(b"x\nunread\n")
    assert input.readline(timeout=PATIENCE) == b"x\n"
    (connection,), (listener,) = socket_stage.connections, socket_stage.listeners
    closed = Event()
    connection.when_closed(closed.set)
    {"abort": connection.abort, "close": connection.close, "stop": listener.close}[end]()
    peer.finish()
    assert closed.wait(PATIENCE)
    assert input.readline(timeout=PATIENCE) == b"unread\n"


def test_unread_input_does_not_hide_that_a_peer_is_gone(socket_stage):
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


def test_lines_that_come_together_are_answered_as_the_peer_takes_the_answers(socket_stage):
    """Twelve thousand requests in one go are answered with 24 MB, of which little is pending at a time."""
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


def test_reading_waits_for_a_peer_that_takes_no_output_no_longer_than_its_timeout(socket_stage):
    output, input, peer = talk(socket_stage)
    peer.send(b"\n" * 20_000)
    with pytest.raises(Timeout, match="output"):
        for number in range(20_000):
            assert input.readline(timeout=0.03 if number else PATIENCE) == b"\n"
            output.write(bytes(2000))


# Output.


def test_writing(stage):
    output, input, peer = talk(stage)
    peer.read()
    assert output.write(b"bytes ") == 6
    assert output.write(bytearray(b"array "), timeout=1) == 6
    assert output.write(memoryview(struct.pack("2H", 1, 2)).cast("H")) == 4
    output.writelines([b"1", b"", bytearray(b"2")])
    output.writelines((b"%d" % number for number in range(3, 6)), timeout=PATIENCE)
    output.writelines([])
    output.flush(PATIENCE)
    output.flush()
    stage.until(lambda: peer.received == b"bytes array " + struct.pack("2H", 1, 2) + b"12345")
    output.close()
    stage.until(lambda: peer.ended == "end")


@pytest.mark.parametrize("wrong", ["text", None, 7])
def test_what_is_no_bytes_is_refused(stage, wrong):
    output, input, peer = talk(stage)
    for write in output.write, output.writelines, lambda wrong: output.writelines([wrong]):
        with pytest.raises(TypeError):
            write(wrong)
    with pytest.raises(TypeError):
        output.writelines(b"bytes")
    assert output.write(b"x") == 1


@pytest.mark.parametrize("timeout", [-1, "1"])
def test_a_wrong_timeout_is_refused(stage, timeout):
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


def test_what_an_iterable_raises_comes_back(stage):
    """zc.ngi hung."""
    output, input, peer = talk(stage)
    peer.read()

    def failing():
        yield b"before"
        raise KeyError("it")

    with pytest.raises(KeyError, match="it"):
        output.writelines(failing())
    with pytest.raises(TypeError):
        output.writelines([b" more", "text", b"never"])
    output.write(b" after")
    stage.until(lambda: peer.received == b"before more after")


def test_an_iterable_is_pulled_only_as_the_peer_takes_it(stage):
    output, input, peer = talk(stage)
    pulled = []

    def pieces():
        for number in range(400):
            pulled.append(number)
            yield b"%05d" % number * 8_000

    pieces = pieces()
    before = -2
    while len(pulled) > before + 1:  # while there is room for more than the piece that each call pulls
        before = len(pulled)
        with pytest.raises(Timeout):
            output.writelines(pieces, timeout=0.02)
    assert len(pulled) < 300
    with pytest.raises(Timeout):
        output.flush(timeout=0)
    peer.read()
    output.flush(PATIENCE)
    output.writelines(pieces, timeout=PATIENCE)
    output.close()
    stage.until(lambda: peer.ended)
    assert peer.received == b"".join(b"%05d" % number * 8_000 for number in range(400))


def test_flush_waits_for_all_that_was_written(stage):
    output, input, peer = talk(stage)
    output.write(bytes(MUCH))
    for _ in range(3):
        with pytest.raises(Timeout):
            output.flush(timeout=0.001)
    output.write(b"more")
    flushing = gevent.spawn(output.flush)
    with pytest.raises(Timeout):
        output.flush(timeout=0.01)
    assert not flushing.ready()
    peer.read()
    flushing.get(timeout=PATIENCE)
    output.flush(timeout=0)
    stage.until(lambda: peer.size == MUCH + 4)


def test_flush_does_not_answer_for_what_is_written_meanwhile(tcp):
    output, input, peer = talk(tcp)
    output.write(bytes(MUCH // 2))
    flushing = gevent.spawn(output.flush)
    gevent.idle()
    output.write(bytes(MUCH // 2))
    peer.read()
    flushing.get(timeout=PATIENCE)
    with pytest.raises(Timeout):
        output.flush(timeout=0)
    output.flush(PATIENCE)
    tcp.until(lambda: peer.size == MUCH)


def test_flushes_that_time_out_cost_nothing(tcp):
    """Each leaves a mark, which must not add up."""
    output, input, peer = talk(tcp)
    output.write(bytes(MUCH))
    pending = []
    for _ in range(100):
        with pytest.raises(Timeout):
            output.flush(timeout=0.001)
        pending.append(tcp.connections[0]._pending)
    assert pending[-1] <= pending[9]


@pytest.mark.parametrize("unread", [b"", b"unread\n"])
@pytest.mark.parametrize("wait", [lambda output: output.flush(), lambda output: output.writelines([bytes(PIECE)] * 2)])
def test_a_wait_for_a_peer_that_breaks_off_ends(stage, unread, wait):
    output, input, peer = talk(stage)
    peer.send(b"begin\n" + unread)
    assert input.readline(timeout=PATIENCE) == b"begin\n"
    output.write(bytes(MUCH))
    waiting = gevent.spawn(wait, output)
    gevent.idle()
    assert not waiting.ready()
    peer.reset()
    with pytest.raises(ConnectionClosed):
        waiting.get(timeout=PATIENCE)
    if unread:
        assert input.readline(timeout=PATIENCE) == unread
    with pytest.raises(OSError, match=r"reset|Broken"):
        input.readline(timeout=PATIENCE)
    with pytest.raises(ConnectionClosed):
        output.write(b"x")
    with pytest.raises(ConnectionClosed):
        output.flush()


def test_writing_to_an_ended_connection(stage):
    output, input, peer = talk(stage)
    peer.finish()
    assert input.read(timeout=PATIENCE) == b""
    for write in lambda: output.write(b"x"), lambda: output.writelines([b"x"]):
        with pytest.raises(ConnectionClosed):
            write()
    output.flush()  # everything that was written, which is nothing
    assert not output.closed


def test_flush_goes_on_while_the_peer_finishes(socket_stage):
    output, input, peer = talk(socket_stage)
    output.write(bytes(MUCH))
    with pytest.raises(Timeout):
        output.flush(timeout=0.01)
    flushing = gevent.spawn(output.flush)
    peer.finish()
    peer.read()
    flushing.get(timeout=PATIENCE)
    socket_stage.until(lambda: peer.ended)
    assert len(peer.received) == MUCH


def test_flush_sends_nothing_through_an_adapter(stage):
    output, input, peer = talk(stage, adapters.Sized)
    peer.read()
    output.write(b"record")
    output.flush(PATIENCE)
    output.writelines([b"x" * PIECE, b"y"], PATIENCE)
    output.close()
    stage.until(lambda: peer.ended)
    assert peer.received == b"".join(struct.pack(">I", len(r)) + r for r in (b"record", b"x" * PIECE, b"y"))


# Closing.


@pytest.mark.parametrize("order", ["output", "input", "output input", "input output", "output output input input"])
def test_closing_in_any_order(stage, order):
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


def test_reading_does_not_wait_for_the_close(stage):
    output, input, peer = talk(stage)
    peer.send(b"asked\nmore")
    assert input.readline(timeout=PATIENCE) == b"asked\n"
    output.write(bytes(MUCH))  # which the peer does not take
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


def test_what_files_are(stage):
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
def test_use_after_close(stage, use):
    output, input, peer = talk(stage)
    peer.send(b"unread")
    output.close()
    input.close()
    with pytest.raises(ValueError, match="closed file"):
        use(output, input)


# Opening.


class Echo(Witness):
    def handle_input(self, connection, data):
        connection.write(data.upper())


def test_opening_an_address(stage):
    listener = stage.listen(Echo)
    output, input = blocking.open(listener.address, stage.implementation.connect, timeout=PATIENCE)
    with output, input:
        output.write(b"hello\n")
        assert input.readline(timeout=PATIENCE) == b"HELLO\n"
    listener.close()
    with pytest.raises(ConnectionFailed):
        blocking.open(listener.address, stage.implementation.connect)
    with pytest.raises(TypeError, match="connect"):
        blocking.open(listener.address, "connect")


def test_opening_a_connection_gives_what_it_held(stage):
    def serve(connection):
        connection.write(b"welcome")
        connection.close()

    connection = blocking.connect(stage.listen(serve).address, stage.implementation.connect)
    output, input = blocking.open(connection)
    assert input.read(timeout=PATIENCE) == b"welcome"
    with pytest.raises(ConnectionClosed):  # it is gone, which nobody but the first was told
        blocking.open(connection)[1].read(timeout=PATIENCE)


# In callbacks.


@pytest.mark.parametrize("adapter", [lambda connection: connection, lambda c: adapters.Lines(adapters.Base(c))])
@pytest.mark.parametrize(
    "wait",
    [
        lambda output, input: input.read(timeout=PATIENCE),
        lambda output, input: input.read1(timeout=PATIENCE),
        lambda output, input: input.readline(timeout=PATIENCE),
        lambda output, input: input.readlines(timeout=PATIENCE),
        lambda output, input: next(input),
        lambda output, input: [output.write(b"x"), output.flush(PATIENCE)],
        lambda output, input: output.writelines([bytes(PIECE)], PATIENCE),
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
    with gevent.Timeout(PATIENCE):  # which keeps the hub from ending the wait otherwise
        stage.until(lambda: caught)


def test_waiting_for_another_connection_in_a_callback_is_fine(tcp):
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


def test_what_has_come_can_be_read_in_a_callback(stage):
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


def test_a_read_that_nothing_could_end_says_so():
    output, input = blocking.open(testing.Connection(testing.Recorder()))
    with pytest.raises(Deadlock):
        input.read()


# Servers.


@blocking.server
def count_words(input, output):
    for line in input:
        output.write(b"%d\n" % len(line.split()))


@blocking.server
def echo(input, output):
    while data := input.read(PIECE):
        output.writelines([data])


def test_a_server_of_a_function_serves_many_at_once(stage):
    listener = stage.listen(count_words)

    def client(number):
        output, input = blocking.open(listener.address, stage.implementation.connect, PATIENCE)
        with output, input:
            for words in range(number, number + 5):
                output.write(b"word " * words + b"\n")
                assert input.readline(timeout=PATIENCE) == b"%d\n" % words
        return number

    clients = [gevent.spawn(client, number) for number in range(50)]
    assert [client.get(timeout=PATIENCE) for client in clients] == list(range(50))
    gevent.idle()
    assert listener.close_wait(PATIENCE) == 0


def test_much_goes_both_ways(stage):
    size = 160 * PIECE  # 10 MB
    pieces = [bytes([number]) * PIECE for number in range(160)]
    listener = stage.listen(echo)
    output, input = blocking.open(listener.address, stage.implementation.connect, PATIENCE)
    with output, input:
        writer = gevent.spawn(output.writelines, pieces)
        assert input.read(size, PATIENCE) == b"".join(pieces)
        writer.get(timeout=PATIENCE)


def test_a_peer_that_has_finished_sending_gets_its_answer(socket_stage):
    listener = socket_stage.listen(count_words)
    for _ in range(20):
        peer = socket_stage.peer(listener)
        peer.send(b"a b\nc\n\nd")
        peer.finish()
        peer.read()
        socket_stage.until(lambda peer=peer: peer.ended)
        assert (peer.received, peer.ended) == (b"2\n1\n0\n1\n"[: len(peer.received)], "end")
        assert peer.received.startswith(b"2\n1\n0\n")  # what has no line end is only known to be a line at the end


def test_methods_and_more_than_one_way_to_be_a_server(stage):
    class Application:
        greeting = b"hello"

        @blocking.server
        def greet(self, input, output):
            """Say hello."""
            output.write(self.greeting)

    assert Application.greet.__doc__ == "Say hello."
    for server in Application().greet, blocking.server(lambda input, output: output.write(b"hello")):
        output, input = blocking.open(stage.listen(server).address, stage.implementation.connect, PATIENCE)
        assert input.read(timeout=PATIENCE) == b"hello"
    with pytest.raises(TypeError, match="server"):
        blocking.server(7)


def test_a_function_sees_the_context_of_its_listener(stage):
    variable = ContextVar("variable")
    variable.set(b"seen")

    @blocking.server
    def tell(input, output):
        output.write(variable.get(b"not seen"))

    output, input = blocking.open(stage.listen(tell).address, stage.implementation.connect, PATIENCE)
    assert input.read(timeout=PATIENCE) == b"seen"


def test_a_function_leaves_its_files_closed(stage):
    files = []
    listener = stage.listen(blocking.server(lambda *arguments: files.extend(arguments)))
    output, input = blocking.open(listener.address, stage.implementation.connect, PATIENCE)
    assert input.read(timeout=PATIENCE) == b""
    assert [file.closed for file in files] == [True, True]


def test_what_a_function_raises_is_logged_once(stage, caplog):
    @blocking.server
    def failing(input, output):
        output.write(b"before")
        raise KeyError("the function's")

    output, input = blocking.open(stage.listen(failing).address, stage.implementation.connect, PATIENCE)
    assert input.read(timeout=PATIENCE) == b"before"
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("ngi_gevent.connection", "ERROR")
    assert record.exc_info[0] is KeyError
    assert "blocking.server" in record.getMessage()


def test_a_function_that_does_not_run_is_said(stage, caplog):
    @blocking.server
    def generator(input, output):
        yield

    output, input = blocking.open(stage.listen(generator).address, stage.implementation.connect, PATIENCE)
    assert input.read(timeout=PATIENCE) == b""
    assert [record.exc_info[0] for record in caplog.records] == [TypeError]


@pytest.mark.parametrize(
    "use",
    [
        lambda input, output: input.read(),
        lambda input, output: output.writelines(bytes(PIECE) for _ in range(1000)),
        lambda input, output: [list(input) if input.readline() else None],
    ],
)
def test_the_end_of_the_connection_is_no_error_of_the_function(stage, caplog, use):
    caplog.set_level("INFO", logger="ngi_gevent.connection")
    began, ended = Event(), Event()

    @blocking.server
    def serve(input, output):
        output.write(b"x")
        began.set()
        try:
            use(input, output)
        finally:
            ended.set()

    peer = stage.peer(stage.listen(serve))
    assert began.wait(PATIENCE)
    peer.reset()
    assert ended.wait(PATIENCE)
    gevent.idle()
    assert [record.levelname for record in caplog.records] in ([], ["INFO"])


def test_the_end_of_another_connection_is_an_error_of_the_function(stage, caplog):
    @blocking.server
    def serve(input, output):
        raise ConnectionClosed("another one")

    output, input = blocking.open(stage.listen(serve).address, stage.implementation.connect, PATIENCE)
    assert input.read(timeout=PATIENCE) == b""
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_function_may_leave_its_input_unread(socket_stage, monkeypatch):
    monkeypatch.setattr(linger, "DISCARD_PAUSE", 0.001)
    listener = socket_stage.listen(blocking.server(lambda input, output: output.write(b"no, thanks")))
    peer = socket_stage.peer(listener)
    peer.send(bytes(MUCH))
    peer.finish()
    peer.read()
    socket_stage.until(lambda: peer.ended)
    assert peer.received == b"no, thanks"
    assert listener.close_wait(PATIENCE) == 0


def test_a_listener_that_stops_ends_its_functions(socket_stage, monkeypatch):
    monkeypatch.setattr(linger, "DRAIN_TIMEOUT", 0.01)  # the peers neither read nor close
    began, over = [], []

    @blocking.server
    def serve(input, output):
        began.append(input.read(1))
        socket_stage.happened()
        try:
            output.writelines(bytes(PIECE) for _ in range(MUCH))
        finally:
            over.append(True)
            socket_stage.happened()

    listener = socket_stage.listen(serve)
    for _ in range(3):
        socket_stage.peer(listener).send(b"x and unread")
    socket_stage.until(lambda: began == [b"x"] * 3)
    listener.close()
    socket_stage.until(lambda: over == [True] * 3)
    socket_stage.implementation.wait(PATIENCE)


@pytest.mark.parametrize(
    "read", [lambda input: input.readline(timeout=PATIENCE), next, list, lambda input: input.readlines(1, PATIENCE)]
)
def test_a_line_without_end_fills_no_memory(stage, monkeypatch, read):
    monkeypatch.setattr(files, "MAX_LINE", 10)
    output, input, peer = talk(stage)
    peer.send(b"x" * 11)
    with pytest.raises(LimitExceeded, match="more than 10 bytes"):
        read(input)
    assert input.readline(5, PATIENCE) == b"x" * 5  # it is left for who reads it with a size
    assert input.read(6, PATIENCE) == b"x" * 6
    peer.send(b"y" * 10 + b"\n" + b"z" * 11 + b"\n")
    assert input.readline(timeout=PATIENCE) == b"y" * 10 + b"\n"
    with pytest.raises(LimitExceeded):
        read(input)
    output.close()


def test_a_line_that_is_too_long_costs_the_log_one_line(tcp, caplog, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 10)
    caplog.set_level("INFO", logger="ngi_gevent.connection")
    peer = tcp.peer(tcp.listen(blocking.server(lambda input, output: list(input))))
    peer.send(b"x" * 100)
    peer.read()
    tcp.until(lambda: peer.ended == "end")
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("INFO", None)
    assert "LimitExceeded: " in record.getMessage()
