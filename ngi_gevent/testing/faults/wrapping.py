"""An implementation around another one, whose connections are adapters. It is the base of the leak check and of the
faults.

Each wrapping object passes on the attributes that it does not define: those are the wrapped object's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ngi_gevent.adapters import Base
from ngi_gevent.core.checks import check_client_handler
from ngi_gevent.core.service import parts
from ngi_gevent.interfaces import IImplementation, IListener, IUDPListener, documented_by

if TYPE_CHECKING:
    from typing_extensions import Self

    from ngi_gevent.interfaces import Data, IClientConnectHandler, IServer, IUDPHandler

__all__ = [
    "WrappingClient",
    "WrappingConnection",
    "WrappingDatagramListener",
    "WrappingImplementation",
    "WrappingListener",
]


class WrappingConnection(Base):
    """A connection around another one, with the wrapped listener as its ``control``."""

    def __init__(self, connection: Any, control: WrappingListener | None) -> None:
        super().__init__(connection)
        self._control = control

    def __getattr__(self, name: str) -> Any:
        if name == "connection":  # this object is being made or copied
            raise AttributeError(name)
        return getattr(self.connection, name)

    @property
    def control(self) -> Any:
        return self._control

    def run_callback(self, call: Callable[..., object], *arguments: Any) -> object:
        """Call the application."""
        return call(*arguments)


class WrappingClient:
    """A client connect handler around another one, which receives the wrapped connection."""

    def __init__(self, implementation: WrappingImplementation, handler: Any) -> None:
        self._implementation = implementation
        self._handler = handler

    def __getattr__(self, name: str) -> Any:
        if name == "_handler":
            raise AttributeError(name)
        return getattr(self._handler, name)

    def connected(self, connection: Any) -> object:
        wrapped = self._wrap(connection)
        return wrapped.run_callback(self._handler.connected, wrapped)

    def failed_connect(self, reason: Any) -> object:
        return self._handler.failed_connect(reason)

    def _wrap(self, connection: Any) -> WrappingConnection:
        return self._implementation.wrap(connection, None)


class _AroundListener:
    """An object around a listener of either kind, with all its attributes."""

    def __init__(self, listener: Any) -> None:
        #: The wrapped listener.
        self.listener = listener

    def __repr__(self) -> str:
        return f"<{type(self).__name__} around {self.listener!r}>"

    def __getattr__(self, name: str) -> Any:
        if name == "listener":
            raise AttributeError(name)
        return getattr(self.listener, name)

    @property
    def address(self) -> Any:
        return self.listener.address


@documented_by(IListener)
class WrappingListener(_AroundListener):
    """A listener around another one."""

    def __init__(self, implementation: WrappingImplementation, server: IServer) -> None:
        super().__init__(None)  # set with the first connection, or when the call that makes the listener returns
        self._implementation = implementation
        self._server = server
        self._connections: dict[Any, WrappingConnection] = {}

    def connections(self) -> Iterator[Any]:
        # A connection that was accepted a moment ago may not be wrapped yet.
        wrapped = map(self._connections.get, self.listener.connections())
        return iter([connection for connection in wrapped if connection is not None])

    def connect(self, handler: IClientConnectHandler | None = None, *arguments: Any, **options: Any) -> Any:
        if handler is None:
            return self.listener.connect(None, *arguments, **options)
        check_client_handler(handler)
        return self.listener.connect(self._implementation.wrap_client(handler), *arguments, **options)

    def close(self, handler: Callable[[Any], object] | None = None) -> None:
        if callable(handler):
            self.listener.close(lambda _: handler(self))
        else:
            self.listener.close(handler)

    def close_wait(self, timeout: float | None = None) -> int:
        return self.listener.close_wait(timeout)  # type: ignore[no-any-return]

    def could_not_listen(self) -> None:
        """Forget that this listener was about to be made: the call failed."""

    def serve(self, connection: Any) -> object:
        """Pass a new *connection* to the server, in place of the wrapped listener's server."""
        self.listener = connection.control  # on another thread, the call that makes the listener may not have returned
        wrapped = self._connections[connection] = self._implementation.wrap(connection, self)
        connection.when_closed(lambda: self._connections.pop(connection, None))
        return wrapped.run_callback(self._server, wrapped)


@documented_by(IUDPListener)
class WrappingDatagramListener(_AroundListener):
    """A UDP listener around another one."""

    def send(self, address: Any, data: Data) -> None:
        self.listener.send(address, data)

    def close(self) -> None:
        self.listener.close()


@documented_by(IImplementation)
class WrappingImplementation:
    """An implementation around *implementation*."""

    def __init__(self, implementation: Any) -> None:
        #: The wrapped implementation.
        self.implementation = implementation

    def __repr__(self) -> str:
        return f"<{type(self).__name__} around {self.implementation!r}>"

    def __getattr__(self, name: str) -> Any:
        if name == "implementation":
            raise AttributeError(name)
        return getattr(self.implementation, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.implementation.__exit__(*raised)

    def connect(self, address: Any, handler: IClientConnectHandler, **options: Any) -> None:
        check_client_handler(handler)
        self.implementation.connect(address, self.wrap_client(handler), **options)

    def listener(self, address: Any, server: IServer, **options: Any) -> Any:
        server, options = parts(server, options)
        wrapping = self.wrap_listener(server)
        try:
            wrapping.listener = self.implementation.listener(address, wrapping.serve, **options)
        except BaseException:
            wrapping.could_not_listen()
            raise
        return wrapping

    def udp(self, address: Any, data: Data) -> None:
        self.implementation.udp(address, data)

    def udp_listener(self, address: Any, handler: IUDPHandler, *arguments: Any, **options: Any) -> Any:
        return self.wrap_datagram_listener(self.implementation.udp_listener(address, handler, *arguments, **options))

    def wait(self, timeout: float | None = None) -> None:
        self.implementation.wait(timeout)

    def close(self) -> None:
        self.implementation.close()

    # The wrapping objects, for subclasses to replace.

    def wrap(self, connection: Any, control: WrappingListener | None) -> WrappingConnection:
        """Return a connection around *connection*, which the listener *control* accepted. *control* is None for a
        client connection.
        """
        return WrappingConnection(connection, control)

    def wrap_listener(self, server: IServer) -> WrappingListener:
        """Return a listener around a listener that is about to be made."""
        return WrappingListener(self, server)

    def wrap_datagram_listener(self, listener: Any) -> WrappingDatagramListener:
        """Return a UDP listener around *listener*."""
        return WrappingDatagramListener(listener)

    def wrap_client(self, handler: IClientConnectHandler) -> WrappingClient:
        """Return a client connect handler around *handler*."""
        return WrappingClient(self, handler)
