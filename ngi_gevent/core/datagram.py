"""UDP listeners, on sockets or in memory, and the checks of their arguments."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ngi_gevent.core import logs
from ngi_gevent.core.checks import as_bytes, check_count, check_file_options, check_flag
from ngi_gevent.errors import ListenerClosed
from ngi_gevent.interfaces import IUDPListener, documented_by

if TYPE_CHECKING:
    from ngi_gevent.core.listening import ListenerOwner
    from ngi_gevent.interfaces import Data, IUDPHandler

__all__ = [
    "BUFFER_SIZE",
    "BaseDatagramListener",
    "check_datagram_handler",
    "check_datagram_options",
    "log_datagram_refusal",
]

#: Log entries for exceptions of one listener's handler in ``logs.RATE_PERIOD`` seconds.
MOST_RAISED = 10

#: The default for ``buffer_size``: bytes of the longest datagram that a listener accepts, which is the limit of UDP.
BUFFER_SIZE = 65535


def check_datagram_handler(handler: Any) -> None:
    """Check the handler of a UDP listener.

    :raises TypeError: *handler* is not callable.
    """
    if not callable(handler):
        raise TypeError(f"the handler of a UDP listener must be callable; got {handler!r:.100}")


def check_datagram_options(
    buffer_size: Any, *, reuse_port: Any = False, broadcast: Any = False, mode: Any = None, owner: Any = None
) -> None:
    """Check the options of a UDP listener.

    :raises TypeError: an option has the wrong type.
    :raises ValueError: an option has an invalid value.
    """
    check_count("buffer_size", buffer_size)
    if not buffer_size:
        raise ValueError("buffer_size must be an int >= 1; got 0, which would accept only empty datagrams")
    check_flag("reuse_port", reuse_port)
    check_flag("broadcast", broadcast)
    check_file_options(mode, owner)


@contextmanager
def log_datagram_refusal(address: Any) -> Iterator[None]:
    """Log an ``OSError`` that leaves this block, in which a UDP listener on *address* is made."""
    try:
        yield
    except OSError as error:
        logs.datagrams.warning("unable to receive datagrams on %r: %s", address, logs.format_reason(error))
        raise


@documented_by(IUDPListener)
class BaseDatagramListener:
    """The handler of a UDP listener, and its end.  See ``IUDPListener`` for the contract."""

    def __init__(self, owner: ListenerOwner, handler: IUDPHandler, buffer_size: int) -> None:
        self.address: Any = None
        self._owner = owner
        self._handler = handler
        self._buffer_size = buffer_size
        self._open = False
        self._too_long_limit = logs.RateLimit(1)
        self._raised_limit = logs.RateLimit(MOST_RAISED)

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
        """Return None, because a UDP listener has no connections."""

    def _take(self, sender: Any, length: int, data: bytes | memoryview) -> None:
        """Call the handler with a datagram of *length* bytes.  Drop it if it is longer than ``buffer_size``.

        :param data: the datagram, or its beginning if it is too long.
        """
        if length > self._buffer_size:
            logs.datagrams.warning(
                "datagram from %r dropped: %d bytes (buffer_size=%d)",
                *(sender, length, self._buffer_size),
                limit=self._too_long_limit,
            )
            return
        try:
            self._handler(sender, bytes(data))
        except BaseException as error:
            self._owner.handler_raised(sender, "the handler", error, self._log_raised)

    def _log_raised(self, sender: Any, where: str, error: BaseException, level: int = logging.ERROR) -> None:
        limit = self._raised_limit
        logs.datagrams.log(
            level, "datagram from %r: %s raised an exception", sender, where, exc_info=error, limit=limit
        )

    def _check_open(self) -> None:
        if not self._open:
            raise ListenerClosed(f"the UDP listener on {self.address!r} is closed")

    # Overridden by each kind of listener.

    def _check_send_address(self, address: Any) -> None:
        """Check *address*, or raise ``TypeError`` or ``ValueError``."""
        raise NotImplementedError

    def _send(self, address: Any, data: bytes) -> None:
        """Send *data* from the address of this listener."""
        raise NotImplementedError

    def _stop_receiving(self) -> None:
        """Stop receiving datagrams, and free the address."""
        raise NotImplementedError
