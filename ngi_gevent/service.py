"""Services: a server with the options of its listener, for programs that make the listener."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ngi_gevent.core.checks import check_server
from ngi_gevent.interfaces import ListenOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ngi_gevent.interfaces import IServer, IServerConnection

__all__ = ["Service"]


class Service:
    """A server with the options of its listener.

    A process manager makes the listener, so the application cannot call ``listener`` with options.  It names a
    ``Service`` instead; see :class:`ngi_gevent.gunicorn.Worker`.  A service is a server itself, which tests can give to
    any ``listener``.

    :ivar server: the server.
    :ivar options: the options, a dict.
    :param server: a callable that takes the connection.
    :param options: options of :meth:`~ngi_gevent.Implementation.listener`, such as ``idle_timeout=300``.  The listener
        checks their values.
    :raises TypeError: *server* is not callable, or an option is not one of a listener.
    """

    def __init__(self, server: IServer, **options: Unpack[ListenOptions]) -> None:
        check_server(server)
        unknown = sorted(options.keys() - ListenOptions.__annotations__.keys())
        if unknown:
            raise TypeError(f"a Service takes options of a listener; got {', '.join(unknown)}")
        self.server = server
        self.options = options

    def __repr__(self) -> str:
        return f"<Service {self.server!r:.100}, options: {', '.join(self.options) or 'none'}>"

    def __call__(self, connection: IServerConnection, /) -> object:
        return self.server(connection)
