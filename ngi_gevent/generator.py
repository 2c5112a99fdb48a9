"""Handlers written as generators, which receive input with ``data = yield``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from ngi_gevent.core.callbacks import give_handler
from ngi_gevent.errors import ConnectionFailed

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IConnection, Reason

__all__ = ["Handler", "handler"]

#: The type of functions for ``handler``: generator functions and methods that take a connection.
GeneratorFunction: TypeAlias = (
    "Callable[[Any], Generator[None, bytes, object]] | Callable[[Any, Any], Generator[None, bytes, object]]"
)


class Handler:
    """A server and client connect handler that runs a generator function.  Each generator is a connection handler.

    Made by :func:`handler`.  As an attribute of a class, it binds as a method does.
    """

    def __init__(
        self,
        function: GeneratorFunction,
        connection_adapter: Callable[[Any], IConnection] | None = None,
        *,
        eof: bool = False,
    ) -> None:
        if not callable(function):
            raise TypeError(f"a generator handler must be a generator function; got {function!r:.100}")
        functools.update_wrapper(self, function)
        self._function: Callable[..., Generator[None, bytes, object]] = function
        self._connection_adapter = connection_adapter
        self._eof = eof

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._function!r}>"

    def __get__(self, instance: object, owner: type | None = None) -> Handler:
        if instance is None:
            return self
        return Handler(self._function.__get__(instance, owner), self._connection_adapter, eof=self._eof)

    def __call__(self, connection: Any) -> _GeneratorHandler:
        """Run the generator for *connection* up to its first ``yield``, and make it the handler."""
        if self._connection_adapter is not None:
            connection = self._connection_adapter(connection)
        generator = self._function(connection)
        if not hasattr(generator, "send"):
            raise TypeError(f"a generator handler must be a generator function; got {self._function!r:.100}")
        return (_EOFGeneratorHandler if self._eof else _GeneratorHandler)(generator, connection)

    def connected(self, connection: Any) -> None:
        self(connection)

    def failed_connect(self, reason: Reason) -> None:
        raise ConnectionFailed.because(reason)


class _GeneratorHandler:
    """The connection handler that resumes a generator.

    When the generator returns, the connection is closed.  The implementation handles its exceptions.
    """

    def __init__(self, generator: Generator[None, bytes, object], connection: Any) -> None:
        self._generator = generator
        if self._resume(connection, next, generator):
            give_handler(connection, self)

    def handler_name(self) -> str:
        """Return the name of the generator's function, for logs."""
        return getattr(self._generator, "__qualname__", type(self._generator).__name__)

    def handle_input(self, connection: Any, data: bytes) -> None:
        self._resume(connection, self._generator.send, data)

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        self._resume(connection, self._generator.throw, exception)

    def handle_close(self, connection: Any, reason: Reason) -> None:
        try:
            self._generator.throw(GeneratorExit(reason))
        except (GeneratorExit, StopIteration):
            return
        self._generator.close()
        raise RuntimeError(f"the generator did not end when its connection closed: {reason}; let GeneratorExit pass")

    def _application_ended(self, connection: Any) -> None:
        """Close the generator, which waits at a ``yield`` for input that will not come."""
        self._generator.close()

    @staticmethod
    def _resume(connection: Any, resume: Callable[..., object], *arguments: Any) -> bool:
        """Resume the generator.  If it returns, close the connection, and return False."""
        try:
            resume(*arguments)
        except StopIteration:
            connection.close()
            return False
        return True


class _EOFGeneratorHandler(_GeneratorHandler):
    """The connection handler of a generator that handles the end of input, and can write after it."""

    def handle_eof(self, connection: Any) -> None:
        self._resume(connection, self._generator.send, b"")


@overload
def handler(
    function: GeneratorFunction,
    connection_adapter: Callable[[Any], IConnection] | None = None,
    *,
    eof: bool = False,
) -> Handler: ...
@overload
def handler(
    function: None = None, connection_adapter: Callable[[Any], IConnection] | None = None, *, eof: bool = False
) -> Callable[[GeneratorFunction], Handler]: ...
def handler(
    function: GeneratorFunction | None = None,
    connection_adapter: Callable[[Any], IConnection] | None = None,
    *,
    eof: bool = False,
) -> Handler | Callable[[GeneratorFunction], Handler]:
    """Make a handler of a generator function that takes a connection.  A decorator for functions and methods.

    In the generator, ``yield`` returns the next input.  It raises:

    * ``GeneratorExit(reason)`` when the connection ends, and the application did not close or abort it;
    * the exception of an iterable that was given to ``writelines``;
    * a plain ``GeneratorExit`` when the application ends the connection while the generator waits, so that ``finally``
      clauses run.

    When the generator returns, the connection is closed.  When it raises, the exception is logged, and the connection
    is closed.  The generator runs on the connection's greenlet, and can block.

    The result is a server.  It is also a client connect handler, whose ``failed_connect`` raises
    :class:`~ngi_gevent.ConnectionFailed`.  You can also call it with a connection, to set a new generator as its
    handler.

    :param function: the generator function; without it, this returns a decorator.
    :param connection_adapter: called with the connection; the generator gets the result instead.
    :param eof: whether ``yield`` returns ``b''`` when the peer has finished sending.  The connection then stays open
        for output until the generator returns.  By default, the end of input closes the connection.
    :raises TypeError: *function* is not callable.
    """
    if function is None:
        return lambda function: Handler(function, connection_adapter, eof=eof)
    return Handler(function, connection_adapter, eof=eof)
