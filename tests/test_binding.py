"""The addresses of listeners: several for one listener, Unix sockets and their files, and sockets that processes
share.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack

import gevent
import gevent.socket
import pytest
from stages import PATIENCE, Witness, needs_ipv6

import ngi_gevent
from ngi_gevent import proxy_protocol
from ngi_gevent.core import clock
from ngi_gevent.sockets import binding
from ngi_gevent.sockets.dispatcher import Dispatcher
from ngi_gevent.sockets.network import Network
from ngi_gevent.testing.contract.rules.common import Echo


class SeveralAddresses(Network):
    """A network in which the host *both* has several addresses."""

    def __init__(self, *addresses):
        self._addresses = addresses

    def resolve(self, host, port, kind, flags=0):
        hosts = self._addresses if host == "both" else [host]
        resolve = super().resolve
        return [found for each in hosts for found in resolve(each, port, kind, flags)]


def listen(stage, address, **options):
    listener = stage.implementation.listener(address, stage.server(), **options)
    stage.listeners.append(listener)
    return listener


def connects(stage, address):
    """Return whether a client can connect to *address*."""
    client = Witness(stage)
    stage.implementation.connect(address, client)
    stage.until(lambda: client.connection or client.failed)
    return client.connection is not None


# Several addresses for one listener.


def test_one_listener_accepts_on_several_addresses(tcp, tmp_path, caplog):
    caplog.set_level("INFO", "ngi_gevent.listener")
    first, second, path = ("127.0.0.1", 0), ("127.0.0.2", 0), str(tmp_path / "socket")
    listener = listen(tcp, [first, second, path], max_connections=3)
    port = listener.address[1]
    assert listener.addresses == (("127.0.0.1", port), ("127.0.0.2", port), path)
    assert listener.address == listener.addresses[0]
    assert len(caplog.records) == 3
    for address in listener.addresses:
        assert connects(tcp, address)
    tcp.until(lambda: len(tcp.served) == 3)
    assert [connection.control for connection in listener.connections()] == [listener] * 3
    waiting = [Witness(tcp) for _ in listener.addresses]  # max_connections counts the connections to all addresses
    for address, client in zip(listener.addresses, waiting, strict=True):
        tcp.implementation.connect(address, client)
    tcp.until(lambda: all(client.connection for client in waiting))
    assert len(tcp.served) == 3
    for served in tcp.served[:2]:
        served.connection.close()
    tcp.until(lambda: len(tcp.served) == 5)
    assert len(list(listener.connections())) == 3
    listener.close()
    assert not os.path.exists(path)
    assert not any(connects(tcp, address) for address in listener.addresses)


def test_close_wait_serves_the_queue_of_every_address(tcp):
    listener = listen(tcp, [("127.0.0.1", 0), ("127.0.0.2", 0)])
    peers = [socket.create_connection(address) for address in listener.addresses]
    assert listener.close_wait(0) == 2
    for peer in peers:
        peer.close()
    assert len(tcp.served) == 2


def test_if_one_address_is_unavailable_the_listener_binds_none(tcp, tmp_path):
    taken = tcp.listen()
    path = str(tmp_path / "socket")
    with pytest.raises(OSError, match="in use") as caught:
        listen(tcp, [path, ("127.0.0.2", 0), taken.address])
    assert repr(taken.address) in str(caught.value)
    assert not os.path.exists(path)
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        listen(tcp, [path, ("192.0.2.1", 0)])
    with pytest.raises(TypeError, match="got 8000"):
        listen(tcp, ["127.0.0.1", 8000])
    with pytest.raises(OSError, match="in use"):
        listen(tcp, [None, None])


def test_a_listener_binds_every_local_address_of_a_host_name(tcp):
    tcp.implementation._network = SeveralAddresses("127.0.0.2", "192.0.2.1", "127.0.0.1", "127.0.0.2")
    listener = listen(tcp, ("both", 0))
    assert [address[0] for address in listener.addresses] == ["127.0.0.2", "127.0.0.1"]
    assert len({address[1] for address in listener.addresses}) == 1
    with pytest.raises(OSError, match="in use"):
        listen(tcp, ("both", listener.address[1]))
    tcp.implementation._network = SeveralAddresses("192.0.2.1", "198.51.100.1")
    with pytest.raises(OSError, match=r"assign.*'both'"):
        listen(tcp, ("both", 0))


class TakesPorts(Network):
    """A network in which another program takes the picked port at the next address, *times* times."""

    def __init__(self, times):
        self.times = times
        self._bound = 0

    def make_socket(self, family, kind, protocol=0):
        sock = super().make_socket(family, kind, protocol)
        self._bound += 1
        if self._bound % 2 == 0 and self.times:
            self.times -= 1
            sock.close()
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return sock


def test_if_the_picked_port_is_taken_at_one_address_another_is_tried(tcp):
    network = tcp.implementation._network = TakesPorts(3)
    addresses = [("127.0.0.1", 0), ("127.0.0.2", 0)]
    assert len({address[1] for address in listen(tcp, addresses).addresses}) == 1
    network.times = binding.PORTS_TRIED
    with pytest.raises(OSError, match="in use"):
        listen(tcp, addresses)
    assert network.times == 0


@needs_ipv6
@pytest.mark.parametrize("dual_stack", [False, True])
def test_the_ipv6_wildcard_includes_ipv4_only_on_request(tcp, dual_stack):
    listener = listen(tcp, ("::", 0), dual_stack=dual_stack)
    port = listener.address[1]
    assert connects(tcp, ("::1", port))
    assert connects(tcp, ("127.0.0.1", port)) == dual_stack
    if dual_stack:
        tcp.until(lambda: len(tcp.served) == 2)
        assert tcp.served[1].connection.peer_address[0] == "::ffff:127.0.0.1"
    else:
        listen(tcp, ("0.0.0.0", port))  # this is a different address


@pytest.mark.parametrize("address", [("", 0), ("127.0.0.1", 0), ("::1", 0), "/tmp/path", None])
def test_dual_stack_is_only_for_the_ipv6_wildcard(tcp, address):
    with pytest.raises(ValueError, match="dual_stack is for") as caught:
        listen(tcp, address, dual_stack=True)
    assert repr(address) in str(caught.value)


# Unix sockets.


@pytest.mark.parametrize("kind", ["listener", "udp_listener"])
def test_mode_and_owner_of_a_unix_socket_are_set_before_a_client_can_connect(tcp, tmp_path, kind):
    seen = []

    class Watched(Network):
        def change_file(self, path, mode, owner):
            before = stat.S_IMODE(os.stat(path).st_mode)
            super().change_file(path, mode, owner)
            with socket.socket(socket.AF_UNIX) as client:
                seen.append((before & 0o077, client.connect_ex(os.fspath(path))))

    tcp.implementation._network = Watched()
    path = tmp_path / "socket"
    owner = (os.getuid(), 65534) if os.getuid() == 0 else (-1, os.getgid())
    before = os.umask(0)
    try:
        listener = getattr(tcp.implementation, kind)(path, print, mode=0o620, owner=owner)
    finally:
        os.umask(before)
    tcp.listeners.append(listener)
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o620
    assert status.st_gid == (owner[1] if owner[0] != -1 else os.getgid())
    if sys.platform == "linux":  # on other systems, the test's clients cannot even try
        assert seen == [(0, errno.ECONNREFUSED if kind == "listener" else errno.EPROTOTYPE)]


class Refusing(Network):
    """A network in which setting the owner of a file fails."""

    def change_file(self, path, mode, owner):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_an_owner_that_cannot_be_set_leaves_no_file(tcp, tmp_path):
    tcp.implementation._network = Refusing()
    for each in tcp.implementation.listener, tcp.implementation.udp_listener:
        with pytest.raises(PermissionError, match="socket"):
            each(tmp_path / "socket", print, owner=(0, 0))
        assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize("options", [{"mode": 0o600}, {"owner": (-1, -1)}])
@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0), "\0name"])
def test_mode_and_owner_are_only_for_unix_sockets_with_a_file(tcp, address, options):
    for each in tcp.implementation.listener, tcp.implementation.udp_listener:
        with pytest.raises(ValueError, match=rf"^{next(iter(options))} is for the path of a Unix socket"):
            each(address, print, **options)


class ClosesMeanwhile(Network):
    """A network in which a listener closes right before the next listener's bind calls *method*."""

    def __init__(self, method, close):
        def closing(*arguments):
            delattr(self, method)
            close()
            return getattr(self, method)(*arguments)

        setattr(self, method, closing)


@pytest.mark.parametrize("method", ["stat", "connect"])
def test_a_listener_that_closes_at_the_same_moment_frees_its_path(tcp, tmp_path, method):
    """This happens when one server replaces another.  It must not fail with "no such file"."""
    path = str(tmp_path / "socket")
    with ngi_gevent.Implementation() as closing:
        first = closing.listener(path, print)
        tcp.implementation._network = ClosesMeanwhile(method, first.close)
        listen(tcp, path)
    assert connects(tcp, path)


def test_a_dangling_link_is_not_replaced_like_the_file_of_a_dead_server(tcp, tmp_path):
    link = tmp_path / "socket"
    link.symlink_to("nothing")
    with pytest.raises(OSError, match="in use"):
        tcp.implementation.listener(link, print)
    assert link.is_symlink()


class Pausing(Network):
    """A network in which a bound Unix socket waits before it listens."""

    def __init__(self):
        self.is_bound, self.go_on = threading.Event(), threading.Event()

    def change_file(self, path, mode, owner):
        self.is_bound.set()
        assert self.go_on.wait(PATIENCE)


def test_a_socket_that_does_not_listen_yet_is_not_considered_dead(tcp, tmp_path, monkeypatch):
    """Another thread stands for another process: the lock works between both."""
    monkeypatch.setattr(binding, "LOCK_TIMEOUT", PATIENCE)
    path = str(tmp_path / "socket")
    network = Pausing()
    with ngi_gevent.Threaded() as starting:
        starting._network = network
        pool = gevent.get_hub().threadpool
        started = pool.spawn(starting.listener, path, print)
        assert network.is_bound.wait(PATIENCE)
        second = gevent.spawn(tcp.implementation.listener, path, print)
        gevent.sleep(0.01)
        assert not second.ready()  # it waits for the first one
        network.go_on.set()
        with pytest.raises(OSError, match="in use"):
            second.get(timeout=PATIENCE)
        assert started.get(timeout=PATIENCE).address == path
        assert connects(tcp, path)


def test_waiting_for_a_lock_that_is_never_released_has_a_limit(simulated):
    network = simulated.implementation._network
    lock = network.lock("/folder")
    assert connects(simulated, listen(simulated, "/folder/socket").address)
    assert clock.now() == pytest.approx(binding.LOCK_TIMEOUT, abs=0.02)
    network.unlock(lock)


STARTING = """
import sys, time, ngi_gevent
listeners = []
for line in sys.stdin:
    path, moment = line.split()
    while time.time() < float(moment):
        pass
    try:
        listeners.append(ngi_gevent.listener(path, str))
        print("listens", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


@pytest.mark.slow
def test_if_servers_replace_the_file_of_a_dead_one_at_the_same_moment_only_one_succeeds(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    servers = [subprocess.Popen([sys.executable, "-c", STARTING], **pipes) for _ in range(2)]
    try:
        for number in range(100):
            path = f"{tmp_path}/{number}"
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(path)
            for server in servers:
                server.stdin.write(f"{path} {time.time() + 0.005}\n")
            told = [server.stdout.readline().strip() for server in servers]
            assert told.count("listens") == 1, told
    finally:
        for server in servers:
            server.communicate()


@pytest.mark.parametrize("busy", [0, 1])
def test_at_max_connections_addresses_are_served_in_turn(tcp, busy):
    """The clients of one address do not wait until the other has no clients."""
    served = [0, 0]

    def serve(connection):
        served[listener.addresses.index(connection.local_address)] += 1
        connection.close()
        tcp.happened()

    def clients(address):
        while served[1 - busy] < 10 and served[busy] < 200:
            # create_connection would wait for a thread that looks up the address.
            with gevent.socket.socket() as client:
                client.connect(address)
                client.recv(1)

    listener = tcp.implementation.listener([None, ("127.0.0.2", 0)], serve, max_connections=1)
    tcp.listeners.append(listener)
    at = [busy] * 5 + [1 - busy]
    gevent.joinall([gevent.spawn(clients, listener.addresses[each]) for each in at], PATIENCE, raise_error=True)
    assert served[busy] < 30


def test_addresses_share_the_room_that_many_ends_make_at_once(tcp):
    served = []

    def serve(connection):
        served.append(connection)
        tcp.happened()

    listener = tcp.implementation.listener([None, ("127.0.0.2", 0)], serve, max_connections=8)
    tcp.listeners.append(listener)
    with ExitStack() as clients:
        for address in listener.addresses * 20:
            clients.enter_context(socket.create_connection(address))
        tcp.until(lambda: len(served) == 8)
        for connection in served[:]:
            connection.abort()
        tcp.until(lambda: len(served) == 16)
        counts = Counter(connection.local_address for connection in served[8:])
    assert min(counts[address] for address in listener.addresses) >= 3


@pytest.mark.parametrize("crowded", [0, 1])
def test_addresses_share_the_room_for_handshakes(tcp, crowded):
    """A client of one address does not wait until the handshakes of all clients of the other have failed."""
    listener = tcp.implementation.listener(
        [None, ("127.0.0.2", 0)],
        tcp.server(Echo),
        limits=ngi_gevent.Limits(max_handshakes=1),
        handshake_timeout=0.01,
        proxy_protocol=["127.0.0.0/8"],
    )
    tcp.listeners.append(listener)
    with ExitStack() as clients, gevent.socket.socket() as client:
        for _ in range(40):
            clients.enter_context(socket.create_connection(listener.addresses[crowded]))
        client.connect(listener.addresses[1 - crowded])
        client.sendall(proxy_protocol.header(("10.0.0.1", 1), ("10.0.0.2", 2), version=1) + b"hello")
        assert client.recv(5) == b"HELLO"
        assert listener.metrics().failed_handshakes < 20


# Sockets that several processes share.


class Polite(Network):
    """A network that counts how often it lets other processes run."""

    times = 0

    def let_others_run(self):
        self.times += 1
        super().let_others_run()


def shared_socket():
    """Return a bound socket, as a parent process passes it to several children."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def accepted_in_each_turn(tcp, address, seconds=0.0):
    """Return how many connections a listener on *address* accepts in each turn, if 40 wait in the kernel's queue.

    :param seconds: the time that the server takes for each.
    """
    turns, now = [], [1.0]

    def serve(connection):
        now[0] += seconds
        turns.append(gevent.get_hub().loop.iteration)
        tcp.happened()

    listener = tcp.implementation.listener(address, serve)
    tcp.listeners.append(listener)
    with ExitStack() as clients, pytest.MonkeyPatch.context() as patch:
        for _ in range(40):
            clients.enter_context(socket.create_connection(listener.address))
        patch.setattr(Dispatcher.current().accepting, "now", lambda: now[0])
        tcp.until(lambda: len(turns) == 40)
    return list(Counter(turns).values())


def test_a_turn_accepts_several_connections(tcp):
    assert accepted_in_each_turn(tcp, None) == [16, 16, 8]


@pytest.mark.parametrize(("seconds", "most"), [(0.002, 3), (0.02, 1)])
def test_a_turn_accepts_fewer_connections_if_the_server_takes_long(tcp, seconds, most):
    assert max(accepted_in_each_turn(tcp, None, seconds)) == most


@pytest.mark.parametrize("aborts", [False, True])
def test_all_listeners_share_the_time_of_a_turn(tcp, monkeypatch, aborts):
    turns, now = [], [1.0]

    def serve(connection):
        now[0] += 0.002
        turns.append(gevent.get_hub().loop.iteration)
        if aborts:
            connection.abort()
        tcp.happened()

    listeners = [tcp.implementation.listener(None, serve) for _ in range(4)]
    tcp.listeners += listeners
    monkeypatch.setattr(Dispatcher.current().accepting, "now", lambda: now[0])
    with ExitStack() as clients:
        for listener in listeners * 10:
            clients.enter_context(socket.create_connection(listener.address))
        tcp.until(lambda: len(turns) == 40)
    each_turn = list(Counter(turns).values())
    assert each_turn[0] <= 3 + 2 + 1 + 1  # the first has 5 ms, the second half of that, and so on
    assert max(each_turn[1:]) == 4  # a quarter of 5 ms for each


def test_a_turn_accepts_one_connection_on_each_of_several_addresses(tcp):
    assert accepted_in_each_turn(tcp, [None, ("127.0.0.2", 0)]) == [1] * 40


def test_each_process_with_a_shared_socket_accepts_one_connection_in_a_turn_and_lets_others_run(tcp):
    network = tcp.implementation._network = Polite()
    assert accepted_in_each_turn(tcp, shared_socket()) == [1] * 40
    assert network.times == 40


def test_a_process_with_its_own_socket_does_not_give_up_the_processor(tcp):
    network = tcp.implementation._network = Polite()
    accepted_in_each_turn(tcp, None)
    assert network.times == 0
