"""The handshake of a connection, on its greenlet: the input that must arrive before the connection is open.

It has one or two steps within one timeout: the PROXY header, and the TLS handshake.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from gevent import Timeout

from ngi_gevent.core import clock, logs
from ngi_gevent.core.lifecycle import HANDSHAKE_DONE, HANDSHAKE_FAILED, LOSE, STOPPED, Lifecycle
from ngi_gevent.errors import Timeout as TimedOut
from ngi_gevent.sockets.plain import RECEIVE_SIZE

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason
    from ngi_gevent.sockets.crowd import Crowd

__all__ = ["Handshake", "NotAdmitted", "Refused", "ShakingHands", "Step"]


class Refused(ConnectionAbortedError):
    """The error for a peer that sent something unexpected.  The log shows its message only."""


class NotAdmitted(ConnectionAbortedError):
    """The error for a proxy's client beyond the listener's limits, which have logged it."""


class ShakingHands(Protocol):
    """The methods that a handshake calls on its connection."""

    _lifecycle: Lifecycle
    peer_address: Any

    def shake_hands(self) -> None:
        """Run the handshake on the calling greenlet.  Raises ``OSError``."""

    def wait_for_input(self) -> None:
        """Wait until there is input.  Raises ``OSError`` if the connection was stopped."""

    def handle_transport_events(self) -> None:
        """Send TLS's own messages."""

    def is_live(self) -> bool:
        """Return whether the connection has not ended."""

    def is_of_parent(self) -> bool:
        """Return whether the connection belongs to the parent of this forked process."""

    def handle(self, event: str, reason: Reason | None = None) -> None:
        """Pass *event* to the lifecycle, and act on a new state."""

    def end_callbacks(self) -> None:
        """Note that all callbacks are over."""


class Step(Protocol):
    """One step of a handshake, whose methods do not block."""

    #: The likely mistake of a client that does not finish the step in time, for the log; or nothing.
    hint_if_late: ClassVar[str]

    def shake_hands(self) -> bool:
        """Continue.  Return whether the step is done; otherwise it needs input.  Raises ``OSError`` if it failed."""

    def receive_in_handshake(self, size: int) -> bool:
        """Receive input.  Return whether there was some.

        :raises OSError: the connection broke, or ended, or the step failed.
        """

    def has_input(self) -> bool:
        """Return whether the kernel has input, or its end."""

    def answers(self, error: BaseException) -> bool:
        """Return whether pending output reports *error* to the peer."""

    def log_failure(self, peer: Any, reason: Reason, limit: logs.RateLimit | None) -> None:
        """Log that the step failed with the client *peer*, for *reason*."""


class Handshake:
    """The handshake of one connection.

    :param steps: its steps, in their order.
    :param timeout: seconds for all steps with a client; None for no limit.
    :param crowd: the clients of the listener, for a handshake with one of them.
    """

    __slots__ = ("_crowd", "_extension", "_limit", "_step", "_steps", "_timeout")

    def __init__(self, steps: tuple[Step, ...], timeout: float | None = None, crowd: Crowd | None = None) -> None:
        self._steps = steps
        self._step = steps[0]
        self._timeout = timeout
        self._crowd = crowd
        self._limit: Timeout | None = None  # for a handshake in a callback, which can have other timeouts
        self._extension: Timeout | None = None

    def with_client(self, connection: ShakingHands, begin: Callable[[Any], object]) -> object:
        """Do the handshake, then return ``begin(connection)``.  A failed handshake is only logged."""
        assert self._crowd is not None
        reason: Any = None
        try:
            with self._crowd.handshake(), Timeout(self._timeout):
                connection.shake_hands()
        except Timeout:
            reason = f"the client did not finish it within {self._timeout} seconds{self._step.hint_if_late}"
        except NotAdmitted:
            return None
        except OSError as error:
            reason = str(error) if isinstance(error, Refused) else error
        if reason is None:
            return begin(connection)
        if connection.is_of_parent():
            return None
        if getattr(reason, "strerror", None) == STOPPED:  # by this side, so it has not failed
            logs.connections.debug("connection with %r: stopped during the handshake", connection.peer_address)
        else:
            self._crowd.counters.failed_handshakes += 1
            self._step.log_failure(connection.peer_address, reason, self._crowd.failures)
        return None

    def on_open(self, connection: ShakingHands) -> None:
        """Do the handshake on an open connection.  Blocks the greenlet.

        :raises OSError: the handshake failed or timed out, or the connection ended.
        """
        # Output that was written in the meantime has begun the handshake, and TLS reports only once why that failed.
        _check_output(connection)
        self._limit = Timeout(self._timeout)
        try:
            with self._limit:
                self._take_steps(connection)
        except Timeout as timeout:
            if timeout is self._limit or timeout is self._extension:
                raise TimedOut(
                    f"the TLS handshake did not finish within {self._timeout} seconds; does the peer use TLS?"
                ) from None
            raise
        finally:
            if self._extension is not None:
                self._extension.close()

    def run(self, connection: ShakingHands) -> None:
        """Do the handshake.  Blocks the greenlet.

        :raises OSError: the handshake failed, or the connection ended.
        """
        try:
            self._take_steps(connection)
        except BaseException as error:
            connection.end_callbacks()
            connection.handle(HANDSHAKE_FAILED if self._step.answers(error) else LOSE)
            raise
        finally:
            if self._extension is not None:
                self._extension.close()
        connection.handle(HANDSHAKE_DONE)

    def _take_steps(self, connection: ShakingHands) -> None:
        latest = began = clock.now()
        for step in self._steps:
            self._step = step
            while not self._go_on(step, connection):
                try:
                    connection.wait_for_input()
                except Timeout as timeout:
                    self._extend(timeout, connection, stalled=latest - began > (timeout.seconds or 0.0))
                try:
                    has_received = step.receive_in_handshake(RECEIVE_SIZE)
                except OSError:
                    _check_output(connection)
                    raise
                if has_received:
                    latest = clock.now()
                else:
                    _check_output(connection)

    def _go_on(self, step: Step, connection: ShakingHands) -> bool:
        try:
            return step.shake_hands()
        finally:
            connection.handle_transport_events()

    def _extend(self, timeout: Timeout, connection: ShakingHands, *, stalled: bool) -> None:
        """Continue once more after *timeout*, if input that came in time may be received late.

        This happens after a stall of the whole process.
        """
        if not connection.is_live():  # it was stopped in the same turn
            raise ConnectionAbortedError(errno.ECONNABORTED, STOPPED) from None
        is_own = self._limit is None or timeout is self._limit
        if not is_own or self._extension is not None or not (stalled or self._step.has_input()):
            raise timeout
        self._extension = Timeout.start_new(timeout.seconds or 0.0)


def _check_output(connection: ShakingHands) -> None:
    """Raise the error of sending, if it has failed."""
    error = connection._lifecycle.output_error
    if error is not None:
        raise error
