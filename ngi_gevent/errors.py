"""What can go wrong, and whose doing it was: yours, the peer's, or time's.

Everything that this package raises on its own account derives from :class:`NGIError`.  Two kinds of mistake do not,
since Python has names for them already: an argument of the wrong type raises :class:`TypeError`, one of the right type
with an impossible value raises :class:`ValueError`, both at the call and naming the value.  What the operating system
refuses is an :class:`OSError`, as everywhere.
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
    """The root of the errors of this package."""


class ConnectionClosed(NGIError, ValueError):
    """Yours: something was written to a connection that is closing or closed.

    Raised by ``write`` and ``writelines`` of connections, and by the files of :func:`ngi_gevent.blocking.open`.  It is
    a :class:`ValueError` too, as writing to a closed file is.

    A handler need not catch it for its own connection: if it leaves a callback of that connection, it is logged at
    level DEBUG, and ``handle_close`` gets the reason for which the connection ended.  A handler that wants what had
    arrived before the end must catch it, or look at ``bool(connection)`` before it writes.

    :ivar connection: the connection that was written to, below all adapters; None if there is none to name.
    :ivar reason: why it ended, if the connection does not know that itself yet; usually None.
    """

    def __init__(self, message: object = "", connection: object = None, reason: str | BaseException | None = None):
        super().__init__(message)
        self.connection = connection
        self.reason = reason


class ImplementationClosed(NGIError, ValueError):
    """Yours: an implementation was used after its ``close()``.

    A handler that connects again at the end of its connection need not catch it: if it leaves a callback of an
    implementation that has been closed, it is logged at level DEBUG.
    """


class ListenerClosed(NGIError, ValueError):
    """Yours: a datagram was to be sent from a listener that is closed.

    Raised by the ``send`` of listeners for datagrams; ``udp`` of an open implementation goes on sending.
    """


class Deadlock(NGIError, RuntimeError):
    """Yours: waiting here could never end, since what is waited for is waiting for the caller.

    Raised, for instance, where a callback of a connection waits until that connection is gone.
    """


class WouldWait(Deadlock):
    """Yours: a callback in memory waits.

    In memory, callbacks run while the call that led to them waits, so nothing else can end a wait of theirs.  Raised at
    the wait: by the functions of gevent and of this package, and by patched functions of the standard library.
    """


class ConnectionFailed(NGIError):
    """The peer's: a connection could not be made.

    Raised by what waits for a connection: :mod:`ngi_gevent.blocking`, and the ``failed_connect`` of generator handlers.

    :ivar reason: what ``failed_connect`` was called with: an exception, most likely an :class:`OSError`, or text.
    """

    def __init__(self, reason: object) -> None:
        super().__init__(reason)
        self.reason = reason

    @classmethod
    def because(cls, reason: object) -> ConnectionFailed:
        """The error to raise for what ``failed_connect`` was called with, which may be one already."""
        return reason if isinstance(reason, ConnectionFailed) else cls(reason)


class LimitExceeded(NGIError):
    """The peer's: it took too little, or sent too much, and a limit ended the connection.

    The reason that ``handle_close`` is called with where the output that waits for the peer exceeds the listener's
    ``output_limit``, or a record the limit of :class:`ngi_gevent.adapters.Lines` or :class:`ngi_gevent.adapters.Sized`.
    Raised by who waits for input that is too long: ``readline`` without a size, and
    :func:`ngi_gevent.message.message`.
    """


class UnexpectedResponse(NGIError):
    """The peer's: it answered something else than what was expected.  Raised by :func:`ngi_gevent.message.message`."""


class Timeout(NGIError, TimeoutError):
    """Time's: something was not done within the seconds that it was given.

    Raised by what waits, and the reason that ``handle_close`` is called with after an ``idle_timeout``.  Not to be
    confused with ``gevent.Timeout``, which is no :class:`Exception`.
    """


class ConnectionTimeout(ConnectionFailed, Timeout):
    """Time's: a connection was not made within the seconds that it was given.

    What ``failed_connect`` is called with, and what is raised by who waits for a connection.
    """
