"""Writing to a connection as to a file, on every implementation."""

from __future__ import annotations

import struct

import gevent
import pytest
from file_pairs import MUCH, PIECE, talk
from stages import PATIENCE

from ngi_gevent import (
    ConnectionClosed,
    Timeout,
    adapters,
)


def test_all_that_is_written_is_delivered(stage):
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
def test_data_that_is_not_bytes_is_refused(stage, wrong):
    output, input, peer = talk(stage)
    for write in output.write, output.writelines, lambda wrong: output.writelines([wrong]):
        with pytest.raises(TypeError):
            write(wrong)
    with pytest.raises(TypeError):
        output.writelines(b"bytes")
    assert output.write(b"x") == 1


def test_an_exception_in_an_iterable_is_raised_by_the_write(stage):
    """In zc.ngi, the write never returned."""
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


def test_an_iterable_is_consumed_only_as_fast_as_the_peer_reads(stage):
    output, input, peer = talk(stage)
    pulled = []

    def pieces():
        for number in range(400):
            pulled.append(number)
            yield b"%05d" % number * 8_000

    pieces = pieces()
    before = -2
    while len(pulled) > before + 1:  # the buffer has room for more than the piece that each call pulls
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


def test_flush_waits_until_all_output_is_sent(stage):
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


@pytest.mark.parametrize("unread", [b"", b"unread\n"])
@pytest.mark.parametrize("wait", [lambda output: output.flush(), lambda output: output.writelines([bytes(PIECE)] * 2)])
def test_a_wait_ends_if_the_peer_resets(stage, unread, wait):
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


def test_output_is_delivered_to_a_peer_that_has_finished_sending(stage):
    output, input, peer = talk(stage)
    peer.finish()
    peer.read()
    assert input.read(timeout=PATIENCE) == b""
    output.write(b"late ")
    output.writelines([b"answer"], timeout=PATIENCE)
    output.flush(PATIENCE)
    output.close()
    stage.until(lambda: peer.ended)
    assert peer.received == b"late answer"


def test_writing_to_an_ended_connection_is_an_error(stage):
    output, input, peer = talk(stage)
    stage.connections[0].close()
    for write in lambda: output.write(b"x"), lambda: output.writelines([b"x"]):
        with pytest.raises(ConnectionClosed):
            write()
    output.flush()  # nothing is pending
    assert not output.closed


def test_ending_the_output_leaves_the_input_open(stage):
    output, input, peer = talk(stage)
    output.write(b"all")
    output.write_eof()
    output.write_eof()
    with pytest.raises(ConnectionClosed):
        output.write(b"more")
    peer.read()
    stage.until(lambda: peer.ended == "end")
    assert peer.received == b"all"
    peer.send(b"answer")
    assert input.read(6, PATIENCE) == b"answer"
    output.close()
    with pytest.raises(ValueError, match="closed file"):
        output.write_eof()


def test_flush_continues_if_the_peer_finishes_sending(simulated):
    output, input, peer = talk(simulated)
    output.write(bytes(MUCH))
    with pytest.raises(Timeout):
        output.flush(timeout=60)
    flushing = gevent.spawn(output.flush)
    peer.finish()
    peer.read()
    flushing.get(timeout=PATIENCE)
    output.close()
    simulated.until(lambda: peer.ended)
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
