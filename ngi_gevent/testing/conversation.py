"""A conversation with a server in memory: pieces of input, and the answer to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent

from ngi_gevent.core.threads import get_hub_if_exists
from ngi_gevent.testing.memory.implementation import Implementation
from ngi_gevent.testing.memory.turns import MemoryRegistry
from ngi_gevent.testing.recorder import Recorder

if TYPE_CHECKING:
    from ngi_gevent.core.logs import LogRaised
    from ngi_gevent.interfaces import IServer

__all__ = ["Answer", "Conversation", "NotRead", "converse"]


class NotRead(AssertionError):
    """A server left a connection open without a handler, so it read no input."""


class Answer(NamedTuple):
    """The answer of a server."""

    #: All output of the server, including output after the client had finished.
    data: bytes
    #: Why the connection ended before the client ended it, as text, or None.
    closed: str | None


def converse(server: IServer, pieces: Iterable[bytes], *, reset: bool = False) -> Answer:
    """Send *pieces* to *server* in memory, each in a separate callback, and return the answer.

    Then the client finishes, and still receives the server's output.  If the server ends the connection earlier, the
    remaining pieces are not sent.  After each piece, the greenlets of this thread run until they wait; this does not
    wait for timers.  An exception in a handler is raised here.

    :param reset: reset the connection instead of finishing.
    :raises AssertionError: something was sent, and the server left the connection open without a handler.
    """
    if isinstance(pieces, (bytes, bytearray, memoryview, str)):
        raise TypeError(f"pieces must be a list of bytes, such as [{pieces!r:.100}]; got {pieces!r:.100}")
    conversation = Conversation(server)
    for piece in pieces:
        conversation.send(piece)
    closed = conversation.answer().closed
    conversation.end(reset)
    return Answer(conversation.answer().data, closed)


class Conversation:
    """A client of *server* in memory.  Exceptions in handlers are raised by the methods of this class."""

    def __init__(self, server: IServer) -> None:
        self._implementation = _Raising()
        self._client = Recorder()
        self._implementation.listener(None, server).connect(self._client)
        self._settle()

    def send(self, piece: bytes) -> None:
        """Send *piece*, and return once the server has handled it."""
        if self._client.connection:
            self._client.connection.write(piece)
            self._settle()

    def answer(self) -> Answer:
        """Return the answer so far."""
        closed = self._client.closed
        return Answer(self._client.data, None if closed is None else str(closed))

    def end(self, reset: bool = False) -> None:
        """Finish, or reset the connection.  Raises :class:`NotRead` if the server has read no input."""
        unread = self._client.connection.unsent_size()  # only a server without a handler leaves input unread
        if reset:
            self._client.connection.abort()
        else:
            self._client.connection.write_eof()  # not close, after which no answer would arrive
        self._settle()
        self._implementation.close()
        self._settle()
        if unread:
            raise NotRead("the server set no handler, so nothing was read; call connection.set_handler")

    def _settle(self) -> None:
        if get_hub_if_exists() is not None:
            gevent.idle()
        self._implementation.raise_error()


class _Raising(Implementation):
    """An implementation in memory that raises the exceptions of handlers to its caller instead of logging them."""

    _error: BaseException | None = None

    def _make_registry(self) -> MemoryRegistry:
        return MemoryRegistry(self._turns, self._keep)

    def _keep(self, registry: Any, peer: Any, where: str, error: BaseException, log: LogRaised) -> None:
        self._error = self._error or error

    def raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
