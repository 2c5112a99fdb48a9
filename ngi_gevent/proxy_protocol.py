"""The PROXY protocol, versions 1 and 2: the header with which a proxy names the client of a connection.

The peer of a connection through a load balancer is the balancer.  So the balancer first sends a header, even before
TLS.  It contains the address of the client, and the address that the client connected to.

* A listener takes headers with the option ``proxy_protocol``.
* A client, such as your own proxy, sends one with the option ``proxy_header`` of ``connect``, made by
  :func:`header`.

Nothing in this module does input or output.  The specification is HAProxy's ``proxy-protocol.txt``.  Extensions of
version 2 (TLVs) are skipped.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

__all__ = ["Header", "header", "parse"]

#: Bytes of the longest header of version 1, which is a line, and of the longest one of version 2 that is accepted.
LONGEST_LINE, LONGEST = 107, 4096

#: The member of ``proxy_protocol`` that stands for all peers on Unix sockets.
UNIX = "unix"

# Version 1.
LINE_START = b"PROXY "
FAMILIES = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}
PORT = re.compile(rb"0|[1-9][0-9]{0,4}")

# Version 2.
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FIXED = struct.Struct("!12sBBH")  # the signature; version and command; family and protocol; size of the rest
VERSION_2, LOCAL, PROXY, STREAM = 0x20, 0, 1, 1
INET, INET6, UNIX_FAMILY = 0x10, 0x20, 0x30
ADDRESSES = {INET: struct.Struct("!4s4sHH"), INET6: struct.Struct("!16s16sHH"), UNIX_FAMILY: struct.Struct("!108s108s")}

#: What an IPv4 address begins with as an IPv6 address.
MAPPED = bytes(10) + b"\xff\xff"
MAPPED_NETWORK = IPv6Network("::ffff:0:0/96")


class Header(NamedTuple):
    """A header, as :func:`parse` returns it.

    Addresses have the form that sockets use: ``(host, port)`` for IPv4, four parts for IPv6, the path of a Unix socket,
    ``''`` for a Unix socket without a path.  Both are None if the header does not name a client.  Then the proxy made
    the connection for itself, for example to check whether the server is alive (LOCAL), or does not have the client's
    address (UNKNOWN).

    :ivar source: the address of the client.
    :ivar destination: the address that the client connected to.
    :ivar size: the number of bytes of the header.  The connection's data follows.
    """

    source: Any
    destination: Any
    size: int


def parse(data: bytes) -> Header | None:
    """Return the header at the beginning of *data*; None if more data is needed.

    Raises at the first byte that does not fit a header.  Never needs more than ``LONGEST`` bytes.

    :raises ValueError: *data* does not begin with a header.
    """
    if data.startswith(LINE_START):
        return _parse_line(data)
    if data.startswith(SIGNATURE):
        return _parse_binary(data)
    if LINE_START.startswith(data) or SIGNATURE.startswith(data):
        return None
    raise ValueError(f"a PROXY header must begin with {LINE_START!r} or {SIGNATURE!r}; got {data[:20]!r}")


def _parse_line(data: bytes) -> Header | None:
    newline = data.find(b"\n", 0, LONGEST_LINE)
    if newline < 0:
        if len(data) >= LONGEST_LINE:
            raise ValueError(f"a PROXY line must end within {LONGEST_LINE} bytes; got {data[:LONGEST_LINE]!r}")
        return None
    line, size = data[: newline - 1], newline + 1
    if data[newline - 1 : size] != b"\r\n":
        raise ValueError(f"a PROXY line must end in CR and LF; got {data[:size]!r}")
    protocol, *parts = line[len(LINE_START) :].split(b" ")
    if protocol == b"UNKNOWN":
        return Header(None, None, size)
    family = FAMILIES.get(protocol)
    if family is None or len(parts) != 4 or not all(map(PORT.fullmatch, parts[2:])):
        raise ValueError(f"a PROXY line must have a protocol, two addresses and two ports; got {line!r}")
    try:
        packed = [socket.inet_pton(family, part.decode("ascii")) for part in parts[:2]]
    except (OSError, ValueError):
        raise ValueError(f"the addresses of a PROXY line must be {protocol.decode()} addresses; got {line!r}") from None
    ports = [int(part) for part in parts[2:]]
    if max(ports) > 65535:
        raise ValueError(f"the ports of a PROXY line must be from 0 to 65535; got {line!r}")
    return Header(_address(packed[0], ports[0]), _address(packed[1], ports[1]), size)


def _parse_binary(data: bytes) -> Header | None:
    if len(data) < FIXED.size:
        return None
    _, version_and_command, family_and_protocol, size = FIXED.unpack_from(data)
    version, command = version_and_command & 0xF0, version_and_command & 0x0F
    if version != VERSION_2 or command not in (LOCAL, PROXY):
        raise ValueError(f"version and command of a PROXY header must be 0x20 or 0x21; got {version_and_command:#04x}")
    size += FIXED.size
    if size > LONGEST:
        raise ValueError(f"a PROXY header must have at most {LONGEST} bytes; got {size}")
    family, protocol = family_and_protocol & 0xF0, family_and_protocol & 0x0F
    if command == LOCAL:
        addresses = None
    elif family > UNIX_FAMILY or protocol > 2:
        raise ValueError(f"a PROXY header must have a known family and protocol; got {family_and_protocol:#04x}")
    else:
        addresses = ADDRESSES.get(family) if protocol else None
    if addresses is not None and size < FIXED.size + addresses.size:
        raise ValueError(f"the addresses of a PROXY header must take {addresses.size} bytes; got {size - FIXED.size}")
    if len(data) < size:
        return None
    if addresses is None:
        return Header(None, None, size)
    source, destination, *ports = addresses.unpack_from(data, FIXED.size)
    if family == UNIX_FAMILY:
        return Header(_path(source), _path(destination), size)
    return Header(_address(source, ports[0]), _address(destination, ports[1]), size)


def _address(packed: bytes, port: int) -> tuple[Any, ...]:
    """Return an IP address in the form that sockets have."""
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed), port
    return socket.inet_ntop(socket.AF_INET6, packed), port, 0, 0


def _path(padded: bytes) -> str | bytes:
    """Return the address of a Unix socket in the form that sockets have: an abstract name is bytes."""
    if padded[:1] == b"\0":
        name = padded.rstrip(b"\0")
        return name or ""
    return os.fsdecode(padded.partition(b"\0")[0])


def header(source: Any, destination: Any = None, *, version: int = 2) -> bytes:
    """Return a header for a connection that is made on behalf of a client::

        ngi_gevent.connect(backend, handler, proxy_header=header(client.peer_address, client.local_address))

    If one address is IPv4 and the other one IPv6, both are written as IPv6.  A destination that cannot be written
    beside the source, such as the path of a Unix socket beside an IP address, is left out: all its bytes are 0.
    Version 1 does not have Unix sockets, so the header for them is UNKNOWN.

    :param source: the address of the client, as in ``peer_address``.  None for a connection that the program makes for
        itself: the header then names no client.
    :param destination: the address that the client connected to, as in ``local_address``; None, the default, to leave
        it out.  Leave it out if the client's connection has a ``proxy_address``: the client connected to that proxy, at
        an address that the connection does not have.
    :param version: 1 or 2; 2 by default.
    :raises TypeError: an address has the wrong type.
    :raises ValueError: *version* is not 1 or 2, or an address cannot be written.  Its host is a name, for example, as
        in the addresses that the implementation in memory chooses.
    """
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2; got {version!r}")
    if source is None:
        return b"PROXY UNKNOWN\r\n" if version == 1 else FIXED.pack(SIGNATURE, VERSION_2 | LOCAL, 0, 0)
    packed, port = _pack(source, "source")
    there, port_there = (b"", 0) if destination is None else _pack(destination, "destination")
    if port is None:
        return _unix_header(packed, there if port_there is None else b"", version)
    if port_there is None or not there:
        there, port_there = bytes(len(packed)), 0
    elif len(there) != len(packed):
        packed, there = (MAPPED + each if len(each) == 4 else each for each in (packed, there))
    family = INET if len(packed) == 4 else INET6
    if version == 2:
        return _binary(family, packed, there, port, port_there)
    hosts = [_address(each, 0)[0] for each in (packed, there)]
    return f"PROXY TCP{4 if family == INET else 6} {hosts[0]} {hosts[1]} {port} {port_there}\r\n".encode()


def _unix_header(source: bytes, destination: bytes, version: int) -> bytes:
    return b"PROXY UNKNOWN\r\n" if version == 1 else _binary(UNIX_FAMILY, source, destination)


def _binary(family: int, *parts: Any) -> bytes:
    addresses = ADDRESSES[family].pack(*parts)
    return FIXED.pack(SIGNATURE, VERSION_2 | PROXY, family | STREAM, len(addresses)) + addresses


def _pack(address: Any, name: str) -> tuple[bytes, int | None]:
    """Return the bytes of *address*, and its port; None for a Unix socket."""
    if isinstance(address, (str, bytes, os.PathLike)):
        path = os.fsencode(address)
        if len(path) > 108:
            raise ValueError(f"{name} must be a path of at most 108 bytes; got {address!r}")
        return path, None
    if not isinstance(address, tuple) or len(address) not in (2, 4):
        raise TypeError(f"{name} must be an address like peer_address; got {address!r}")
    host, port = address[:2]
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"{name} must have a host as text and a port as an int; got {address!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"the port of {name} must be from 0 to 65535; got {address!r}")
    try:
        return ip_address(host.partition("%")[0]).packed, port
    except ValueError:
        raise ValueError(
            f"the host of {name} must be an IP address; got {address!r}; in memory, choose addresses with IP hosts"
        ) from None


def check_header(data: Any) -> None:
    """Check the option ``proxy_header``: a whole header, and nothing else.

    :raises TypeError: *data* is not bytes.
    :raises ValueError: *data* is not a header.
    """
    if not isinstance(data, bytes):
        raise TypeError(f"proxy_header must be bytes from proxy_protocol.header, or None; got {data!r:.100}")
    try:
        parsed = parse(data)
    except ValueError as error:
        raise ValueError(f"proxy_header: {error}") from None
    if parsed is None or parsed.size != len(data):
        raise ValueError(f"proxy_header must be exactly one header; got {data!r:.200}")


def source_of(data: bytes) -> Any:
    """Return the address of the client in *data*, which ``check_header`` has checked."""
    parsed = parse(data)
    return None if parsed is None else parsed.source


class TrustedProxies:
    """The proxies whose headers a listener believes: the option ``proxy_protocol``.

    :param networks: networks, and ``'unix'`` for all peers on Unix sockets.
    :raises TypeError: *networks* is not a list or another collection, or a member has the wrong type.
    :raises ValueError: *networks* is empty, or a member is not a network.
    """

    __slots__ = ("_has_unix", "_networks")

    def __init__(self, networks: Collection[str | IPv4Network | IPv6Network]) -> None:
        if isinstance(networks, (str, bytes)) or not isinstance(networks, Collection):
            raise TypeError(f"proxy_protocol must be a list of networks, or None; got {networks!r:.100}")
        if not networks:
            raise ValueError(f"proxy_protocol must name at least one network; got {networks!r}")
        self._has_unix = UNIX in networks
        self._networks = tuple(_network(each) for each in networks if each != UNIX)

    def are_trusted_at(self, address: Any) -> bool:
        """Return whether the peer at *address*, as ``peer_address`` has it, is one of them."""
        if not isinstance(address, tuple):
            return self._has_unix
        host = ip_address(address[0].partition("%")[0])
        host = getattr(host, "ipv4_mapped", None) or host  # of a listener with ``dual_stack``
        return any(host in network for network in self._networks)


def _network(value: Any) -> IPv4Network | IPv6Network:
    if isinstance(value, (IPv4Network, IPv6Network)):
        network = value
    elif not isinstance(value, str):
        raise TypeError(f"proxy_protocol must have networks such as '10.0.0.0/8', or 'unix'; got {value!r:.100}")
    else:
        try:
            network = ip_network(value)
        except ValueError as error:
            message = f"proxy_protocol must have networks such as '10.0.0.0/8', or 'unix': {error}"
            raise ValueError(message) from None
    if isinstance(network, IPv6Network) and network.subnet_of(MAPPED_NETWORK):
        raise ValueError(f"proxy_protocol must have IPv4 networks in IPv4 notation; got {value!r:.100}")
    return network
