"""Adapters: connections on top of connections, that change what is read and written on its way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ngi_gevent.connection import check_handler
from ngi_gevent.interfaces import IConnection, IConnectionHandler, documented_by

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, Reason

__all__ = ["Base"]


@documented_by(IConnectionHandler)
@documented_by(IConnection)
class Base:
    """Passes everything through: the adapter to build others from.

    To its handler it is the connection, in every callback; to the connection below, it is the handler.  It has all that
    a connection has, and needs no optional method of its handler.  To change something, override what it passes by::

        class Upper(Base):
            def handle_input(self, connection, data):
                super().handle_input(connection, data.upper())  # on to the handler

            def write(self, data):
                super().write(data.upper())  # on to the connection
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._handler: Any = None

    def __bool__(self) -> bool:
        return bool(self.connection)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.connection!r}>"

    @property
    def control(self) -> Any:
        return self.connection.control

    @property
    def peer_address(self) -> Any:
        return self.connection.peer_address

    @property
    def local_address(self) -> Any:
        return self.connection.local_address

    # The connection, to the handler.

    def set_handler(self, handler: IConnectionHandler) -> None:
        check_handler(handler)
        first = self._handler is None
        self._handler = handler
        if first:
            self.connection.set_handler(self)

    def setHandler(self, handler: IConnectionHandler) -> None:  # noqa: N802 (NGI 1's spelling)
        """Deprecated: ``set_handler`` as NGI 1 spelled it."""
        warnings.warn("setHandler is deprecated: use set_handler", DeprecationWarning, stacklevel=2)
        self.set_handler(handler)

    def write(self, data: Data) -> None:
        self.connection.write(data)

    def writelines(self, data: Iterable[Data]) -> None:
        self.connection.writelines(data)

    def close(self) -> None:
        self.connection.close()

    def abort(self) -> None:
        self.connection.abort()

    def when_closed(self, callback: Callable[[], object]) -> None:
        self.connection.when_closed(callback)

    # The handler, to the connection.

    def handle_input(self, connection: Any, data: bytes) -> None:
        self._handler.handle_input(self, data)

    def handle_close(self, connection: Any, reason: Reason) -> None:
        """Tell the handler, if it cares."""
        handle_close = getattr(self._handler, "handle_close", None)
        if handle_close is not None:
            handle_close(self, reason)

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        """Tell the handler; without its ``handle_exception``, raise *exception*, which closes the connection."""
        handle_exception = getattr(self._handler, "handle_exception", None)
        if handle_exception is None:
            raise exception
        handle_exception(self, exception)
