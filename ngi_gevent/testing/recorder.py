"""A handler that keeps what happens, for asserting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason

__all__ = ["Recorder"]


class Recorder:
    """A connection handler for asserting: it keeps all that happens.  ``Recorder(connection)`` sets itself as handler.

    So the class is a server, too; and a recorder is a client connect handler that sets itself.

    :ivar chunks: the pieces of input, as they came; ``data`` is all of them.
    :ivar closed: why the connection ended, or None.
    :ivar exceptions: what iterables given to ``writelines`` raised.
    :ivar connection: the connection that it set itself on, or None.
    :ivar failed: why there is no connection, or None.
    """

    def __init__(self, connection: Any = None) -> None:
        self.chunks: list[bytes] = []
        self.closed: Reason | None = None
        self.exceptions: list[BaseException] = []
        self.failed: Reason | None = None
        self.connection: Any = None
        if connection is not None:
            self.connected(connection)

    @property
    def data(self) -> bytes:
        """All input so far."""
        return b"".join(self.chunks)

    def connected(self, connection: Any) -> None:
        self.connection = connection
        connection.set_handler(self)

    def failed_connect(self, reason: Reason) -> None:
        self.failed = reason

    def handle_input(self, connection: Any, data: bytes) -> None:
        self.chunks.append(data)

    def handle_close(self, connection: Any, reason: Reason) -> None:
        self.closed = reason

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        self.exceptions.append(exception)
