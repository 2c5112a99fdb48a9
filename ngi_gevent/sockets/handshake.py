"""The TLS handshake of a connection, on the connection's greenlet, within a limit of time."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from gevent import Timeout

from ngi_gevent.core import clock, logs
from ngi_gevent.core.lifecycle import FAIL, HANDSHAKE_DONE, HANDSHAKE_FAILED, LOSE, STOPPED, Lifecycle
from ngi_gevent.core.threads import Flag
from ngi_gevent.errors import Timeout as TimedOut
from ngi_gevent.sockets.plain import RECEIVE_SIZE
from ngi_gevent.sockets.tls import MakeSSLObject, TLSTransport

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason

__all__ = ["Handshake", "Upgrade"]


class ShakingHands(Protocol):
    """What a handshake asks of its connection."""

    _lifecycle: Lifecycle
    peer_address: Any

    def shake_hands(self) -> None:
        """Run the handshake on the calling greenlet.  Raises ``OSError``."""

    def wait_for_input(self) -> None:
        """Wait until there is input.  Raises ``OSError`` if the connection was stopped."""

    def handle_transport_events(self) -> None:
        """Send messages of TLS itself."""

    def is_live(self) -> bool:
        """Return whether the connection has not ended."""

    def is_of_parent(self) -> bool:
        """Return whether it belongs to the process that this one was forked from."""

    def handle(self, event: str, reason: Reason | None = None) -> None:
        """Feed the lifecycle an event, and do what a new state asks for."""

    def end_callbacks(self) -> None:
        """Note that no callback will run from now on."""


class Handshake:
    """The handshake of one connection.

    :param timeout: seconds for a handshake with a client; None for no limit.
    :param failures: the rate limit of log entries for failed handshakes with clients.
    """

    __slots__ = ("_extension", "_failures", "_timeout", "_transport")

    def __init__(
        self, transport: TLSTransport, timeout: float | None = None, failures: logs.RateLimit | None = None
    ) -> None:
        self._transport = transport
        self._timeout = timeout
        self._failures = failures
        self._extension: Timeout | None = None

    def with_client(self, connection: ShakingHands, begin: Callable[[Any], object]) -> object:
        """Shake hands, then return ``begin(connection)``.  A handshake that fails is logged, and that is all."""
        reason: Any = None
        try:
            with Timeout(self._timeout):
                connection.shake_hands()
        except Timeout:
            reason = f"it was not done after {self._timeout} seconds"
        except OSError as error:
            reason = error
        if reason is None:
            return begin(connection)
        if connection.is_of_parent():
            return None
        logs.connections.info(
            "connection with %r: the TLS handshake failed: %s",
            *(connection.peer_address, logs.format_reason(reason)),
            limit=self._failures,
        )
        return None

    def on_open(self, connection: ShakingHands) -> None:
        """Shake hands on a connection that is open already.  Blocks the greenlet.

        :raises OSError: the handshake failed, or the connection ended.
        :raises Timeout: it was not done in time.
        """
        try:
            with Timeout(self._timeout):
                self._shake_hands(connection)
        finally:
            if self._extension is not None:
                self._extension.close()

    def run(self, connection: ShakingHands) -> None:
        """Shake hands.  Blocks the greenlet.

        :raises OSError: the handshake failed, or the connection ended.
        """
        try:
            self._shake_hands(connection)
        except BaseException as error:
            connection.end_callbacks()
            # The peer may learn why TLS failed.
            connection.handle(HANDSHAKE_FAILED if isinstance(error, ssl.SSLError) else LOSE)
            raise
        finally:
            if self._extension is not None:
                self._extension.close()
        connection.handle(HANDSHAKE_DONE)

    def _shake_hands(self, connection: ShakingHands) -> None:
        latest = began = clock.now()
        while not self._step(connection):
            try:
                connection.wait_for_input()
            except Timeout as timeout:
                self._extend(timeout, connection, stalled=latest - began > (timeout.seconds or 0.0))
            try:
                has_received = self._transport.receive_in_handshake(RECEIVE_SIZE)
            except ssl.SSLEOFError:
                _check_output(connection)
                raise
            if has_received:
                latest = clock.now()
            else:
                _check_output(connection)

    def _step(self, connection: ShakingHands) -> bool:
        try:
            return self._transport.shake_hands()
        finally:
            connection.handle_transport_events()

    def _extend(self, timeout: Timeout, connection: ShakingHands, *, stalled: bool) -> None:
        """Go on once more after *timeout*, if input that came in time may have been received only now, or not yet.

        That is so after a stall of the whole process.
        """
        if not connection.is_live():  # it was stopped in the same turn
            raise ConnectionAbortedError(errno.ECONNABORTED, STOPPED) from None
        if self._extension is not None or not (stalled or self._transport.has_input()):
            raise timeout
        self._extension = Timeout.start_new(timeout.seconds or 0.0)


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
            Handshake(transport, self._timeout).on_open(connection)
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


def _check_output(connection: ShakingHands) -> None:
    """Raise the error of sending, if it has failed."""
    error = connection._lifecycle.output_error
    if error is not None:
        raise error
