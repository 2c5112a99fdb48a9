"""Mistakes that a type checker finds.

Each is marked with the message of ``mypy --strict``, except the last ones, which are not found.
"""

from __future__ import annotations

from collections.abc import Generator

import ngi_gevent
from ngi_gevent import blocking, generator, testing
from ngi_gevent.adapters import Base, Lines, Sized
from ngi_gevent.blocking import Input, Output
from ngi_gevent.interfaces import (
    IConnection,
    IConnectionHandler,
    IImplementation,
    IListener,
    IServerConnection,
    Reason,
)
from ngi_gevent.message import message

ADDRESS = ("127.0.0.1", 8000)


class Right:
    def __init__(self, connection: IServerConnection) -> None:
        connection.set_handler(self)

    def handle_input(self, connection: IServerConnection, data: bytes) -> None: ...


class Client:
    def connected(self, connection: IConnection) -> None: ...

    def failed_connect(self, reason: Reason) -> None: ...


# Handlers.


class WithoutHandleInput:
    def handle_data(self, connection: IConnection, data: bytes) -> None: ...


class WithoutData:
    def handle_input(self, connection: IConnection) -> None: ...


class OfText:
    def handle_input(self, connection: IConnection, data: str) -> None: ...


class Declared(IConnectionHandler):
    def handle_input(self, data: bytes) -> None: ...  # type: ignore[override]


def handlers(connection: IServerConnection) -> None:
    connection.set_handler(WithoutHandleInput())  # type: ignore[arg-type]
    connection.set_handler(WithoutData())  # type: ignore[arg-type]
    connection.set_handler(OfText())  # type: ignore[arg-type]
    connection.set_handler(Right)  # type: ignore[arg-type]
    connection.set_handler(None)  # type: ignore[arg-type]
    connection.set_handler()  # type: ignore[call-arg]
    Lines(connection).set_handler(WithoutHandleInput())  # type: ignore[arg-type]
    testing.Connection(WithoutHandleInput())  # type: ignore[arg-type]


# Connections.


def connections(connection: IConnection, server_connection: IServerConnection) -> None:
    connection.write("text")  # type: ignore[arg-type]
    connection.write(None)  # type: ignore[arg-type]
    connection.write([b"data"])  # type: ignore[arg-type]
    connection.writelines(["text"])  # type: ignore[list-item]
    connection.writelines(b"data")  # type: ignore[arg-type]
    connection.send(b"data")  # type: ignore[attr-defined]
    connection.control.close()  # type: ignore[attr-defined]
    connection.peer_address = ADDRESS  # type: ignore[misc]
    connection.close(1)  # type: ignore[call-arg]
    connection.when_closed(lambda connection: None)  # type: ignore[arg-type, misc]
    server_connection.control.write(b"data")  # type: ignore[attr-defined]
    one: IServerConnection = connection  # type: ignore[assignment]
    print(one)


def handle_close(connection: IConnection, reason: Reason) -> None:
    print(reason.strip())  # type: ignore[union-attr]
    print("ended: " + reason)  # type: ignore[operator]
    print(reason.errno)  # type: ignore[union-attr]
    raise reason  # type: ignore[misc]


# Servers.


class WithoutConnection:
    pass


def without_connection() -> None: ...


def with_more(connection: IConnection, store: dict[str, str]) -> None: ...


def servers() -> None:
    ngi_gevent.listener(ADDRESS, WithoutConnection)  # type: ignore[arg-type]
    ngi_gevent.listener(ADDRESS, without_connection)  # type: ignore[arg-type]
    ngi_gevent.listener(ADDRESS, with_more)  # type: ignore[arg-type]
    ngi_gevent.listener(ADDRESS, WithoutHandleInput())  # type: ignore[arg-type]
    ngi_gevent.listener(ADDRESS)  # type: ignore[call-arg]
    ngi_gevent.listener(8000, Right)  # type: ignore[arg-type]
    ngi_gevent.listener("127.0.0.1", 8000)  # type: ignore[arg-type]
    ngi_gevent.listener(("127.0.0.1", "8000"), Right)  # type: ignore[arg-type]
    ngi_gevent.listener(ADDRESS, Right, max_connection=10)  # type: ignore[call-arg]
    ngi_gevent.listener(ADDRESS, Right, idle_timeout="10")  # type: ignore[arg-type]
    ngi_gevent.Threaded().listener(ADDRESS, Right, max_connection=10)  # type: ignore[call-arg]
    ngi_gevent.Threaded().listener(8000, Right)  # type: ignore[arg-type]
    testing.listener(ADDRESS, Right, max_connection=10)  # type: ignore[call-arg]
    testing.listener(ADDRESS, without_connection)  # type: ignore[arg-type]
    testing.listener({}, Right)  # type: ignore[arg-type]


def wherever(implementation: IImplementation, listener: IListener) -> None:
    implementation.listener(None, Right, max_connection=10)  # type: ignore[call-arg]
    implementation.listener(None, Right, idle_timeout="10")  # type: ignore[arg-type]
    implementation.listener(None, Right, timeout=10)  # type: ignore[call-arg]
    implementation.connect(None, Client(), time_out=1)  # type: ignore[call-arg]
    implementation.connect(None, Client(), timeout="1")  # type: ignore[arg-type]
    implementation.connect(None, Client(), keep_alive=(60, 10))  # type: ignore[arg-type]
    listener.connect(Client(), time_out=1)  # type: ignore[call-arg]
    listener.connect(Client(), max_connections=1)  # type: ignore[call-arg]


def closing(listener: IListener) -> None:
    listener.close(lambda: None)  # type: ignore[arg-type, misc]
    listener.close(5)  # type: ignore[arg-type]
    listener.close_wait("5")  # type: ignore[arg-type]
    left: str = listener.close_wait(5)  # type: ignore[assignment]
    print(left, len(listener.connections()))  # type: ignore[arg-type]


# Clients.


class WithoutFailedConnect:
    def connected(self, connection: IConnection) -> None: ...


class WithoutReason(WithoutFailedConnect):
    def failed_connect(self) -> None: ...


def clients() -> None:
    ngi_gevent.connect(ADDRESS, WithoutFailedConnect())  # type: ignore[arg-type]
    ngi_gevent.connect(ADDRESS, WithoutReason())  # type: ignore[arg-type]
    ngi_gevent.connect(ADDRESS, Client)  # type: ignore[arg-type]
    ngi_gevent.connect(ADDRESS, Right)  # type: ignore[arg-type]
    ngi_gevent.connect(8000, Client())  # type: ignore[arg-type]
    ngi_gevent.connect(None, Client())  # type: ignore[arg-type]
    ngi_gevent.connect(ADDRESS, Client(), tls=True)  # type: ignore[call-arg]
    ngi_gevent.connect(ADDRESS, Client(), timeout="1")  # type: ignore[arg-type]
    ngi_gevent.Threaded().connect(ADDRESS, WithoutReason())  # type: ignore[arg-type]
    ngi_gevent.Threaded().connect(ADDRESS, Client(), time_out=1)  # type: ignore[call-arg]
    ngi_gevent.listener(ADDRESS, Right).connect(Client(), time_out=1)  # type: ignore[call-arg]
    testing.connect(ADDRESS, WithoutFailedConnect())  # type: ignore[arg-type]
    testing.connect(ADDRESS, Client(), time_out=1)  # type: ignore[call-arg]
    testing.listener(ADDRESS, Right).connect(Client(), time_out=1)  # type: ignore[call-overload]
    ngi_gevent.wait("1")  # type: ignore[arg-type]


def datagrams() -> None:
    def of_data_only(data: bytes) -> None: ...

    ngi_gevent.udp(ADDRESS, "text")  # type: ignore[arg-type]
    ngi_gevent.udp(8000, b"data")  # type: ignore[arg-type]
    ngi_gevent.udp_listener(ADDRESS, of_data_only)  # type: ignore[arg-type]
    ngi_gevent.udp_listener(ADDRESS, print, buffersize=1)  # type: ignore[call-arg]
    ngi_gevent.udp_listener(ADDRESS, print).send(ADDRESS, "text")  # type: ignore[arg-type]
    testing.udp_listener(None, print).send(b"data")  # type: ignore[call-arg]


# Generators.


@generator.handler
def talk(connection: IConnection) -> Generator[None, bytes, None]:
    line: str = yield  # type: ignore[assignment]
    connection.write(line)  # type: ignore[arg-type]


@generator.handler  # type: ignore[arg-type]
def of_text(connection: IConnection) -> Generator[None, str, None]:
    yield


@generator.handler  # type: ignore[arg-type]
def that_answers_by_yield(connection: IConnection) -> Generator[bytes, bytes, None]:
    yield b"answer"


@generator.handler  # type: ignore[arg-type]
def no_generator(connection: IConnection) -> None: ...


@generator.handler  # type: ignore[arg-type]
def of_nothing() -> Generator[None, bytes, None]:
    yield


@Sized.handler  # type: ignore[arg-type]
def of_raw_connection(connection: int) -> Generator[None, bytes, None]:
    yield


def generators() -> None:
    generator.handler(connection_adapter=Right)  # type: ignore[arg-type]
    generator.handler(talk, Lines(None))  # type: ignore[call-overload, arg-type]


# Adapters.


def adapters(connection: IServerConnection) -> None:
    Lines(connection).write(None)  # type: ignore[arg-type]
    Sized(connection).write("text")  # type: ignore[arg-type]
    Sized(connection).writelines(["text"])  # type: ignore[list-item]
    Lines(connection, maxline=10)  # type: ignore[call-arg]
    Lines(ADDRESS)  # type: ignore[arg-type]


class Changed(Base):
    def write(self, text: str) -> None: ...  # type: ignore[override]

    def handle_input(self, data: bytes) -> None: ...  # type: ignore[override]


# Waiting.


def requests(connection: IConnection) -> None:
    blocking.request(ADDRESS, Client)  # type: ignore[call-arg, arg-type]
    blocking.request(ngi_gevent.connect, ADDRESS)  # type: ignore[call-arg]
    blocking.request(ngi_gevent.connect, 8000, Client)  # type: ignore[arg-type]
    blocking.request(ngi_gevent.connect, ADDRESS, WithoutHandleInput())  # type: ignore[arg-type]
    blocking.request(ngi_gevent.connect, ADDRESS, without_connection)  # type: ignore[arg-type]
    blocking.request(ngi_gevent.connect, ADDRESS, WithoutData())  # type: ignore[arg-type]
    blocking.request(ngi_gevent.connect, ADDRESS, Client, timeout="1")  # type: ignore[arg-type]
    blocking.request(ngi_gevent.listener, ADDRESS, Client)  # type: ignore[arg-type]
    reason: str = blocking.request(ngi_gevent.connect, ADDRESS, Client)  # type: ignore[assignment]
    print(reason)

    blocking.connect(8000)  # type: ignore[call-overload]
    blocking.connect(8000, ngi_gevent.connect)  # type: ignore[arg-type]
    blocking.connect(ADDRESS, time_out=1)  # type: ignore[call-overload]

    input, output = blocking.open(connection)
    input.read()  # type: ignore[attr-defined]
    output.write(b"data")  # type: ignore[attr-defined]
    blocking.open(8000)  # type: ignore[call-overload]
    output, input = blocking.open(ADDRESS)  # type: ignore[assignment]

    message(ngi_gevent.connect, ADDRESS, "text")  # type: ignore[arg-type]
    message(ngi_gevent.connect, 8000, b"data")  # type: ignore[arg-type]
    message(ngi_gevent.connect, ADDRESS, b"data", b"expected")  # type: ignore[arg-type]
    answer: str = message(ngi_gevent.connect, ADDRESS, b"data")  # type: ignore[assignment]
    print(answer)


def files(input: Input, output: Output) -> None:
    output.write("text")  # type: ignore[arg-type]
    output.read()  # type: ignore[attr-defined]
    input.write(b"data")  # type: ignore[attr-defined]
    line: str = input.readline()  # type: ignore[assignment]
    print(line)


@blocking.server  # type: ignore[arg-type]
def the_other_way_round(output: Output, input: Input) -> None: ...


@blocking.server  # type: ignore[arg-type]
def of_a_connection(connection: IConnection) -> None: ...


class Conversations:
    @blocking.server  # type: ignore[arg-type]
    def the_other_way_round(self, output: Output, input: Input) -> None: ...


# Tests.


def test() -> None:
    client = testing.Recorder()
    client.wait_connected().write("text")  # type: ignore[arg-type]
    client.expect("text")  # type: ignore[arg-type]
    client.wait_closed().strip()  # type: ignore[union-attr]
    testing.check_chunking(without_connection, b"data")  # type: ignore[arg-type]
    testing.check_chunking(Right, "text")  # type: ignore[arg-type]
    testing.converse(Right, ["text"])  # type: ignore[list-item]
    testing.Connection().test_input("text")  # type: ignore[arg-type]
    printing: None = testing.listener(None, Right).connect()  # type: ignore[assignment]
    print(printing)


# Mistakes that mypy does not find.  Optional methods are not part of a protocol, and the addresses of listeners and
# peers depend on the implementation.


class WithoutReasonAtTheEnd:
    def handle_input(self, connection: IConnection, data: bytes) -> None: ...

    def handle_close(self, connection: IConnection) -> None: ...


def missed(connection: IConnection, listener: IListener) -> None:
    connection.set_handler(WithoutReasonAtTheEnd())
    ngi_gevent.connect(listener.address[1], Client())
