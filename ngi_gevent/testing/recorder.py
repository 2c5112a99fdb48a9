"""A handler that keeps what happens, for asserting, and that waits for it where it takes time.

In memory everything has happened when a call returns; on sockets it happens while somebody waits.  A test that waits
before it looks is the same on both::

    client.wait_connected().write(b"hello")
    client.expect(b"HELLO")
    assert client.wait_closed() == "end of input"

Each of them returns at once if what it waits for is there, fails at once if it can not come any more, and otherwise
lets the greenlets of this thread go on meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ngi_gevent.adapters import bottom
from ngi_gevent.core.threads import Flag
from ngi_gevent.errors import ConnectionFailed, Deadlock
from ngi_gevent.testing.patience import PATIENCE, is_set_in_time

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IConnection, Reason

__all__ = ["Recorder"]


class Recorder:
    """A connection handler for asserting: it keeps all that happens.  ``Recorder(connection)`` sets itself as handler.

    So the class is a server, too; and a recorder is a client connect handler that sets itself.  The ``connected`` of
    one is a server for a single client, whose recorder the test has already.

    :ivar chunks: the pieces of input, as they came; ``data`` is all of them.
    :ivar closed: why the connection ended, or None.
    :ivar exceptions: what iterables given to ``writelines`` raised.
    :ivar connection: the connection that it is the handler of; None before it was told of one.  One that was only set
        as the handler, as that of a ``testing.Connection`` is, learns it with its first callback.
    :ivar failed: why there is no connection, or None.
    :ivar gone: whether the connection is closed, everything delivered, and the last callback done.
    """

    def __init__(self, connection: Any = None) -> None:
        self.chunks: list[bytes] = []
        self.closed: Reason | None = None
        self.exceptions: list[BaseException] = []
        self.failed: Reason | None = None
        self.connection: Any = None
        self.gone = False
        self._expected = 0  # bytes of input that the test knows of
        self._flags: list[Flag] = []  # of those who wait
        if connection is not None:
            self.connected(connection)

    @property
    def data(self) -> bytes:
        """All input so far."""
        return b"".join(self.chunks)

    # Callbacks.

    def connected(self, connection: Any) -> None:
        self._meet(connection)
        connection.set_handler(self)
        self._happened()

    def failed_connect(self, reason: Reason) -> None:
        self.failed = reason
        self._happened()

    def handle_input(self, connection: Any, data: bytes) -> None:
        self._meet(connection)
        self.chunks.append(data)
        self._happened()

    def handle_close(self, connection: Any, reason: Reason) -> None:
        self._meet(connection)
        self.closed = reason
        self._happened()

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        self._meet(connection)
        self.exceptions.append(exception)
        self._happened()

    def _meet(self, connection: Any) -> None:
        if connection is not self.connection:
            self.connection = connection
            connection.when_closed(self._is_gone)

    def _is_gone(self) -> None:
        self.gone = True
        self._happened()

    def _happened(self) -> None:
        for flag in self._flags:
            flag.set()

    # Waiting.

    def wait_connected(self, timeout: float = PATIENCE) -> IConnection:
        """Wait for the connection, and return it.  Raises :class:`~ngi_gevent.ConnectionFailed` if there will be none.

        As all that waits here, it raises :class:`AssertionError` if that takes more than *timeout* seconds, or if
        nothing is left that could make it happen; and it must not be called in a callback.
        """
        self.wait_until(lambda: self.connection is not None or self.failed is not None, timeout, "a connection")
        if self.connection is None:
            raise ConnectionFailed(self.failed)
        return self.connection  # type: ignore[no-any-return]

    def expect(self, data: bytes, timeout: float = PATIENCE) -> None:
        """Wait for input: *data* is what comes next, after all that was expected before.

        What comes after it is left for the next call.  Raises :class:`AssertionError` as soon as there is something
        else, or the end.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"input is bytes; got {data!r:.100}, which can not be expected")
        data = bytes(data)
        start, end = self._expected, self._expected + len(data)

        def decided() -> bool:
            received = self.data[start:end]
            return self._ended() or len(received) == len(data) or not data.startswith(received)

        self.wait_until(decided, timeout, f"{data!r} next")
        received = self.data[start:]
        if received[: len(data)] != data:
            raise AssertionError(f"expected {data!r} next, and got {received!r}{self._end()}")
        self._expected = end

    def wait_closed(self, timeout: float = PATIENCE) -> Reason | None:
        """Wait until the connection has ended; why it did, or None if it was closed on this side."""
        self.wait_until(self._ended, timeout, "the end of the connection")
        return self.closed

    def wait_until(self, condition: Callable[[], object], timeout: float = PATIENCE, what: str = "") -> None:
        """Wait until *condition*, which is about this recorder, is true; *what* it is about goes into the failure."""
        deadline = time.monotonic() + timeout
        while True:
            flag = Flag()
            self._flags.append(flag)  # first, so that nothing is missed in between
            try:
                if condition():
                    return
                problem = self._wait(flag, deadline - time.monotonic(), timeout)
            finally:
                self._flags.remove(flag)
            if problem:
                raise AssertionError(f"expected {what or condition}, and {problem}: got {self.data!r}{self._end()}")

    def _wait(self, flag: Flag, left: float, timeout: float) -> str:
        """Wait until *flag* is set; what kept it from being set, or nothing."""
        wait = getattr(bottom(self.connection), "wait_for", None)
        try:
            return "" if is_set_in_time(flag, left, wait) else f"it did not happen in {timeout} seconds"
        except Deadlock as deadlock:
            return str(deadlock)

    def _ended(self) -> bool:
        return self.closed is not None or self.gone or self.failed is not None

    def _end(self) -> str:
        if self.failed is not None:
            return f", the connect failed: {self.failed}"
        if self.connection is None:
            return ", not connected"
        if self.closed is not None:
            return f", the connection ended: {self.closed}"
        return ", the connection is closed" if self.gone else f", the connection is open{self._unread()}"

    def _unread(self) -> str:
        """What is the matter where the other side reads nothing, and is at hand."""
        other_side = getattr(bottom(self.connection), "other_side", None)
        other = None if other_side is None else other_side()
        if other is None or other.has_handler:
            return ""
        who = "the other side" if other.control is None else "the server"
        return f", and {who} has given it no handler (see set_handler), so nothing was read"
