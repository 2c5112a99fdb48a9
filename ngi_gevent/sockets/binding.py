"""Sockets bound to addresses, with the file that a Unix one leaves behind, and the look-up of names."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import Any

from gevent import socket as gevent_socket
from gevent.monkey import get_original

from ngi_gevent.core.address import LOOPBACK, is_abstract, is_socket, naming, unix_path

__all__ = ["Binding", "addresses_of", "looked_up"]

_getaddrinfo = get_original("socket", "getaddrinfo")


class Binding:
    """A socket bound to an address, as a listener of its kind (of streams, of datagrams) needs it.

    Raises ``OSError``, naming the address, where the system refuses it, and leaves nothing behind then.  A socket of
    the caller's is used as it is, and its file is not ours to remove.

    :ivar socket: the socket; whoever has the binding closes it.
    """

    def __init__(self, address: Any, kind: int, *, reuse_port: bool = False) -> None:
        self._file: tuple[str, os.stat_result] | None = None
        path = None if is_socket(address) else unix_path(address)
        if is_socket(address):
            self.socket = address
        elif path is not None:
            self.socket = _bound_to_path(path, kind)
            if not is_abstract(path):
                # The directory that a relative name is in may not be the current one when it is removed.
                self._file = os.path.abspath(os.fsdecode(path)), os.stat(path)
        else:
            address = LOOPBACK if address is None else address
            try:
                self.socket = _bound_to_host(address, kind, reuse_port)
            except OSError as error:
                raise naming(error, address) from error

    def remove_file(self) -> None:
        """Remove the file of a Unix socket, unless somebody has put another one there."""
        if self._file is None:
            return
        path, bound = self._file
        self._file = None
        try:
            if os.path.samestat(os.stat(path), bound):
                os.unlink(path)
        except OSError:
            pass  # it is gone already


def addresses_of(host: str, port: int, kind: int, flags: int = 0) -> list[tuple[Any, ...]]:
    """Return what ``getaddrinfo`` finds for a host and port, in the order of the system.

    Blocks the greenlet to look up a name.  A numeric host never blocks: it does not wait for gevent's thread pool, in
    which other work can take long, and which cannot be started any more once the main thread has ended.

    :raises OSError: there is no such host.
    """
    with suppress(socket.gaierror):
        return _getaddrinfo(host, port, type=kind, flags=flags | socket.AI_NUMERICHOST)  # type: ignore[no-any-return]
    return gevent_socket.getaddrinfo(host, port, type=kind, flags=flags)


def looked_up(host: str, port: int, kind: int, flags: int = 0) -> list[tuple[Any, ...]]:
    """Return what :func:`addresses_of` does, IPv4 first."""
    found = addresses_of(host, port, kind, flags)
    return sorted(found, key=lambda candidate: bool(candidate[0] != socket.AF_INET))


def _bound_to_host(address: Any, kind: int, reuse_port: bool) -> Any:
    """A gevent socket bound to a host and port.  Of the addresses of a name, IPv4 ones are tried first."""
    host, port = address[0] or "0.0.0.0", address[1]
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, _, protocol, _, candidate in looked_up(host, port, kind, socket.AI_PASSIVE):
        sock = gevent_socket.socket(family, kind, protocol)
        try:
            # For streams it lets a port be listened on again at once; for datagrams it would let two listeners have
            # the same one, of which the second takes everything.
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # The scope of an IPv6 address is in none but the four-part form.
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


def _bound_to_path(path: str | bytes, kind: int) -> Any:
    """A gevent socket bound to the name of a Unix socket, in the place of a file that a dead server left there."""
    sock = gevent_socket.socket(socket.AF_UNIX, kind)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or is_abstract(path) or not _is_stale(path, kind):
                raise
            os.unlink(path)
            sock.bind(path)
    except OSError as error:
        sock.close()
        raise naming(error, path) from error
    except BaseException:  # a name that the system's encoding does not have, for instance
        sock.close()
        raise
    return sock


def _is_stale(path: str | bytes, kind: int) -> bool:
    """Whether *path* is a Unix socket that nobody listens on.  A live one of another kind refuses in another way."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED
