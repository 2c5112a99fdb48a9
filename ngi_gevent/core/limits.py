"""Limits of a listener on crowds, and the count of connections from each host.

This module is pure: it uses neither sockets nor greenlets.
"""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any, NamedTuple, NoReturn

from ngi_gevent.core.checks import as_positive_timeout, check_count, format_near

__all__ = ["NO_LIMITS", "HostCount", "Limits", "check_limits", "format_host", "host_key"]

#: The beginning of an IPv6 address that stands for an IPv4 address, whose four bytes follow.
MAPPED = bytes(10) + b"\xff\xff"

#: Bytes of the network in an IPv6 address.  A site gets a /64 at least, so each of its users has 2**64 addresses.
NETWORK = 8


class _Fields(NamedTuple):
    max_per_host: int | None
    max_handshakes: int | None
    max_lifetime: float | None


class Limits(_Fields):
    """Limits of a listener on crowds.  Each is None by default, for no limit.  Immutable.

    :param max_per_host: open connections from one host; the listener resets further ones.  An IPv6 host counts by its
        /64 network.  Connections over Unix sockets do not count.  With *proxy_protocol*, the client's host counts, not
        the proxy's.
    :param max_handshakes: pending handshakes with clients (PROXY header and TLS).  At this number, accepting pauses,
        and the kernel queues new connections until a handshake is over.
    :param max_lifetime: seconds from accepting a connection to its end, with a :class:`~ngi_gevent.Timeout` as the
        reason.  Pending output is delivered for 30 seconds more; then the connection is reset.  The time in which a
        connection is closing counts, too.
    :raises TypeError: a limit has the wrong type, or a name is not the name of a limit.
    :raises ValueError: a limit is less than 1, or not more than 0 seconds.
    """

    __slots__ = ()

    def __new__(
        cls,
        *,
        max_per_host: int | None = None,
        max_handshakes: int | None = None,
        max_lifetime: float | None = None,
        **others: NoReturn,
    ) -> Limits:
        unknown: dict[str, Any] = others
        for name, value in unknown.items():
            raise TypeError(
                f"a limit must be max_per_host, max_handshakes or max_lifetime; got {name}={value!r:.100}"
                f"{format_near(name, cls._fields)}"
            )
        if max_per_host is not None:
            check_count("max_per_host", max_per_host, least=1)
        if max_handshakes is not None:
            check_count("max_handshakes", max_handshakes, least=1)
        lifetime = as_positive_timeout(max_lifetime, "max_lifetime")
        return super().__new__(cls, max_per_host, max_handshakes, lifetime)


#: The default of listeners.
NO_LIMITS = Limits()


def check_limits(limits: Any) -> None:
    """Raise ``TypeError`` unless *limits* are ``Limits``."""
    if not isinstance(limits, Limits):
        raise TypeError(f"limits must be an ngi_gevent.Limits; got {limits!r:.100}")


def host_key(address: Any) -> bytes | str | None:
    """Return the key of the host of *address*; None for a Unix socket.

    Link-local addresses of IPv6 all have the same network, so each counts by itself.
    """
    if not isinstance(address, tuple) or not address:
        return None
    host: str = address[0]
    if ":" not in host:
        return host
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    if packed.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[len(MAPPED) :])
    return packed if is_link_local(packed) else packed[:NETWORK]


def format_host(address: Any) -> str:
    """Return the host of *address* for a log entry: an address, or an IPv6 network."""
    key = host_key(address)
    if not isinstance(key, bytes):
        return str(key)
    text = socket.inet_ntop(socket.AF_INET6, key.ljust(16, b"\0"))
    return f"{text}/{NETWORK * 8}" if len(key) == NETWORK else text


def is_link_local(packed: bytes) -> bool:
    """Return whether an IPv6 address is in fe80::/10."""
    return packed[0] == 0xFE and packed[1] & 0xC0 == 0x80


class HostCount:
    """The connections of a listener, counted by the hosts of their peers."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: dict[Any, bytes | str] = {}  # the keys of connections that count
        self._counts: Counter[bytes | str] = Counter()

    def has_room(self, address: Any) -> bool:
        """Return whether one more connection from *address* is allowed."""
        key = host_key(address)
        return key is None or self._counts[key] < self._most

    def add(self, connection: Any, address: Any) -> None:
        """Count *connection*, from *address*."""
        key = host_key(address)
        if key is not None:
            self._keys[connection] = key
            self._counts[key] += 1

    def remove(self, connection: Any) -> None:
        """Do not count *connection* any more."""
        key = self._keys.pop(connection, None)
        if key is not None:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]  # otherwise each host that ever connected would stay
