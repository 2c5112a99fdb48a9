"""Servers that are functions of an input and an output, on every implementation."""

from __future__ import annotations

from contextvars import ContextVar

import gevent
import pytest
from file_pairs import MUCH, PIECE
from stages import PATIENCE

from ngi_gevent import (
    ConnectionClosed,
    blocking,
)
from ngi_gevent.blocking import input as input_module
from ngi_gevent.core.threads import Flag
from ngi_gevent.sockets import linger


@blocking.server
def count_words(input, output):
    for line in input:
        output.write(b"%d\n" % len(line.split()))


@blocking.server
def echo(input, output):
    while data := input.read(PIECE):
        output.writelines([data])


def test_a_function_serves_several_clients_at_once(stage):
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


def test_much_data_is_sent_in_both_directions(stage):
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
        assert (peer.received, peer.ended) == (b"2\n1\n0\n1\n", "end")


def test_a_method_or_a_lambda_can_be_a_server(stage):
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
        output.close()
    with pytest.raises(TypeError, match="function must be callable"):
        blocking.server(7)


def test_a_function_sees_the_context_of_its_listener(stage):
    variable = ContextVar("variable")
    variable.set(b"seen")

    @blocking.server
    def tell(input, output):
        output.write(variable.get(b"not seen"))

    output, input = blocking.open(stage.listen(tell).address, stage.implementation.connect, PATIENCE)
    assert input.read(timeout=PATIENCE) == b"seen"
    output.close()


def test_files_are_closed_when_the_function_returns(stage):
    files = []
    listener = stage.listen(blocking.server(lambda *arguments: files.extend(arguments)))
    output, input = blocking.open(listener.address, stage.implementation.connect, PATIENCE)
    assert input.read(timeout=PATIENCE) == b""
    output.close()
    assert [file.closed for file in files] == [True, True]


def test_an_exception_in_a_function_is_logged_once(stage, caplog):
    @blocking.server
    def failing(input, output):
        output.write(b"before")
        raise KeyError("the function's")

    output, input = blocking.open(stage.listen(failing).address, stage.implementation.connect, PATIENCE)
    assert input.read(timeout=PATIENCE) == b"before"
    output.close()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("ngi_gevent.connection", "ERROR")
    assert record.exc_info[0] is KeyError
    assert "blocking.server" in record.getMessage()


def test_a_function_that_is_not_run_is_reported(stage, caplog):
    @blocking.server
    def generator(input, output):
        yield

    output, input = blocking.open(stage.listen(generator).address, stage.implementation.connect, PATIENCE)
    assert input.read(timeout=PATIENCE) == b""
    output.close()
    assert [record.exc_info[0] for record in caplog.records] == [TypeError]


@pytest.mark.parametrize(
    "use",
    [
        lambda input, output: input.read(),
        lambda input, output: output.writelines(bytes(PIECE) for _ in range(1000)),
        lambda input, output: [list(input) if input.readline() else None],
    ],
)
def test_the_end_of_its_connection_is_not_an_error_of_the_function(stage, caplog, use):
    caplog.set_level("INFO", logger="ngi_gevent.connection")
    began, ended = Flag(), Flag()

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
    output.close()
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_function_can_leave_its_input_unread(socket_stage, monkeypatch):
    monkeypatch.setattr(linger, "DISCARD_PAUSE", 0.001)
    listener = socket_stage.listen(blocking.server(lambda input, output: output.write(b"no, thanks")))
    peer = socket_stage.peer(listener)
    peer.send(bytes(MUCH))
    peer.finish()
    peer.read()
    socket_stage.until(lambda: peer.ended)
    assert peer.received == b"no, thanks"
    assert listener.close_wait(PATIENCE) == 0


def test_a_listener_that_closes_ends_its_functions(socket_stage):
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

    listener = socket_stage.listen(serve, linger_timeout=0.01)
    for _ in range(3):
        socket_stage.peer(listener).send(b"x and unread")
    socket_stage.until(lambda: began == [b"x"] * 3)
    listener.close()
    socket_stage.until(lambda: over == [True] * 3)
    for peer in socket_stage.peers:
        peer.close()
    socket_stage.implementation.wait(PATIENCE)


def test_a_line_that_is_too_long_is_one_log_entry(tcp, caplog, monkeypatch):
    monkeypatch.setattr(input_module, "MAX_LINE", 10)
    caplog.set_level("INFO", logger="ngi_gevent.connection")
    peer = tcp.peer(tcp.listen(blocking.server(lambda input, output: list(input))))
    peer.send(b"x" * 100)
    peer.read()
    tcp.until(lambda: peer.ended == "end")
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("INFO", None)
    assert "LimitExceeded: " in record.getMessage()
