"""A handler that records events for assertions, and that can wait for them.

In memory, everything has happened when a call returns.  On sockets, it happens while the test waits.  A test that waits
before it checks is the same for both::

    client.wait_connected().write(b"hello")
    client.expect(b"HELLO")
    assert client.wait_closed() == "end of input"

Each of these calls returns at once if the event has already happened.  Otherwise, the greenlets of this thread run
until it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ngi_gevent.adapters import bottom
from ngi_gevent.core import clock
from ngi_gevent.core.checks import as_timeout
from ngi_gevent.core.threads import WAITS_FOR_ITSELF, Flag
from ngi_gevent.errors import ConnectionFailed, Deadlock, WouldWait

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IConnection, Reason

__all__ = ["Recorder"]

#: Seconds in which each event that a test waits for happens, even on a busy machine.
PATIENCE = 10.0

#: The description of the event for which ``wait_closed`` waits.
END = "the end of the connection"

#: A likely cause why a connection in memory does not end.
NO_TIME = " (in memory, idle_timeout and max_lifetime never expire; use test_close, or a simulation)"

#: Bytes of the data that a failure shows.
SHOWN = 2000


class Recorder:
    """A connection handler for assertions, which records everything.

    ``Recorder(connection)`` sets itself as the handler, so the class is also a server.  A recorder is also a client
    connect handler that sets itself.  Its method ``connected`` is a server for a single client.

    :ivar chunks: the pieces of input, as they arrived; ``data`` is all of them.
    :ivar closed: why the connection ended, or None.
    :ivar exceptions: exceptions of iterables given to ``writelines``.
    :ivar connection: the connection that it handles, or None.  If the recorder was only set as the handler, as for a
        ``testing.Connection``, this is set by the first callback.
    :ivar failed: why the connection attempt failed, or None.
    :ivar gone: whether the connection is closed, all output has been delivered, and the last callback has returned.
    """

    def __init__(self, connection: Any = None) -> None:
        self.chunks: list[bytes] = []
        self.closed: Reason | None = None
        self.exceptions: list[BaseException] = []
        self.failed: Reason | None = None
        self.connection: Any = None
        self.gone = False
        self._expected = 0  # bytes of input that the test has already expected
        self._flags: list[Flag] = []  # flags of waiting callers
        if connection is not None:
            self.connected(connection)

    @property
    def data(self) -> bytes:
        """All input so far."""
        return b"".join(self.chunks)

    # Callbacks.

    def connected(self, connection: Any) -> None:
        self._set_connection(connection)
        connection.set_handler(self)
        self._wake()

    def failed_connect(self, reason: Reason) -> None:
        self.failed = reason
        self._wake()

    def handle_input(self, connection: Any, data: bytes) -> None:
        self._set_connection(connection)
        self.chunks.append(data)
        self._wake()

    def handle_close(self, connection: Any, reason: Reason) -> None:
        self._set_connection(connection)
        self.closed = reason
        self._wake()

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        self._set_connection(connection)
        self.exceptions.append(exception)
        self._wake()

    def _set_connection(self, connection: Any) -> None:
        if connection is not self.connection:
            self.connection = connection
            connection.when_closed(self._set_gone)

    def _set_gone(self) -> None:
        self.gone = True
        self._wake()

    def _wake(self) -> None:
        """Make waiting callers check their conditions."""
        for flag in self._flags:
            flag.set()

    # Waiting.

    def wait_connected(self, timeout: float | None = PATIENCE) -> IConnection:
        """Wait for the connection, and return it.

        All methods that wait raise :class:`AssertionError` after *timeout* seconds; None means no limit.  In a callback
        of the connection they raise it at once, since nothing more happens before that callback returns.

        :raises ConnectionFailed: the connection attempt failed.
        """
        self.wait_until(lambda: self.connection is not None or self.failed is not None, timeout, "a connection")
        if self.connection is None:
            raise ConnectionFailed(self.failed)
        return self.connection  # type: ignore[no-any-return]

    def expect(self, data: bytes, timeout: float | None = PATIENCE) -> None:
        """Wait until *data* arrives, after all input that was already expected.

        Input after *data* is left for the next call.

        :raises AssertionError: other input, or the end, arrives.  It is raised as soon as that happens.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"expected input must be bytes; got {data!r:.100}")
        data = bytes(data)
        start, end = self._expected, self._expected + len(data)

        def is_decided() -> bool:
            received = self.data[start:end]
            return self._has_ended() or len(received) == len(data) or not data.startswith(received)

        self.wait_until(is_decided, timeout, f"{data!r} next")
        received = self.data[start:]
        if received[: len(data)] != data:
            raise AssertionError(f"expected {data!r} next; got {received!r}{self._format_state()}")
        self._expected = end

    def wait_closed(self, timeout: float | None = PATIENCE) -> Reason | None:
        """Wait until the connection has ended, and return the reason; None if this side closed it."""
        self.wait_until(self._has_ended, timeout, END)
        return self.closed

    def wait_until(self, condition: Callable[[], object], timeout: float | None = PATIENCE, what: str = "") -> None:
        """Wait until *condition*, which is about this recorder, is true.  *what* describes it in the message of a
        failure.
        """
        timeout = as_timeout(timeout)
        deadline = clock.deadline_after(timeout)
        while True:
            flag = Flag()
            self._flags.append(flag)  # before the check, so that no event is missed between check and wait
            try:
                if condition():
                    return
                problem = self._wait(flag, deadline, timeout, what)
            finally:
                self._flags.remove(flag)
            if problem and not condition():
                raise AssertionError(f"expected {what or condition}, but {problem}; {self._format_data()}")

    def _wait(self, flag: Flag, deadline: float | None, timeout: float | None, what: str) -> str:
        """Wait until *flag* is set.  Return the reason if it was not set, otherwise an empty string."""
        connection = bottom(self.connection)
        is_in_callback = getattr(connection, "is_in_callback", bool)
        if is_in_callback():
            return WAITS_FOR_ITSELF
        wait: Callable[[Flag, float | None], bool] = getattr(connection, "wait_for", Flag.wait)
        try:
            if wait(flag, clock.left_until(deadline)):
                return ""
        except WouldWait:
            raise
        except Deadlock:
            is_over = True
        else:
            is_over = deadline is not None and clock.now() < deadline
        if not is_over:
            return f"{self._format_cause()}it did not happen in {timeout} seconds"
        hint = NO_TIME if what == END and hasattr(connection, "peer") else ""
        return f"{self._format_cause()}nothing is left that can make it happen{hint}"

    def _format_cause(self) -> str:
        """Return the likely cause why nothing was received, or nothing."""
        connection = bottom(self.connection)
        if self.chunks or self.closed is not None or not connection:
            return ""
        side = "server" if getattr(connection, "control", None) is None else "client"
        peer = getattr(connection, "peer", None)  # in memory
        if peer is None:
            return f"perhaps the {side} set no handler (set_handler): "
        return "" if peer._handler is not None else f"the {side} set no handler (set_handler), so it reads nothing: "

    def _format_data(self) -> str:
        data = self.data
        shown = f"got {data!r}" if len(data) <= SHOWN else f"got {len(data)} bytes, the last of them {data[-SHOWN:]!r}"
        return f"{shown}{self._format_state()}"

    def _has_ended(self) -> bool:
        return self.closed is not None or self.gone or self.failed is not None

    def _format_state(self) -> str:
        if self.failed is not None:
            return f", the connection attempt failed: {self.failed}"
        if self.connection is None:
            return ", not connected"
        if self.closed is not None:
            return f", the connection ended: {self.closed}"
        if self.gone:
            return ", the connection is closed"
        return f", the connection is open: {self.connection!r}"
