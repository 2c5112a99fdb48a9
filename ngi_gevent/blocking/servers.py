"""Servers written as functions of an input and an output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar, overload

from gevent import spawn_raw

from ngi_gevent.blocking.handler import Handler
from ngi_gevent.blocking.input import Input
from ngi_gevent.blocking.output import Output
from ngi_gevent.core import logs
from ngi_gevent.core.checks import check_returned
from ngi_gevent.core.registry import Registry
from ngi_gevent.errors import ConnectionClosed

__all__ = ["server"]

Instance = TypeVar("Instance")

_FUNCTION = "a function given to blocking.server"


@overload
def server(function: Callable[[Input, Output], object]) -> Callable[[Any], None]: ...
@overload
def server(function: Callable[[Instance, Input, Output], object]) -> Callable[[Instance, Any], None]: ...
def server(function: Callable[..., object]) -> Callable[..., None]:
    """Make a server of a function or method that takes a connection's input and output, in this order.

    For each connection, *function* runs on its own greenlet, on the hub of the connection's thread.  It can block.
    When it returns or raises, the connection is closed once all output has been delivered.

    Exceptions are logged with their traceback.  If reading or writing raised because the connection ended, or because a
    line was too long, only one line is logged.

    A peer that has finished sending can still be answered: after the end of input, the connection stays open for output
    until *function* returns or closes its output.

    In memory, *function* runs only while the caller waits on gevent, and input is not held back.

    :raises TypeError: *function* is not callable.
    """
    if not callable(function):
        raise TypeError(f"function must be callable with (input, output); got {function!r:.100}")

    @functools.wraps(function)
    def serve(*arguments: Any) -> None:
        *bound, connection = arguments  # the object of a method comes first
        handler = _FunctionHandler(connection, function)
        input, output = Input(handler), Output(handler)
        greenlet = spawn_raw(_run, functools.partial(function, *bound, input, output), connection, input, output)
        greenlet.gr_context = copy_context()

    return serve


class _FunctionHandler(Handler):
    """The handler behind the files that *function* uses."""

    def __init__(self, connection: Any, function: Callable[..., object]) -> None:
        self._function = function
        super().__init__(connection)

    def handler_name(self) -> str:
        return getattr(self._function, "__qualname__", type(self._function).__name__)


def _run(function: Callable[[], object], connection: Any, input: Input, output: Output) -> None:
    """Run *function*, and close both files.  The body of the greenlet of one connection."""
    try:
        check_returned(function(), _FUNCTION)
    except BaseException as error:
        _report(connection, error, input)
    finally:
        input.close()
        output.close()


def _report(connection: Any, error: BaseException, input: Input) -> None:
    """Log *error*, which the function of *connection* raised while it read from *input*."""
    peer = connection.peer_address
    of_connection = isinstance(error, ConnectionClosed) and not connection
    if of_connection or error is input.reason or error is input.limit_met:
        reason = (of_connection and input.reason) or error
        logs.connections.info(
            "connection with %r ended while %s was using it: %s", peer, _FUNCTION, logs.format_reason(reason)
        )
        error.__traceback__ = None  # its frames refer to the files, and the files to the error
    else:
        # As exceptions in handlers are.  Without a listener, there is only the log.
        (connection.control or Registry()).handler_raised(peer, _FUNCTION, error)
