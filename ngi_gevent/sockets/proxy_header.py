"""Receiving the PROXY header of a connection, which comes before TLS.

The header is peeked at before it is received, so everything behind it stays in the kernel.  The connection then reads
from its socket as if there had been no header.

This module is imported when a listener has ``proxy_protocol``, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ngi_gevent.core import logs
from ngi_gevent.proxy_protocol import LONGEST, TrustedProxies, parse
from ngi_gevent.sockets.handshake import NotAdmitted, Refused
from ngi_gevent.sockets.plain import PlainTransport

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason
    from ngi_gevent.sockets.crowd import Crowd

__all__ = ["ProxyHeader"]


class Proxied(Protocol):
    """The members of a connection that the step of the PROXY header uses."""

    peer_address: Any

    def name_client(self, address: Any) -> None:
        """Note that the peer is a proxy for the client at *address*; None if the proxy did not name the client."""


class ProxyHeader:
    """The first step of a handshake, in which a trusted peer sends a header."""

    __slots__ = ("_begun", "_connection", "_crowd", "_plain", "_trusted")

    hint_if_late: ClassVar = ""

    def __init__(self, connection: Proxied, plain: PlainTransport, trusted: TrustedProxies, crowd: Crowd) -> None:
        self._connection: Proxied | None = connection  # until it is done
        self._plain = plain
        self._trusted = trusted
        self._crowd = crowd
        self._begun = b""  # the part of the header that has been received

    def shake_hands(self) -> bool:
        """Return whether the header was received.

        :raises Refused: the peer is not trusted.
        """
        if self._connection is None:
            return True
        if not self._trusted.are_trusted_at(self._connection.peer_address):
            raise Refused("the peer is not in a network of proxy_protocol")
        return False

    def receive_in_handshake(self, size: int) -> bool:
        """Receive the available part of the header, and leave everything behind it.  Return whether there was some.

        :raises OSError: the connection broke, or ended, or the input is not a header.
        """
        try:
            data = self._plain.peek(LONGEST)
        except BlockingIOError:
            return False
        if not data:
            raise Refused(f"the connection ended after {len(self._begun)} bytes")
        try:
            header = parse(self._begun + data)
        except ValueError as error:
            raise Refused(str(error)) from None
        if header is None:
            self._begun += self._plain.recv(len(data))
            return True
        self._plain.recv(header.size - len(self._begun))
        self._begun = b""
        if self._connection is not None:
            self._connection.name_client(header.source)
            if header.source is not None and not self._crowd.admits_client(self._connection, header.source):
                raise NotAdmitted
            self._connection = None
        return True

    def has_input(self) -> bool:
        return self._plain.has_input()

    def answers(self, error: BaseException) -> bool:
        return False

    def log_failure(self, peer: Any, reason: Reason, limit: logs.RateLimit | None) -> None:
        logs.connections.info(
            "connection with %r: no valid PROXY header: %s", peer, logs.format_reason(reason), limit=limit
        )
