"""The functions that make connections on sockets, with or without TLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from ngi_gevent.core.address import unix_path
from ngi_gevent.core.checks import as_timeout
from ngi_gevent.core.connection import HANDSHAKE_TIMEOUT
from ngi_gevent.sockets.plain import PlainTransport, Transport
from ngi_gevent.sockets.stream import StreamConnection

if TYPE_CHECKING:
    from ssl import SSLContext

    from ngi_gevent.core.options import ConnectionOptions
    from ngi_gevent.interfaces import ProxyNetworks
    from ngi_gevent.proxy_protocol import TrustedProxies
    from ngi_gevent.sockets.crowd import Crowd
    from ngi_gevent.sockets.network import Network, Socket
    from ngi_gevent.sockets.tls import MakeSSLObject

__all__ = [
    "CONNECT_TIMEOUT",
    "HANDSHAKE_TIMEOUT",
    "MakeConnection",
    "client_factory",
    "host_of",
    "server_factory",
]

#: Seconds for looking up a name, connecting, and the TLS handshake together.  This is enough for a line that loses
#: packets, and less than the two minutes or more for which the kernel would try.
CONNECT_TIMEOUT = 60.0

#: Called with the network, a socket, the address of the peer, the owner, and for servers with the listener.
MakeConnection: TypeAlias = Callable[..., StreamConnection]


def client_factory(
    host: str,
    options: ConnectionOptions,
    ssl_context: SSLContext | None,
    server_hostname: str | None,
    proxy_header: bytes | None = None,
) -> MakeConnection:
    """Return the function that makes connections to *host*.

    :raises TypeError: an option has the wrong type.
    :raises ValueError: an option cannot be used, or not together with the others.
    """
    make_ssl_object = None
    if ssl_context is not None:
        # Not earlier, because programs may import the package, and patch ssl afterwards.
        from ngi_gevent.sockets import contexts

        name = host if server_hostname is None else server_hostname
        make_ssl_object = contexts.for_client(ssl_context, name)
    elif server_hostname is not None:
        raise ValueError(f"server_hostname needs an ssl_context, for TLS; got {server_hostname!r}")
    if proxy_header is not None:
        from ngi_gevent.proxy_protocol import check_header

        check_header(proxy_header)
    return _connections(options, make_ssl_object, first=proxy_header)


def server_factory(
    options: ConnectionOptions,
    ssl_context: SSLContext | None,
    handshake_timeout: float | None,
    proxy_protocol: ProxyNetworks | None,
    crowd: Crowd,
) -> MakeConnection:
    """Return the function that makes connections on accepted sockets, for *crowd*, the clients of the listener.

    :raises TypeError: an option has the wrong type.
    :raises ValueError: an option cannot be used.
    """
    handshake_timeout = crowd.within_lifetime(as_timeout(handshake_timeout, "handshake_timeout"))
    make_ssl_object = trusted = None
    if ssl_context is not None:
        from ngi_gevent.sockets import contexts

        make_ssl_object = contexts.for_server(ssl_context)
    if proxy_protocol is not None:
        # Not earlier, because most programs need neither this nor ``ipaddress``.
        from ngi_gevent.proxy_protocol import TrustedProxies

        trusted = TrustedProxies(proxy_protocol)
    return _connections(options, make_ssl_object, trusted, handshake_timeout, crowd)


def _connections(
    options: ConnectionOptions,
    make_ssl_object: MakeSSLObject | None,
    trusted: TrustedProxies | None = None,
    timeout: float | None = None,
    crowd: Crowd | None = None,
    first: bytes | None = None,
) -> MakeConnection:
    """Return the function that makes connections.

    :param first: output to send before everything else, even before TLS.
    """

    def make_plain(network: Network, sock: Socket, *arguments: Any) -> StreamConnection:
        connection = StreamConnection(PlainTransport(network, sock), options, *arguments)
        if first is not None:
            connection.write(first)
        return connection

    if make_ssl_object is None and trusted is None:
        return make_plain
    from ngi_gevent.sockets.handshake import Handshake, Step

    if make_ssl_object is not None:
        from ngi_gevent.sockets.tls import TLSTransport
    if trusted is not None:
        from ngi_gevent.sockets.proxy_header import ProxyHeader

    def make_connection(network: Network, sock: Socket, *arguments: Any) -> StreamConnection:
        transport: Transport
        transport = plain = PlainTransport(network, sock)
        steps: list[Step] = []
        if make_ssl_object is not None:
            transport = tls = TLSTransport(plain, make_ssl_object)
            steps.append(tls)
            if first is not None:
                tls.send_first(first)
        connection = StreamConnection(transport, options, *arguments)
        if trusted is not None and crowd is not None:
            steps.insert(0, ProxyHeader(connection, plain, trusted, crowd))
        connection.shake_hands_first(Handshake(tuple(steps), timeout, crowd))
        return connection

    return make_connection


def host_of(address: Any) -> str:
    """Return the name to expect in the certificate of the server at *address*; ``''`` for a Unix socket."""
    return "" if unix_path(address) is not None else address[0]
