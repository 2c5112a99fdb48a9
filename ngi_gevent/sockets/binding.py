"""Sockets bound to addresses, and the files that Unix sockets are bound to."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from gevent import sleep

from ngi_gevent.core import clock
from ngi_gevent.core.address import LOOPBACK, is_abstract, is_socket, unix_path, with_address
from ngi_gevent.sockets.network import Network, Resolved, Socket

__all__ = ["BindOptions", "Binding", "bind_all", "bind_one", "ipv4_first"]

#: Ports to try for several addresses with port 0.  Each port can be taken on one of the addresses by another program.
PORTS_TRIED = 20

#: Seconds to wait for another process that binds a socket in the same directory, which takes microseconds.
LOCK_TIMEOUT = 1.0

#: Seconds before the lock is tried again.
LOCK_PAUSE = 0.001

#: Errors of an address that this machine does not have, or whose family it does not have.
NOT_HERE = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))


def _nothing(sock: Socket) -> None:
    """Do nothing."""


class BindOptions(NamedTuple):
    """How sockets are bound.

    :ivar kind: ``SOCK_STREAM`` or ``SOCK_DGRAM``.
    :ivar prepare: called with each socket once it is bound, before a client can connect to it.
    :ivar reuse_port: whether other processes can bind sockets to the same port.
    :ivar dual_stack: whether a stream socket on ``::`` accepts IPv4 connections, too.
    :ivar mode: the permissions of the file of a Unix socket; None for the default of the process.
    :ivar owner: the user and group of that file; None for the process's.
    """

    kind: int
    prepare: Callable[[Socket], object] = _nothing
    reuse_port: bool = False
    dual_stack: bool = False
    mode: int | None = None
    owner: tuple[int, int] | None = None


class Binding:
    """A socket bound to an address, and its file if it is a Unix socket.

    :ivar socket: the socket.
    :ivar is_own: whether this module bound the socket.  A socket that the caller bound can be shared with other
        processes.
    """

    def __init__(self, network: Network, sock: Socket, *, is_own: bool = True) -> None:
        self._network = network
        self._file: tuple[str, os.stat_result] | None = None
        self.socket = sock
        self.is_own = is_own

    def keep_file(self, path: str | bytes) -> None:
        """Note that the socket is bound to the file at *path*, which belongs to this binding."""
        # The current directory may have changed when the file is removed.
        self._file = os.path.abspath(os.fsdecode(path)), self._network.stat(path)

    def remove_file(self) -> None:
        """Remove the file of a Unix socket, unless another socket has been bound to its path."""
        if self._file is None:
            return
        path, bound = self._file
        self._file = None
        try:
            if os.path.samestat(self._network.stat(path), bound):
                self._network.unlink(path)
        except OSError:
            pass  # the file is gone already

    def leave_to_parent(self) -> None:
        """Close the descriptor, in a forked child.  The file belongs to the parent."""
        self._file = None
        self._network.close(self.socket)

    def close(self) -> None:
        """Remove the file, and close the socket."""
        self.remove_file()
        self.socket.close()


def bind_all(network: Network, addresses: list[Any], options: BindOptions) -> list[Binding]:
    """Return sockets bound to all of *addresses*, and to all addresses of each host name among them.

    All addresses with port 0 get the same port.  Blocks to look up a name, and for ``LOCK_TIMEOUT`` seconds at most.
    If a socket cannot be bound, all are closed.

    :raises OSError: the kernel refuses an address, which the error names.
    """
    for _ in range(PORTS_TRIED):
        bindings: list[Binding] = []
        port = 0  # the port that was picked
        try:
            for address in addresses:
                for binding in _bind(network, address, options, port):
                    bindings.append(binding)
                    port = port or _picked_port(address, binding.socket)
        except BaseException as error:
            for binding in bindings:
                binding.close()
            if not (port and isinstance(error, OSError) and error.errno == errno.EADDRINUSE):
                raise
            failure = error
        else:
            return bindings
    raise failure


def bind_one(network: Network, address: Any, options: BindOptions) -> Binding:
    """Return a socket bound to *address*.  If a host name has several addresses, use the first possible one.

    Blocks, and raises, as ``bind_all`` does.
    """
    return next(_bind(network, address, options))


def _picked_port(address: Any, sock: Socket) -> int:
    """Return the port that the kernel has picked for *address*; 0 if *address* has a port."""
    is_picked = address is None or (isinstance(address, tuple) and not address[1])
    return sock.getsockname()[1] if is_picked else 0


def _bind(network: Network, address: Any, options: BindOptions, port: int = 0) -> Iterator[Binding]:
    """Bind sockets to *address*, one after the other.  *port* takes the place of port 0."""
    if is_socket(address):
        binding = Binding(network, network.adopt(address), is_own=False)
        with _closed_on_error(binding):
            options.prepare(binding.socket)
        yield binding
        return
    path = unix_path(address)
    try:
        if path is None:
            yield from _bind_to_host(network, LOOPBACK if address is None else address, options, port)
        else:
            yield _bind_to_path(network, path, options)
    except OSError as error:
        raise with_address(error, address if path is None else path) from error


@contextmanager
def _closed_on_error(binding: Binding) -> Iterator[None]:
    try:
        yield
    except BaseException:  # for example, the file system's encoding cannot encode the path
        binding.close()
        raise


def _bind_to_host(network: Network, address: Any, options: BindOptions, port: int) -> Iterator[Binding]:
    """Bind sockets to the addresses of a host, IPv4 first.

    If a name has several addresses, those that this machine does not have are left out.  Datagrams use the first
    possible one.
    """
    host, port = address[0] or "0.0.0.0", address[1] or port
    is_bound, failure = False, OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    resolved = network.resolve(host, port, options.kind, socket.AI_PASSIVE)
    for family, _, protocol, _, candidate in dict.fromkeys(ipv4_first(resolved)):
        # Only the four-part form of an IPv6 address has a scope.
        parts = address[2:] if family == socket.AF_INET6 and len(address) == 4 else candidate[2:]
        try:
            binding = _bind_to_port(network, family, protocol, (candidate[0], port, *parts), options)
        except OSError as error:
            if options.kind == socket.SOCK_STREAM and error.errno not in NOT_HERE:
                raise
            failure = error
        else:
            is_bound = True
            port = port or binding.socket.getsockname()[1]
            yield binding
    if not is_bound:
        raise failure


def _bind_to_port(network: Network, family: int, protocol: int, address: Any, options: BindOptions) -> Binding:
    binding = Binding(network, network.make_socket(family, options.kind, protocol))
    sock = binding.socket
    with _closed_on_error(binding):
        if options.kind == socket.SOCK_STREAM:
            # A stream listener can use its port again at once.  Two UDP listeners could then have the same port,
            # and the second would receive everything.
            network.allow_address_reuse(sock)
            if family == socket.AF_INET6:
                network.set_dual_stack(sock, options.dual_stack)
        if options.reuse_port:
            network.share_port(sock)
        sock.bind(address)
        options.prepare(sock)
    return binding


def _bind_to_path(network: Network, path: str | bytes, options: BindOptions) -> Binding:
    """Return a socket bound to the path of a Unix socket.  Replaces the file of a dead server."""
    binding = Binding(network, network.make_socket(socket.AF_UNIX, options.kind))
    sock = binding.socket
    with _closed_on_error(binding):
        if is_abstract(path):
            sock.bind(path)
            options.prepare(sock)
            return binding
        if options.mode is not None:
            network.restrict_file(sock)  # a datagram socket receives as soon as it is bound
        with _locked(network, os.path.dirname(os.fsdecode(path)) or "."):
            try:
                sock.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _make_free(network, path, options.kind):
                    raise
                sock.bind(path)
            binding.keep_file(path)
            network.change_file(path, options.mode, options.owner)
            options.prepare(sock)
    return binding


def _make_free(network: Network, path: str | bytes, kind: int) -> bool:
    """Remove the file at *path* if it is a Unix socket without a listener.  Return whether the path can be free now.

    The listener may close at the same moment, and remove its file.  A live socket of another kind fails differently.
    """
    probe = network.make_socket(socket.AF_UNIX, kind)
    try:
        if not stat.S_ISSOCK(network.stat(path).st_mode):
            return False
        network.connect(probe, path)
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            with suppress(FileNotFoundError):
                network.unlink(path)
        return error.errno in (errno.ECONNREFUSED, errno.ENOENT)
    finally:
        probe.close()
    return False


@contextmanager
def _locked(network: Network, folder: str) -> Iterator[None]:
    """Keep other processes that use this package from binding Unix sockets in *folder*.

    A socket that is bound, and does not listen yet, refuses connections like the file of a dead server.  Without the
    lock, a second process that starts at the same moment could replace it, and both would seem to be the server.  The
    kernel keeps the name that a socket is bound to, for ``getpeername``, for answers to datagrams and for ``ss``.  So
    this does not use a temporary name that is renamed later.

    Blocks the greenlet for ``LOCK_TIMEOUT`` seconds at most, and then goes on without the lock, because any process
    that can read the folder can keep the lock.  If the folder cannot be locked, this goes on, too.
    """
    deadline = clock.now() + LOCK_TIMEOUT
    lock = None
    while lock is None:
        try:
            lock = network.lock(folder)
        except BlockingIOError:
            if clock.now() > deadline:
                break
            sleep(LOCK_PAUSE)
        except OSError:
            break
    try:
        yield
    finally:
        if lock is not None:
            network.unlock(lock)


def ipv4_first(resolved: Iterable[Resolved]) -> list[Resolved]:
    """Return the items of *resolved*, with IPv4 addresses first, and otherwise in the same order."""
    return sorted(resolved, key=lambda candidate: bool(candidate[0] != socket.AF_INET))
