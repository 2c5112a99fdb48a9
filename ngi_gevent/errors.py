"""The exceptions of this package.

All of them derive from :class:`NGIError`.  Wrong arguments raise Python's own exceptions, at the call, with a message
that shows the value: :class:`TypeError` for a wrong type, :class:`ValueError` for an invalid value.  Errors of the
operating system are :class:`OSError`, as everywhere.
"""

from __future__ import annotations

__all__ = [
    "ConnectionClosed",
    "ConnectionFailed",
    "ConnectionTimeout",
    "Deadlock",
    "ImplementationClosed",
    "LimitExceeded",
    "ListenerClosed",
    "NGIError",
    "Timeout",
    "UnexpectedResponse",
    "WouldWait",
]


class NGIError(Exception):
    """The base class of the exceptions of this package."""


class ConnectionClosed(NGIError, ValueError):
    """A write to a connection that is closing or closed, or an end of the connection before the end of its input.

    Raised by the ``write`` and ``writelines`` of connections, and by the files of :func:`ngi_gevent.blocking.open`.  It
    is also a :class:`ValueError`, like the exception for writing to a closed file.

    A handler does not need to catch it for its own connection.  If it leaves a callback of that connection, it is
    logged at level DEBUG, and ``handle_close`` gets the reason why the connection ended.  Catch it, or check
    ``bool(connection)`` before the write, to process input that arrived before the end.

    :ivar connection: the connection of the write, below all adapters; None if unknown.
    :ivar reason: why it ended, if the connection itself does not have the reason yet; usually None.
    """

    def __init__(self, message: object = "", connection: object = None, reason: str | BaseException | None = None):
        super().__init__(message)
        self.connection = connection
        self.reason = reason


class ImplementationClosed(NGIError, ValueError):
    """A call of an implementation after its ``close()``.

    A handler that connects again when its connection ends does not need to catch it.  If it leaves a callback after
    the implementation was closed, it is logged at level DEBUG.
    """


class ListenerClosed(NGIError, ValueError):
    """A datagram sent from a UDP listener that is closed.

    Raised by the ``send`` of UDP listeners.  The ``udp`` of an open implementation still sends.
    """


class Deadlock(NGIError, RuntimeError):
    """A wait that could never end.

    Either a callback waits for its own connection, where nothing happens until the callback returns.  Or the caller
    waits without a timeout, and nothing is left that could end the wait.
    """


class WouldWait(Deadlock):
    """A wait in a callback in memory.

    In memory, callbacks run within the call that caused them, so nothing else can end their waits.  Raised by the
    waiting function: one of gevent, of this package, or a patched function of the standard library.
    """


class ConnectionFailed(NGIError):
    """A connection attempt that failed.

    Raised by functions that wait for a connection, as in :mod:`ngi_gevent.blocking`, and by the ``failed_connect`` of
    generator handlers.

    :ivar reason: the argument of ``failed_connect``: an exception, most likely an :class:`OSError`, or text.
    """

    def __init__(self, reason: object) -> None:
        super().__init__(reason)
        self.reason = reason

    @classmethod
    def because(cls, reason: object) -> ConnectionFailed:
        """Return the error to raise for *reason*, the argument of ``failed_connect``; itself if it is one already."""
        return reason if isinstance(reason, ConnectionFailed) else cls(reason)


class LimitExceeded(NGIError):
    """A limit that ended the connection, because the peer sent too much, or did not read.

    The reason that ``handle_close`` gets if pending output exceeds the listener's ``output_limit``, or a record the
    limit of :class:`ngi_gevent.adapters.Lines` or :class:`ngi_gevent.adapters.Sized`.  Also raised for input that is
    too long: by ``readline`` without a size, and by :func:`ngi_gevent.message.message`.
    """


class UnexpectedResponse(NGIError):
    """An answer that is not the expected one.  Raised by :func:`ngi_gevent.message.message`."""


class Timeout(NGIError, TimeoutError):
    """A timeout that expired.

    Raised by functions that wait.  Also the reason that ``handle_close`` gets after an ``idle_timeout`` or a
    ``max_lifetime``.  It is not ``gevent.Timeout``, which does not derive from :class:`Exception`.
    """


class ConnectionTimeout(ConnectionFailed, Timeout):
    """A connection attempt that did not finish within its timeout.

    The reason that ``failed_connect`` gets.  Also raised by functions that wait for a connection.
    """
