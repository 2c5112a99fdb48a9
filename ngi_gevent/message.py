"""One message there, one answer back."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ngi_gevent import blocking
from ngi_gevent.adapters import MAX_SIZE
from ngi_gevent.core.connection import END_OF_INPUT, as_bytes, check_count
from ngi_gevent.errors import LimitExceeded, UnexpectedResponse

if TYPE_CHECKING:
    from ngi_gevent.blocking import AnyAddress
    from ngi_gevent.interfaces import Data, IClientConnectHandler

__all__ = ["message"]


def message(
    connect: Callable[[AnyAddress, IClientConnectHandler], object],
    address: AnyAddress,
    data: Data,
    expected: Callable[[bytes], object] | None = None,
    timeout: float | None = None,
    *,
    max_size: int = MAX_SIZE,
) -> bytes:
    """Connect, send *data*, and return the answer: all of it up to the end, or up to when ``expected(answer)`` is true.

    *connect* is that of an implementation.  Blocks the calling greenlet, for up to *timeout* seconds.  *expected* is
    called whenever more has arrived, with the answer so far, which is not copied for that.  If the answer can be long,
    look at its end only (``answer.endswith``), since a peer can send it a byte at a time.

    Raises what :func:`ngi_gevent.blocking.request` does, and :class:`~ngi_gevent.UnexpectedResponse` if the peer ended
    the connection before the answer was as expected, or if the connection ended in another way, such as by the close of
    its implementation, and :class:`~ngi_gevent.LimitExceeded` if it sent more than *max_size* bytes, by default 16 MiB.
    """
    check_count("max_size", max_size)
    asked = _Message(as_bytes(data), expected, max_size)
    reason = blocking.request(connect, address, asked, timeout)
    if reason is None or (expected is None and reason == END_OF_INPUT):
        return asked.answer.getvalue()
    raise UnexpectedResponse(f"the connection ended ({reason}) after the answer {asked.answer.getvalue()[:200]!r:.200}")


class _Message:
    """The handler that sends the message and collects the answer."""

    def __init__(self, data: bytes, expected: Callable[[bytes], object] | None, max_size: int) -> None:
        # Its getvalue shares its memory, which the next write goes on with unless something still refers to that value.
        # With a bytearray, all of a long answer would be copied for each byte that a slow peer sends.
        self.answer = io.BytesIO()
        self._data = data
        self._expected = expected
        self._max_size = max_size

    def connected(self, connection: Any) -> None:
        connection.set_handler(self)
        connection.write(self._data)

    def handle_input(self, connection: Any, data: bytes) -> None:
        self.answer.write(data)
        if self.answer.tell() > self._max_size:
            raise LimitExceeded(f"the answer is of more than max_size, {self._max_size} bytes")
        if self._expected is not None and self._expected(self.answer.getvalue()):
            connection.close()
