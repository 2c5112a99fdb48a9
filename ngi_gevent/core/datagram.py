"""What every listener for datagrams is, on sockets or in memory, and the checks of what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ngi_gevent.core import logs
from ngi_gevent.core.checks import as_bytes, check_count
from ngi_gevent.errors import ListenerClosed
from ngi_gevent.interfaces import IUDPListener, documented_by

if TYPE_CHECKING:
    from ngi_gevent.core.listening import ListenerOwner
    from ngi_gevent.interfaces import Data, IUDPHandler

__all__ = ["BUFFER_SIZE", "BaseDatagramListener", "check_buffer_size", "check_datagram_handler"]

#: Exceptions of one listener's handler that are logged in ``logs.RATE_PERIOD`` seconds.
MOST_RAISED = 10

#: Bytes of the longest datagram that a listener takes: as many as UDP can say that there are.
BUFFER_SIZE = 65535


def check_datagram_handler(handler: Any) -> None:
    """Raise ``TypeError``, naming *handler*, unless it can be called."""
    if not callable(handler):
        raise TypeError(f"a handler of datagrams is called with each of them; got {handler!r:.100}, which is not")


def check_buffer_size(size: Any) -> None:
    """Raise unless *size* is a whole number from 1."""
    check_count("buffer_size", size)
    if not size:
        raise ValueError("buffer_size is a whole number from 1; got 0, which would take no datagram but an empty one")


@documented_by(IUDPListener)
class BaseDatagramListener:
    """A listener for datagrams, its handler, and its end.  See ``IUDPListener`` for the contract."""

    def __init__(self, owner: ListenerOwner, handler: IUDPHandler, buffer_size: int) -> None:
        self.address: Any = None
        self._owner = owner
        self._handler = handler
        self._buffer_size = buffer_size
        self._open = False
        self._long = logs.RateLimit(1)
        self._raised = logs.RateLimit(MOST_RAISED)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.address!r}, {'open' if self._open else 'closed'}>"

    def send(self, address: Any, data: Data) -> None:
        self._check_send_address(address)
        data = as_bytes(data)
        self._check_open()
        self._send(address, data)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._stop_receiving()

    def stop(self) -> None:
        self.close()

    def unsent_size(self) -> None:
        """Return None: it has no connections."""

    def _take(self, sender: Any, length: int, data: bytes | memoryview) -> None:
        """Give a datagram of *length* bytes to the handler; *data* may be less, if it is longer than it may be."""
        if length > self._buffer_size:
            logs.datagrams.warning(
                "a datagram from %r was dropped: its %d bytes are more than the buffer_size of %d",
                *(sender, length, self._buffer_size),
                limit=self._long,
            )
            return
        try:
            self._handler(sender, bytes(data))
        except BaseException as error:
            self._owner.handler_raised(sender, "the handler of datagrams", error, self._raised)

    def _check_open(self) -> None:
        if not self._open:
            raise ListenerClosed(f"the listener for datagrams on {self.address!r} is closed, and sends nothing")

    # What a kind of listener adds.

    def _check_send_address(self, address: Any) -> None:
        """Raise ``TypeError`` or ``ValueError``, naming *address*, unless one could send a datagram to it."""
        raise NotImplementedError

    def _send(self, address: Any, data: bytes) -> None:
        """Send *data* from the address of this listener."""
        raise NotImplementedError

    def _stop_receiving(self) -> None:
        """Receive no more datagrams, and free the address."""
        raise NotImplementedError
