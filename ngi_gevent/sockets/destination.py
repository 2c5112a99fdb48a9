"""The destination of a connection attempt: an address, and the options of the socket that connects to it."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from gevent import sleep

from ngi_gevent.core.address import THIS_HOST, unix_path, with_address
from ngi_gevent.sockets.attempts import Attempts

if TYPE_CHECKING:
    from ngi_gevent.interfaces import KeepAlive
    from ngi_gevent.sockets.network import Network, Resolved, Socket

__all__ = ["Destination"]

#: Seconds before connecting to a Unix socket with a full queue is tried again.  They double, up to the second.
FIRST_RETRY, LAST_RETRY = 0.001, 0.1


class Destination:
    """An address to connect to.

    :ivar network: the network to make sockets with.
    :ivar address: the address, as the caller gave it.
    """

    def __init__(self, network: Network, address: Any, local_address: Any, keep_alive: KeepAlive) -> None:
        self.network = network
        self.address = address
        self._local_address = local_address
        self._keep_alive = keep_alive

    def connect(self) -> Socket:
        """Return a socket that is connected to the address.

        Blocks the greenlet.

        :raises OSError: the attempt failed.  The error names the address.
        """
        path = unix_path(self.address)
        try:
            return self._connect_to_host() if path is None else self._connect_to_path(path)
        except OSError as error:
            raise with_address(error, self.address) from None

    def peer_of(self, sock: Socket) -> Any:
        """Return the address of the peer of *sock*, which was connected a moment ago."""
        try:
            return sock.getpeername()
        except OSError:  # the peer is gone, and the first receive will fail
            return self.address

    def _connect_to_path(self, path: str | bytes) -> Socket:
        sock = self.network.make_socket(socket.AF_UNIX, socket.SOCK_STREAM)
        pause = FIRST_RETRY
        try:
            while True:
                try:
                    self.network.connect(sock, path)
                    return sock
                except BlockingIOError:
                    # The listener's queue is full, and Unix sockets have no event for room in it.
                    sleep(pause)
                    pause = min(2 * pause, LAST_RETRY)
        except BaseException:
            sock.close()
            raise

    def _connect_to_host(self) -> Socket:
        """Return a socket that is connected to one of the host's addresses."""
        candidates = self.network.resolve(*_host_and_port(self.address, THIS_HOST), socket.SOCK_STREAM)
        local = self._resolve_local_address()
        return Attempts(candidates, lambda candidate: self._connect_to(candidate, local)).first()

    def _connect_to(self, candidate: Resolved, local: list[Resolved] | None) -> Socket:
        family, kind, protocol, _, address = candidate
        sock = self.network.make_socket(family, kind, protocol)
        try:
            if local is not None:
                self._bind(sock, local)
            self.network.send_at_once(sock)
            self.network.keep_alive(sock, self._keep_alive)
            self.network.connect(sock, address)
            self._check_is_another(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _check_is_another(self, sock: Socket) -> None:
        """Raise ``OSError`` if *sock* is connected to itself.

        The kernel makes such a connection if the port, on this host, has no listener, and the kernel picks it for the
        client.
        """
        if sock.getsockname() == self.peer_of(sock):
            self.network.reset_on_close(sock)  # frees the port for a server at once
            raise OSError(errno.ECONNREFUSED, f"{os.strerror(errno.ECONNREFUSED)}, since the connection was to itself")

    # The address of this side.

    def _resolve_local_address(self) -> list[Resolved] | None:
        if self._local_address is None:
            return None
        host, port = _host_and_port(self._local_address, "")
        # An empty host stands for any address of either family, as in the kernel.
        hosts = (host,) if host else ("0.0.0.0", "::")
        resolve = self.network.resolve
        try:
            return [found for each in hosts for found in resolve(each, port, socket.SOCK_STREAM, socket.AI_PASSIVE)]
        except OSError as error:
            raise self._of_local_address(error) from None

    def _bind(self, sock: Socket, local: list[Resolved]) -> None:
        """Bind *sock* to the first of the *local* addresses that has its family."""
        try:
            for family, _, _, _, address in local:
                if family == sock.family:
                    self.network.allow_address_reuse(sock)  # an earlier connection from there may be in TIME_WAIT
                    sock.bind(address)
                    return
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        except OSError as error:
            raise self._of_local_address(error) from None

    def _of_local_address(self, error: OSError) -> OSError:
        return type(error)(error.errno, f"{error.strerror or error} (local_address {self._local_address!r})")


def _host_and_port(address: Any, default: str) -> tuple[str, int]:
    """Return the host of *address* with its scope, or *default* if the host is empty, and the port."""
    host: str = address[0] or default
    if len(address) == 4 and address[3]:
        host = f"{host}%{address[3]}"
    return host, address[1]
