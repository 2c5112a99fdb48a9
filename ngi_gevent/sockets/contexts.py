"""Checks of ``ssl.SSLContext``s, and functions that make an ``SSLObject`` with them.

This module is imported when a context is given, and not before.
"""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

from gevent.monkey import get_original

if TYPE_CHECKING:
    from ngi_gevent.sockets.tls import MakeSSLObject

__all__ = ["for_client", "for_server", "for_side"]

MAKE = "make it with ssl.create_default_context"


def for_side(ssl_context: Any, server_side: bool, server_hostname: str | None) -> MakeSSLObject:
    """Return the function that makes an ``SSLObject`` for one side of an open connection.

    :raises TypeError: *ssl_context* is not an ``ssl.SSLContext``, or *server_hostname* is not text.
    :raises ValueError: the context cannot be used for that side, or *server_hostname* is given for a server.
    """
    if ssl_context is None:
        raise TypeError("ssl_context must be an ssl.SSLContext; got None; make one with ssl.create_default_context")
    if not server_side:
        return for_client(ssl_context, "" if server_hostname is None else server_hostname)
    if server_hostname is not None:
        raise ValueError(f"server_hostname must be None with server_side=True; got {server_hostname!r}")
    return for_server(ssl_context)


def for_server(ssl_context: Any) -> MakeSSLObject:
    """Return the function that makes an ``SSLObject`` for an accepted connection.

    :raises TypeError: *ssl_context* is not an ``ssl.SSLContext``.
    :raises ValueError: it cannot be used for a server.
    """
    _check_context(ssl_context)
    if ssl_context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(f"ssl_context must be for a server; got one for clients; {MAKE}(ssl.Purpose.CLIENT_AUTH)")
    return _tried(partial(ssl_context.wrap_bio, server_side=True))


def for_client(ssl_context: Any, server_hostname: str) -> MakeSSLObject:
    """Return the function that makes an ``SSLObject`` for a connection to *server_hostname*; ``''`` for no name.

    A trailing dot (``host.``) and a scope (``fe80::1%eth0``) are not part of the name in TLS.

    :raises TypeError: *ssl_context* is not an ``ssl.SSLContext``, or *server_hostname* is not text.
    :raises ValueError: the context cannot be used for a client, does not accept the name, or needs a name.
    """
    _check_context(ssl_context)
    if ssl_context.protocol == ssl.PROTOCOL_TLS_SERVER:
        raise ValueError(f"ssl_context must be for a client; got one for servers; {MAKE}(ssl.Purpose.SERVER_AUTH)")
    if not isinstance(server_hostname, str):
        raise TypeError(f"server_hostname must be a str; got {server_hostname!r}")
    # In certificates and in the name that TLS sends, there is neither a scope nor the dot of the root.
    server_hostname = server_hostname.partition("%")[0].removesuffix(".")
    if ssl_context.check_hostname and not server_hostname:
        # Without this, an SSLObject, unlike an SSLSocket, would not check the name.
        raise ValueError(
            "server_hostname is missing, and ssl_context checks it (check_hostname); pass the name in the certificate"
        )
    return _tried(partial(ssl_context.wrap_bio, server_hostname=server_hostname or None))


def _check_context(ssl_context: Any) -> None:
    # The original class is a base of gevent's class, which replaces it under monkey-patching.
    if not isinstance(ssl_context, get_original("ssl", "SSLContext")):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, or None; got {ssl_context!r:.100}")


def _tried(make: MakeSSLObject) -> MakeSSLObject:
    """Return *make* after trying it, because only the ``ssl`` module can check the context and the name."""
    try:
        make(ssl.MemoryBIO(), ssl.MemoryBIO())
    except (ssl.SSLError, ValueError, TypeError) as error:
        raise ValueError(f"ssl_context cannot be used here: {error}") from None
    return make
