"""The network of a simulation, which behaves like the kernel's."""

from __future__ import annotations

import errno
import math
import os
import socket
import stat
from contextlib import closing
from random import Random
from typing import Any

import gevent
import pytest
from kernels import World, make_pair, program, result_of, run
from stages import needs_ipv6

from ngi_gevent import testing
from ngi_gevent.sockets.network import Network
from ngi_gevent.testing.simulation import HostCrashed, NotSimulated, Simulation
from ngi_gevent.testing.simulation.streams import RECEIVE_BUFFER, SEND_BUFFER

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


@FAMILIES
def test_streams_behave_like_the_kernels(family):
    for seed in range(30):
        assert run(family, program(seed)) is None, seed


@FAMILIES
@pytest.mark.slow
def test_long_runs_of_streams_behave_like_the_kernels(family):
    for seed in range(1000, 2000):
        assert run(family, program(seed, 20)) is None, seed


# A single host, compared with the kernel.


class Kernel:
    """A network, and the sockets that were made with it."""

    def __init__(self, network: Any, folder: Any, call: Any, wait: Any) -> None:
        self.network = network
        self.call = call
        self._wait = wait
        self._folder = folder
        self._sockets: list[Any] = []

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def socket(self, kind: int = STREAM, family: int = socket.AF_INET) -> Any:
        sock = self.network.make_socket(family, kind)
        self._sockets.append(sock)
        return sock

    def listener(self, address: Any = ("127.0.0.1", 0), *, backlog: int = 5, **options: Any) -> Any:
        sock = self.bound(address, **options)
        sock.listen(backlog)
        return sock

    def bound(self, address: Any = ("127.0.0.1", 0), kind: int = STREAM, reuse: bool = False, **options: Any) -> Any:
        unix = isinstance(address, (str, bytes))
        family = socket.AF_UNIX if unix else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = self.socket(kind, family)
        if reuse:
            self.network.allow_address_reuse(sock)
        if options.get("share"):
            self.network.share_port(sock)
        if "dual" in options:
            self.network.set_dual_stack(sock, options["dual"])
        sock.bind(address)
        return sock

    def connect(self, address: Any, sock: Any = None) -> Any:
        if sock is None:
            sock = self.socket(family=socket.AF_UNIX if isinstance(address, (str, bytes)) else socket.AF_INET)
        self.call(self.network.connect, sock, address)
        return sock

    def wait_for_input(self, sock: Any) -> None:
        with gevent.Timeout(5):
            while not self.network.has_input(sock):
                self._wait()

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def port_of(sock):
    return sock.getsockname()[1]


def fresh(kernel):
    for family in socket.AF_INET, socket.AF_UNIX:
        sock = kernel.socket(family=family)
        plain = kernel.network.plain(sock)
        yield result_of(plain.recv, 1)
        yield result_of(plain.send, b"x")
        yield result_of(sock.getpeername)
        yield result_of(sock.getsockname)
        yield result_of(sock.shutdown, socket.SHUT_WR)
        sock.close()
        sock.close()
        yield sock.fileno()
        yield result_of(sock.getsockname)


def listening(kernel):
    sock = kernel.listener()
    yield kernel.network.accept(sock)
    yield kernel.network.has_input(sock)
    yield result_of(kernel.network.plain(sock).recv, 1)
    yield result_of(kernel.network.plain(sock).send, b"x")
    yield result_of(sock.getpeername)
    sock.shutdown(socket.SHUT_RDWR)
    yield result_of(kernel.network.accept, sock)


def refused(kernel):
    sock = kernel.listener()
    address = sock.getsockname()
    sock.close()
    yield result_of(kernel.connect, address)
    yield result_of(kernel.connect, ("127.0.0.1", 0))
    bound = kernel.bound()
    yield result_of(kernel.connect, bound.getsockname())


def ports(kernel):
    first = kernel.listener(reuse=True)
    port = port_of(first)
    yield port > 0
    for address in ("127.0.0.1", port), ("0.0.0.0", port):
        yield result_of(kernel.bound, address)
        yield result_of(kernel.bound, address, reuse=True)
    kernel.bound(("127.0.0.2", port))
    yield result_of(kernel.bound, ("192.0.2.1", port))
    yield result_of(kernel.bound, ("127.0.0.1", port), DATAGRAM) != "EADDRINUSE"
    yield result_of(first.bind, ("127.0.0.1", 0))
    client = kernel.connect(first.getsockname())
    accepted, _ = kernel.network.accept(first)
    first.close()
    kernel.listener(("127.0.0.1", port), reuse=True)
    yield client.getpeername() == accepted.getsockname()
    accepted.close()


def shared(kernel):
    one = kernel.listener(share=True, backlog=50)
    yield result_of(kernel.bound, one.getsockname())
    other = kernel.listener(one.getsockname(), share=True, backlog=50)
    for _ in range(20):
        kernel.connect(one.getsockname())
    count = 0
    for sock in one, other:
        while accepted := kernel.network.accept(sock):
            accepted[0].close()
            count += 1
    yield count


def own_port(kernel):
    one, other = kernel.listener(), kernel.listener()
    client = kernel.bound(reuse=True)
    kernel.connect(one.getsockname(), client)
    second = kernel.bound(client.getsockname(), reuse=True)
    yield result_of(kernel.connect, one.getsockname(), second)
    kernel.connect(other.getsockname(), second)
    yield second.getsockname() == client.getsockname()


def names_of_any(kernel):
    sock = kernel.listener(("", 0))
    yield sock.getsockname()[0]
    client = kernel.connect(("127.0.0.1", port_of(sock)))
    accepted, address = kernel.network.accept(sock)
    yield address == client.getsockname()
    yield accepted.getsockname() == client.getpeername()
    yield accepted.getsockname()[0]
    accepted.close()
    far = kernel.connect(("127.0.0.9", port_of(sock)))
    yield far.getsockname()[0], far.getpeername()[0]


def unread_queue(kernel):
    for address in ("127.0.0.1", 0), kernel.path("queue"):
        sock = kernel.listener(address)
        client = kernel.connect(sock.getsockname())
        sock.close()
        plain = kernel.network.plain(client)
        kernel.wait_for_input(client)
        yield [result_of(plain.recv, 1) for _ in range(2)]
        yield result_of(plain.send, b"x")


def full_unix_queue(kernel):
    sock = kernel.listener(kernel.path("full"), backlog=2)
    yield [isinstance(result_of(kernel.connect, sock.getsockname()), str) for _ in range(5)]
    accepted, name = kernel.network.accept(sock)
    yield name, accepted.getsockname() == sock.getsockname(), kernel.network.peer_credentials(accepted)
    accepted.close()
    kernel.connect(sock.getsockname())


def unix_names(kernel):
    path = kernel.path("name")
    yield result_of(kernel.connect, path)
    yield result_of(kernel.network.stat, path)
    yield result_of(kernel.network.unlink, path)
    sock = kernel.bound(path)
    yield sock.getsockname() == path
    yield result_of(kernel.connect, path)
    sock.listen(1)
    kernel.connect(path)
    yield result_of(kernel.bound, path)
    yield result_of(kernel.socket(DATAGRAM, socket.AF_UNIX).sendto, b"x", path)
    status = kernel.network.stat(path)
    yield stat.S_ISSOCK(status.st_mode), status.st_uid
    kernel.network.change_file(path, 0o640, (-1, -1))
    yield oct(kernel.network.stat(path).st_mode)
    sock.close()
    yield result_of(kernel.connect, path)
    kernel.network.unlink(path)
    again = kernel.bound(os.path.relpath(path))  # another path of the same file
    kernel.network.stat(path)
    again.close()
    yield result_of(kernel.bound, path + "x" * 108) is not None


def abstract_names(kernel):
    name = b"\0" + os.path.basename(kernel.path("x")).encode() + str(id(kernel)).encode()
    yield result_of(kernel.connect, name)
    sock = kernel.listener(name)
    yield result_of(kernel.bound, name)
    yield sock.getsockname() == name
    kernel.connect(name)
    sock.close()
    yield result_of(kernel.connect, name)


def locks(kernel):
    folder = kernel.path("")
    lock = kernel.network.lock(folder)
    yield result_of(kernel.network.lock, folder)
    kernel.network.unlock(lock)
    kernel.network.unlock(kernel.network.lock(folder))


def udp(kernel):
    sender, receiver = kernel.socket(DATAGRAM), kernel.bound(kind=DATAGRAM)
    address = receiver.getsockname()
    buffer = memoryview(bytearray(4))
    yield result_of(receiver.recvfrom_into, buffer, 0, socket.MSG_TRUNC)
    yield sender.sendto(b"12345678", address), sender.sendto(b"", address)
    kernel.wait_for_input(receiver)
    length, name = receiver.recvfrom_into(buffer, 0, socket.MSG_TRUNC)
    yield length, name == ("127.0.0.1", port_of(sender)), bytes(buffer)
    yield receiver.recvfrom_into(buffer, 0, 0)[0]
    yield result_of(sender.sendto, b"x", ("127.0.0.1", 0))
    yield result_of(sender.sendto, b"x" * 65_508, address)
    yield result_of(sender.sendto, b"x", ("255.255.255.255", port_of(receiver)))
    yield result_of(kernel.bound, address, DATAGRAM)
    receiver.close()
    yield sender.sendto(b"to no host", address)
    for _ in range(1000):
        sender.sendto(b"x" * 1000, kernel.bound(kind=DATAGRAM).getsockname() if _ == 0 else address)


def unix_datagrams(kernel):
    sender, receiver = kernel.socket(DATAGRAM, socket.AF_UNIX), kernel.bound(kernel.path("datagrams"), DATAGRAM)
    sent = [result_of(sender.sendto, b"x" * 100, receiver.getsockname()) for _ in range(14)]
    yield sent
    yield kernel.network.queued_output(sender) > 0, kernel.network.send_buffer_size(sender) > 100_000
    buffer = memoryview(bytearray(200))
    yield receiver.recvfrom_into(buffer, 0, 0)
    yield sender.sendto(b"y", receiver.getsockname())
    receiver.close()
    yield kernel.network.queued_output(sender)
    yield result_of(sender.sendto, b"x", kernel.path("datagrams")), result_of(sender.sendto, b"x", kernel.path("none"))
    yield result_of(sender.sendto, b"x" * 300_000, kernel.path("datagrams"))


def takes_ipv4_too(kernel, dual):
    with closing(kernel.listener(("::", 0), dual=dual, reuse=True)) as sock:
        return isinstance(result_of(kernel.bound, ("0.0.0.0", port_of(sock))), str)


def dual_stack(kernel):
    for dual in True, False:
        sock = kernel.listener(("::", 0), dual=dual, reuse=True)
        yield sock.getsockname()[0]
        port = port_of(sock)
        client = result_of(kernel.connect, ("127.0.0.1", port))
        yield client if isinstance(client, str) else client.getpeername()[0]
        accepted = kernel.network.accept(sock)
        if accepted:
            yield accepted[1][0], accepted[0].getsockname()[0], accepted[0].family
            accepted[0].close()
        sock.close()
        # Another program on this machine can use one such port, but hardly three in a row.
        yield all(takes_ipv4_too(kernel, dual) for _ in range(3))
    both = kernel.bound(("::", 0), DATAGRAM)
    yield result_of(kernel.bound, ("0.0.0.0", port_of(both)), DATAGRAM)
    kernel.socket(DATAGRAM).sendto(b"x", ("127.0.0.1", port_of(both)))
    kernel.wait_for_input(both)
    yield both.recvfrom_into(memoryview(bytearray(9)), 0, 0)[1][0]


def numeric_names(kernel):
    for host in "127.0.0.1", "::1", "::ffff:10.0.0.1", "10.1.2.3", "FE80::1%7":
        for kind in STREAM, DATAGRAM:
            yield kernel.network.resolve(host, 80, kind, socket.AI_NUMERICHOST)
            yield kernel.network.resolve(host, 80, kind, socket.AI_PASSIVE)
    with pytest.raises(socket.gaierror) as caught:
        kernel.network.resolve("no-such-host.invalid", 80, STREAM, socket.AI_NUMERICHOST)
    yield caught.value.errno


SCENARIOS = [
    *(fresh, listening, refused, ports, shared, own_port, names_of_any, unread_queue, full_unix_queue, unix_names),
    *(abstract_names, locks, udp, unix_datagrams, pytest.param(dual_stack, marks=needs_ipv6), numeric_names),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_host_answers_like_the_kernel(scenario, tmp_path):
    world = World()
    found = []
    kernels = [
        Kernel(Network(), tmp_path, lambda function, *arguments: function(*arguments), lambda: gevent.sleep(0.001)),
        Kernel(world.internet.add_host("host"), tmp_path, world.call, world.settle),
    ]
    for kernel in kernels:
        try:
            found.append(list(scenario(kernel)))
        finally:
            kernel.close()
        for path in tmp_path.iterdir():
            path.unlink()
    assert found[0] == found[1]


# Two hosts and the link between them.


class Pair(World):
    """A network with a server and a client."""

    def __init__(self, seed: int = 0, **link: Any) -> None:
        super().__init__(seed)
        self.server, self.client = (self.internet.add_host(name) for name in ("server", "client"))
        self.link = self.internet.link("server", "client")
        self.link.set(**{"latency": 1, "jitter": 0, **link})
        self.listener = self.server.make_socket(socket.AF_INET, STREAM)
        self.listener.bind(("0.0.0.0", 8000))
        self.listener.listen(2)
        self.address = self.server.addresses[0], 8000

    def stream(self) -> Any:
        return self.client.make_socket(socket.AF_INET, STREAM)

    def begin(self, sock: Any = None, address: Any = None) -> Any:
        """Begin to connect.  Return a greenlet whose value will be the socket or an error."""

        def connect() -> Any:
            try:
                self.client.connect(sock, address or self.address)
            except OSError as error:
                return error
            return sock

        sock = sock or self.stream()
        greenlet = gevent.spawn(connect)
        gevent.sleep(0)
        return greenlet

    def end(self, greenlet: Any, seconds: float) -> Any:
        """Return the value of a greenlet of ``begin`` after so many seconds, or None if it has not ended."""
        self.settle(seconds)
        gevent.sleep(0)
        return greenlet.value

    def streams(self) -> tuple[Any, Any]:
        """Return two connected sockets: the client's and the server's."""
        client = self.end(self.begin(), 100)
        accepted = self.server.accept(self.listener)
        assert accepted is not None
        return client, accepted[0]

    def datagrams(self) -> tuple[Any, Any]:
        """Return a socket of the client, and one of the server on port 9."""
        receiver = self.server.make_socket(socket.AF_INET, DATAGRAM)
        receiver.bind(("0.0.0.0", 9))
        return self.client.make_socket(socket.AF_INET, DATAGRAM), receiver


def received(sock: Any) -> list[bytes]:
    """Return the datagrams that have arrived."""
    buffer, found = bytearray(100), []
    while not isinstance(result := result_of(sock.recvfrom_into, memoryview(buffer), 0, 0), str):
        found.append(bytes(buffer[: result[0]]))
    return found


def test_connecting_takes_a_round_trip_and_accepting_half_of_another():
    pair = Pair()
    attempt = pair.begin()
    assert pair.end(attempt, 1.9) is None
    client = pair.end(attempt, 0.2)
    assert client.getpeername() == pair.address
    assert pair.server.accept(pair.listener) is None
    pair.settle(1)
    accepted = pair.server.accept(pair.listener)
    assert accepted is not None
    assert accepted[1] == client.getsockname() == (pair.client.addresses[0], 32768)
    assert accepted[0].getsockname() == pair.address


@pytest.mark.parametrize(
    ("host", "code", "seconds"),
    [("10.0.0.1", errno.ECONNREFUSED, 2), ("10.9.9.9", errno.EHOSTUNREACH, 3), ("192.0.2.1", errno.ENETUNREACH, 0)],
)
def test_connecting_fails_at_an_address_without_a_listener(host, code, seconds):
    pair = Pair()
    attempt = pair.begin(address=(host, 7))
    assert pair.end(attempt, seconds - 0.1) is None or not seconds
    assert pair.end(attempt, 0.2).errno == code


def test_a_full_backlog_delays_connections():
    pair = Pair()
    attempts = [pair.begin() for _ in range(5)]
    pair.settle(100)
    gevent.sleep(0)
    assert [attempt.ready() for attempt in attempts] == [True] * 3 + [False] * 2
    pair.server.accept(pair.listener)
    assert pair.end(attempts[3], 10) is not None
    pair.listener.close()
    assert pair.end(attempts[4], 10).errno == errno.ECONNREFUSED
    assert result_of(attempts[3].value.recv, 1) == "ECONNRESET"


@pytest.mark.parametrize("moment", [0, 1.5])
def test_a_client_that_gives_up_is_not_accepted(moment):
    pair = Pair()
    sock = pair.stream()
    attempt = pair.begin(sock)
    pair.settle(moment)
    attempt.kill()
    sock.close()
    pair.settle(10)
    assert pair.server.accept(pair.listener) is None
    assert not pair.listener.is_full()
    assert pair.streams()


def test_a_host_can_run_out_of_descriptors():
    world = World()
    network = world.internet.add_host("host", max_descriptors=3)
    assert network.max_descriptors() == 3
    client, accepted = make_pair(network, socket.AF_INET, world.call)
    listener = network.make_socket(socket.AF_INET, STREAM)
    descriptors = [sock.fileno() for sock in (client, accepted, listener)]
    assert descriptors == sorted(set(descriptors))
    assert descriptors[0] >= 2**30
    listener.bind(("", 0))
    listener.listen(1)
    for call in (
        lambda: network.make_socket(socket.AF_INET, STREAM),
        lambda: network.check_room(1),
        lambda: network.accept(listener),  # this fails even if no connection is pending
    ):
        assert result_of(call) == "EMFILE"
    client.close()
    assert client.fileno() == -1
    network.check_room(1)
    assert network.accept(listener) is None


def test_bandwidth_delays_later_data():
    pair = Pair(bandwidth=100)
    client, accepted = pair.streams()
    client.send(b"x" * 100)
    client.send(b"y" * 50)
    pair.settle(1.9)
    assert result_of(accepted.recv, 1000) == "EAGAIN"
    pair.settle(0.2)
    assert accepted.recv(1000) == b"x" * 100
    pair.settle(0.5)
    assert accepted.recv(1000) == b"y" * 50


@FAMILIES
def test_buffers_are_bounded_and_reading_makes_room(family):
    world = World()
    network = world.internet.add_host("host")
    client, accepted = make_pair(network, family, world.call)
    sent = 0
    while not isinstance(size := result_of(client.send, b"x" * 50_000), str):
        sent += size
        world.settle()
    limit = SEND_BUFFER + (RECEIVE_BUFFER if family == socket.AF_INET else 0)
    assert (size, sent, client.readiness()) == ("EAGAIN", limit, 0)
    assert network.queued_output(client) == SEND_BUFFER
    world.changes.clear()
    got = 0
    while got < sent:
        got += len(accepted.recv(10_000))
        world.settle()
    assert client.descriptor in world.changes
    assert client.readiness() == 2
    assert network.queued_output(client) == 0
    assert client.send(b"x" * 200_000) == SEND_BUFFER


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_cut_and_stay_in_order(seed):
    pair = Pair(seed, jitter=10)
    client, accepted = pair.streams()
    data = bytes(range(250)) * 4
    for start in range(0, 1000, 10):
        client.send(data[start : start + 10])
        pair.settle(0.5)
    client.shutdown(socket.SHUT_WR)
    pieces = []
    while True:
        piece = result_of(accepted.recv, 1000)
        if not piece:
            break
        if piece != "EAGAIN":
            pieces.append(piece)
        pair.settle(0.05)
    assert b"".join(pieces) == data
    assert any(not text.endswith(" 10 bytes") for text in pair.texts("receive")[:-1]) == bool(seed)


def test_a_partition_holds_streams_and_loses_datagrams():
    pair = Pair()
    client, accepted = pair.streams()
    sender, receiver = pair.datagrams()
    client.send(b"in flight, ")
    sender.sendto(b"in flight", (pair.address[0], 9))
    pair.internet.partition("client", "server")
    client.send(b"held")
    sender.sendto(b"lost", (pair.address[0], 9))
    attempt = pair.begin()
    pair.settle(1000)
    assert pair.client.queued_output(client) == 15
    assert not pair.client.is_broken(client)
    assert pair.end(attempt, 0) is None
    pair.internet.heal("client", "server")
    assert pair.end(attempt, 10) is not None
    assert accepted.recv(100) == b"in flight, held"
    assert received(receiver) == []
    assert len(pair.texts("lost")) == 2
    assert pair.texts("hold") == pair.texts("release")


def test_a_partition_one_way_holds_acknowledgements():
    pair = Pair()
    client, accepted = pair.streams()
    pair.internet.partition("server", "client", both=False)
    client.send(b"question")
    pair.settle(100)
    assert accepted.recv(100) == b"question"
    accepted.send(b"answer")
    accepted.close()
    pair.settle(100)
    assert pair.client.queued_output(client) == 8
    assert result_of(client.recv, 100) == "EAGAIN"
    pair.internet.heal("server", "client", both=False)
    pair.settle(10)
    assert pair.client.queued_output(client) == 0
    assert client.recv(100) == b"answer"
    assert client.recv(100) == b""


def crashed(function, *arguments):
    with pytest.raises(HostCrashed, match="'server' has crashed"):
        function(*arguments)


def test_the_end_of_a_process_resets_its_connections():
    pair = Pair()
    client, accepted = pair.streams()
    receiver = pair.datagrams()[1]
    plain = pair.server.plain(accepted)
    client.send(b"unread")
    pair.settle(10)
    pair.internet.crash("server", silent=False)
    pair.settle(10)
    assert result_of(client.recv, 1) == "ECONNRESET"
    assert pair.end(pair.begin(), 10).errno == errno.ECONNREFUSED
    for call in (
        (plain.recv, 1),
        (plain.send, b"x"),
        (accepted.recv, 1),
        (accepted.getsockname,),
        (receiver.sendto, b"", ("", 9)),
    ):
        crashed(*call)
    crashed(pair.server.make_socket, socket.AF_INET, STREAM)
    crashed(pair.server.accept, pair.listener)
    accepted.close()
    assert accepted.fileno() == -1
    again = pair.internet.restart("server")
    assert again.addresses == pair.server.addresses
    listener = again.make_socket(socket.AF_INET, STREAM)
    listener.bind(pair.address)
    listener.listen(1)
    assert pair.end(pair.begin(), 10).getpeername() == pair.address


def test_a_machine_without_power_is_silent_until_it_starts_again():
    pair = Pair()
    client, accepted = pair.streams()
    idle, _ = pair.streams()
    accepted.send(b"in flight")
    pair.internet.crash("server", silent=True)
    client.send(b"never acknowledged")
    attempt = pair.begin()
    assert pair.end(attempt, 1000) is None
    assert pair.client.queued_output(client) == 18
    assert client.recv(100) == b"in flight"
    assert not pair.client.is_broken(client)
    pair.internet.restart("server")
    assert pair.end(attempt, 10).errno == errno.ECONNREFUSED
    assert result_of(client.recv, 100) == "ECONNRESET"
    assert not pair.client.is_broken(idle)
    idle.send(b"x")
    pair.settle(10)
    assert pair.client.has_error(idle)


def test_files_survive_a_crash():
    world = World()
    network = world.internet.add_host("server")
    sock = network.make_socket(socket.AF_UNIX, STREAM)
    sock.bind("/socket")
    lock = network.lock("/")
    world.internet.crash("server", silent=True)
    again = world.internet.restart("server")
    again.lock("/")
    for call in (network.stat, "/socket"), (network.unlink, "/socket"), (network.lock, "/tmp"), (network.unlock, lock):
        crashed(*call)  # a finally clause of the crashed program can call these
    assert stat.S_ISSOCK(again.stat("/socket").st_mode)
    assert result_of(again.make_socket(socket.AF_UNIX, STREAM).bind, "/socket") == "EADDRINUSE"
    assert result_of(again.connect, again.make_socket(socket.AF_UNIX, STREAM), "/socket") == "ECONNREFUSED"
    assert result_of(world.internet.add_host("other").stat, "/socket") == "ENOENT"


def test_names_of_hosts_are_resolved():
    pair = Pair()
    found = [entry[4][0] for entry in pair.client.resolve("server", 80, STREAM)]
    assert found == list(reversed(pair.server.addresses)) == ["fd00:0:0:1::1", "10.0.0.1"]
    assert [entry[4][:2] for entry in pair.client.resolve("localhost", 80, STREAM)] == [("::1", 80), ("127.0.0.1", 80)]
    for name, flags in ("unknown", 0), ("server", socket.AI_NUMERICHOST), ("", 0):
        with pytest.raises(socket.gaierror) as caught:
            pair.client.resolve(name, 80, STREAM, flags)
        assert caught.value.errno == socket.EAI_NONAME


def test_datagrams_are_lost_duplicated_and_reordered():
    found = {}
    for name in "loss", "duplicates", "reorder", "latency":
        pair = Pair(3, **{name: 0.5})
        sender, receiver = pair.datagrams()
        for number in range(40):
            sender.sendto(b"%d" % number, (pair.address[0], 9))
            pair.settle(0.1)
        pair.settle(10)
        found[name] = [int(data) for data in received(receiver)]
        assert len(pair.texts("lost")) == 40 - len(set(found[name]))
    every = list(range(40))
    assert found["latency"] == every
    assert 5 < len(found["loss"]) < 35
    assert found["loss"] == sorted(found["loss"])
    assert len(found["duplicates"]) > 45
    assert sorted(set(found["duplicates"])) == every
    assert found["reorder"] != every == sorted(found["reorder"])


def test_a_chance_of_1_needs_no_seed():
    pair = Pair(0, loss=1)
    sender, receiver = pair.datagrams()
    sender.sendto(b"x", (pair.address[0], 9))
    pair.link.set(loss=0, duplicates=1)
    sender.sendto(b"y", (pair.address[0], 9))
    pair.settle()
    assert received(receiver) == [b"y", b"y"]


def test_a_broadcast_reaches_all_hosts():
    pair = Pair()
    sender, receiver = pair.datagrams()
    own = pair.client.make_socket(socket.AF_INET, DATAGRAM)
    own.bind(("0.0.0.0", 9))
    assert result_of(sender.sendto, b"x", ("10.255.255.255", 9)) == "EACCES"
    pair.client.allow_broadcast(sender)
    for address in "255.255.255.255", "10.255.255.255":
        sender.sendto(b"to all", (address, 9))
    pair.settle()
    assert received(receiver) == received(own) == [b"to all"] * 2


def test_a_full_receiver_loses_datagrams():
    pair = Pair()
    sender, receiver = pair.datagrams()
    for _ in range(1000):
        sender.sendto(b"x" * 1000, (pair.address[0], 9))
    pair.settle()
    assert 50 < len(received(receiver)) < 300
    sender.sendto(b"y", (pair.address[0], 9))
    pair.settle()
    assert received(receiver) == [b"y"]


def test_real_and_foreign_sockets_are_not_adopted():
    pair = Pair()
    with socket.socket() as real, pytest.raises(NotSimulated, match=f"real socket; got .*fd={real.fileno()}"):
        pair.server.adopt(real)
    with pytest.raises(NotSimulated, match="another host; got <socket of host 'server', bound to"):
        pair.client.adopt(pair.listener)
    assert pair.server.adopt(pair.listener) is pair.listener


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"latency": -1}, ValueError),
        ({"jitter": math.nan}, ValueError),
        ({"latency": math.inf}, ValueError),
        ({"bandwidth": 0}, ValueError),
        ({"bandwidth": -5}, ValueError),
        ({"loss": 1.5}, ValueError),
        ({"duplicates": "often"}, TypeError),
        ({"reorder": True}, TypeError),
        ({"latency": "1"}, TypeError),
    ],
)
def test_a_link_refuses_impossible_values(options, error):
    pair = Pair()
    (name, value) = next(iter(options.items()))
    with pytest.raises(error, match=f"^{name} .*"):
        pair.link.set(bandwidth=5, **options) if name != "bandwidth" else pair.link.set(**options)
    assert pair.link.bandwidth is None


@pytest.mark.parametrize("name", ["", "localhost", "server", "10.0.0.7", "a b", "::1", "ü", "x/y"])
def test_a_host_needs_a_unique_name(name):
    with pytest.raises(ValueError, match=repr(name)):
        Pair().internet.add_host(name)


def test_links_exist_only_between_hosts_that_exist():
    internet = Pair().internet
    for call in internet.link, internet.partition, internet.heal:
        with pytest.raises(ValueError, match="'other'; hosts are: 'server', 'client'"):
            call("server", "other")
        with pytest.raises(ValueError, match="got 'server' twice"):
            call("server", "server")


def test_the_trace_shows_a_connection():
    pair = Pair()
    client, accepted = pair.streams()
    client.send(b"hello")
    pair.settle()
    accepted.recv(5)
    accepted.close()
    pair.settle()
    client.send(b"late")
    pair.settle()
    there, back = "client:32768 -> server:8000", "server:8000 -> client:32768"
    shown = [(event.kind, event.host, event.text) for event in pair.trace.events]
    assert shown == [
        ("connect", "client", there),
        ("accept", "server", there),
        ("send", "client", f"{there} 5 bytes"),
        ("receive", "server", f"{there} 5 bytes"),
        ("close", "server", back),
        ("end", "server", back),
        ("receive", "client", f"{back} end"),
        ("send", "client", f"{there} 4 bytes"),
        ("lost", "server", f"{there} 4 bytes"),
        ("reset", "server", back),
        ("reset", "client", f"{back} arrives"),
    ]
    pieces = [event.piece for event in pair.trace.events]
    assert pieces[2] == pieces[3] != pieces[7] == pieces[8]


def test_the_trace_has_no_sizes_of_a_tls_handshake():
    pair = Pair()
    client, accepted = pair.streams()
    client.send(b"\x16\x03\x01 hello")
    client.send(b"more")
    accepted.send(b"\x16\x03\x03 hello")
    pair.settle()
    assert not any("bytes" in text for text in pair.texts("send", "receive"))


def test_the_trace_has_no_sizes_of_a_tls_handshake_after_plaintext():
    pair = Pair()
    client, accepted = pair.streams()
    client.send(b"STARTTLS")
    pair.settle()
    client.send(b"\x16\x03\x01 hello")
    client.send(b"more")
    pair.settle()
    assert ["bytes" in text for text in pair.texts("send")] == [True, False, False]


def test_equal_seeds_have_equal_traces():
    def digest(seed):
        pair = Pair(seed, jitter=1, loss=0.1, reorder=0.1)
        client, accepted = pair.streams()
        sender, _ = pair.datagrams()
        for number in range(50):
            client.send(b"x" * (number + 1))
            accepted.send(b"y")
            sender.sendto(b"z", (pair.address[0], 9))
            pair.settle(0.3)
        return pair.trace.digest

    digests = [digest(seed) for seed in (0, 0, 1, 1, 2)]
    assert digests[0] == digests[1] != digests[2] == digests[3] != digests[4]


def test_the_simulated_network_replaces_every_method():
    network = Pair().server
    own = {name for name, value in vars(Network).items() if not name.startswith("_") and callable(value)}
    assert own - set(vars(type(network))) - set(vars(network)) == set()


def test_sockets_that_share_a_port_get_some_of_the_connections():
    def shares(seed):
        pair = Pair(seed)
        listeners, receivers = [], []
        for kind, sockets, port in (STREAM, listeners, 80), (DATAGRAM, receivers, 90):
            for _ in range(2):
                sock = pair.server.make_socket(socket.AF_INET, kind)
                pair.server.share_port(sock)
                sock.bind(("0.0.0.0", port))
                sockets.append(sock)
        for sock in listeners:
            sock.listen(20)
        attempts = [pair.begin(address=(pair.address[0], 80)) for _ in range(10)]
        pair.settle()
        gevent.joinall(attempts, timeout=5)
        for _ in range(2):
            sender = pair.client.make_socket(socket.AF_INET, DATAGRAM)
            for _ in range(3):
                sender.sendto(b"x", (pair.address[0], 90))
        pair.settle()
        accepted = [len([None for _ in range(20) if pair.server.accept(sock)]) for sock in listeners]
        return accepted, [len(received(sock)) for sock in receivers]

    assert shares(0) == ([10, 0], [3, 3])
    accepted, datagrams = shares(1)
    assert sum(accepted) == 10 != max(accepted)
    assert datagrams == [3, 3]


def live(seed: int) -> Pair:
    """Make two hosts do random things.  Check that no byte is lost, duplicated or reordered."""
    draw = Random(seed)
    pair = Pair(seed, jitter=1, bandwidth=draw.choice([None, 50_000]), loss=0.1, duplicates=0.1, reorder=0.1)
    sent, got, ends = {}, {}, []
    data = bytes(range(256)) * 1000
    for _ in range(60):
        what = draw.choice(["connect", *["send"] * 5, *["recv"] * 6, "shut", "close", "reset", "cut", "heal", "crash"])
        if what == "connect" and len(ends) < 6:
            sock = pair.stream()
            attempt = pair.begin(sock)
            pair.settle(draw.choice([0.5, 5, 50]))
            gevent.sleep(0)
            if attempt.value is sock:
                ends.append(sock)
            else:
                attempt.kill()
                sock.close()
        elif what == "cut":
            pair.internet.partition(
                *draw.choice([("server", "client"), ("client", "server")]), both=draw.random() < 0.5
            )
        elif what == "heal":
            pair.internet.heal("server", "client")
        elif what == "crash" and draw.random() < 0.2:
            name = draw.choice(["server", "client"])
            pair.internet.crash(name, silent=draw.random() < 0.5)
            pair.settle(draw.choice([0, 5]))
            setattr(pair, name, pair.internet.restart(name))
            if name == "server":
                pair.listener = pair.server.make_socket(socket.AF_INET, STREAM)
                pair.listener.bind(pair.address)
                pair.listener.listen(2)
        accepted = pair.server.accept(pair.listener)
        if accepted:
            ends.append(accepted[0])
        if ends and what in ("send", "recv", "shut", "close", "reset"):
            sock = draw.choice(ends)
            end = sock.end
            count = draw.choice([1, 100, 50_000])
            if what == "send":
                start = sent.get(end, 0)
                piece = data[start % 256 :][:count]
                size = result_of(sock.send, piece)
                if isinstance(size, int):
                    sent[end] = start + size
            elif what == "recv":
                piece = result_of(sock.recv, count)
                start = got.get(end, 0)
                if isinstance(piece, bytes):
                    assert piece == data[start % 256 :][: len(piece)]
                    got[end] = start + len(piece)
                    assert got[end] <= sent.get(end.peer, 0)
                    assert piece or not end._got_end or got[end] == sent.get(end.peer, 0)
            elif what == "shut":
                result_of(sock.shutdown, draw.randrange(3))
            else:
                if what == "reset":
                    pair.server.reset_on_close(sock)
                sock.close()
        pair.settle(draw.choice([0, 0.5, 3]))
    pair.internet.heal("server", "client")
    pair.settle(1000)
    for end in ends:
        if end.fileno() != -1:
            while isinstance(piece := result_of(end.recv, 100_000), bytes) and piece:
                pair.settle(10)
            end.close()
    pair.listener.close()
    pair.settle(100_000)
    return pair


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(1000, 2000), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_random_lives_lose_no_bytes_and_leave_nothing(seeds):
    for seed in seeds:
        pair = live(seed)
        assert live(seed).trace.digest == pair.trace.digest, seed
        assert left(pair) == [], seed


def left(pair: Pair) -> list[Any]:
    """Return the sockets, and the ends of connections, that still exist in the kernels of both hosts.

    An end that has delivered everything waits for its peer's end.  That end never comes from a host without power.
    """
    sites = [network._site for network in (pair.server, pair.client)]
    ends = [end for site in sites for end in site.ends]
    waiting = [end for end in ends if end.peer and end.peer._generation != end.peer.site.generation]
    return [*(end for end in ends if end not in waiting), *(sock for site in sites for sock in site.sockets())]


@pytest.mark.parametrize("resets", [False, True])
def test_ends_are_freed_without_garbage_collection(resets):
    pair = Pair()
    socks = pair.streams()
    ends = [sock.end for sock in socks]
    if resets:
        pair.client.reset_on_close(socks[0])
    for sock in socks:
        sock.close()
        pair.settle()
    assert [end.peer for end in ends] == [None, None]


# In a whole simulation.


def serve(connection):
    connection.set_handler(testing.Recorder())


def test_a_paused_host_does_not_notice_its_connection():
    connected = []

    def connect():
        sock = client._network.make_socket(socket.AF_INET, STREAM)
        client._network.connect(sock, ("10.0.0.1", 8000))
        connected.append(simulation.now())

    with Simulation() as simulation:
        server, client = simulation.host("server"), simulation.host("client")
        server.listener(("server", 8000), serve)
        client.spawn(connect)
        gevent.sleep(0.0005)  # the attempt is in transit
        client.pause(10)
        gevent.sleep(20)
    assert len(connected) == 1
    assert 10 <= connected[0] < 10.1


@pytest.mark.parametrize(
    ("listens", "advice"), [(None, "let it listen on ('server', 0)"), (("", 8000), "connect to ('server', 8000)")]
)
def test_a_refusal_on_the_loopback_names_another_host_that_listens(listens, advice):
    with Simulation() as simulation:
        server, client = simulation.host("server"), simulation.host("client")
        port = server.listener(listens, serve).address[1]
        recorder = testing.Recorder()
        for address in ("127.0.0.1", port), ("127.0.0.1", port + 1):
            client.connect(address, recorder)
            gevent.sleep(1)
            cause = f": this address is 'client' itself; to reach 'server', {advice}" if address[1] == port else ""
            assert isinstance(recorder.failed, ConnectionRefusedError)
            assert str(recorder.failed) == f"[Errno 111] Connection refused{cause}: {address}"


def test_a_listener_accepts_a_simulated_socket():
    with Simulation() as simulation:
        server, client = simulation.host("server"), simulation.host("client")
        sock = server._network.make_socket(socket.AF_INET, STREAM)
        sock.bind(("0.0.0.0", 8000))
        server.listener(sock, serve)
        recorder = testing.Recorder()
        client.connect(("10.0.0.1", 8000), recorder)
        gevent.sleep(1)
        assert recorder.connection
