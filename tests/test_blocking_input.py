"""Reading from a connection as from a file, on every implementation."""

from __future__ import annotations

import contextlib
import io
import pickle
from array import array

import gevent
import pytest
from file_pairs import LINES, TEXT, break_off, read_all, talk, talk_openly
from gevent.exceptions import ConcurrentObjectUseError
from stages import PATIENCE

from ngi_gevent import (
    ConnectionClosed,
    LimitExceeded,
    Timeout,
    blocking,
)
from ngi_gevent.blocking import input as input_module


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
def test_each_method_reads_its_part(stage, split, read, expected):
    output, input, peer = talk(stage)
    for start in range(0, len(TEXT), split):
        peer.send(TEXT[start : start + split])
    peer.finish()
    assert read(input) == expected
    input.read()
    assert (input.read(), input.read(1), input.readline(), input.readlines(), list(input)) == (b"", b"", b"", [], [])
    assert (input.read1(), input.read1(None), input.readinto(bytearray(1))) == (b"", b"", 0)


def test_available_input_can_be_read(stage):
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
    buffer.append(1)  # raises BufferError if other code still uses the buffer


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


def test_lines_end_only_at_newlines(stage):
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
def test_a_read_that_times_out_loses_nothing(stage, read):
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


def test_a_read_that_is_interrupted_loses_nothing(simulated):
    output, input, peer = talk(simulated)
    peer.send(b"abc")
    assert input.read(1) == b"a"
    with pytest.raises(gevent.Timeout), gevent.Timeout(60):
        input.read()
    peer.finish()
    assert input.read() == b"bc"


def test_a_reset_is_reported_after_all_input_has_been_read(stage):
    output, input, peer = talk(stage)
    peer.send(b"x\ncut short")
    assert input.readline(timeout=PATIENCE) == b"x\n"
    break_off(stage, output, peer)
    for read in input.read, input.readlines:
        with pytest.raises(ConnectionResetError):
            read(timeout=PATIENCE)  # the error must not look like the end of input
    assert input.read(100, PATIENCE) == b"cut short"
    for read in input.read, input.readline, input.readlines, lambda: input.read(1), lambda: next(input):
        with pytest.raises(ConnectionResetError):
            read()
    assert isinstance(input.reason, ConnectionResetError)


def test_iterating_stops_at_a_reset(stage):
    output, input, peer = talk(stage)
    peer.send(b"1\n2\n3")
    lines = [input.readline(timeout=PATIENCE)]
    break_off(stage, output, peer)
    with pytest.raises(ConnectionResetError):
        lines.extend(iter(input))
    assert lines == [b"1\n", b"2\n", b"3"]


@pytest.mark.parametrize("end", ["stopped", "closed", "aborted"])
def test_if_this_side_ends_an_upload_it_does_not_look_complete(stage, end):
    output, input, peer = talk(stage, linger_timeout=0.01)  # the peer does not close its side
    peer.send(b"xhalf of it")
    assert input.read(1, PATIENCE) == b"x"
    connection = stage.connections[0]
    {"stopped": stage.listeners[0].close, "closed": connection.close, "aborted": connection.abort}[end]()
    for read in input.read, input.readlines:
        with pytest.raises(ConnectionClosed, match="stopped" if end == "stopped" else "closed"):
            read(timeout=PATIENCE)
    assert input.reason == ("stopped" if end == "stopped" else None)
    with contextlib.suppress(ConnectionClosed):  # any part of the earlier input can have arrived
        assert b"half of it".startswith(input.read(100, PATIENCE))


def test_only_one_greenlet_can_read_at_a_time(tcp):
    output, input, peer = talk(tcp)
    reader = gevent.spawn(input.readline)
    gevent.idle()
    with pytest.raises(ConcurrentObjectUseError):
        input.read()
    peer.send(b"line\n")
    assert reader.get(timeout=PATIENCE) == b"line\n"


def test_closing_an_input_wakes_the_greenlet_that_reads(tcp):
    output, input, peer = talk(tcp)
    reader = gevent.spawn(input.readline)
    gevent.idle()
    input.close()
    with pytest.raises(ValueError, match="closed"):
        reader.get(timeout=PATIENCE)


@pytest.mark.parametrize(
    "read", [lambda input: input.readline(timeout=PATIENCE), next, list, lambda input: input.readlines(1, PATIENCE)]
)
def test_an_endless_line_does_not_fill_the_memory(stage, monkeypatch, read):
    monkeypatch.setattr(input_module, "MAX_LINE", 10)
    output, input, peer = talk(stage)
    peer.send(b"x" * 11)
    with pytest.raises(LimitExceeded, match="more than 10 bytes"):
        read(input)
    assert input.readline(5, PATIENCE) == b"x" * 5  # reads with a size still return it
    assert input.read(6, PATIENCE) == b"x" * 6
    peer.send(b"y" * 10 + b"\n" + b"z" * 11 + b"\n")
    assert input.readline(timeout=PATIENCE) == b"y" * 10 + b"\n"
    with pytest.raises(LimitExceeded):
        read(input)
    output.close()


def test_an_iterable_given_to_writelines_can_read_the_input_of_its_connection(tcp):
    """The iterable runs on its own greenlet.  In a callback, the input would have to wait for it."""

    def shout(connection):
        output, input = blocking.open(connection)
        connection.writelines(line.upper() for line in input)

    peer = tcp.peer(tcp.listen(shout))
    peer.read()
    peer.send(b"one\ntwo\n")
    tcp.until(lambda: peer.received == b"ONE\nTWO\n")


def test_an_iterable_that_reads_the_input_of_its_connection_ends_with_the_connection(tcp):
    ended = []

    def shout(connection):
        output, input = blocking.open(connection)

        def lines():
            try:
                yield from input
            except ConnectionClosed as error:
                ended.append(error)

        connection.writelines(lines())
        connection.close()

    peer = tcp.peer(tcp.listen(shout))
    peer.read()
    tcp.until(lambda: peer.ended)
    assert (peer.ended, len(ended)) == ("end", 1)
