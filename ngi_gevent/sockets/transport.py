"""Which kind of connection is to be made of a socket: a plain one, or one with TLS where there is a context for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from ngi_gevent.core.address import unix_path
from ngi_gevent.core.connection import check_timeout
from ngi_gevent.sockets.stream import StreamConnection

if TYPE_CHECKING:
    from ssl import SSLContext

__all__ = [
    "CONNECT_TIMEOUT",
    "HANDSHAKE_TIMEOUT",
    "MakeConnection",
    "host_of",
    "of_clients",
    "of_servers",
]

#: Seconds for looking up a name, connecting, and the TLS handshake, in all: more than they take where all is well, even
#: over a line that loses packets, and less than the two minutes or more of the system's own patience.
CONNECT_TIMEOUT = 60.0

#: Seconds for the TLS handshake with a client.  It takes two round trips, so this is plenty for a slow line that loses
#: packets, and so little that strangers who connect and say nothing do not pile up.
HANDSHAKE_TIMEOUT = 10.0

#: Called with a socket, the address of the peer, the owner, and for servers with the listener and the output limit.
MakeConnection: TypeAlias = Callable[..., StreamConnection]


def of_clients(
    host: str,
    *,
    ssl_context: SSLContext | None = None,
    server_hostname: str | None = None,
    timeout: float | None = CONNECT_TIMEOUT,
) -> MakeConnection:
    """What makes connections to *host*; raises ``TypeError`` or ``ValueError`` for options that cannot be."""
    check_timeout(timeout)
    if ssl_context is not None:
        # Not before: who imports the package and patches ssl afterwards must not find it in use.
        from ngi_gevent.sockets import tls

        return tls.client_side(ssl_context, host if server_hostname is None else server_hostname)
    if server_hostname is not None:
        raise ValueError(f"server_hostname is for TLS, and there is no ssl_context; got {server_hostname!r}")
    return StreamConnection


def of_servers(ssl_context: SSLContext | None, handshake_timeout: float | None) -> MakeConnection:
    """What makes connections that were accepted; raises ``TypeError`` or ``ValueError`` for options that cannot be."""
    check_timeout(handshake_timeout, "handshake_timeout")
    if ssl_context is not None:
        from ngi_gevent.sockets import tls

        return tls.server_side(ssl_context, handshake_timeout)
    return StreamConnection


def host_of(address: Any) -> str:
    """The name to expect in the certificate of who is at *address*; a Unix socket has none."""
    return "" if unix_path(address) is not None else address[0]
