"""Requests, connections and connections opened as files, on every implementation."""

from __future__ import annotations

import gc
import traceback

import gevent
import pytest
from stages import PATIENCE, Witness

import ngi_gevent
from ngi_gevent import (
    ConnectionFailed,
    ConnectionTimeout,
    Deadlock,
    LimitExceeded,
    Timeout,
    adapters,
    blocking,
    generator,
)
from ngi_gevent.core import clock


class Echo(Witness):
    def handle_input(self, connection, data):
        connection.write(data.upper())


class Silent(Witness):
    pass


class HangUp(Witness):
    def handle_input(self, connection, data):
        connection.close()


def test_the_documented_session_works(stage):
    """The session is from NGI's own documentation, with a class as the client connect handler and NGI 1's method
    names.
    """
    printed = []

    class EC:
        def connected(self, connection):
            self.input = b""
            with pytest.warns(DeprecationWarning, match="set_handler"):
                connection.setHandler(self)
            connection.write(b"test data")

        def failed_connect(self, reason):
            printed.append(reason)

        def handle_input(self, connection, data):
            self.input += data
            if self.input == b"TEST DATA":
                printed.append(self.input)
                connection.close()

    listener = stage.listen(Echo)
    assert blocking.request(stage.implementation.connect, listener.address, EC) is None
    assert printed == [b"TEST DATA"]
    assert list(listener.connections()) == []
    listener.close()
    with pytest.raises(ConnectionFailed):
        blocking.request(stage.implementation.connect, listener.address, EC)
    assert printed == [b"TEST DATA"]


@generator.handler
def ask(connection):
    connection.write(b"hello")
    assert (yield) == b"HELLO"


class Ask:
    """A server callable and connection handler."""

    def __init__(self, connection):
        connection.set_handler(self)
        connection.write(b"hello")

    def handle_input(self, connection, data):
        assert data == b"HELLO"
        connection.close()


def ask_by_function(connection):
    Ask(connection)


@pytest.mark.parametrize("handler", [ask, Ask, ask_by_function])
def test_a_request_accepts_every_kind_of_handler(stage, handler):
    listener = stage.listen(Echo)
    assert blocking.request(stage.implementation.connect, listener.address, handler) is None
    assert list(listener.connections()) == []


def test_a_request_accepts_a_connection_handler(stage):
    class Greet(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"welcome")
            connection.close()

    class Listen:
        data = b""

        def handle_input(self, connection, data):
            self.data += data

    handler = Listen()
    reason = blocking.request(stage.implementation.connect, stage.listen(Greet).address, handler)
    assert (handler.data, reason) == (b"welcome", "end of input")


def test_a_request_returns_the_reason_if_the_peer_ends_the_connection(stage):
    client = Witness(stage)
    client.connected = lambda connection: (connection.set_handler(client), connection.write(b"x"))
    assert blocking.request(stage.implementation.connect, stage.listen(HangUp).address, client) == "end of input"
    assert client.closed == "end of input"


def test_a_request_returns_the_reason_if_the_limit_of_an_adapter_ends_the_connection(stage):
    class TooLong(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"x" * 11)

    client = Witness(stage)
    reason = blocking.request(
        stage.implementation.connect,
        stage.listen(TooLong).address,
        lambda connection: adapters.Lines(connection, max_line=10).set_handler(client),
        timeout=PATIENCE,
    )
    assert isinstance(reason, LimitExceeded)
    assert client.closed is reason


@pytest.mark.parametrize("handler", [None, 7, object(), "handler"])
def test_a_request_refuses_an_object_that_is_not_a_handler(stage, handler):
    listener = stage.listen()
    with pytest.raises(TypeError, match="handler must be"):
        blocking.request(stage.implementation.connect, listener.address, handler)


@pytest.mark.parametrize("where", ["connected", "handle_input", "handle_exception", "handle_close", "iterator"])
def test_an_exception_in_the_handler_is_raised_with_its_traceback_and_not_logged(stage, caplog, where):
    class Error(Exception):
        pass

    def the_place_to_find_in_the_traceback(here):
        if here == where:
            raise Error(where)

    def lines():
        yield b"x"
        if where in ("handle_exception", "iterator"):
            the_place_to_find_in_the_traceback("iterator")
            raise ValueError

    class Client:
        closed = None

        def connected(self, connection):
            connection.set_handler(self)
            connection.writelines(lines())
            the_place_to_find_in_the_traceback("connected")

        def handle_input(self, connection, data):
            the_place_to_find_in_the_traceback("handle_input")

        def handle_close(self, connection, reason):
            reasons.append(reason)
            the_place_to_find_in_the_traceback("handle_close")

        if where == "handle_exception":

            def handle_exception(self, connection, exception):
                the_place_to_find_in_the_traceback("handle_exception")

    reasons = []
    listener = stage.listen(HangUp if where == "handle_close" else Echo)
    with pytest.raises(Error) as caught:
        blocking.request(stage.implementation.connect, listener.address, Client())
    assert "the_place_to_find_in_the_traceback" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert reasons == ["end of input" if where == "handle_close" else caught.value]
    assert list(listener.connections()) == []
    assert not caplog.records


def test_a_write_in_the_handler_after_the_end_is_not_an_error(stage, caplog):
    """Without a request, such a write is not an error either.  The result is the reason for the end."""

    class Client:
        def connected(self, connection):
            connection.set_handler(self)
            connection.close()
            connection.write(b"too late")

        def handle_input(self, connection, data):
            pass

    listener = stage.listen()
    assert blocking.request(stage.implementation.connect, listener.address, Client(), timeout=10) is None
    assert caplog.records == []


def test_a_request_that_times_out_leaves_no_connection(stage):
    client = Witness(stage)
    listener = stage.listen(Silent)
    began = clock.now()
    with pytest.raises(Timeout) as caught:
        blocking.request(stage.implementation.connect, listener.address, client, timeout=0.05)
    assert not isinstance(caught.value, ConnectionTimeout)
    assert (0 if stage.at_once else 0.048) <= clock.now() - began < 5
    assert not client.connection
    stage.until(lambda: list(listener.connections()) == [])


def test_a_connection_that_is_made_after_the_timeout_is_aborted():
    class Connect:
        def __call__(self, address, handler):
            self.handler = handler

    from ngi_gevent import testing

    for call in (
        lambda connect: blocking.request(connect, "address", ask, 0.05),
        lambda connect: blocking.connect("address", connect, 0.05),
    ):
        connect = Connect()
        with pytest.raises(ConnectionTimeout, match="'address'"):
            call(connect)
        connection = testing.Connection(testing.Recorder())
        connect.handler.connected(connection)
        assert not connection


def test_a_connection_attempt_is_cancelled_at_the_timeout(simulated):
    """If a program retries a host that does not answer, it must not run out of descriptors."""
    server = simulated.simulation.host("server")
    server.listener(("server", 80), Echo)
    address, connect = ("server", 80), simulated.implementation.connect
    simulated.simulation.partition("server", simulated.implementation)
    with pytest.raises(ConnectionTimeout):
        blocking.connect(address, connect, timeout=30)
    assert clock.now() == pytest.approx(30, abs=0.01)
    with pytest.raises(ConnectionTimeout):
        blocking.request(connect, address, ask, timeout=20)
    assert clock.now() == pytest.approx(50, abs=0.01)
    simulated.implementation.wait(5)
    assert simulated.implementation._network._site.sockets() == []
    server.close()


def test_arguments_in_the_wrong_order_are_refused():
    with pytest.raises(TypeError, match="connect"):
        blocking.request(("127.0.0.1", 1), ngi_gevent.connect, ask)
    with pytest.raises(TypeError, match="connect"):
        blocking.connect(ngi_gevent.connect, ("127.0.0.1", 1))


def test_the_error_names_a_forgotten_decorator(stage, caplog):
    def forgotten(connection):
        yield

    async def unknown(connection):
        pass

    for no_handler, hint in (forgotten, r"generator\.handler"), (unknown, "write def instead of async def"):
        with pytest.raises(TypeError, match=hint):
            blocking.request(stage.implementation.connect, stage.listen().address, no_handler)
        client = stage.client(stage.listen(no_handler))
        stage.until(lambda client=client: client.closed)
    assert [record.exc_info[0] for record in caplog.records] == [TypeError] * 2


def test_a_wait_that_nothing_can_end_is_an_error():
    with pytest.raises(Deadlock):
        blocking.request(lambda address, handler: None, "address", ask)
    with pytest.raises(Deadlock):
        blocking.connect("address", lambda address, handler: None)


@pytest.mark.parametrize("timeout", [-1, "1"])
def test_an_invalid_timeout_is_refused(stage, timeout):
    listener = stage.listen()
    with pytest.raises((TypeError, ValueError), match="timeout"):
        blocking.request(stage.implementation.connect, listener.address, ask, timeout)
    with pytest.raises((TypeError, ValueError), match="timeout"):
        blocking.connect(listener.address, stage.implementation.connect, timeout)


def test_connect_returns_a_connection(stage):
    listener = stage.listen(Echo)
    connection = blocking.connect(listener.address, stage.implementation.connect, timeout=10)
    stage.connections.append(connection)
    connection.write(b"hello")
    witness = Witness(stage)
    connection.set_handler(witness)
    stage.until(lambda: witness.data == b"HELLO")


def test_connect_raises_the_reason_if_it_fails(stage):
    listener = stage.listen()
    listener.close()
    with pytest.raises(ConnectionFailed) as caught:
        blocking.connect(listener.address, stage.implementation.connect)
    assert caught.value.reason


def test_connect_uses_the_packages_connect_by_default():
    listener = ngi_gevent.listener(None, lambda connection: connection.close())
    connection = blocking.connect(listener.address)
    assert connection.peer_address == listener.address
    connection.abort()
    listener.close()
    ngi_gevent.wait(10)


def test_other_greenlets_run_while_a_request_waits(simulated):
    class Later(Witness):
        def handle_input(self, connection, data):
            gevent.spawn_later(1000, connection.write, data.upper())

    listener = simulated.listen(Later)
    connect = simulated.implementation.connect
    requests = [gevent.spawn(blocking.request, connect, listener.address, ask) for _ in range(20)]
    assert blocking.request(connect, listener.address, ask) is None
    assert [request.get() for request in requests] == [None] * 20
    assert clock.now() == pytest.approx(1000, abs=0.1)


def test_a_handler_can_make_a_request(tcp):
    class Proxy(Witness):
        def handle_input(self, connection, data):
            blocking.request(tcp.implementation.connect, echo.address, ask)
            connection.write(b"asked")

    echo = tcp.listen(Echo)
    client = tcp.client(tcp.listen(Proxy))
    client.connection.write(b"go")
    tcp.until(lambda: client.data == b"asked")


def test_open_accepts_an_address(stage):
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


def test_open_reads_input_that_arrived_before(stage):
    def serve(connection):
        connection.write(b"welcome")
        connection.close()

    connection = blocking.connect(stage.listen(serve).address, stage.implementation.connect)
    output, input = blocking.open(connection)
    assert input.read(timeout=PATIENCE) == b"welcome"
    again_output, again_input = blocking.open(connection)
    assert again_input.read(timeout=PATIENCE) == b""
    again_output.close()


@pytest.mark.parametrize("first", ["drop", "end"])
def test_discarding_both_files_closes_a_connection_whose_input_has_ended(stage, first):
    """A discarded socket also closes.  Before the end of input, the connection may still be used in another way."""
    client, served = stage.talk()
    files = blocking.open(client.connection)
    if first == "end":
        served.connection.write_eof()
        assert files[1].read(timeout=PATIENCE) == b""
    assert client.connection
    del files
    gc.collect()
    if first == "drop":
        assert client.connection
        served.connection.write_eof()
    stage.until(lambda: served.closed)
    assert served.closed == "end of input"
    assert not client.connection
