"""The contract: what every implementation does, rule by rule.  Each test runs on every stage."""

from __future__ import annotations

import contextlib
import functools
import logging

import gevent
import pytest

import ngi_gevent
from ngi_gevent import ConnectionClosed, LimitExceeded, ListenerClosed, adapters
from ngi_gevent.interfaces import IUDPListener
from ngi_gevent.testing.contract.stage import DatagramWitness, Witness

MEGABYTE = 1 << 20

#: More than any kernel takes for a peer that does not read.
MUCH = 16 * MEGABYTE


class Echo(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


class Failure(Exception):
    """What handlers in these tests raise."""


def tracebacks(caplog, error=None):
    """The logged errors that have a traceback (of *error*)."""
    return [
        record
        for record in caplog.records
        if record.levelno >= logging.ERROR and record.exc_info and error in (None, record.exc_info[1])
    ]


# Rule 1: close flushes, abort does not.


def test_close_delivers_what_was_written_before_the_peer_sees_the_end(stage):
    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * 4 * MEGABYTE)
            connection.writelines(iter([b"y", b"z"]))
            connection.close()

    peer = stage.peer(stage.listen(Answer))
    peer.send(b"please")
    peer.read()
    stage.until(lambda: peer.ended)
    assert (peer.ended, peer.received) == ("end", b"x" * 4 * MEGABYTE + b"yz")


def test_close_delivers_to_a_peer_that_is_still_sending(stage):
    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.write(b"enough" * 100_000)
            connection.close()

    peer = stage.peer(stage.listen(Answer))
    peer.send(b"x" * MEGABYTE)
    peer.read()
    stage.until(lambda: peer.ended)
    assert (peer.ended, peer.received) == ("end", b"enough" * 100_000)


def test_close_delivers_to_a_peer_that_sends_everything_before_it_reads(stage):
    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * MUCH)
            connection.close()

    peer = stage.peer(stage.listen(Answer))
    peer.send(b"y" * (MUCH // 2))  # discarded only so fast, and still more than a kernel takes
    peer.read_when_sent()
    stage.until(lambda: peer.ended)
    assert (peer.ended, len(peer.received)) == ("end", MUCH)


def test_close_outside_of_callbacks_delivers_too(stage):
    client, served = stage.talk()
    served.connection.write(b"x" * 1000)
    served.connection.close()
    stage.until(lambda: client.closed)
    assert (client.data, client.closed) == (b"x" * 1000, "end of input")


def test_abort_drops_what_was_not_sent_and_the_peer_does_not_see_an_orderly_answer(stage):
    class Abort(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * MUCH)
            connection.abort()

    peer = stage.peer(stage.listen(Abort))
    peer.send(b"go")
    stage.until(lambda: stage.served and stage.served[0].gone)
    peer.read()
    stage.until(lambda: peer.ended)
    assert len(peer.received) < MUCH


def test_abort_breaks_the_connection_of_the_peer(stage):
    client, served = stage.talk()
    served.connection.abort()
    stage.until(lambda: client.closed)
    assert client.closed == "end of input" if stage.name == "unix" else isinstance(client.closed, ConnectionResetError)


def test_abort_ends_a_closing_connection(stage):
    client, served = stage.talk()
    peer = stage.peer(stage.listeners[0])
    stage.until(lambda: len(stage.served) == 2)
    connection = stage.served[1].connection
    connection.write(b"x" * MUCH)
    connection.close()
    connection.abort()
    stage.until(lambda: stage.served[1].gone)
    peer.read()
    stage.until(lambda: peer.ended)
    assert len(peer.received) < MUCH


# Rule 2: handle_close tells of what the application did not ask for, once, and last.


@pytest.mark.parametrize("method", ["close", "abort"])
def test_no_callback_comes_after_ones_own_end(stage, method):
    class Leave(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            getattr(connection, method)()

    peer = stage.peer(stage.listen(Leave))
    peer.send(b"one")
    stage.until(lambda: stage.served and not stage.served[0].connection)
    if method == "close":
        peer.send(b"two")
    peer.close()
    stage.until(lambda: stage.served[0].gone)
    assert stage.served[0].trace == [b"one"]


def test_close_from_outside_is_the_end_of_callbacks(stage):
    client, served = stage.talk()
    served.connection.close()
    client.connection.abort()
    stage.until(lambda: served.gone)
    assert served.trace == []


def test_an_end_comes_once_after_all_input(stage):
    peer = stage.peer(stage.listen())
    peer.send(b"all of it")
    peer.finish()
    stage.until(lambda: stage.served and stage.served[0].gone)
    served = stage.served[0]
    assert b"".join(served.trace[:-1]) == b"all of it"
    assert served.trace[-1] == ("close", "end of input")


def test_in_handle_close_the_connection_is_false_and_writing_raises(stage):
    class Late(Witness):
        def handle_close(self, connection, reason):
            self.truth = bool(connection)
            with pytest.raises(ConnectionClosed):
                connection.write(b"too late")
            with pytest.raises(ConnectionClosed):
                connection.writelines([b"too late"])
            connection.close()
            super().handle_close(connection, reason)

    peer = stage.peer(stage.listen(Late))
    peer.finish()
    stage.until(lambda: stage.served and stage.served[0].closed)
    assert stage.served[0].truth is False


def test_no_input_comes_after_an_iterator_of_the_peer_ended_the_connection(stage):
    def lines():
        client.connection.close()
        yield b"late"

    client, served = stage.talk()
    served.connection.writelines(lines())
    stage.until(lambda: client.gone)
    assert client.trace == []


def test_a_broken_connection_tells_the_exception_after_its_input(stage):
    client, served = stage.talk()
    client.connection.write(b"before")
    stage.until(lambda: served.data == b"before")
    client.connection.abort()
    stage.until(lambda: served.closed)
    assert served.trace[0] == b"before"
    assert len(served.trace) == 2
    if stage.name != "unix":  # a Unix socket that is aborted looks finished
        assert isinstance(served.closed, OSError)


def test_closing_a_connection_that_ended_spares_its_handler_the_news(stage):
    """The listener stops while the handler is busy; then the handler closes the connection itself."""

    class Busy(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.control.close()
            connection.close()

    peer = stage.peer(stage.listen(Busy))
    peer.send(b"x")
    stage.until(lambda: stage.served and not stage.served[0].connection)
    peer.close()
    stage.until(lambda: stage.served[0].gone)
    assert stage.served[0].trace == [b"x"]


# Rule 3: who has finished sending still gets the answer.


def test_a_peer_that_finished_sending_gets_its_answer(stage):
    peer = stage.peer(stage.listen(Echo))
    peer.send(b"hello")
    peer.finish()
    peer.read()
    stage.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"HELLO", "end")


def test_a_peer_that_finished_sending_gets_all_of_a_long_answer(stage):
    class Long(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * 4 * MEGABYTE)
            connection.writelines(b"y" * 1000 for _ in range(5000))

    peer = stage.peer(stage.listen(Long))
    peer.send(b"?")
    peer.finish()
    peer.read()
    stage.until(lambda: peer.ended)
    assert (len(peer.received), peer.ended) == (4 * MEGABYTE + 5_000_000, "end")


# Rule 4: reasons.


def test_reasons_make_fair_log_lines(stage):
    stage.talk()
    peer = stage.peer(stage.listeners[0])
    peer.finish()
    stage.until(lambda: len(stage.served) == 2 and stage.served[1].closed)
    stage.listeners[0].close()
    stage.until(lambda: stage.served[0].closed)
    assert [str(served.closed) for served in stage.served] == ["stopped", "end of input"]


# Rule 5: callbacks of one connection never overlap.


def test_callbacks_of_one_connection_do_not_nest(stage):
    class Pong(Witness):
        depth = deepest = 0

        def handle_input(self, connection, data):
            self.depth += 1
            self.deepest = max(self.deepest, self.depth)
            connection.write(data)
            super().handle_input(connection, data)
            self.depth -= 1
            if len(self.data) > 100:
                connection.close()

    client, served = stage.talk(Pong, Pong)
    client.connection.write(b"ping")
    stage.until(lambda: not client.connection and not served.connection)
    assert client.deepest == served.deepest == 1


# Rule 6: handlers that raise.


@pytest.mark.parametrize("with_close", [True, False])
def test_a_raising_handle_input_closes_its_connection_and_no_other(stage, caplog, with_close):
    class Bad(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(b"written before")
            if data == b"raise":
                raise error

        handle_close = Witness.handle_close if with_close else None

    error = Failure("in handle_input")
    other = stage.client(stage.listen(Bad))
    stage.until(lambda: stage.served)
    peer = stage.peer(stage.listeners[0])
    peer.send(b"raise")
    peer.read()
    stage.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"written before", "end")
    assert stage.served[1].trace == [b"raise", ("close", error)][: 1 + with_close]
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1
    assert other.connection
    other.connection.write(b"still there")
    stage.until(lambda: other.data == b"written before")


def test_a_raising_handle_exception_closes_the_connection(stage, caplog):
    class Bad(Witness):
        def handle_exception(self, connection, exception):
            super().handle_exception(connection, exception)
            connection.write(b"sorry")
            raise error

    error = Failure("in handle_exception")
    client, served = stage.talk(Bad)
    served.connection.writelines([b"good", 5])
    stage.until(lambda: client.closed)
    assert client.data == b"goodsorry"
    assert [kind for kind, _ in served.trace] == ["exception", "close"]
    assert served.closed is error
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


def test_a_raising_handle_close_is_logged_and_the_close_goes_on(stage, caplog):
    class Bad(Witness):
        def handle_close(self, connection, reason):
            super().handle_close(connection, reason)
            raise error

    error = Failure("in handle_close")
    peer = stage.peer(stage.listen(Bad))
    peer.finish()
    peer.read()
    stage.until(lambda: peer.ended)
    stage.until(lambda: stage.served[0].gone)
    assert stage.served[0].trace == [("close", "end of input")]
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


@pytest.mark.parametrize("end", ["close", "stop"])
def test_a_callback_that_writes_after_the_end_of_its_connection_makes_no_mistake(stage, caplog, end):
    """It may not know yet: ``handle_close`` gets the reason of the end, and the log has nothing above DEBUG."""

    class Late(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.close() if end == "close" else connection.control.close()
            connection.write(b"too late")

    peer = stage.peer(stage.listen(Late))
    peer.send(b"x")
    peer.read()
    stage.until(lambda: peer.ended and (end == "close" or stage.served[0].closed))
    assert peer.received == b""
    assert stage.served[0].trace == [b"x"] + [("close", "stopped")] * (end == "stop")
    assert caplog.records == []


def test_a_raising_server_closes_its_connection_and_no_other(stage, caplog):
    def server(connection):
        if fail:
            raise error
        stage.server(Echo)(connection)

    fail, error = False, Failure("in the server")
    other = stage.client(stage.listen(server))
    stage.until(lambda: stage.served)
    fail = True
    peer = stage.peer(stage.listeners[0])
    peer.read()
    stage.until(lambda: peer.ended)
    assert peer.ended == "end"
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1
    assert len(list(stage.listeners[0].connections())) == 1
    fail = False
    other.connection.write(b"still there")
    stage.until(lambda: other.data == b"STILL THERE")
    assert stage.client(stage.listeners[0]).connection


def test_a_server_that_raises_late_has_its_handler_told(stage, caplog):
    def server(connection):
        stage.server()(connection)
        raise error

    error = Failure("after set_handler")
    client = stage.client(stage.listen(server))
    stage.until(lambda: client.closed and stage.served[0].closed)
    assert stage.served[0].closed is error
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


def test_a_raising_connected_closes_its_connection(stage, caplog):
    class Bad(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"hello")
            raise error

    error = Failure("in connected")
    client, served = stage.talk(None, Bad)
    stage.until(lambda: client.closed and served.closed)
    assert (client.closed, served.closed, served.data) == (error, "end of input", b"hello")
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


def test_a_raising_failed_connect_is_logged(stage, caplog):
    class Bad(Witness):
        def failed_connect(self, reason):
            super().failed_connect(reason)
            raise error

    error = Failure("in failed_connect")
    listener = stage.listen()
    listener.close()
    stage.client(listener, Bad)
    stage.implementation.wait(10)
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


# Rule 7: no handler, no reading.


def test_input_and_the_end_are_held_until_there_is_a_handler(stage):
    connections = []

    def keep(connection):
        connections.append(connection)
        stage.happened()

    peer = stage.peer(stage.listen(keep))
    peer.send(b"early")
    peer.finish()
    stage.until(lambda: connections)
    witness = Witness(stage)
    connections[0].set_handler(witness)
    stage.until(lambda: witness.closed)
    assert b"".join(witness.trace[:-1]) == b"early"
    assert witness.closed == "end of input"


def test_an_end_for_another_reason_is_held_too(stage):
    connections = []

    def keep(connection):
        connections.append(connection)
        stage.happened()

    peer = stage.peer(stage.listen(keep))
    stage.until(lambda: connections)
    stage.listeners[0].close()
    peer.read()
    stage.until(lambda: peer.ended)
    witness = Witness(stage)
    connections[0].set_handler(witness)
    stage.until(lambda: witness.closed)
    assert witness.trace == [("close", "stopped")]


def test_a_later_handler_gets_the_input_from_then_on(stage):
    class First(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.set_handler(second)
            connection.write(b"changed")

    second = Witness(stage)
    client, first = stage.talk(First)
    client.connection.write(b"one")
    stage.until(lambda: client.data == b"changed")
    client.connection.write(b"two")
    client.connection.close()
    stage.until(lambda: second.closed)
    assert first.trace == [b"one"]
    assert second.trace == [b"two", ("close", "end of input")]


class Coroutine:
    async def handle_input(self, connection, data):
        """Would never run."""


class Generator:
    def handle_input(self, connection, data):
        yield


class AsynchronousGenerator:
    async def handle_input(self, connection, data):
        yield


def test_set_handler_takes_only_handlers(stage):
    client, served = stage.talk()
    for no_handler in None, object(), Witness, "handler", Coroutine(), Generator(), AsynchronousGenerator():
        with pytest.raises(TypeError, match="handle_input"):
            client.connection.set_handler(no_handler)
    assert client.connection


def test_set_handler_as_ngi_1_spelled_it_warns(stage):
    client, served = stage.talk()
    second = Witness(stage)
    with pytest.warns(DeprecationWarning, match="set_handler"):
        client.connection.setHandler(second)
    served.connection.write(b"new")
    stage.until(lambda: second.data == b"new")


# Rule 8: what may be written.


def test_everything_like_bytes_can_be_written_and_mutable_data_is_copied(stage):
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


@pytest.mark.parametrize("data", ["text", None, 7, [b"x"], object()])
def test_write_takes_nothing_else(stage, data):
    client, served = stage.talk()
    with pytest.raises(TypeError, match="can be written"):
        client.connection.write(data)
    assert client.connection


@pytest.mark.parametrize("data", ["text", b"bytes", bytearray(b"x"), memoryview(b"x"), None, 7])
def test_writelines_takes_only_iterables(stage, data):
    client, served = stage.talk()
    with pytest.raises(TypeError, match="writelines"):
        client.connection.writelines(data)
    assert client.connection


def test_empty_data_is_nothing(stage):
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


def test_writelines_pulls_only_as_the_peer_takes(stage):
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
    other = stage.client(stage.listeners[0])  # by when this is answered, the first has had its chance
    stage.until(lambda: len(stage.served) == 2)
    stage.served[1].connection.write(b"now")
    stage.until(lambda: other.data)
    assert pulled < 150
    peer.read()
    stage.until(lambda: peer.ended)
    assert (len(peer.received), pulled) == (65536 * 300, 300)


# Rule 9: iterators that fail.


def broken_iterator(error):
    yield b"one "
    yield b"two "
    raise error


def no_bytes(error):
    yield b"one "
    yield b"two "
    yield "three"


@pytest.mark.parametrize("lines", [broken_iterator, no_bytes])
def test_an_iterators_error_goes_to_handle_exception_and_the_connection_stays_open(stage, caplog, lines):
    error = Failure("in an iterator")
    client, served = stage.talk(Echo)
    served.connection.write(b"zero ")
    served.connection.writelines(lines(error))
    served.connection.write(b"rest")
    stage.until(lambda: served.exceptions and client.data.endswith(b"rest"))
    assert client.data == b"zero one two rest"
    exception = served.exceptions[0]
    assert exception is error if lines is broken_iterator else isinstance(exception, TypeError)
    client.connection.write(b"hello")
    stage.until(lambda: client.data.endswith(b"HELLO"))
    assert len(served.exceptions) == 1
    assert not caplog.records


@pytest.mark.parametrize("lines", [broken_iterator, no_bytes])
def test_without_handle_exception_the_connection_is_closed_with_the_error(stage, caplog, lines):
    class NoHandleException(Witness):
        handle_exception = None

    error = Failure("in an iterator")
    client, served = stage.talk(NoHandleException)
    served.connection.writelines(lines(error))
    stage.until(lambda: served.closed and client.closed)
    assert client.data == b"one two "
    assert served.closed is error if lines is broken_iterator else isinstance(served.closed, TypeError)
    assert len(tracebacks(caplog)) == len(caplog.records) == 1


def test_an_iterators_error_after_the_close_is_logged_and_what_came_before_delivered(stage, caplog):
    class Leave(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.writelines(broken_iterator(error))
            connection.close()

    error = Failure("in an iterator")
    client, served = stage.talk(Leave)
    client.connection.write(b"go")
    stage.until(lambda: client.closed)
    assert client.data == b"one two "
    assert served.trace == [b"go"]
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


def test_what_an_iterator_yields_after_it_aborted_is_not_sent(stage):
    def lines():
        yield b"one "
        stage.until(lambda: client.data == b"one ")
        served.connection.abort()
        yield b"two "

    client, served = stage.talk()
    served.connection.writelines(lines())
    stage.until(lambda: client.closed)
    assert client.data == b"one "


def test_an_iterators_error_is_held_until_there_is_a_handler(stage):
    connections = []

    def keep(connection):
        connections.append(connection)
        connection.writelines(broken_iterator(error))
        stage.happened()

    error = Failure("in an iterator")
    peer = stage.peer(stage.listen(keep))
    peer.read()
    stage.until(lambda: peer.received == b"one two ")
    stage.listeners[0].close()
    witness = Witness(stage)
    connections[0].set_handler(witness)
    stage.until(lambda: witness.closed)
    assert witness.trace == [("exception", error), ("close", "stopped")]


def test_an_iterator_needs_no_more_than_next(stage):
    class Iterable:
        def __iter__(self):
            return Iterator()

    class Iterator:
        def __next__(self):
            if not left:
                raise StopIteration
            return left.pop(0)

    left = [b"one ", b"two "]

    client, served = stage.talk()
    served.connection.writelines(Iterable())
    served.connection.close()
    stage.until(lambda: client.closed)
    assert client.data == b"one two "


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_iterator_that_wants_the_program_to_end_is_heard(stage, caplog, error):
    def write_and_wait():
        served.connection.writelines(broken_iterator(error))
        stage.until(lambda: False)

    client, served = stage.talk()
    if stage.name == "threaded":  # there is nobody to hear of it
        served.connection.writelines(broken_iterator(error))
    else:
        with pytest.raises(error):
            write_and_wait()
    stage.until(lambda: served.closed)
    assert type(served.closed) is error
    assert served.exceptions == []


# Rule 10: small writes leave together.


def test_small_writes_of_one_callback_leave_together(stage):
    class Small(Witness):
        def handle_input(self, connection, data):
            for _ in range(100):
                connection.write(b"small ")

    client, served = stage.talk(Small)
    client.connection.write(b"go")
    stage.until(lambda: len(client.data) == 600)
    assert client.chunks == [b"small " * 100]


# Rule 11: memory is bounded.


class EchoLines(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.writelines([data.upper()])


class EchoIterator(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.writelines(iter([data.upper()]))


@pytest.mark.parametrize("echo", [Echo, EchoLines, EchoIterator])
def test_who_does_not_read_is_not_read_from(stage, echo):
    peer = stage.peer(stage.listen(echo))
    for _ in range(MUCH // 16384):
        peer.send(b"x" * 16384)
    other = stage.client(stage.listeners[0])
    stage.until(lambda: len(stage.served) == 2)
    before = -1
    while not stage.at_once and before < stage.served[0].size:  # as long as it reads
        before = stage.served[0].size
        for _ in range(20):
            answered = other.size
            other.connection.write(b"?")
            stage.until(lambda answered=answered: other.size > answered)
    assert stage.served[0].size < MUCH
    assert stage.waiting(stage.served[0].connection) < MEGABYTE
    peer.read()
    stage.until(lambda: peer.size == MUCH)
    assert peer.received == b"X" * MUCH


def test_output_that_nobody_takes_ends_the_connection_at_its_limit(stage):
    stage.peer(stage.listen(output_limit=MEGABYTE))
    stage.until(lambda: stage.served)
    served = stage.served[0]
    with contextlib.suppress(ConnectionClosed):
        for _ in range(MUCH // 65536):
            served.connection.write(b"x" * 65536)
    stage.until(lambda: served.closed)
    assert not served.connection
    assert isinstance(served.closed, LimitExceeded)
    assert "output_limit" in str(served.closed)
    with pytest.raises(ConnectionClosed):
        served.connection.write(b"x")


def test_output_limit_counts_writelines_too(stage):
    stage.peer(stage.listen(output_limit=MEGABYTE))
    stage.until(lambda: stage.served)
    served = stage.served[0]
    with contextlib.suppress(ConnectionClosed):
        for _ in range(MUCH // 65536):
            served.connection.writelines([b"x" * 65536])
    stage.until(lambda: served.closed)
    assert isinstance(served.closed, LimitExceeded)


def test_two_who_write_before_they_read_get_all_of_it(stage):
    class Talk(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"x" * 100_000)

    client, served = stage.talk(Talk, Talk)
    stage.until(lambda: client.size == served.size == 100_000)


@pytest.mark.parametrize("many", [False, True])
def test_who_sends_much_at_once_reads_the_answer_meanwhile(stage, many):
    """Neither side takes anything before the other does, if both stop reading where much is waiting."""

    class Talk(Witness):
        def connected(self, connection):
            super().connected(connection)
            if many:
                connection.writelines(b"x" * 65536 for _ in range(MUCH // 65536))
            else:
                connection.write(b"x" * MUCH)

        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if self.size == MUCH:
                connection.close()

    client, _ = stage.talk(Echo, Talk)
    stage.until(lambda: not client.connection)
    assert client.data == b"X" * MUCH


# Rule 13: addresses.


def test_addresses_are_known_and_outlive_the_connection(stage):
    client, served = stage.talk()
    listener = stage.listeners[0]
    assert client.connection.peer_address == listener.address
    assert served.connection.local_address == listener.address
    assert served.connection.peer_address == client.connection.local_address
    peer_address = served.connection.peer_address
    client.connection.close()
    stage.until(lambda: served.gone and client.gone)
    assert (served.connection.peer_address, served.connection.local_address) == (peer_address, listener.address)


def test_a_server_connection_knows_its_listener(stage):
    client, served = stage.talk()
    assert served.connection.control is stage.listeners[0]
    assert client.connection.control is None


# States.


def test_a_closing_and_a_closed_connection_refuse_writes_and_ignore_close(stage):
    peer = stage.peer(stage.listen())
    stage.until(lambda: stage.served)
    connection = stage.served[0].connection
    assert connection
    assert bool(connection) is True
    connection.write(b"x" * MUCH)
    connection.close()
    for _ in "closing", "closed":
        assert bool(connection) is False
        for refused in lambda: connection.write(b"x"), lambda: connection.writelines([b"x"]):
            with pytest.raises(ConnectionClosed) as caught:
                refused()
            assert isinstance(caught.value, ValueError)
        with pytest.raises(TypeError):
            connection.write("text")
        connection.close()
        peer.read()
        stage.until(lambda: peer.ended)
    assert len(peer.received) == MUCH
    connection.abort()


def test_when_closed_tells_of_every_end(stage):
    client, served = stage.talk()
    told = []
    served.connection.when_closed(lambda: (told.append("served"), stage.happened()))
    client.connection.when_closed(lambda: (told.append("client"), stage.happened()))
    client.connection.close()
    stage.until(lambda: len(told) == 2)
    client.connection.when_closed(lambda: told.append("later"))
    assert told[-1] == "later"
    with pytest.raises(TypeError):
        client.connection.when_closed(None)


def test_a_raising_when_closed_harms_nobody(stage, caplog):
    def fail():
        raise error

    error = Failure("in when_closed")
    clients = [stage.client(stage.listen(Echo))]
    clients += [stage.client(stage.listeners[0]) for _ in range(5)]
    stage.until(lambda: len(stage.served) == 6)
    told = []
    clients[0].connection.when_closed(fail)
    clients[0].connection.when_closed(lambda: (told.append(1), stage.happened()))
    for client in clients:
        client.connection.write(b"all in one turn")
    clients[0].connection.close()
    stage.until(lambda: all(client.data for client in clients[1:]) and told)
    clients[0].connection.when_closed(fail)
    stage.client(stage.listeners[0])  # which takes as long as the log, at the most
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 2


# Listeners.


def test_a_listener_returns_at_once_and_tells_its_address(stage):
    listener = stage.listen(Echo)
    assert listener.address is not None
    assert list(listener.connections()) == []
    assert stage.client(listener).connection


def test_an_address_in_use_is_refused_by_name(stage):
    listener = stage.listen()
    with pytest.raises(OSError, match="in use") as caught:
        stage.implementation.listener(listener.address, stage.server())
    assert str(listener.address[0] if isinstance(listener.address, tuple) else listener.address) in str(caught.value)
    assert stage.client(listener).connection


def test_connections_is_a_snapshot_of_the_open_ones(stage):
    clients = [stage.client(stage.listen())]
    listener = stage.listeners[0]
    clients += [stage.client(listener) for _ in range(2)]
    stage.until(lambda: len(stage.served) == 3)
    iterator = listener.connections()
    listener.close()
    assert [connection.peer_address for connection in iterator] == [
        client.connection.local_address for client in clients
    ]
    assert list(listener.connections()) == []


def test_close_ends_open_connections(stage):
    client, served = stage.talk(Echo)
    listener = stage.listeners[0]
    listener.close()
    assert not served.connection
    stage.until(lambda: client.closed and served.closed)
    assert served.trace == [("close", "stopped")]
    assert client.closed == "end of input"
    listener.close()
    client = stage.client(listener)
    assert client.failed


def test_close_does_not_wait_for_output(stage):
    stage.peer(stage.listen())
    stage.until(lambda: stage.served)
    served = stage.served[0]
    served.connection.writelines(b"x" * 65536 for _ in range(1000))
    stage.listeners[0].close()
    stage.until(lambda: served.closed)
    assert served.trace == [("close", "stopped")]


def test_close_lets_a_closed_connection_finish_delivering(stage):
    class Last(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(b"x" * MUCH)
            connection.writelines([b"the", b" end"])
            connection.close()
            connection.control.close()

    peer = stage.peer(stage.listen(Last))
    peer.send(b"shut down")
    stage.until(lambda: stage.served and stage.served[0].data)
    peer.read()
    stage.until(lambda: peer.ended)
    assert peer.ended == "end"
    assert peer.received == b"x" * MUCH + b"the end"
    assert stage.served[0].trace == [b"shut down"]


def test_close_in_a_callback_of_an_open_connection_tells_it_afterwards(stage):
    class Stop(Witness):
        def handle_input(self, connection, data):
            connection.write(b"bye")
            connection.control.close()
            super().handle_input(connection, data)

    client, served = stage.talk(Stop)
    client.connection.write(b"stop")
    stage.until(lambda: client.closed and served.closed)
    assert served.trace == [b"stop", ("close", "stopped")]
    assert client.data == b"bye"


def test_close_with_a_handler_waits_for_the_last_connection(stage):
    client, served = stage.talk(Echo)
    listener = stage.listeners[0]
    told = []

    def closed(listener):
        told.append(listener)
        stage.happened()

    listener.close(closed)
    assert told == []
    assert stage.client(listener).failed
    client.connection.write(b"go on")
    stage.until(lambda: client.data == b"GO ON")
    listener.close(closed)
    client.connection.close()
    stage.until(lambda: len(told) == 2)
    assert told == [listener, listener]
    listener.close(closed)
    assert len(told) == 3


def test_close_takes_only_something_to_call(stage):
    with pytest.raises(TypeError, match="callable"):
        stage.listen().close("handler")


def test_a_raising_close_handler_is_logged(stage, caplog):
    def closed(listener):
        raise error

    error = Failure("in a close handler")
    stage.listen().close(closed)
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


def test_closing_frees_the_address_at_once(stage):
    client, served = stage.talk()
    address = stage.listeners[0].address
    stage.listeners[0].close()
    again = stage.implementation.listener(address, stage.server(Echo))
    stage.listeners.append(again)
    assert again.address == address
    client = stage.client(again)
    client.connection.write(b"hello")
    stage.until(lambda: client.data == b"HELLO")


def test_close_wait_with_nobody_returns_at_once(stage):
    listener = stage.listen()
    assert listener.close_wait() == 0
    assert listener.close_wait(0) == 0
    assert stage.client(listener).failed


def test_close_wait_ends_those_that_are_left(stage):
    client, served = stage.talk(Echo)
    assert stage.listeners[0].close_wait(0) == 1
    stage.until(lambda: client.closed and served.closed)
    assert (client.closed, served.trace) == ("end of input", [("close", "stopped")])


def test_close_wait_in_a_callback_that_it_waits_for_says_so(stage, caplog):
    class Stop(Witness):
        def handle_input(self, connection, data):
            connection.control.close_wait(10)

    client, served = stage.talk(Stop)
    client.connection.write(b"stop")
    stage.until(lambda: served.closed)
    assert isinstance(served.closed, ngi_gevent.Deadlock)


@pytest.mark.parametrize(
    ("timeout", "error"), [(-1, ValueError), ("1", TypeError), (float("nan"), ValueError), (True, TypeError)]
)
def test_a_wrong_timeout_is_refused(stage, timeout, error):
    listener = stage.listen()
    with pytest.raises(error, match="timeout"):
        listener.close_wait(timeout)
    with pytest.raises(error, match="timeout"):
        stage.implementation.wait(timeout)
    assert stage.client(listener).connection


def test_a_listener_connects_to_itself(stage):
    listener = stage.listen(Echo)
    client = Witness(stage)
    listener.connect(client)
    stage.until(lambda: client.connection)
    client.connection.write(b"hello")
    stage.until(lambda: client.data == b"HELLO")


def test_the_same_options_are_taken_everywhere(stage):
    options = {"backlog": 5, "max_connections": 5, "idle_timeout": 100, "output_limit": 100_000}
    listener = stage.listen(Echo, **options, keep_alive=False, reuse_port=False, handshake_timeout=5)
    client = Witness(stage)
    stage.implementation.connect(listener.address, client, timeout=20)
    stage.until(lambda: client.connection)


@pytest.mark.parametrize(
    ("option", "value"),
    [("backlog", -1), ("output_limit", -1), ("max_connections", 0), ("idle_timeout", 0), ("idle_timeout", -1)],
)
def test_an_impossible_option_is_refused(stage, option, value):
    with pytest.raises(ValueError, match=option):
        stage.listen(**{option: value})
    with pytest.raises(TypeError, match=option):
        stage.listen(**{option: "many"})
    with pytest.raises(TypeError):
        stage.listen(no_such_option=1)


def test_an_impossible_option_of_a_connect_is_refused(stage):
    listener = stage.listen()
    for connect in functools.partial(stage.implementation.connect, listener.address), listener.connect:
        with pytest.raises(ValueError, match="timeout"):
            connect(Witness(stage), timeout=-1)
        with pytest.raises(TypeError, match="timeout"):
            connect(Witness(stage), timeout="long")
        with pytest.raises(TypeError):
            connect(Witness(stage), no_such_option=1)


def test_it_is_known_whether_a_connection_is_secure(stage):
    client, served = stage.talk()
    connections = [client.connection, served.connection, adapters.Lines(served.connection)]
    assert [connection.ssl_object is not None for connection in connections] == [stage.name == "tls"] * 3


# Limits.


def echoes(stage, client, times=20):
    """Have *client* get *times* answers, one after the other: time in which something else could have happened."""
    for _ in range(times):
        answered = len(client.data) + 1
        client.connection.write(b"?")
        stage.until(lambda answered=answered: len(client.data) == answered)


def comes(stage, listener, question=b"", close=False):
    """A witness that connects to *listener*, which may take until there is room, and asks."""

    class Asks(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(question)
            if close:
                connection.close()

    client = Asks(stage)
    stage.implementation.connect(listener.address, client)
    return client


def test_there_are_no_more_connections_than_max_connections(stage):
    listener = stage.listen(Echo, max_connections=2)
    first, second = stage.client(listener), stage.client(listener)
    third = comes(stage, listener, b"third")
    echoes(stage, first)
    fourth = comes(stage, listener, b"fourth", close=True)
    echoes(stage, first)
    echoes(stage, second)
    assert (len(stage.served), third.data, len(list(listener.connections()))) == (2, b"", 2)
    first.connection.close()
    stage.until(lambda: third.data == b"THIRD")
    echoes(stage, second)
    assert len(stage.served) == 3
    second.connection.abort()
    stage.until(lambda: len(stage.served) == 4 and stage.served[3].closed)
    assert stage.served[3].data == b"fourth"
    assert fourth.closed is None
    fifth = stage.client(listener)
    echoes(stage, fifth)


def test_a_connection_counts_until_it_is_gone(stage):
    class Answer(Echo):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"all":
                connection.write(b"x" * MUCH)
                connection.close()

    listener = stage.listen(Answer, max_connections=2)
    peer = stage.peer(listener)
    peer.send(b"all")
    stage.until(lambda: stage.served and stage.served[0].data)
    other = stage.client(listener)
    echoes(stage, other)
    waiting = comes(stage, listener, b"?")
    echoes(stage, other)
    assert (len(list(listener.connections())), len(stage.served)) == (1, 2)
    peer.finish()
    peer.read()
    stage.until(lambda: waiting.data == b"?")


@pytest.mark.parametrize("close", ["close", "close with a handler", "close_wait"])
def test_who_waits_for_room_in_a_listener_that_is_closed_is_broken_off(stage, close):
    listener = stage.listen(Echo, max_connections=1)
    client = stage.client(listener)
    stage.until(lambda: stage.served)
    waiting = [comes(stage, listener) for _ in range(3)]
    echoes(stage, client)
    if close == "close":
        listener.close()
    elif close == "close_wait":
        assert listener.close_wait(0) == 1
    else:
        listener.close(lambda listener: None)
        echoes(stage, client)
        client.connection.close()
    stage.until(lambda: all(each.closed or each.failed for each in waiting))
    assert all(isinstance(each.closed or each.failed, ConnectionError) for each in waiting)
    assert len(stage.served) == 1


# Implementations.


def test_a_server_must_be_callable(stage):
    with pytest.raises(TypeError, match="server"):
        stage.implementation.listener(stage.address(), object())


@pytest.mark.parametrize("handler", [None, object(), Witness])
def test_a_client_connect_handler_must_be_one(stage, handler):
    listener = stage.listen()
    with pytest.raises(TypeError, match="client connect handler"):
        stage.implementation.connect(listener.address, handler)
    with pytest.raises(TypeError, match="client connect handler"):
        listener.connect(handler) if handler is not None else stage.implementation.connect(listener.address, None)


def test_wait_waits_for_nothing_else_than_what_is_outstanding(stage):
    stage.implementation.wait()
    client, served = stage.talk()
    with pytest.raises(ngi_gevent.Timeout, match="outstanding") as caught:
        stage.implementation.wait(0)
    assert isinstance(caught.value, TimeoutError)
    stage.listeners[0].close()
    client.connection.close()
    stage.until(lambda: client.gone and served.gone)
    stage.implementation.wait(0)


def test_wait_in_a_callback_that_it_waits_for_says_so(stage, caplog):
    class Wait(Witness):
        def handle_input(self, connection, data):
            stage.implementation.wait(10)

    client, served = stage.talk(Wait)
    client.connection.write(b"wait")
    stage.until(lambda: served.closed)
    assert isinstance(served.closed, ngi_gevent.Deadlock)


def test_close_ends_everything_and_a_closed_implementation_says_so(stage):
    client, served = stage.talk()
    implementation = stage.implementation
    implementation.close()
    implementation.close()
    stage.until(lambda: client.gone and served.gone)
    assert client.closed in ("stopped", "end of input")
    assert served.closed in ("stopped", "end of input")
    for use in (
        lambda: implementation.connect(stage.listeners[0].address, client),
        lambda: implementation.listener(stage.address(), stage.server()),
    ):
        with pytest.raises(ngi_gevent.ImplementationClosed):
            use()
    implementation.wait(10)
    stage.implementation = stage.make()


def test_the_end_of_a_with_statement_closes_an_implementation(stage):
    with pytest.raises(Failure), stage.implementation as entered:
        assert entered is stage.implementation
        listener = stage.listen()
        assert next(listener.connections(), None) is None
        raise Failure
    with pytest.raises(ngi_gevent.ImplementationClosed):
        entered.listener(stage.address(), stage.server())
    entered.wait(10)
    stage.implementation = stage.make()


def test_a_failed_connect_tells_why(stage):
    listener = stage.listen()
    listener.close()
    client = stage.client(listener)
    assert client.connection is None
    assert str(client.failed)
    stage.implementation.wait(10)


# Datagrams that are sent from the address of a listener.


def test_a_datagram_answer_comes_from_the_address_that_was_asked(stage):
    asker = DatagramWitness(stage)
    asked = stage.listen_udp(lambda address, data: asked.send(address, data.upper()))
    asking = stage.listen_udp(asker)
    asking.send(asked.address, b"hello")
    stage.until(lambda: asker.datagrams)
    assert (asker.senders, asker.datagrams) == ([asked.address], [b"HELLO"])
    assert isinstance(asked, IUDPListener)


def test_datagrams_of_a_listener_arrive_whole_and_in_order(stage):
    witness = DatagramWitness(stage)
    listener, sending = stage.listen_udp(witness), stage.listen_udp(DatagramWitness(stage))
    sent = [b"one", b"", b"two" * 1000, bytearray(b"three"), memoryview(b"four")]
    for data in sent:
        sending.send(listener.address, data)
    stage.until(lambda: len(witness.datagrams) == len(sent))
    assert witness.datagrams == [bytes(data) for data in sent]
    assert witness.senders == [sending.address] * len(sent)
    assert {type(data) for data in witness.datagrams} == {bytes}


def test_each_listener_sends_datagrams_from_its_own_address(stage):
    witness = DatagramWitness(stage)
    listener = stage.listen_udp(witness)
    others = [stage.listen_udp(DatagramWitness(stage)) for _ in range(2)]
    for other in others:
        other.send(listener.address, b"x")
    stage.implementation.udp(listener.address, b"x")
    stage.until(lambda: len(witness.senders) == 3)
    assert witness.senders[:2] == [other.address for other in others]
    assert witness.senders[2] not in witness.senders[:2]


def test_a_datagram_listener_that_sends_to_itself_is_called_again_when_it_has_returned(stage):
    trace = []

    def handle(address, data):
        trace.append(("begin", data))
        if len(data) < 4:
            listener.send(listener.address, data + b"x")
        trace.append(("end", data))
        stage.happened()

    listener = stage.listen_udp(handle)
    listener.send(listener.address, b"")
    stage.until(lambda: len(trace) == 10)
    assert trace == [(step, b"x" * length) for length in range(5) for step in ("begin", "end")]


def test_a_datagram_may_be_sent_from_a_listener_on_any_native_thread(stage):
    witness = DatagramWitness(stage)
    listener, sending = stage.listen_udp(witness), stage.listen_udp(DatagramWitness(stage))

    def send():
        for data in b"one", b"two", b"three":
            sending.send(listener.address, data)
        sending.close()
        with pytest.raises(ListenerClosed):
            sending.send(listener.address, b"four")

    gevent.get_hub().threadpool.apply(send)
    stage.until(lambda: len(witness.datagrams) == 3)
    assert witness.datagrams == [b"one", b"two", b"three"]
    assert witness.senders == [sending.address] * 3


def test_a_closed_datagram_listener_sends_nothing_and_says_so(stage):
    witness = DatagramWitness(stage)
    listener, closed = stage.listen_udp(witness), stage.listen_udp(DatagramWitness(stage))
    closed.close()
    with pytest.raises(ListenerClosed) as caught:
        closed.send(listener.address, b"x")
    assert isinstance(caught.value, ValueError)
    assert repr(closed.address) in str(caught.value)
    stage.implementation.udp(listener.address, b"end")
    stage.until(lambda: witness.datagrams)
    assert witness.datagrams == [b"end"]


def test_a_datagram_listener_of_a_closed_implementation_sends_nothing_and_says_so(stage):
    listener = stage.listen_udp(DatagramWitness(stage))
    stage.implementation.close()
    with pytest.raises(ListenerClosed):
        listener.send(listener.address, b"x")
    stage.implementation = stage.make()


def test_a_datagram_handler_that_closed_its_listener_cannot_answer(stage):
    raised = []

    def handle(address, data):
        listener.close()
        try:
            listener.send(listener.address, data)
        except ListenerClosed as error:
            raised.append(error)
        stage.happened()

    listener = stage.listen_udp(handle)
    stage.implementation.udp(listener.address, b"x")
    stage.until(lambda: raised)


@pytest.mark.parametrize("data", ["text", None, 1, [b"x"]])
def test_a_datagram_of_a_listener_is_bytes(stage, data):
    listener = stage.listen_udp(DatagramWitness(stage))
    with pytest.raises(TypeError, match="bytes"):
        listener.send(listener.address, data)


@pytest.mark.parametrize("address", [[1], None])
def test_a_datagram_of_a_listener_has_an_address(stage, address):
    """As a sender whose Unix socket has no name has none."""
    listener = stage.listen_udp(DatagramWitness(stage))
    with pytest.raises(TypeError, match="address"):
        listener.send(address, b"x")


__all__ = [name for name in dir() if name.startswith("test_")]
