"""The network, through which all calls to the kernel go: no other module makes any, and it can be replaced."""

from __future__ import annotations

import _socket
import ast
import errno
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from certificates import client_context, server_context
from gevent.event import Event
from gevent.hub import Hub, set_hub
from stages import PATIENCE

import ngi_gevent
from ngi_gevent import testing
from ngi_gevent.core import clock
from ngi_gevent.core.threads import Flag, start_new_thread
from ngi_gevent.sockets.network import Network, Socket

SOCKETS = Path(ngi_gevent.__file__).parent / "sockets"

#: Names of these modules that any module can use, since they only convert text, or are types.
HARMLESS = {
    "socket": {"gaierror", "inet_pton"},
    "os": {"fsdecode", "fspath", "strerror", "path", "stat_result"},
    "stat": {"S_ISSOCK"},
    "time": set(),
    "fcntl": set(),
    "resource": set(),
    "select": set(),
    "termios": set(),
    "_socket": set(),
    "gevent.socket": set(),
    "gevent.select": set(),
}


def asked_of_the_system(code: str) -> set[str]:
    """Return the names in *code* that call the kernel, without constants and harmless names."""
    names: dict[str, str] = {}  # the local name of each module, and its full name
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in HARMLESS:
                    names[alias.asname or alias.name] = full
                elif node.module in HARMLESS and not is_harmless(str(node.module), alias.name):
                    found.add(full)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in names:
            module = names[ast.unparse(node.value)]
            if module in HARMLESS and not is_harmless(module, node.attr):
                found.add(f"{module}.{node.attr}")
        elif isinstance(node, ast.Attribute) and node.attr == "_sock":
            found.add("_sock")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "get_original":
            module, name = (ast.literal_eval(argument) for argument in node.args)
            if module in HARMLESS and not is_harmless(module, name):
                found.add(f"{module}.{name}")
    return found


def is_harmless(module: str, name: str) -> bool:
    return name.isupper() or name in HARMLESS[module]


@pytest.mark.parametrize("file", sorted(SOCKETS.glob("*.py")), ids=lambda file: file.stem)
def test_only_the_network_calls_the_kernel(file):
    if file.stem != "network":
        assert asked_of_the_system(file.read_text()) == set()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import socket\nsocket.socket(socket.AF_INET)", {"socket.socket"}),
        ("from socket import AF_UNIX, socketpair", {"socket.socketpair"}),
        ("from gevent import socket as gevent_socket\ngevent_socket.getaddrinfo()", {"gevent.socket.getaddrinfo"}),
        ("from time import monotonic", {"time.monotonic"}),
        ("import os\nos.path.abspath(os.getcwd())", {"os.getcwd"}),
        ("import os\nimport fcntl\nfcntl.ioctl(0)\nos.stat(0)", {"fcntl.ioctl", "os.stat"}),
        ("get_original('select', 'poll')", {"select.poll"}),
        ("def receive(sock):\n    sock._sock.recv(1)", {"_sock"}),
        ("import errno, os, socket\nOSError(errno.EBADF, os.strerror(errno.EBADF))\nsocket.SHUT_WR", set()),
    ],
)
def test_calls_to_the_kernel_are_found(code, expected):
    assert asked_of_the_system(code) == expected


# Another network.

#: A number that is added to each descriptor, so that the kernel does not accept it.
OFFSET = 2**30

METHODS = {name for name in vars(Network) if not name.startswith("_")}
OF_SOCKETS = {name for name in vars(Socket) if not name.startswith("_")}


class OtherSocket:
    """A socket with only the methods of ``Socket``.  Only ``OtherLoop`` accepts its descriptor."""

    def __init__(self, network: OtherNetwork, sock: Any) -> None:
        self.network = network
        self.real = sock

    def __getattr__(self, name: str) -> Any:
        if name not in OF_SOCKETS:
            raise AttributeError(f"the package uses {name}, which is not in Socket")
        self.network.used.add(name)
        return getattr(self.real, name)

    def fileno(self) -> int:
        return self.real.fileno() + OFFSET


class OtherNetwork(Network):
    """The kernel's network, with a record of the calls, including calls to sockets."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in METHODS:
            return method
        self.used.add(name)
        return self.translated(method)

    def translated(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*map(self.inside, arguments), **options)
            return tuple(map(self.outside, result)) if type(result) is tuple else self.outside(result)

        return call

    def inside(self, value: Any) -> Any:
        return value.real if isinstance(value, OtherSocket) else value

    def outside(self, value: Any) -> Any:
        return OtherSocket(self, value) if isinstance(value, (_socket.socket, gevent.socket.socket)) else value


class OtherLoop:
    """gevent's loop, but for the descriptors of ``OtherSocket``."""

    def __init__(self, loop: Any) -> None:
        self.real = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def io(self, descriptor: int, events: int, **options: Any) -> Any:
        return self.real.io(descriptor - OFFSET if descriptor >= OFFSET else descriptor, events, **options)


def on_other_loop(function: Callable[[], None]) -> None:
    """Call *function* in a thread whose hub has an ``OtherLoop``, and raise its exception."""
    done, raised = Flag(), []

    def run() -> None:
        hub = Hub(loop=OtherLoop(gevent.get_hub().loop))
        set_hub(hub)
        try:
            function()
        except BaseException as error:
            raised.append(error)
        finally:
            hub.destroy(destroy_loop=True)
            done.set()

    start_new_thread(run, ())
    assert done.wait(PATIENCE)
    for error in raised:
        raise error


class Upper(testing.Recorder):
    def __init__(self, connection: Any) -> None:
        super().__init__()
        connection.set_handler(self)

    def handle_input(self, connection: Any, data: bytes) -> None:
        super().handle_input(connection, data)
        connection.write(data.upper())


def converse(network: Network, address: Any, **contexts: Any) -> None:
    """Hold a conversation that needs every method of a network for streams."""
    implementation = ngi_gevent.Implementation()
    implementation._network = network
    served = []

    def server(connection: Any) -> None:
        served.append(Upper(connection))

    options = {"ssl_context": contexts["server"]} if contexts else {}
    file = {"mode": 0o600} if isinstance(address, str) and address[0] != "\0" else {}
    listener = implementation.listener(address, server, idle_timeout=PATIENCE, reuse_port=True, **options, **file)
    options = {"ssl_context": contexts["client"], "server_hostname": "localhost"} if contexts else {}
    clients = [testing.Recorder(), testing.Recorder(), testing.Recorder()]
    for client in clients:
        listener.connect(client, **options)
        client.wait_connected().write(b"one ")
        client.expect(b"ONE ")
        client.connection.writelines([b"two ", b"x" * 100_000, b" " * 100_000])
        client.expect(b"TWO " + b"X" * 100_000 + b" " * 100_000)
    assert listener.metrics().open == 3
    clients[0].connection.close()
    clients[1].connection.abort()
    for handler in served[:2]:
        handler.wait_closed()
    listener.close()
    assert clients[2].wait_closed() == "end of input"
    implementation.wait(PATIENCE)
    implementation.close()


def test_another_network_can_take_its_place(tmp_path, no_socket_left):
    network = OtherNetwork()
    inet, unix = ("localhost", 0), (str(tmp_path / "socket"), f"\0{tmp_path}")
    contexts = {"server": server_context(), "client": client_context()}
    on_other_loop(lambda: [converse(network, address) for address in (inet, *unix)])
    on_other_loop(lambda: converse(network, inet, **contexts))
    on_other_loop(lambda: send_and_answer(network, [inet, *unix]))
    never = {"accept"}  # the method of sockets, since the network also has one
    rare = {"adopt", "check_room", "has_error", "has_input", "is_broken", "fileno", "peer_has_finished", "take_error"}
    rare |= {"let_others_run", "set_dual_stack"}
    assert network.used - rare == (METHODS | OF_SOCKETS - never) - rare


def send_and_answer(network: Network, addresses: list[Any]) -> None:
    implementation = ngi_gevent.Implementation()
    implementation._network = network
    received = []
    happened = Event()

    def answer(sender: Any, data: bytes) -> None:
        received.append(data)
        listener.send(sender if isinstance(sender, tuple) else listener.address, data.upper())
        happened.set()

    def until_received(data: bytes) -> None:
        with gevent.Timeout(PATIENCE):
            while data not in received:
                happened.wait()
                happened.clear()

    for address in addresses:
        listener = implementation.udp_listener(address, answer, broadcast=True)
        implementation.udp(listener.address, b"question")
        until_received(b"question")
        listener.close()
        received.clear()
    implementation.close()


class SteppedClock:
    """A clock that the test moves.  *asked* is set after many calls."""

    def __init__(self) -> None:
        self.time = 0.0
        self.calls = 0
        self.asked = Event()

    def now(self) -> float:
        self.calls += 1
        if self.calls > 10:
            self.asked.set()
        return self.time


def test_the_clock_of_the_package_decides_whether_a_connection_is_idle(tcp, monkeypatch):
    stepped = SteppedClock()
    monkeypatch.setattr(clock, "now", stepped.now)
    client, served = tcp.talk(idle_timeout=0.001)
    stepped.calls = 0
    assert stepped.asked.wait(PATIENCE)
    assert served.connection
    stepped.time = 1.0
    tcp.until(lambda: served.closed)
    assert isinstance(served.closed, ngi_gevent.Timeout)


class WithoutLinger(_socket.socket):
    """A socket that acts as on macOS after a reset by the peer."""

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        if option == socket.SO_LINGER:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        super().setsockopt(level, option, *value)


class AcceptsWithoutLinger(Network):
    def accept(self, sock: Any) -> Any:
        accepted = super().accept(sock)
        if accepted is None:
            return None
        real, address = accepted
        return WithoutLinger(real.family, real.type, real.proto, real.detach()), address


def test_a_socket_that_refuses_to_be_reset_is_closed(tcp):
    tcp.implementation._network = AcceptsWithoutLinger()
    client, served = tcp.talk()
    served.connection.abort()
    tcp.until(lambda: served.connection._lifecycle.is_gone() and client.closed)
    assert client.closed == "end of input"


class WithoutFiles(Network):
    """A network that removes the file of a Unix socket as soon as the file is made."""

    def stat(self, path: str | bytes) -> os.stat_result:
        self.unlink(path)
        return super().stat(path)


def test_a_listener_whose_file_vanishes_at_once_leaves_no_socket_open(tcp, tmp_path):
    tcp.implementation._network = WithoutFiles()
    for listen in tcp.implementation.listener, tcp.implementation.udp_listener:
        with pytest.raises(FileNotFoundError, match="socket"):
            listen(str(tmp_path / "socket"), print)


def test_a_scope_that_is_not_an_int_leaves_no_socket_open(tcp):
    for listen in tcp.implementation.listener, tcp.implementation.udp_listener:
        with pytest.raises(TypeError):
            listen(("::1", 0, 0, "lo"), print)


def test_room_for_descriptors_is_checked_and_given_back(no_socket_left):
    network = Network()
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    network.check_room(5)
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(OSError, match="Too many open files"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, hard))
        try:
            network.check_room(40)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    assert before == [] or len(os.listdir("/proc/self/fd")) == len(before)


def test_the_calls_of_gevents_sockets_match_the_inner_sockets(no_socket_left):
    """The test fails on the day that gevent's sockets have no ``_sock``."""
    sock = Network().make_socket(socket.AF_INET, socket.SOCK_STREAM)
    plain = Network().plain(sock)
    assert isinstance(sock, gevent.socket.socket)
    assert isinstance(plain, _socket.socket)
    assert plain.fileno() == sock.fileno()
    sock.close()
