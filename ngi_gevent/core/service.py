"""Services: servers with the options of their listeners, for programs that make the listeners."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ngi_gevent.core.checks import check_server, format_near
from ngi_gevent.core.limits import Limits
from ngi_gevent.interfaces import ListenOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ngi_gevent.interfaces import IServer, IServerConnection

__all__ = ["Service"]

Method = TypeVar("Method", bound=Callable[..., Any])


class Service:
    """A server with the options of its listener.

    A process manager makes the listener, so the application cannot call ``listener`` with options.  Instead, the
    process manager gets the name of a ``Service``; see :class:`ngi_gevent.gunicorn.Worker`.  Each ``listener`` of this
    package takes a service in place of a server, and uses its options.  Options in the call of ``listener`` replace the
    options of the service.

    :ivar server: the server.
    :ivar options: the options, a dict.
    :param server: a callable that takes the connection.  In place of another service, its server and options are used.
    :param options: options of :meth:`~ngi_gevent.Implementation.listener`, such as ``idle_timeout=300``.  The listener
        checks their values.
    :raises TypeError: *server* is not callable, or an option is not one of a listener.
    """

    def __init__(self, server: IServer, **options: Unpack[ListenOptions]) -> None:
        _check_names(options)
        self.server, merged = parts(server, {**options})
        self.options = cast(ListenOptions, merged)

    def __repr__(self) -> str:
        return f"<Service {self.server!r:.100}, options: {', '.join(self.options) or 'none'}>"

    def __call__(self, connection: IServerConnection, /) -> object:
        return self.server(connection)


def parts(server: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the server of a service, and all options; for another server, return the arguments.

    :raises TypeError: *server* is not callable.
    """
    check_server(server)
    return (server.server, {**server.options, **options}) if isinstance(server, Service) else (server, options)


def _check_names(options: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` if *options* has a name that is not an option of a listener."""
    known = ListenOptions.__annotations__
    for name in sorted(options.keys() - known.keys()):
        if name in Limits._fields:
            hint = f"; pass limits=Limits({name}={options[name]!r:.100})"
        else:
            hint = format_near(name, known)
        raise TypeError(f"an option must be an option of listener; got {name}={options[name]!r:.100}{hint}")


def takes_service(listener: Method) -> Method:
    """Decorate the method *listener* so that it takes a service in place of a server."""

    @functools.wraps(listener)
    def call(self: Any, address: Any, server: Any, **options: Any) -> Any:
        server, options = parts(server, options)
        _check_names(options)
        return listener(self, address, server, **options)

    return cast(Method, call)
