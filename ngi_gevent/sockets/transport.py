"""Connections of sockets, with or without TLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from ngi_gevent.core import logs
from ngi_gevent.core.address import unix_path
from ngi_gevent.core.checks import as_timeout
from ngi_gevent.core.connection import HANDSHAKE_TIMEOUT
from ngi_gevent.sockets.plain import PlainTransport
from ngi_gevent.sockets.stream import StreamConnection

if TYPE_CHECKING:
    from ssl import SSLContext

    from ngi_gevent.core.options import ConnectionOptions
    from ngi_gevent.sockets.network import Network, Socket
    from ngi_gevent.sockets.tls import MakeSSLObject

__all__ = [
    "CONNECT_TIMEOUT",
    "HANDSHAKE_TIMEOUT",
    "MOST_FAILED",
    "MakeConnection",
    "client_factory",
    "host_of",
    "server_factory",
]

#: Seconds for looking up a name, connecting, and the TLS handshake, in all.  That is more than they take on a line that
#: loses packets, and less than the two minutes or more that the kernel would try.
CONNECT_TIMEOUT = 60.0

#: Failed handshakes with clients of one listener that are logged in ``logs.RATE_PERIOD`` seconds.
MOST_FAILED = 10

#: Called with the network, a socket, the address of the peer, the owner, and for servers with the listener.
MakeConnection: TypeAlias = Callable[..., StreamConnection]


def client_factory(
    host: str, options: ConnectionOptions, ssl_context: SSLContext | None, server_hostname: str | None
) -> MakeConnection:
    """Return the function that makes connections to *host*.

    :raises TypeError: an option has the wrong type.
    :raises ValueError: an option cannot be used, or not with the others.
    """
    if ssl_context is not None:
        # Not before: programs that import the package and patch ssl afterwards must not find it in use.
        from ngi_gevent.sockets import contexts

        name = host if server_hostname is None else server_hostname
        return _tls_connections(contexts.for_client(ssl_context, name), options)
    if server_hostname is not None:
        raise ValueError(f"server_hostname is for TLS, and there is no ssl_context; got {server_hostname!r}")
    return _plain_connections(options)


def server_factory(
    options: ConnectionOptions, ssl_context: SSLContext | None, handshake_timeout: float | None
) -> MakeConnection:
    """Return the function that makes connections of accepted sockets.

    :raises TypeError: an option has the wrong type.
    :raises ValueError: an option cannot be used.
    """
    handshake_timeout = as_timeout(handshake_timeout, "handshake_timeout")
    if ssl_context is not None:
        from ngi_gevent.sockets import contexts

        failures = logs.RateLimit(MOST_FAILED)
        return _tls_connections(contexts.for_server(ssl_context), options, handshake_timeout, failures)
    return _plain_connections(options)


def _plain_connections(options: ConnectionOptions) -> MakeConnection:
    def make_connection(network: Network, sock: Socket, *arguments: Any) -> StreamConnection:
        return StreamConnection(PlainTransport(network, sock), options, *arguments)

    return make_connection


def _tls_connections(
    make: MakeSSLObject,
    options: ConnectionOptions,
    timeout: float | None = None,
    failures: logs.RateLimit | None = None,
) -> MakeConnection:
    from ngi_gevent.sockets.handshake import Handshake
    from ngi_gevent.sockets.tls import TLSTransport

    def make_connection(network: Network, sock: Socket, *arguments: Any) -> StreamConnection:
        transport = TLSTransport(PlainTransport(network, sock), make)
        connection = StreamConnection(transport, options, *arguments)
        connection.shake_hands_first(Handshake(transport, timeout, failures))
        return connection

    return make_connection


def host_of(address: Any) -> str:
    """Return the name to expect in the certificate of the server at *address*; a Unix socket has none."""
    return "" if unix_path(address) is not None else address[0]
