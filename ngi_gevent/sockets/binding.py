"""Sockets bound to addresses, and the files that Unix sockets are bound to."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable
from typing import Any

from ngi_gevent.core.address import LOOPBACK, is_abstract, is_socket, unix_path, with_address
from ngi_gevent.sockets.network import Network, Resolved, Socket

__all__ = ["Binding", "ipv4_first"]


class Binding:
    """A socket bound to an address, for a listener.

    The constructor blocks only to look up a host name.  It raises ``OSError``, which names the address, if the system
    refuses the address, and leaves nothing open then.  A socket that the caller passes stays bound to its file.

    :ivar socket: the socket.  The listener closes it.
    :ivar is_own: whether this has bound the socket, and not the caller, who may share it with other processes.
    """

    def __init__(self, network: Network, address: Any, kind: int, *, reuse_port: bool = False) -> None:
        self._network = network
        self._file: tuple[str, os.stat_result] | None = None
        self.socket: Socket
        self.is_own = not is_socket(address)
        if not self.is_own:
            self.socket = network.adopt(address)
            return
        path = unix_path(address)
        if path is None:
            address = LOOPBACK if address is None else address
        try:
            self.socket = self._bind_to_host(address, kind, reuse_port) if path is None else self._bind(path, kind)
        except OSError as error:
            raise with_address(error, address if path is None else path) from error

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
            pass  # it is gone already

    def _bind_to_host(self, address: Any, kind: int, reuse_port: bool) -> Socket:
        """Return a socket bound to a host and port; to an IPv4 address if the name has one."""
        host, port = address[0] or "0.0.0.0", address[1]
        failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        for family, _, protocol, _, candidate in ipv4_first(self._network.resolve(host, port, kind, socket.AI_PASSIVE)):
            sock = self._network.make_socket(family, kind, protocol)
            try:
                # A stream listener can use its port again at once.  Two UDP listeners could then have the same port,
                # and the second would receive everything.
                if kind == socket.SOCK_STREAM:
                    self._network.allow_address_reuse(sock)
                if reuse_port:
                    self._network.share_port(sock)
                # Only the four-part form of an IPv6 address has a scope.
                sock.bind(address if family == socket.AF_INET6 and len(address) == 4 else candidate)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:  # a scope that is not an int, for instance
                sock.close()
                raise
            else:
                return sock
        raise failure

    def _bind(self, path: str | bytes, kind: int) -> Socket:
        """Return a socket bound to the path of a Unix socket.  Replaces the file of a dead server."""
        sock = self._network.make_socket(socket.AF_UNIX, kind)
        try:
            try:
                sock.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or is_abstract(path) or not self._is_stale(path, kind):
                    raise
                self._network.unlink(path)
                sock.bind(path)
            if not is_abstract(path):
                # The current directory may have changed when the file is removed.
                self._file = os.path.abspath(os.fsdecode(path)), self._network.stat(path)
        except BaseException:  # also for a path that the file system's encoding does not have
            sock.close()
            raise
        return sock

    def _is_stale(self, path: str | bytes, kind: int) -> bool:
        """Return whether *path* is a Unix socket without a listener.  A live one of another kind fails differently."""
        if not stat.S_ISSOCK(self._network.stat(path).st_mode):
            return False
        probe = self._network.make_socket(socket.AF_UNIX, kind)
        try:
            self._network.connect(probe, path)
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
        finally:
            probe.close()
        return False


def ipv4_first(resolved: Iterable[Resolved]) -> list[Resolved]:
    """Return what *resolved* has, with IPv4 addresses first, and otherwise in the same order."""
    return sorted(resolved, key=lambda candidate: bool(candidate[0] != socket.AF_INET))
