"""The state of each host's kernel: addresses, ports, descriptors, and bound sockets."""

from __future__ import annotations

import errno
import socket
from typing import Any

from ngi_gevent.testing.simulation.files import Files, error

__all__ = ["Site", "is_loopback", "plain_host"]

#: The range of ports from which the kernel picks, as on Linux.
FIRST_PORT, LAST_PORT = 32768, 60999

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


def plain_host(host: str) -> str:
    """Return an address without its scope.  An IPv4 address in IPv6 form becomes plain IPv4."""
    host = host.partition("%")[0]
    return host.removeprefix("::ffff:") if "." in host else host


class Site:
    """The kernel of one host.

    :ivar generation: how often the host has crashed.
    :ivar is_up: False from a crash to the restart.
    :ivar missed: functions to call when the host is up again after it lost power.
    """

    def __init__(self, name: str, number: int, max_descriptors: int) -> None:
        self.name = name
        self.addresses = {
            socket.AF_INET: f"10.0.{number // 256}.{number % 256}",
            socket.AF_INET6: f"fd00:0:0:{number:x}::1",  # in its own /64, because max_per_host counts these
        }
        self.files = Files()
        self.max_descriptors = max_descriptors
        self.generation = 0
        self.is_up = True
        self.missed: list[Any] = []
        #: The ends of streams.  Each stays until both directions have ended and the application has closed the socket.
        self.ends: dict[Any, None] = {}
        self._sockets: dict[int, Any] = {}
        self._bound: dict[tuple[int, int], list[Any]] = {}  # sockets, by kind and port
        self._used: set[int] = set()  # ports that the kernel has picked
        self._next_port = FIRST_PORT

    # Descriptors.

    def add(self, descriptor: int, sock: Any) -> None:
        """Register *sock* as open."""
        self._sockets[descriptor] = sock

    def remove(self, descriptor: int) -> None:
        """Count a socket as closed."""
        self._sockets.pop(descriptor, None)

    def check_room(self, count: int) -> None:
        """Raise ``OSError`` unless that many more descriptors can be open."""
        if len(self._sockets) + count > self.max_descriptors:
            raise error(errno.EMFILE)

    def sockets(self) -> list[Any]:
        """Return the open sockets, in the order in which they were made."""
        return list(self._sockets.values())

    # Addresses.

    def has(self, host: str) -> bool:
        """Return whether *host* is an address of this host."""
        return host in self.addresses.values() or is_any(host) or is_loopback(host)

    def source(self, target: str) -> str:
        """Return the address from which this host sends to *target*."""
        family = family_of(target)
        return LOOPBACK[family] if is_loopback(target) or is_any(target) else self.addresses[family]

    def pick_port(self) -> int:
        """Return a free port, and mark it as used."""
        for _ in range(LAST_PORT - FIRST_PORT + 1):
            port = self._next_port
            self._next_port = FIRST_PORT if port == LAST_PORT else port + 1
            if port not in self._used and not any((kind, port) in self._bound for kind in (1, 2)):
                self._used.add(port)
                return port
        raise error(errno.EADDRNOTAVAIL)

    def forget(self, end: Any) -> None:
        """Free the port of a stream's end, because nothing arrives there any more."""
        if self.ends.pop(end, 0) is None and end.name:
            self._used.discard(end.name[1])

    def bind(self, sock: Any, host: str, port: int) -> int:
        """Bind *sock*.  Return its port."""
        host = plain_host(host)
        if not self.has(host) and not is_broadcast(host):
            raise error(errno.EADDRNOTAVAIL)
        if not port:
            port = self.pick_port()
            self._used.discard(port)  # the socket is among the bound ones
        others = self._bound.get((sock.kind, port), [])
        if any(_collide(sock, host, other) for other in others):
            raise error(errno.EADDRINUSE)
        self._bound.setdefault((sock.kind, port), []).append(sock)
        return port

    def unbind(self, sock: Any, port: int) -> None:
        """Remove *sock*."""
        bound = self._bound.get((sock.kind, port), [])
        if sock in bound:
            bound.remove(sock)
            if not bound:
                del self._bound[sock.kind, port]

    def receivers(self, kind: int, host: str, port: int) -> list[Any]:
        """Return the sockets that receive data for an address: sockets bound to exactly it, otherwise those bound to
        any.
        """
        family = family_of(host)
        bound = [sock for sock in self._bound.get((kind, port), ()) if sock.takes(family)]
        return [sock for sock in bound if plain_host(sock.name[0]) == host] or [
            sock for sock in bound if is_any(sock.name[0])
        ]

    # The end.

    def crash(self) -> None:
        """Remove all sockets.  Files stay."""
        self.generation += 1
        self.is_up = False
        self.files.forget_sockets()
        self.ends.clear()
        self._sockets.clear()
        self._bound.clear()
        self._used.clear()

    def restart(self) -> None:
        """Start again."""
        self.is_up = True
        missed, self.missed = self.missed, []
        for happen in missed:
            happen()


def is_any(host: str) -> bool:
    """Return whether *host* is the wildcard for all addresses of a host."""
    return host in ANY.values()


def is_loopback(host: str) -> bool:
    """Return whether *host* is a loopback address."""
    return host.startswith("127.") or host == "::1"


def is_broadcast(host: str) -> bool:
    """Return whether *host* is an address for all hosts."""
    return host in ("255.255.255.255", "10.255.255.255")


def _collide(sock: Any, host: str, other: Any) -> bool:
    if not _overlap(sock, host, other):
        return False
    if sock.shares_port and other.shares_port:
        return False
    return not (sock.reuses_address and other.reuses_address and not sock.is_listening and not other.is_listening)


def _overlap(sock: Any, host: str, other: Any) -> bool:
    if sock.family != other.family and not (sock.is_dual_stack or other.is_dual_stack):
        return False
    its = plain_host(other.name[0])
    return host == its or is_any(host) or is_any(its)


def family_of(host: str) -> socket.AddressFamily:
    """Return the family of an address.  An IPv4 address in IPv6 form counts as IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
