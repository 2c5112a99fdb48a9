"""Send one message, and wait for one answer."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ngi_gevent import blocking
from ngi_gevent.adapters import MAX_SIZE
from ngi_gevent.core.checks import as_bytes, check_count
from ngi_gevent.core.lifecycle import END_OF_INPUT
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
    """Connect, send *data*, and return the input up to the end, or until ``expected(answer)`` is true.

    Blocks the calling greenlet.

    :param connect: an implementation's method, such as ``ngi_gevent.connect``.
    :param expected: called with the answer so far, each time that input arrives.  The answer is not copied.  If the
        answer can be long, check only its end (``answer.endswith``), because a peer can send it a byte at a time.
    :param timeout: seconds for the whole exchange; None for no limit.
    :param max_size: bytes of the longest answer; 16 MiB by default.
    :raises UnexpectedResponse: the connection ended before ``expected(answer)`` was true, or it ended for another
        reason than ``'end of input'``, such as a closed implementation.
    :raises LimitExceeded: the answer has more than *max_size* bytes.
    :raises Exception: any exception of :func:`ngi_gevent.blocking.request`.
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
        # getvalue shares memory with the BytesIO until the next write, which copies only if that value is still in use.
        # With a bytearray, each byte that a slow peer sends would copy all of a long answer.
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
            raise LimitExceeded(f"the answer has more than {self._max_size} bytes (max_size)")
        if self._expected is not None and self._expected(self.answer.getvalue()):
            connection.close()
