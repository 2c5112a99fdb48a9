"""Changing to TLS on a connection that is open.

This module is imported when a context is given, and not before.
"""

from __future__ import annotations

import ssl
from typing import Any

from gevent import Timeout

from ngi_gevent.core import logs
from ngi_gevent.core.lifecycle import FAIL, LOSE
from ngi_gevent.core.threads import Flag
from ngi_gevent.errors import Timeout as TimedOut
from ngi_gevent.sockets.handshake import Handshake
from ngi_gevent.sockets.tls import MakeSSLObject, TLSTransport

__all__ = ["Upgrade"]


class Upgrade:
    """One change to TLS, which any greenlet of the hub can wait for."""

    __slots__ = ("_make", "_timeout", "done", "error", "has_begun")

    def __init__(self, make: MakeSSLObject, timeout: float | None) -> None:
        self._make = make
        self._timeout = timeout
        #: Whether no plaintext is received any more.
        self.has_begun = False
        #: Set when the handshake is over, however it ended.
        self.done = Flag()
        #: Why it failed.
        self.error: BaseException | None = None

    def run(self, connection: Any) -> None:
        """Change the transport of *connection*, and shake hands.  Blocks the connection's greenlet.

        A failure is logged, and ends the connection.
        """
        self.has_begun = True
        transport = TLSTransport(connection.plain_transport(), self._make)
        connection.change_transport(transport)
        try:
            Handshake((transport,), self._timeout).on_open(connection)
        except Timeout:
            self._failed(connection, TimedOut(f"the TLS handshake was not done after {self._timeout} seconds"))
        except OSError as error:
            self._failed(connection, error)
        finally:
            self.done.set()

    def _failed(self, connection: Any, error: OSError | TimedOut) -> None:
        self.error = error
        if not connection.delivers_input():
            return  # it was ended meanwhile
        logs.connections.info(
            "connection with %r: the TLS handshake failed: %s", connection.peer_address, logs.format_reason(error)
        )
        # After an error of TLS, the peer may learn why.
        connection.handle(FAIL if isinstance(error, ssl.SSLError) else LOSE, error)
