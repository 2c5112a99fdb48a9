"""``message``, which sends one message and returns the answer, on every implementation."""

from __future__ import annotations

import tracemalloc

import pytest
from stages import Witness

import ngi_gevent
from ngi_gevent.core import clock
from ngi_gevent.message import message


class Answer(Witness):
    """A server that answers in two pieces, and closes the connection."""

    def handle_input(self, connection, data):
        connection.write(b"you said ")
        connection.writelines([data])
        connection.close()


class Stay(Witness):
    def handle_input(self, connection, data):
        connection.write(b"you said ")
        connection.writelines([data])


def test_the_answer_includes_all_data_up_to_the_end(stage):
    assert message(stage.implementation.connect, stage.listen(Answer).address, b"hello") == b"you said hello"


def test_the_answer_ends_where_it_meets_the_expectation(stage):
    listener = stage.listen(Stay)
    answer = message(stage.implementation.connect, listener.address, bytearray(b"."), lambda answer: b"." in answer)
    assert answer == b"you said ."
    assert list(listener.connections()) == []


def test_checking_an_answer_does_not_copy_it(stage):
    """With copies, a peer that sends single bytes would keep the processor busy."""

    class Long(Witness):
        def handle_input(self, connection, data):
            connection.write(long)

    long = b"x" * 8_000_000 + b"."
    address = stage.listen(Long).address
    tracemalloc.start()
    try:
        answer = message(stage.implementation.connect, address, b"hello", lambda answer: answer.endswith(b"."))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer == long
    assert peak < 1.5 * len(long)


def test_half_an_answer_is_unexpected_when_the_implementation_closes(socket_stage):
    class Half(Witness):
        def handle_input(self, connection, data):
            connection.write(b"half of it")
            clients.close()

    clients = socket_stage.make()
    address = socket_stage.listen(Half).address
    with pytest.raises(ngi_gevent.UnexpectedResponse, match="stopped"):
        message(clients.connect, address, b"hello", timeout=10)


def test_an_answer_that_never_meets_the_expectation_is_unexpected(stage):
    with pytest.raises(ngi_gevent.UnexpectedResponse, match="you said hello"):
        message(stage.implementation.connect, stage.listen(Answer).address, b"hello", lambda answer: False)


def test_an_answer_that_is_cut_short_is_unexpected(tcp):
    class Break(Witness):
        def handle_input(self, connection, data):
            connection.abort()

    with pytest.raises(ngi_gevent.UnexpectedResponse, match="reset"):
        message(tcp.implementation.connect, tcp.listen(Break).address, b"hello")


def test_a_missing_server_is_a_failed_connection(stage):
    listener = stage.listen()
    listener.close()
    with pytest.raises(ngi_gevent.ConnectionFailed):
        message(stage.implementation.connect, listener.address, b"hello")


def test_an_answer_that_is_late_is_a_timeout(simulated):
    listener = simulated.listen()
    with pytest.raises(ngi_gevent.Timeout):
        message(simulated.implementation.connect, listener.address, b"hello", timeout=60)
    assert clock.now() == pytest.approx(60, abs=0.01)


def test_the_exception_of_an_expectation_is_raised(stage):
    with pytest.raises(ZeroDivisionError):
        message(stage.implementation.connect, stage.listen(Stay).address, b"hello", lambda answer: 1 / 0)


def test_a_message_must_be_bytes(stage):
    with pytest.raises(TypeError):
        message(stage.implementation.connect, stage.listen().address, "text")


def test_an_answer_that_is_too_long_fills_no_memory(stage):
    connect, address = stage.implementation.connect, stage.listen(Answer).address
    assert message(connect, address, b"hello", max_size=14) == b"you said hello"
    with pytest.raises(ngi_gevent.LimitExceeded, match="13 bytes \\(max_size\\)"):
        message(connect, address, b"hello", max_size=13)
    with pytest.raises(ValueError, match="max_size"):
        message(connect, address, b"hello", max_size=-1)
