"""Handlers written as generators: ``data = yield`` where another handler would wait to be called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from ngi_gevent.errors import ConnectionFailed

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IConnection, Reason

__all__ = ["Handler", "handler"]

#: What a handler is made of: a generator function that takes a connection, or a method that does.
GeneratorFunction: TypeAlias = (
    "Callable[[Any], Generator[None, bytes, object]] | Callable[[Any, Any], Generator[None, bytes, object]]"
)


class Handler:
    """A generator function that is a server and a client connect handler; each generator is a connection handler.

    Made by :func:`handler`.  Used on a method, it is bound as the method would be.
    """

    def __init__(
        self,
        function: GeneratorFunction,
        connection_adapter: Callable[[Any], IConnection] | None = None,
    ) -> None:
        if not callable(function):
            raise TypeError(f"a generator handler is made of a generator function; got {function!r:.100}")
        functools.update_wrapper(self, function)
        self._function: Callable[..., Generator[None, bytes, object]] = function
        self._connection_adapter = connection_adapter

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._function!r}>"

    def __get__(self, instance: object, owner: type | None = None) -> Handler:
        if instance is None:
            return self
        return Handler(self._function.__get__(instance, owner), self._connection_adapter)

    def __call__(self, connection: Any) -> _GeneratorHandler:
        """Run the generator for *connection* up to its first ``yield``, and make it the handler."""
        if self._connection_adapter is not None:
            connection = self._connection_adapter(connection)
        generator = self._function(connection)
        if not hasattr(generator, "send"):
            raise TypeError(f"a generator handler is made of a generator function; {self._function!r} is none")
        return _GeneratorHandler(generator, connection)

    def connected(self, connection: Any) -> None:
        self(connection)

    def failed_connect(self, reason: Reason) -> None:
        raise ConnectionFailed.because(reason)


class _GeneratorHandler:
    """The connection handler that resumes a generator.

    When the generator returns, the connection is closed; what it raises is for the implementation to deal with.
    """

    def __init__(self, generator: Generator[None, bytes, object], connection: Any) -> None:
        self._generator = generator
        if self._resume(connection, next, generator):
            connection.set_handler(self)

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
        raise RuntimeError(f"the generator went on after its connection had closed: {reason}")

    def _application_ended(self, connection: Any) -> None:
        """Close the generator, which still waits at a ``yield`` and gets no more input."""
        self._generator.close()

    @staticmethod
    def _resume(connection: Any, resume: Callable[..., object], *arguments: Any) -> bool:
        """Resume the generator; whether it will want more."""
        try:
            resume(*arguments)
        except StopIteration:
            connection.close()
            return False
        return True


@overload
def handler(function: GeneratorFunction, connection_adapter: Callable[[Any], IConnection] | None = None) -> Handler: ...
@overload
def handler(
    function: None = None, connection_adapter: Callable[[Any], IConnection] | None = None
) -> Callable[[GeneratorFunction], Handler]: ...
def handler(
    function: GeneratorFunction | None = None, connection_adapter: Callable[[Any], IConnection] | None = None
) -> Handler | Callable[[GeneratorFunction], Handler]:
    """Make a handler of a generator function that takes a connection: a decorator, for functions and methods.

    ``yield`` gives the next input.  It raises ``GeneratorExit(reason)`` when the connection ends otherwise than by the
    application's own ``close()`` or ``abort()``, and whatever an iterable given to ``writelines`` raised.  If the
    application ends the connection while the generator waits, the generator is closed: a plain ``GeneratorExit``, so
    that ``finally`` clauses run.  When the generator returns, the connection is closed; when it raises, that is logged,
    and the connection closed.  Everything runs on the connection's greenlet, so it may block.

    The result is a server; a client connect handler, whose ``failed_connect`` raises
    :class:`~ngi_gevent.ConnectionFailed`; and, called with a connection, gives it its connection handler.  With
    *connection_adapter*, the generator gets the connection through that adapter.
    """
    if function is None:
        return lambda function: Handler(function, connection_adapter)
    return Handler(function, connection_adapter)
