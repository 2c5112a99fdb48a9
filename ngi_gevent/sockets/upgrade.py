"""Changing to TLS on a connection that is open.

This module is imported when a context is given, and not before.
"""

from __future__ import annotations

import logging
from typing import Protocol

from ngi_gevent.core.lifecycle import FAIL, LOSE
from ngi_gevent.core.threads import Flag
from ngi_gevent.sockets.handshake import Handshake, ShakingHands
from ngi_gevent.sockets.plain import PlainTransport
from ngi_gevent.sockets.tls import MakeSSLObject, TLSTransport

__all__ = ["Upgrade"]


class Upgrading(ShakingHands, Protocol):
    """The further methods that a change to TLS calls on its connection."""

    def take_undelivered(self) -> bytes:
        """Remove and return the input that adapters or files have not delivered.  Raises RuntimeError."""

    def send_with(self, transport: TLSTransport) -> bytes:
        """Send with *transport* from now on.  Return the pending plaintext, which goes first."""

    def drop_records(self) -> None:
        """Drop the records that adapters have not delivered."""

    def handshake_is_over(self) -> None:
        """End the output if the application has called ``write_eof`` in the meantime."""

    def send_and_drop(self) -> None:
        """Send as much as the kernel takes now, such as a TLS alert, and drop the rest."""

    def _log_end(self, level: int | None = None) -> None:
        """Log why the connection is no longer open."""

    def delivers_input(self) -> bool:
        """Return whether this side has neither ended the connection nor received its end."""


class Upgrade:
    """One change to TLS.  Any greenlet of the hub can wait for it.

    It changes the output of *connection* at once, so that all later output is encrypted.

    :param plain: the transport of the connection.
    :param timeout: seconds for the handshake; None for no limit.
    :raises RuntimeError: an adapter cannot return its input.  In this case, nothing has changed.
    """

    __slots__ = ("_timeout", "done", "error", "has_begun", "transport")

    def __init__(
        self, connection: Upgrading, plain: PlainTransport, make: MakeSSLObject, timeout: float | None
    ) -> None:
        self._timeout = timeout
        received = connection.take_undelivered()
        #: The transport of the connection from now on.
        self.transport = TLSTransport(plain, make)
        self.transport.feed(received)
        self.transport.begin_behind(connection.send_with(self.transport))
        #: Whether the connection's greenlet has begun the handshake.
        self.has_begun = False
        #: Set when the handshake has succeeded or failed.
        self.done = Flag()
        #: The error of a failed handshake.
        self.error: BaseException | None = None

    def shake_hands(self, connection: Upgrading) -> None:
        """Do the handshake.  Blocks the connection's greenlet.

        A failure is logged, and ends the connection.
        """
        self.has_begun = True
        try:
            connection.drop_records()
            self.transport.feed(connection.take_undelivered())
            if connection.delivers_input():
                Handshake((self.transport,), self._timeout).on_open(connection)
        except BaseException as error:
            self._failed(connection, error)
            if not isinstance(error, OSError):
                raise
        finally:
            self.done.set()
            connection.handshake_is_over()

    def _failed(self, connection: Upgrading, error: BaseException) -> None:
        self.error = error
        if not connection.delivers_input():
            return  # the connection was ended in the meantime
        self.transport.log_failure(connection.peer_address, error, None)
        # After an error of TLS, send the alert.
        if self.transport.answers(error):
            connection.send_and_drop()
            connection.handle(FAIL, error)
        else:
            connection.handle(LOSE, error)
        connection._log_end(logging.DEBUG)  # because the failure is already in the log
