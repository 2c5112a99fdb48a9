"""Rules for output: which types can be written, in which order data is sent, and how small writes are combined."""

from __future__ import annotations

import pytest

from ngi_gevent.testing.contract.witness import Witness

# Rule 8: the types that can be written.


def test_all_bytes_like_objects_can_be_written_and_mutable_data_is_copied(stage):
    client, served = stage.talk()
    mutable = bytearray(b"bytearray ")
    view = bytearray(b"memoryview ")

    def lines():
        yield bytearray(b"more ")
        yield memoryview(b"lines ")
        yield b"."

    served.connection.write(b"bytes ")
    served.connection.write(mutable)
    served.connection.write(memoryview(view))
    served.connection.writelines(lines())
    mutable[:] = b"x" * 10
    view[:] = b"x" * 11
    stage.until(lambda: client.data.endswith(b"."))
    assert client.data == b"bytes bytearray memoryview more lines ."


def test_write_accepts_nothing_else(stage):
    client, served = stage.talk()
    for data in "text", None, 7, [b"x"], object():
        with pytest.raises(TypeError, match="data must be bytes"):
            client.connection.write(data)
        assert client.connection


def test_writelines_accepts_only_iterables(stage):
    client, served = stage.talk()
    for data in "text", b"bytes", bytearray(b"x"), memoryview(b"x"), None, 7:
        with pytest.raises(TypeError, match="writelines"):
            client.connection.writelines(data)
        assert client.connection


def test_empty_data_is_not_sent(stage):
    client, served = stage.talk()
    served.connection.write(b"")
    served.connection.writelines([])
    served.connection.writelines([b"", b"a", b""])
    served.connection.close()
    stage.until(lambda: client.closed)
    assert client.chunks == [b"a"]


def test_write_and_writelines_keep_their_order(stage):
    class Ordered(Witness):
        def handle_input(self, connection, data):
            connection.write(b"1")
            connection.writelines(iter([b"2", b"3"]))
            connection.write(b"4")
            connection.writelines([b"5"])
            connection.write(b"6")
            connection.close()

    client, served = stage.talk(Ordered)
    client.connection.write(b"go")
    stage.until(lambda: client.closed)
    assert client.data == b"123456"


def test_writelines_consumes_only_as_fast_as_the_peer_reads(stage):
    pulled = 0

    def lines():
        nonlocal pulled
        for _ in range(300):
            pulled += 1
            yield b"x" * 65536

    class Lines(Witness):
        def handle_input(self, connection, data):
            connection.writelines(lines())
            connection.close()

    peer = stage.peer(stage.listen(Lines))
    peer.send(b"go")
    other = stage.client(stage.listeners[0])  # when this is answered, the first connection has had its chance
    stage.until(lambda: len(stage.served) == 2)
    stage.served[1].connection.write(b"now")
    stage.until(lambda: other.data)
    assert pulled < 150
    peer.read()
    stage.until(lambda: peer.ended)
    assert (len(peer.received), pulled) == (65536 * 300, 300)


# Rule 10: small writes are sent together.


def test_small_writes_of_one_callback_are_sent_together(stage):
    class Small(Witness):
        def handle_input(self, connection, data):
            for _ in range(100):
                connection.write(b"small ")

    client, served = stage.talk(Small)
    client.connection.write(b"go")
    stage.until(lambda: len(client.data) == 600)
    assert client.chunks == [b"small " * 100]


__all__ = [name for name in dir() if name.startswith("test_")]
