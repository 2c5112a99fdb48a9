"""Typed programs in which ``mypy --strict`` finds no mistake."""

from __future__ import annotations

import functools
import socket
import ssl
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import ngi_gevent
from ngi_gevent import blocking, generator, testing
from ngi_gevent.adapters import Base, Lines, Sized
from ngi_gevent.blocking import Input, Output
from ngi_gevent.interfaces import (
    ConnectOptions,
    Data,
    IClientConnectHandler,
    IConnection,
    IConnectionHandler,
    IImplementation,
    IListener,
    IServer,
    IServerConnection,
    IUDPListener,
    ListenOptions,
    Reason,
)
from ngi_gevent.message import message
from ngi_gevent.testing import contract
from ngi_gevent.testing.faults.wrapping import WrappingImplementation

ADDRESS = ("127.0.0.1", 8000)

# Handlers, from the smallest to the largest.


class Echo:
    """A server, and the handler of its connection."""

    def __init__(self, connection: IServerConnection) -> None:
        connection.set_handler(self)

    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        connection.write(data.upper())
        connection.writelines([data, bytearray(data), memoryview(data)])
        connection.writelines(data for _ in range(3))
        others = [other for other in connection.control.connections() if other is not connection]
        for other in others:
            other.close()

    def handle_close(self, connection: IServerConnection, reason: Reason) -> None:
        print(f"{connection.peer_address}: {reason}")
        if isinstance(reason, ngi_gevent.LimitExceeded):
            connection.control.close()

    def handle_exception(self, connection: IServerConnection, exception: BaseException) -> None:
        raise exception


class AnyConnection:
    """A handler that works on either side."""

    def handle_input(self, connection: IConnection, data: bytes) -> bool:
        if connection:
            connection.write(data)
        return True


class WithArguments:
    """A server that shares a store between its connections."""

    def __init__(self, store: dict[bytes, bytes]) -> None:
        self.store = store

    def __call__(self, connection: IServerConnection) -> None:
        connection.set_handler(AnyConnection())


def function(connection: IServerConnection) -> None:
    connection.set_handler(AnyConnection())


class Client:
    def connected(self, connection: IConnection) -> None:
        connection.set_handler(self)
        connection.write(b"hello")

    def failed_connect(self, reason: Reason) -> None:
        print(reason)

    def handle_input(self, connection: IConnection, data: bytes) -> None:
        connection.close()


class Declared(IConnectionHandler):
    """A handler that inherits an interface, so mypy checks its methods at their definition."""

    def handle_input(self, connection: IConnection, data: bytes) -> None:
        connection.abort()


# Servers and addresses.


def listeners(tls: ssl.SSLContext) -> None:
    servers: list[IServer] = [Echo, WithArguments({}), function, testing.Recorder, lambda connection: None]
    for server in servers:
        ngi_gevent.listener(ADDRESS, server)
    ngi_gevent.listener(None, Echo, ssl_context=tls, handshake_timeout=None)
    ngi_gevent.listener("/run/echo", Echo, backlog=10, idle_timeout=1.5)
    ngi_gevent.listener(Path("/run/echo"), Echo, max_connections=10, output_limit=1000)
    ngi_gevent.listener(("::1", 0, 0, 0), Echo, reuse_port=True, keep_alive=False)
    listener = ngi_gevent.listener(socket.socket(), Echo)
    print(listener.address[1])
    listener.connect(Client(), ssl_context=tls, server_hostname="localhost", timeout=1)
    listener.close(lambda listener: print(listener.address))
    ended: int = listener.close_wait(1.5)
    print(ended)


def clients(tls: ssl.SSLContext) -> None:
    ngi_gevent.connect(ADDRESS, Client(), ssl_context=tls, timeout=None)
    ngi_gevent.connect("/run/echo", Client(), idle_timeout=60, output_limit=1000, keep_alive=False, linger_timeout=None)
    ngi_gevent.connect(ADDRESS, Client(), keep_alive=(60, 10, 3), local_address=("127.0.0.1", 0))
    ngi_gevent.connect(ngi_gevent.listener(None, Echo).address, testing.Recorder())
    ngi_gevent.wait(10)


def datagrams() -> None:
    def answer(address: Any, data: bytes) -> None:
        ngi_gevent.udp(address, data)
        listener.send(address, bytearray(data))

    listener: IUDPListener = ngi_gevent.udp_listener(ADDRESS, answer, buffer_size=100)
    in_memory: IUDPListener = testing.udp_listener("here", print)
    in_memory.send("there", b"hello")
    listener.close()


def serve(implementation: IImplementation, tls: ssl.SSLContext) -> IListener:
    """Use any implementation, with any option."""
    listener = implementation.listener(None, Echo, backlog=10, max_connections=10, idle_timeout=60, output_limit=10)
    implementation.listener(None, Echo, reuse_port=True, keep_alive=False, ssl_context=tls, handshake_timeout=None)
    implementation.connect(listener.address, Client(), ssl_context=tls, server_hostname="localhost", timeout=3)
    listener.connect(Client(), ssl_context=tls, server_hostname="localhost", timeout=None)
    listen: ListenOptions = {"idle_timeout": 60}
    connect: ConnectOptions = {"timeout": 3, "keep_alive": (60, 10, 3), "linger_timeout": 5}
    implementation.connect(implementation.listener(None, Echo, **listen).address, Client(), **connect)
    implementation.udp_listener(None, print, buffer_size=10)
    with implementation as entered:
        entered.wait(1)
    return listener


def implementations(tls: ssl.SSLContext) -> None:
    serve(ngi_gevent.Implementation(), tls)
    serve(testing.Implementation(), tls)
    serve(testing.Faulty(testing.Implementation(), testing.Plan.from_seed(1)), tls)
    serve(contract.Adapted(testing.Implementation(), Lines), tls)
    serve(WrappingImplementation(ngi_gevent.Inline()), tls)
    with ngi_gevent.Inline() as script:
        serve(script, tls)
        script.wait(1)
    with testing.Implementation() as memory:
        memory.listener("any", Echo, idle_timeout=60, ssl_context=tls)
    with ngi_gevent.Threaded() as threaded:
        serve(threaded, tls)
        address: Any = threaded.listener(ADDRESS, Echo, max_connections=10).address
        threaded.connect(address, Client(), timeout=1)
        threaded.udp(address, bytearray(b"hello"))
        threaded.udp_listener(address, print, buffer_size=10)
        threaded.wait(1)


# Generators.


@generator.handler
def dialogue(connection: IConnection) -> Generator[None, bytes, None]:
    connection.write(b"hello")
    data = yield
    connection.write(data)


@generator.handler(connection_adapter=Lines)
def lines(connection: Lines) -> Generator[None, bytes, int]:
    line = yield
    connection.write(line)
    return 1


@Sized.handler
def sized(connection: Sized) -> Generator[None, bytes]:
    connection.write((yield))
    connection.write(None)


class Methods:
    @generator.handler
    def talk(self, connection: IConnection) -> Generator[None, bytes, None]:
        connection.write((yield))

    @Sized.handler
    def records(self, connection: Sized) -> Generator[None, bytes, None]:
        connection.write((yield))

    @generator.handler(None, Lines)
    def lines(self, connection: Lines) -> Generator[None, bytes, None]:
        connection.write((yield))


def generators(connection: IConnection) -> None:
    ngi_gevent.listener(ADDRESS, dialogue)
    ngi_gevent.listener(ADDRESS, lines)
    ngi_gevent.listener(ADDRESS, Methods().talk)
    ngi_gevent.connect(ADDRESS, sized)
    ngi_gevent.connect(ADDRESS, Methods().records)
    dialogue(connection)
    both: tuple[IServer, IClientConnectHandler] = dialogue, dialogue
    print(both)


# Adapters.


class Upper(Base):
    def handle_input(self, connection: IConnection, data: bytes) -> None:
        super().handle_input(connection, data.upper())

    def write(self, data: Data) -> None:
        super().write(bytes(data).upper())


class Records:
    def __init__(self, connection: IServerConnection) -> None:
        adapters: list[IConnection] = [Lines(connection, max_line=10), Sized(connection), Upper(Lines(connection))]
        adapters[0].set_handler(self)
        Sized(connection, max_size=100).writelines([b"record", None])
        self.control: IListener = Lines(connection).control

    def handle_input(self, connection: Sized, data: bytes) -> None:
        connection.write(None)
        connection.write(data)


def adapted(connection: IServerConnection) -> None:
    Upper(connection).set_handler(AnyConnection())
    server_connection: IServerConnection = Lines(connection)
    print(server_connection.peer_address, server_connection.local_address, server_connection.ssl_object)


# Waiting.


def requests(tls: ssl.SSLContext, connection: IConnection, any_address: Any) -> None:
    reason: Reason | None = blocking.request(ngi_gevent.connect, ADDRESS, Client)
    reason = blocking.request(ngi_gevent.connect, ADDRESS, Client(), timeout=1)
    reason = blocking.request(ngi_gevent.connect, ADDRESS, function, 1.5)
    reason = blocking.request(ngi_gevent.connect, ADDRESS, dialogue)
    reason = blocking.request(ngi_gevent.connect, ADDRESS, Methods().talk)
    reason = blocking.request(ngi_gevent.connect, any_address, AnyConnection())
    reason = blocking.request(ngi_gevent.connect, ADDRESS, lambda connection: connection.close())
    reason = blocking.request(functools.partial(ngi_gevent.connect, ssl_context=tls), ADDRESS, dialogue)
    reason = blocking.request(ngi_gevent.Threaded().connect, ADDRESS, dialogue)
    reason = blocking.request(testing.connect, "anything", dialogue)
    print(reason)

    def connect(address: tuple[str, int], handler: IClientConnectHandler) -> None:
        ngi_gevent.connect(address, handler, timeout=1)

    connected: IConnection = blocking.connect(ADDRESS)
    connected = blocking.connect(ADDRESS, connect, timeout=1)
    connected = blocking.connect(("memory", 1, 2), connect=testing.connect)
    connected = blocking.connect("/run/echo", ngi_gevent.connect, 1)

    output, input = blocking.open(connected)
    output, input = blocking.open(Lines(connection))
    output, input = blocking.open(ADDRESS, timeout=1)
    output, input = blocking.open("/run/echo", timeout=1)
    output, input = blocking.open(any_address)
    output, input = blocking.open(ADDRESS, connect)
    output, input = blocking.open(("memory", 1, 2), connect=testing.connect)
    with output, input:
        output.write(b"hello", timeout=1)
        output.writelines([b"hello"])
        output.flush(timeout=1)
        line: bytes = input.readline(timeout=1)
        everything: list[bytes] = [line, input.read(), input.read(5), *input.readlines(), *input]
        print(everything)

    answer: bytes = message(ngi_gevent.connect, ADDRESS, b"hello", lambda answer: b"\n" in answer, timeout=1)
    answer = message(functools.partial(ngi_gevent.connect, timeout=1), ADDRESS, bytearray(b"hello"))
    answer = message(testing.connect, "anything", b"hello", expected=len)
    print(answer)


@blocking.server
def conversation(input: Input, output: Output) -> None:
    for line in input:
        output.write(line)


class Conversations:
    @blocking.server
    def serve(self, input: Input, output: Output) -> int:
        return output.write(input.readline())

    def plain(self, input: Input, output: Output) -> None:
        output.writelines(input)


def imperative() -> None:
    ngi_gevent.listener(ADDRESS, conversation)
    ngi_gevent.listener(ADDRESS, Conversations().serve)
    ngi_gevent.listener(ADDRESS, blocking.server(Conversations().plain))
    ngi_gevent.listener(ADDRESS, blocking.server(lambda input, output: output.write(input.read())))


# Tests.


def test_echo() -> None:
    client = testing.Recorder()
    listener = testing.listener(None, Echo, max_connections=10)
    listener.connect(client)
    client.connection.write(b"hello")
    client.wait_connected(1).write(b"hello")
    client.expect(b"HELLO")
    reason: Reason | None = client.wait_closed()
    data: bytes = client.data
    chunks: list[bytes] = client.chunks
    exceptions: list[BaseException] = client.exceptions
    print(reason, data, chunks, exceptions)
    printing = listener.connect()
    printing.write(b"hello")
    printing.peer.test_close()

    connection = testing.Connection(AnyConnection(), "address", peer_address=("other", 1))
    Echo(connection)
    connection.test_input(b"hello")
    connection.test_close("end of input")
    connection.peer.write(b"hello")
    testing.connectable("address", connection)
    testing.connect("address", Client(), timeout=1)
    testing.check_chunking(Echo, b"hello")
    answer: bytes = testing.converse(Echo, [b"hello"]).data
    print(answer)


def make(listen: Callable[[Any, IServer], IListener]) -> Iterator[IListener]:
    yield listen(ADDRESS, Echo)


def made() -> list[IListener]:
    return [*make(ngi_gevent.listener), *make(testing.listener)]
