"""The in-memory implementation beyond the contract: printing, recording, and calls that act as the network."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import threading

import gevent
import pytest
from certificates import client_context, server_context
from gevent.event import Event
from gevent.queue import Queue

import ngi_gevent
from ngi_gevent import (
    ConnectionClosed,
    ConnectionFailed,
    NGIError,
    Timeout,
    WouldWait,
    adapters,
    blocking,
    generator,
    testing,
)
from ngi_gevent.core.threads import Flag
from ngi_gevent.interfaces import ConnectOptions, ListenOptions
from ngi_gevent.testing.memory.turns import MemoryRegistry


class Echo:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        connection.write(data.upper())


def test_a_side_paused_by_a_large_list_reads_again_when_the_list_is_exhausted():
    class Writer(testing.Recorder):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.writelines([data * 1_000_000] * {b"a": 4, b"b": 9}.get(data, 0))

    class Reader:
        asked = 0

        def handle_input(self, connection, data):
            if self.asked < 2:
                connection.write(b"bc"[self.asked : self.asked + 1])
                self.asked += 1

    writer = Writer()
    connection = testing.Connection(Reader())
    connection.set_handler(writer)
    connection.peer.write(b"a")
    assert writer.data == b"abc"


def test_a_connection_prints_its_peers_output(capsys):
    connection = testing.Connection()
    connection.write(b"hello out there")
    connection.write(b"x" * 60)
    connection.close()
    assert capsys.readouterr().out == ("-> b'hello out there'\n-> b'" + "x" * 48 + "\n.> " + "x" * 12 + "'\n-> CLOSE\n")


def test_a_connection_prints_reasons_of_its_end(capsys):
    connection = testing.Connection()
    connection.peer.test_close("tired")
    assert capsys.readouterr().out == "-> CLOSE tired\n"


def test_a_printing_peer_prints_exceptions(capsys):
    connection = testing.Connection()
    connection.peer.writelines([b"x", 1])
    connection.set_handler(testing.Recorder())
    assert capsys.readouterr().out.startswith("-> EXCEPTION TypeError data must be bytes")


def test_a_text_connection_prints_text_as_it_is(capsys):
    connection = testing.TextConnection()
    for byte in "naïve\n".encode():
        connection.write(bytes([byte]))
    connection.write(b"\xff\n")
    connection.close()
    assert capsys.readouterr().out == "naïve\n\\xff\n-> CLOSE\n"


def test_a_handler_can_be_called_directly(capsys):
    connection = testing.Connection()
    Echo(connection).handle_input(connection, b"hello")
    assert capsys.readouterr().out == "-> b'HELLO'\n"


def test_the_sides_of_a_pair_refer_to_each_other():
    recorder = testing.Recorder()
    connection = testing.Connection(recorder, address="here", peer_address="there")
    assert connection.peer.peer is connection
    assert (connection.local_address, connection.peer_address) == ("here", "there")
    assert (connection.peer.local_address, connection.peer.peer_address) == ("there", "here")
    connection.write(b"hello")
    assert recorder.data == b"hello"


def test_a_recorder_records_input_exceptions_and_the_end():
    recorder = testing.Recorder()
    connection = testing.Connection(recorder)
    Echo(connection)
    connection.test_input(b"one")
    connection.test_input(bytearray(b"two"))
    assert (recorder.data, recorder.chunks) == (b"ONETWO", [b"ONE", b"TWO"])
    assert recorder.closed is None
    connection.peer.writelines(1 / 0 for _ in range(1))
    assert [type(error) for error in recorder.exceptions] == [ZeroDivisionError]
    connection.test_close("enough")
    assert recorder.closed == "end of input"


def test_a_recorder_is_a_server_and_a_client():
    implementation = testing.Implementation()
    listener = implementation.listener("address", testing.Recorder)
    client = testing.Recorder()
    implementation.connect("address", client)
    client.connection.write(b"hello")
    (served,) = listener.connections()
    assert served._handler.data == b"hello"
    implementation.connect("elsewhere", client)
    assert client.failed == "no such server"


def test_a_test_can_act_as_the_network():
    handler = testing.Recorder()
    connection = testing.Connection(testing.Recorder())
    connection.set_handler(handler)
    reason = OSError("cable cut")
    connection.test_input(b"some")
    connection.test_close(reason)
    connection.test_input(b"more")
    connection.test_close("again")
    assert (handler.data, handler.closed) == (b"some", reason)
    with pytest.raises(TypeError):
        connection.test_input("text")


def test_callbacks_are_queued_and_not_nested():
    order = []

    class Server(testing.Recorder):
        def handle_input(self, connection, data):
            order.append("server in")
            connection.write(b"answer")
            order.append("server out")

    class Client(testing.Recorder):
        def handle_input(self, connection, data):
            order.append("client")

    implementation = testing.Implementation()
    implementation.listener("address", Server)
    client = Client()
    implementation.connect("address", client)
    client.connection.write(b"x")
    assert order == ["server in", "server out", "client"]


def test_a_listener_connects_a_printing_client(capsys):
    implementation = testing.Implementation()
    listener = implementation.listener(None, Echo)
    client = listener.connect()
    client.write(b"hello")
    listener.close()
    assert capsys.readouterr().out == "-> b'HELLO'\n-> CLOSE\n"
    with pytest.raises(ConnectionFailed, match="no such server"):
        listener.connect()


def test_a_printing_client_prints_output_from_the_very_beginning(capsys):
    def greet(connection):
        connection.write(b"welcome")
        connection.close()

    testing.Implementation().listener(None, greet).connect()
    assert capsys.readouterr().out == "-> b'welcome'\n-> CLOSE\n"


def test_waiting_in_a_callback_for_a_later_event_raises():
    class Ask(testing.Recorder):
        def handle_input(self, connection, data):
            for wait in (
                lambda: blocking.request(implementation.connect, "address", testing.Recorder(), 10),
                lambda: blocking.connect("address", implementation.connect, 10),
            ):
                with pytest.raises(WouldWait):
                    wait()
            connection.write(b"refused")

    implementation = testing.Implementation()
    listener = implementation.listener("address", Ask)
    client = testing.Recorder()
    listener.connect(client)
    client.connection.write(b"x")
    assert client.data == b"refused"


@pytest.mark.parametrize(
    "wait",
    [
        lambda: gevent.sleep(0),
        lambda: gevent.sleep(1000),
        lambda: Event().wait(1000),
        lambda: Queue().get(),
        lambda: gevent.spawn(gevent.sleep).join(),
        lambda: gevent.get_hub().threadpool.apply(bool),
        lambda: Flag().wait(),
    ],
    ids=["a turn", "sleep", "event", "queue", "greenlet", "pool", "flag"],
)
def test_a_callback_that_waits_fails_at_once(wait):
    """The same is true for an adapter, a generator or an iterable, and on any greenlet."""

    class Server(testing.Recorder):
        def handle_input(self, connection, data):
            wait()

    class AdaptedServer(Server):
        def __init__(self, connection):
            super().__init__(adapters.Lines(connection))

    @generator.handler
    def generated(connection):
        yield
        wait()

    class Streaming(testing.Recorder):
        def handle_input(self, connection, data):
            connection.writelines(wait() for _ in range(1))

        def handle_exception(self, connection, exception):
            raise exception

    class Implementation(testing.Implementation):
        def _make_registry(self):
            return MemoryRegistry(self._turns, lambda registry, peer, where, error, limit: raised.append(error))

    def run():
        for server in Server, AdaptedServer, generated, Streaming, lambda connection: wait():
            client = testing.Recorder()
            listener = implementation.listener(None, server)
            listener.connect(client)
            if client.connection:
                client.connection.write(b"x\n")
            client.connection.abort()
            listener.close()

    raised = []
    implementation = Implementation()
    run()
    gevent.spawn(run).get(timeout=10)
    assert [type(error) for error in raised] == [WouldWait] * 10
    assert "sockets" in str(raised[0])
    gevent.sleep(0)  # outside callbacks, waiting is possible again


def test_a_client_that_waits_before_it_reconnects_is_not_called_forever(caplog):
    class Again:
        def connected(self, connection):
            """Do nothing, since this is never called."""

        def failed_connect(self, reason):
            gevent.sleep(0.001)
            implementation.connect("nobody", self)

    implementation = testing.Implementation()
    implementation.connect("nobody", Again())
    assert [record.exc_info[0] for record in caplog.records] == [WouldWait]


PATIENT = """
import time

from ngi_gevent import blocking, message, testing


class Silent:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        pass


def fails(wait, *arguments):
    try:
        wait(*arguments, timeout=1000)
    except Exception as error:
        print(type(error).__name__)


ngi = testing.Implementation()
ngi.listener("here", Silent)
client = testing.Recorder()
ngi.connect("here", client)
for use_hub in False, True:
    output, input = blocking.open("here", ngi.connect)
    fails(input.read, 5)
    fails(input.readline)
    fails(lambda timeout: blocking.open("here", lambda address, handler: None, timeout))
    fails(lambda timeout: blocking.request(ngi.connect, "here", Silent, timeout))
    fails(lambda timeout: message.message(ngi.connect, "here", b"x", timeout=timeout))
    fails(client.expect, b"x")
    output.close()
    import gevent

    gevent.get_hub().threadpool.apply(bool)
server = testing.Recorder()
ngi.listener("there", server.connected)
output, input = blocking.open("there", ngi.connect)
gevent.spawn_later(0.05, server.connection.write, b"later")
print(input.read(5, timeout=1000).decode())
"""


def test_a_timeout_expires_at_once_if_nothing_can_end_the_wait():
    """The program waits without a hub, and with one.  Another greenlet can end the wait."""
    run = subprocess.run([sys.executable, "-c", PATIENT], capture_output=True, text=True, timeout=30, check=True)
    ended = ["Timeout", "Timeout", "ConnectionTimeout", "Timeout", "Timeout", "AssertionError"]
    assert run.stdout.split() == [*ended, *ended, "later"]


def test_callbacks_of_several_threads_do_not_overlap():
    """If a thread causes a callback while another thread runs callbacks, the other thread runs that one too."""

    class Slow(testing.Recorder):
        running = overlapped = 0

        def handle_input(self, connection, data):
            self.running += 1
            self.overlapped += self.running > 1
            for _ in range(100):
                pass
            super().handle_input(connection, data)
            self.running -= 1

    def write():
        for _ in range(2000):
            connection.write(b"x")

    recorder = Slow()
    connection = testing.Connection(recorder)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    connection.write(b"")
    assert (len(recorder.data), recorder.overlapped) == (8000, 0)


def test_client_address_is_the_address_of_the_client():
    listener = testing.Implementation().listener("address", Echo)
    client = testing.Recorder()
    listener.connect(handler=client, client_address="me")
    assert client.connection.local_address == "me"
    assert next(listener.connections()).peer_address == "me"


@pytest.mark.parametrize("name", ["local_address", "client_address"])
def test_local_address_is_the_address_of_the_client(name):
    implementation = testing.Implementation()
    listener = implementation.listener("address", Echo)
    client = testing.Recorder()
    implementation.connect("address", client, **{name: "me"})
    assert client.connection.local_address == "me"
    assert next(listener.connections()).peer_address == "me"
    with pytest.raises(TypeError, match="hashable"):
        implementation.connect("address", client, **{name: []})


OPTIONS: ListenOptions = {
    "backlog": 10,
    "max_connections": 10,
    "limits": ngi_gevent.Limits(max_per_host=10, max_handshakes=10, max_lifetime=60),
    "slow_callback": 60,
    "idle_timeout": 60,
    "output_limit": 1000,
    "reuse_port": True,
    "dual_stack": False,
    "mode": None,
    "owner": None,
    "keep_alive": False,
    "ssl_context": server_context(),
    "handshake_timeout": None,
    "linger_timeout": 0.5,
    "proxy_protocol": ["0.0.0.0/0"],
}
CONNECT_OPTIONS: ConnectOptions = {
    "ssl_context": client_context(),
    "server_hostname": "localhost",
    "timeout": 30,
    "idle_timeout": 60,
    "output_limit": 1000,
    "keep_alive": (60, 10, 3),
    "linger_timeout": 0.5,
    "local_address": ("127.0.0.1", 0),
    "proxy_header": b"PROXY UNKNOWN\r\n",
}


@pytest.fixture(params=[testing.Implementation, ngi_gevent.Implementation])
def implementation(request):
    with request.param() as made:
        yield made


def test_a_program_with_every_option_runs_in_memory_as_on_sockets(implementation):
    assert OPTIONS.keys() == ListenOptions.__annotations__.keys()
    assert CONNECT_OPTIONS.keys() == ConnectOptions.__annotations__.keys()
    listener = implementation.listener(None, Echo, **OPTIONS)
    for connect in listener.connect, functools.partial(implementation.connect, listener.address):
        client = testing.Recorder()
        connect(client, **CONNECT_OPTIONS)
        client.wait_connected().write(b"hello")
        client.expect(b"HELLO")


@pytest.mark.parametrize(
    ("method", "interface"),
    [(ngi_gevent.listener, ListenOptions), (testing.listener, ListenOptions), (ngi_gevent.connect, ConnectOptions)],
)
def test_the_interfaces_have_every_option(method, interface):
    parameters = inspect.signature(method).parameters.values()
    options = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert options == interface.__annotations__.keys()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ssl_context": "secure"}, TypeError),
        ({"ssl_context": client_context()}, ValueError),
        ({"handshake_timeout": -1}, ValueError),
        ({"handshake_timeout": "long"}, TypeError),
    ],
)
def test_wrong_options_of_tls_are_refused_in_memory_as_on_sockets(implementation, options, error):
    with pytest.raises(error, match=next(iter(options))):
        implementation.listener(None, Echo, **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ssl_context": "secure"}, TypeError),
        ({"ssl_context": server_context()}, ValueError),
        ({"server_hostname": "localhost"}, ValueError),
        ({"server_hostname": 1, "ssl_context": client_context()}, TypeError),
        ({"server_hostname": "", "ssl_context": client_context()}, ValueError),
    ],
)
def test_wrong_options_of_a_client_with_tls_are_refused_in_memory_as_on_sockets(implementation, options, error):
    listener = implementation.listener(None, Echo)
    for connect in listener.connect, functools.partial(implementation.connect, listener.address):
        with pytest.raises(error, match=next(iter(options))):
            connect(testing.Recorder(), **options)


def test_implementations_do_not_share_addresses():
    one, two = testing.Implementation(), testing.Implementation()
    one.listener("address", Echo)
    two.listener("address", Echo)
    with pytest.raises(OSError, match="'address'"):
        one.listener("address", Echo)
    with pytest.raises(TypeError, match="hashable"):
        one.listener({}, Echo)
    with pytest.raises(TypeError, match="hashable"):
        one.connect([], testing.Recorder())


def test_a_listener_can_have_several_addresses():
    implementation = testing.Implementation()
    listener = implementation.listener(["one", None, ("two", 2)], Echo)
    assert listener.addresses == ("one", listener.addresses[1], ("two", 2))
    for address in listener.addresses:
        client = testing.Recorder()
        implementation.connect(address, client)
        assert client.connection.peer_address == address
    with pytest.raises(OSError, match="'three'"):
        implementation.listener(["three", "three"], Echo)
    with pytest.raises(OSError, match="'one'"):
        implementation.listener(["three", "one"], Echo)
    listener.close()
    implementation.listener(list(listener.addresses), Echo)


def test_the_module_has_a_default_implementation():
    listener = testing.listener("address of this test", Echo)
    client = testing.Recorder()
    testing.connect("address of this test", client)
    client.connection.write(b"hello")
    assert client.data == b"HELLO"
    with pytest.raises(Timeout):
        testing.wait(1)
    listener.close()
    testing.wait()


def test_prepared_connections_are_used_in_order(capsys):
    implementation = testing.Implementation()
    first, second = testing.Connection(), testing.Connection(testing.Recorder())
    implementation.connectable("address", first)
    implementation.connectable("address", second)
    clients = [testing.Recorder() for _ in range(3)]
    for client in clients:
        implementation.connect("address", client)
    assert [client.connection for client in clients] == [first, second, None]
    assert clients[2].failed == "no such server"
    assert first.peer_address == "address"
    first.write(b"hello")
    assert capsys.readouterr().out == "-> b'hello'\n"


def test_a_client_that_reconnects_forever_is_stopped():
    class Stubborn(testing.Recorder):
        tries = 0

        def failed_connect(self, reason):
            self.tries += 1
            implementation.connect("nobody", self)

    implementation = testing.Implementation()
    client = Stubborn()
    with pytest.raises(NGIError, match="forever"):
        implementation.connect("nobody", client)
    assert 10 < client.tries < 10_000
    implementation.listener("nobody", Echo)
    implementation.connect("nobody", client)
    assert client.connection


def test_a_client_can_reconnect_until_it_succeeds():
    class Patient(testing.Recorder):
        tries = 0

        def failed_connect(self, reason):
            self.tries += 1
            if self.tries == 3:
                implementation.listener("late", Echo)
            implementation.connect("late", self)

    implementation = testing.Implementation()
    client = Patient()
    implementation.connect("late", client)
    assert (client.tries, bool(client.connection)) == (3, True)


def test_an_exception_that_ends_the_program_leaves_the_outermost_call(caplog):
    class Interrupted(testing.Recorder):
        def handle_input(self, connection, data):
            raise KeyboardInterrupt

    connection = testing.Connection(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        connection.write(b"x")
    assert not connection.peer


def test_an_object_that_is_not_a_handler_is_refused():
    with pytest.raises(TypeError, match="handle_input"):
        testing.Connection(object())
    with pytest.raises(TypeError, match="handle_input"):
        testing.Connection(testing.Recorder)


def test_the_repr_of_a_connection_shows_its_state():
    connection = testing.Connection(testing.Recorder(), "here", "there")
    assert repr(connection) == "<Connection 'here' to 'there', open, no handler, bytes pending: 0>"
    assert "handler: Recorder" in repr(connection.peer)
    connection.close()
    with pytest.raises(ConnectionClosed, match="'there' is closed"):
        connection.write(b"x")


def test_the_repr_of_a_listener_shows_its_state():
    listener = ngi_gevent.testing.Implementation().listener("address", Echo)
    assert repr(listener) == "<Listener on 'address', accepting, connections: 0>"
    listener.close()
    assert repr(listener) == "<Listener on 'address', closed, connections: 0>"
