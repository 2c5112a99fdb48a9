"""Checks of addresses, which raise before an address is used, and addresses in error messages."""

from __future__ import annotations

import os
import re
import socket
from typing import Any

__all__ = [
    "LOOPBACK",
    "THIS_HOST",
    "check_connect_address",
    "check_has_file",
    "check_listen_address",
    "check_listen_addresses",
    "check_local_address",
    "check_send_address",
    "is_abstract",
    "is_socket",
    "unix_path",
    "with_address",
]

#: The host for connections and datagrams to an empty host, as in the kernel.  A listener on an empty host uses IPv4,
#: too.
THIS_HOST = "127.0.0.1"

#: The default address to listen on: a free port that only this machine can reach.
LOOPBACK = (THIS_HOST, 0)

_FORMS = "(host, port), or the path or abstract name ('\\0...') of a Unix socket"

#: Text that was meant as a port, or as a host and a port.  As a path, it would create a file.
_LIKE_A_PORT = re.compile(r"(?:[^/]*:)?\d+")


def is_socket(address: object) -> bool:
    """Return whether *address* is a socket of the standard library or of gevent, which have no class in common."""
    return isinstance(address, socket.socket) or (hasattr(address, "getsockname") and hasattr(address, "fileno"))


def unix_path(address: object) -> str | bytes | None:
    """Return *address* if it is a Unix socket's path or abstract name; otherwise None."""
    if isinstance(address, bytes):
        return address if is_abstract(address) else None
    return os.fspath(address) if isinstance(address, (str, os.PathLike)) else None


def is_abstract(path: str | bytes) -> bool:
    """Return whether *path* is a name in Linux's abstract namespace, which has no file."""
    return path[:1] in ("\0", b"\0")


def check_connect_address(address: Any) -> None:
    """Check an address to connect to.

    :raises TypeError: *address* has the wrong type.
    :raises ValueError: it cannot be an address.
    """
    _check_peer_address(address, "connect to")


def check_local_address(local_address: Any, address: Any) -> None:
    """Check *local_address*, the address to connect from; it can be None.  Raises as ``check_connect_address``."""
    if local_address is None:
        return
    if not isinstance(local_address, tuple):
        raise TypeError(f"local_address must be (host, port), or None; got {local_address!r}")
    try:
        _check_host(local_address)
    except (TypeError, ValueError) as error:
        raise type(error)(f"local_address: {error}") from None
    if unix_path(address) is not None:
        raise ValueError(f"local_address must be None for a Unix socket, {address!r}; got {local_address!r}")


def check_send_address(address: Any) -> None:
    """Check an address to send datagrams to.  Raises as ``check_connect_address``."""
    _check_peer_address(address, "send to")


def _check_peer_address(address: Any, purpose: str) -> None:
    if unix_path(address) is not None:
        _check_path(address)
    elif isinstance(address, tuple):
        _check_host(address)
    else:
        raise TypeError(f"an address to {purpose} must be {_FORMS}; got {address!r}")


def check_listen_address(address: Any, kind: int = socket.SOCK_STREAM) -> None:
    """Check an address to listen on.

    :param kind: the kind of socket, ``SOCK_STREAM`` or ``SOCK_DGRAM``.
    :raises TypeError: *address* has the wrong type.
    :raises ValueError: it cannot be an address, or is a socket of another kind, or not bound.
    """
    if address is None:
        return
    if is_socket(address):
        _check_socket(address, kind)
    elif unix_path(address) is not None:
        _check_path(address)
    elif isinstance(address, tuple):
        _check_host(address)
    else:
        raise TypeError(
            f"an address to listen on must be {_FORMS}, a bound socket, or None for a free port; got {address!r}"
        )


def check_listen_addresses(address: Any, dual_stack: bool, mode: object, owner: object) -> list[Any]:
    """Return the addresses to listen on for connections: the items of a list, or *address* itself.

    :raises TypeError: an address has the wrong type.
    :raises ValueError: it cannot be an address, the list is empty, or an option is for none of the addresses.
    """
    addresses = address if isinstance(address, list) else [address]
    if not addresses:
        raise ValueError("a list of addresses to listen on must not be empty; got []")
    for each in addresses:
        check_listen_address(each)
    if dual_stack and not any(_is_any_ipv6(each) for each in addresses):
        raise ValueError(f"dual_stack is for the IPv6 address '::', which stands for all; got {address!r}")
    check_has_file(addresses, mode, owner)
    return addresses


def check_has_file(addresses: list[Any], mode: object, owner: object) -> None:
    """Raise ``ValueError`` if *mode* or *owner* is given, and none of *addresses* is the path of a Unix socket."""
    name, option = ("owner", owner) if mode is None else ("mode", mode)
    if option is not None and not any((path := unix_path(each)) and not is_abstract(path) for each in addresses):
        raise ValueError(f"{name} is for the path of a Unix socket; got {option!r} for {addresses[0]!r}")


def _is_any_ipv6(address: Any) -> bool:
    """Return whether *address* has the IPv6 host that stands for all addresses of this machine."""
    try:
        return isinstance(address, tuple) and not any(socket.inet_pton(socket.AF_INET6, address[0]))
    except OSError:
        return False


def _check_socket(sock: Any, kind: int) -> None:
    if sock.type & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) != kind:
        wanted = "stream" if kind == socket.SOCK_STREAM else "datagram"
        raise ValueError(f"a socket to listen on must be a {wanted} socket; got {sock!r}")
    name = sock.getsockname()
    if not (name[1] if isinstance(name, tuple) else name):
        raise ValueError(f"a socket to listen on must be bound; got {sock!r}; call its bind first")


def _check_path(address: Any) -> None:
    path = unix_path(address)
    if path is not None and is_abstract(path):
        return
    if not isinstance(path, str):
        raise TypeError(f"the path of a Unix socket must be a str; got {address!r}")
    if not path or "\0" in path:
        raise ValueError(f"the path of a Unix socket must not be empty or contain a null character; got {address!r}")
    if isinstance(address, str) and _LIKE_A_PORT.fullmatch(address):
        raise ValueError(
            f"an address must be {_FORMS}; got {address!r}; for the path of a Unix socket, write './{address}'"
        )


def _check_host(address: tuple[Any, ...]) -> None:
    # An IPv6 socket returns its own address with four parts.
    if len(address) not in (2, 4):
        raise ValueError(f"an address must be {_FORMS}; got {address!r}")
    host, port = address[:2]
    if not isinstance(host, str):
        raise TypeError(f"the host of an address must be a str; got {host!r} in {address!r}")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(
            f"the host of an address must be a name that can be encoded; got {address!r}: {error}"
        ) from None
    if "\0" in host:
        raise ValueError(f"the host of an address must not contain a null character; got {address!r}")
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"the port of an address must be an int; got {port!r} in {address!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"the port of an address must be from 0 to 65535; got {port!r} in {address!r}")


def with_address(error: OSError, address: Any) -> OSError:
    """Return an error like *error* that names *address*."""
    message = f"{error.strerror or error}: {address!r}"
    return type(error)(message) if error.errno is None else type(error)(error.errno, message)
