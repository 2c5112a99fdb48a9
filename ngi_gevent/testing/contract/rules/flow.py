"""Rules for flow control: draining output, pausing input, and the records of adapters."""

from __future__ import annotations

import gevent
import pytest

from ngi_gevent import ConnectionClosed, Timeout, adapters
from ngi_gevent.core.threads import Flag
from ngi_gevent.testing.contract.rules.common import MEGABYTE, MUCH, Failure, tracebacks
from ngi_gevent.testing.contract.witness import Witness

# Rule 14: drain.


def test_drain_waits_until_the_peer_has_read_output(stage):
    peer = stage.peer(stage.listen())
    stage.until(lambda: stage.served)
    connection = stage.served[0].connection
    assert connection.output_pending == 0
    connection.drain(timeout=0)
    connection.write(b"x" * MUCH)
    assert connection.output_pending > MUCH // 4
    with pytest.raises(Timeout, match="pending"):
        connection.drain(timeout=0.01)
    peer.read()
    connection.drain(timeout=20, below=1)
    assert connection.output_pending == 0
    stage.until(lambda: peer.size == MUCH)


def test_drain_below_one_waits_for_iterables(stage):
    """Data that iterables have not yielded yet does not count as pending otherwise."""
    peer = stage.peer(stage.listen())
    stage.until(lambda: stage.served)
    connection = stage.served[0].connection
    connection.writelines(b"x" * MEGABYTE for _ in range(MUCH // MEGABYTE))
    with pytest.raises(Timeout):
        connection.drain(timeout=0.01, below=1)
    peer.read()
    connection.drain(timeout=20, below=1)
    stage.until(lambda: peer.size == MUCH)


def test_drain_after_close_waits_for_delivery(stage):
    peer = stage.peer(stage.listen())
    stage.until(lambda: stage.served)
    connection = stage.served[0].connection
    connection.write(b"x" * MUCH)
    connection.close()
    with pytest.raises(Timeout):
        connection.drain(timeout=0)
    peer.read()
    connection.drain(timeout=20, below=1)
    stage.until(lambda: peer.ended)
    assert peer.size == MUCH
    connection.drain(timeout=0, below=1)


def test_drain_raises_if_output_was_dropped(stage):
    stage.peer(stage.listen())
    stage.until(lambda: stage.served)
    connection = stage.served[0].connection
    connection.write(b"x" * MUCH)
    gone = Flag()
    connection.when_closed(gone.set)
    waiting = gevent.spawn(connection.drain, 20)
    gevent.idle()
    assert not waiting.ready()
    connection.abort()
    with pytest.raises(ConnectionClosed):
        waiting.get(timeout=20)
    assert gone.wait(20)
    with pytest.raises(ConnectionClosed):
        connection.drain()


@pytest.mark.parametrize(("wrong", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError)])
def test_drain_refuses_an_invalid_number_of_bytes(stage, wrong, error):
    client, _ = stage.talk()
    with pytest.raises(error, match="below"):
        client.connection.drain(below=wrong)
    with pytest.raises(TypeError, match="timeout"):
        client.connection.drain("1")


# Rule 14: pausing.


def test_a_pause_holds_input_and_its_end_back(stage):
    client, served = stage.talk()
    served.connection.pause_reading()
    client.connection.write(b"held ")
    client.connection.write(b"back")
    client.connection.write_eof()
    stage.settle()
    assert served.trace == []
    served.connection.pause_reading()  # pausing is a flag, not a count
    served.connection.set_handler(served)  # a second pause does not end the first
    stage.settle()
    assert served.trace == []
    served.connection.write(b"answer")  # output continues
    stage.until(lambda: client.data == b"answer")
    served.connection.resume_reading()
    stage.until(lambda: served.closed)
    assert (served.data, served.closed) == (b"held back", "end of input")
    served.connection.pause_reading()
    served.connection.resume_reading()


def test_a_paused_connection_that_breaks_or_is_stopped_ends(stage):
    listener = stage.listen()
    peer = stage.peer(listener)
    peer.send(b"x")
    stage.until(lambda: stage.served and stage.served[0].data)
    stage.served[0].connection.pause_reading()
    stage.served[0].connection.write(b"unread")  # without output, the end of a Unix socket is an end of input
    other, served = stage.client(listener), stage.served
    stage.until(lambda: len(served) == 2)
    served[1].connection.pause_reading()
    peer.reset()
    stage.until(lambda: served[0].closed)
    assert isinstance(served[0].closed, OSError)
    listener.close()
    stage.until(lambda: served[1].closed and other.closed)
    assert served[1].closed == "stopped"


# Rules 11 and 14: records of adapters.


class Numbers(adapters.Base):
    """An adapter that delivers each byte as a record.  It is written as an application would, only on ``Base``."""

    def handle_input(self, connection, data):
        self.deliver(data[index : index + 1] for index in range(len(data)))


class RecordWitness(Witness):
    """A witness behind ``Numbers``."""

    def connected(self, connection):
        super().connected(Numbers(connection))


def test_each_record_is_a_callback(stage):
    client, served = stage.talk(RecordWitness)
    client.connection.write(b"12345")
    client.connection.write_eof()
    stage.until(lambda: served.closed)
    assert served.trace == [b"1", b"2", b"3", b"4", b"5", ("close", "end of input")]


def test_remaining_records_go_to_the_next_handler(stage):
    class First(RecordWitness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"2":
                connection.set_handler(second)

    second = Witness(stage)
    client, served = stage.talk(First)
    client.connection.write(b"1234")
    stage.until(lambda: second.data == b"34")
    assert served.data == b"12"


def test_records_are_delivered_outside_callbacks_too(stage):
    """An adapter may complete records later, on another greenlet or thread."""
    client, served = stage.talk(RecordWitness)
    served.connection.deliver([b"1", b"2"])
    stage.until(lambda: served.chunks == [b"1", b"2"])
    client.connection.write(b"3")
    stage.until(lambda: served.chunks == [b"1", b"2", b"3"])


def test_a_pause_between_records_holds_the_rest_back(stage):
    class Pausing(RecordWitness):
        def handle_input(self, connection, data):
            connection.pause_reading()
            super().handle_input(connection, data)

    client, served = stage.talk(Pausing)
    client.connection.write(b"123")
    for number in range(1, 4):
        stage.until(lambda number=number: len(served.chunks) == number)
        stage.settle()
        assert len(served.chunks) == number
        served.connection.resume_reading()
    assert served.data == b"123"


@pytest.mark.parametrize("end", ["close", "abort", "fail"])
def test_no_record_comes_after_an_end_from_this_side(stage, end):
    class Ending(RecordWitness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"2":
                connection.fail("enough") if end == "fail" else getattr(connection, end)()

    client, served = stage.talk(Ending)
    client.connection.write(b"12345")
    stage.until(lambda: not served.connection and client.closed)
    stage.until(lambda: served.closed or end != "fail")
    assert served.data == b"12"
    assert served.closed == ("enough" if end == "fail" else None)


def test_records_wait_while_the_peer_does_not_read_answers(stage):
    """Each record is answered with five thousand times as many bytes."""

    class Answer(RecordWitness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(data * 5000)

    count = 2 * MUCH // 5000
    peer = stage.peer(stage.listen(Answer))
    peer.send(b"x" * count)
    stage.until(lambda: stage.served and stage.served[0].connection.output_pending)
    for _ in range(5):
        stage.settle()
    assert 0 < len(stage.served[0].chunks) < count
    assert stage.served[0].connection.output_pending < MEGABYTE
    peer.read()
    stage.until(lambda: peer.size == count * 5000)


@pytest.mark.parametrize("how", ["abort", "pause_reading"])
def test_a_record_is_delivered_only_if_it_still_can_be_once_it_is_parsed(stage, how):
    """A parser can block, and in the meantime the connection can end, pause or change its handler."""

    class Parser(adapters.Base):
        def handle_input(self, connection, data):
            self.deliver(self.records(data))

        def records(self, data):
            yield data[:1]
            getattr(self, how)()
            yield data[1:]

    class Parsed(Witness):
        def connected(self, connection):
            super().connected(Parser(connection))

    client, served = stage.talk(Parsed)
    client.connection.write(b"123")
    stage.until(lambda: served.data)
    stage.settle()
    assert served.chunks == [b"1"]
    served.connection.resume_reading()
    stage.settle()
    assert served.chunks == ([b"1"] if how == "abort" else [b"1", b"23"])


def test_records_that_an_adapter_delivers_at_the_end_of_input_arrive(stage):
    class Whole(adapters.Base):
        def __init__(self, connection):
            super().__init__(connection)
            self.pieces = []

        def handle_input(self, connection, data):
            self.pieces.append(data)

        def handle_eof(self, connection):
            super().handle_eof(connection)
            self.deliver([b"".join(self.pieces)])

    class Server(Witness):
        def connected(self, connection):
            super().connected(Whole(connection))

        def handle_eof(self, connection):
            pass

    client, served = stage.talk(Server)
    client.connection.write(b"all")
    client.connection.write_eof()
    stage.until(lambda: served.data == b"all")


def test_a_parser_that_raises_ends_the_connection(stage, caplog):
    error = Failure("no such record")

    class Parser(adapters.Base):
        def handle_input(self, connection, data):
            self.deliver(self.records(data))

        def records(self, data):
            yield data[:1]
            raise error

    class Parsed(Witness):
        def connected(self, connection):
            super().connected(Parser(connection))

    client, served = stage.talk(Parsed)
    client.connection.write(b"123")
    stage.until(lambda: served.closed and client.closed)
    assert served.trace == [b"1", ("close", error)]
    assert len(tracebacks(caplog, error)) == 1


def test_adapters_on_adapters_deliver_in_order(stage):
    class Nested(Witness):
        def connected(self, connection):
            super().connected(Numbers(adapters.Lines(connection)))

    client, served = stage.talk(Nested)
    client.connection.write(b"12\n345\n\n6\n7")
    client.connection.write_eof()
    stage.until(lambda: served.closed)
    assert served.chunks == [b"1", b"2", b"3", b"4", b"5", b"6"]


def test_undelivered_data_of_an_adapter_survives_its_detach(stage):
    """The piece has more records, and an unfinished one at its end."""

    class Detaching(Witness):
        def connected(self, connection):
            self.meet(connection)
            adapters.Lines(connection).set_handler(self)

        def handle_input(self, connection, data):
            super().handle_input(self.connection, data)
            if data == b"go":
                below, rest = connection.detach()
                below.set_handler(second)
                if rest:
                    second.handle_input(below, rest)

    second = Witness(stage)
    client, served = stage.talk(Detaching)
    client.connection.write(b"one\ngo\ntwo\nthr")
    stage.until(lambda: second.data == b"two\nthr")
    client.connection.write(b"ee\n")
    client.connection.write_eof()
    stage.until(lambda: second.closed)
    assert (served.chunks, served.closed, second.data) == ([b"one", b"go"], None, b"two\nthree\n")


__all__ = [name for name in dir() if name.startswith("test_")]
